"""Text that may come from file names, which may hold anything."""

from __future__ import annotations

__all__ = ["visible"]


def visible(text: str) -> str:
    """Return text with control characters, direction marks and lone surrogates escaped; lines stay lines."""
    return "".join(c if c == "\n" or c.isprintable() else repr(c)[1:-1] for c in text)
