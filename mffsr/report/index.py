"""The index page of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mffsr.report.card import Card
from mffsr.report.html import document, duration, image, name, text

__all__ = ["Entry", "index_page"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What became of one bracket."""

    bracket: str
    event: str  # "done", "failed" or "skipped"
    link: str = ""  # address of its page, relative to the index; empty where there is none
    reason: str = ""  # why it failed or was skipped
    card: Card | None = None  # of its page


def index_page(title: str, entries: Sequence[Entry], command: str) -> str:
    """Return the HTML page that leads to the pages of a batch."""
    counts = [(sum(e.event == event for e in entries), event) for event in ("done", "failed", "skipped")]
    facts = " <i>·</i> ".join(f"<span>{count} {event}</span>" for count, event in counts if count)
    order = {"failed": 0, "done": 1, "skipped": 1}
    cards = "".join(_card(entry) for entry in sorted(entries, key=lambda e: order[e.event]))
    body = f"""<header><p class="over">Focus brackets</p><h1><bdi>{text(title)}</bdi></h1>
<p class="lede">{facts or "no brackets"}</p></header>
<main><ul class="cards">{cards}</ul>
<section><h2>How it was made</h2><pre tabindex="0"><code>{text(command)}</code></pre></section></main>"""
    return document(title, body)


def _card(entry: Entry) -> str:
    title = f"<h2><bdi>{text(entry.bracket)}</bdi></h2>"
    picture = image(entry.card.cover, "") if entry.card else '<span class="blank"></span>'
    lines = [text(entry.reason)] if entry.reason else []
    if entry.card is not None:
        card = entry.card
        lines.append(
            f"{card.photos} photos → {card.width} × {card.height}, {card.depth} bits, "
            f"{duration(card.seconds)}"
        )
        lines.append(name(card.output))
        if card.warnings:
            word = "warning" if card.warnings == 1 else "warnings"
            lines.append(f'<span class="badge">{card.warnings} {word}</span>')
    inside = f"{picture}{title}" + "".join(f"<p>{line}</p>" for line in lines)
    if entry.link:
        inside = f'<a href="{text(entry.link)}">{inside}</a>'
    return f'<li class="{entry.event}">{inside}</li>'
