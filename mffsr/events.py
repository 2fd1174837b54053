"""What the engine tells while it works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Events"]


@dataclass(frozen=True, kw_only=True)
class Events:
    """What the engine tells while it works; everything is optional."""

    progress: Callable[[str, int, int], None] = lambda stage, done, total: None
    warning: Callable[[str], None] = lambda text: None  # something the user should look at
