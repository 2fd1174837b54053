"""What an index page shows of a bracket: it lies, machine-readable, at the beginning of the bracket's page.

So an index can be made again at any time, of pages that an earlier run or another machine wrote.
"""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path
from typing import NamedTuple

from mffsr.report.html import MARK
from mffsr.report.pictures import Picture

__all__ = ["Card", "card_html", "is_ours", "read_card"]

_HEAD = 400_000  # bytes in which a card ends: a cover, which may be noise, takes 280 kB at most
_CARD = re.compile(r'<meta name="mffsr-card" content="([^"]*)">')


class Card(NamedTuple):
    """A bracket in short."""

    output: str
    width: int
    height: int
    depth: int
    photos: int
    warnings: int
    seconds: float
    cover: Picture


def card_html(card: Card) -> str:
    """Return the element that keeps a card."""
    cover = [base64.b64encode(card.cover.data).decode(), card.cover.width, card.cover.height]
    content = html.escape(json.dumps([*card[:-1], cover]))
    return f'<meta name="mffsr-card" content="{content}">'


def read_card(page: Path) -> Card | None:
    """Return the card of a page, None where there is none to be read."""
    found = _CARD.search(_head(page))
    if not found:
        return None
    try:
        *facts, (data, across, down) = json.loads(html.unescape(found[1]))
        output, width, height, depth, photos, warnings, seconds = facts
        cover = Picture(base64.b64decode(data), int(across), int(down))
        return Card(
            str(output),
            int(width),
            int(height),
            int(depth),
            int(photos),
            int(warnings),
            float(seconds),
            cover,
        )
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None


def is_ours(path: Path) -> bool:
    """Whether a file is a page that mffsr wrote."""
    return MARK in _head(path)


def _head(page: Path) -> str:
    try:
        if not page.is_file():  # a pipe would be waited for
            return ""
        with page.open("rb") as stream:
            return stream.read(_HEAD).decode("utf-8", "replace")
    except OSError:
        return ""
