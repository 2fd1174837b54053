"""Pieces of HTML: everything that is not ours passes through `text`.

The pages' own style and script are allowed by their digests (Content-Security-Policy), so that a
forgotten escape could not run as one, and the policy lets a page load nothing from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
from functools import cache
from pathlib import Path
from string import Template

from mffsr import __version__
from mffsr.report.pictures import Picture
from mffsr.text import visible

__all__ = ["MARK", "document", "duration", "image", "name", "resource", "text"]

MARK = '<meta name="generator" content="mffsr'  # near the start of every page that is ours


def text(value: object) -> str:
    """Return a value as HTML text, safe in content and in attributes."""
    return html.escape(visible(str(value)), quote=True)


def name(path: str) -> str:
    """Return a file's name; its whole path is told on hovering. Isolated, whatever its writing direction."""
    return f'<bdi title="{text(path)}">{text(Path(path).name)}</bdi>'


def image(picture: Picture | bytes, alt: str, attributes: str = "") -> str:
    """Return an <img> with its pixels inside: a JPEG, or the bytes of a PNG; `attributes` are HTML."""
    kind, data = ("png", picture) if isinstance(picture, bytes) else ("jpeg", picture.data)
    size = "" if isinstance(picture, bytes) else f' width="{picture.width}" height="{picture.height}"'
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return f'<img src="{uri}" alt="{text(alt)}"{size} draggable="false" {attributes}>'


@cache
def resource(file: str) -> str:
    """Return a file that lies beside this one."""
    return Path(__file__).with_name(file).read_text(encoding="utf-8")


def document(title: str, body: str, *, head: str = "", style: str = "", script: str = "") -> str:
    """Return a whole page. `body` and `head` are HTML; `style` is added to the common one."""
    css = resource("page.css") + style
    return Template(resource("page.html")).substitute(
        mark=f'{MARK} {text(__version__)}">',
        style_digest=_digest(css),
        script_digest=_digest(script),
        title=text(title),
        head=head,
        style=css,
        body=body,
        script=script,
    )


def duration(seconds: float) -> str:
    """Return a time as one reads it."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
