"""Names of files: they may hold anything, and numbers in them count as numbers."""

from __future__ import annotations

import re

__all__ = ["natural", "visible"]


def visible(text: str) -> str:
    """Return text with control characters, direction marks and lone surrogates escaped; lines stay lines."""
    return "".join(c if c == "\n" or c.isprintable() else repr(c)[1:-1] for c in text)


def natural(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key in which numbers count as numbers: 2 before 10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(p), p) if p.isdecimal() and p.isascii() else (1, 0, p.casefold()) for p in parts if p]
