"""Writes the tables of options in README.md, from the program itself: python docs/options.py

A test fails while they differ. The tables stand between `<!-- options: COMMAND -->` and `<!-- end -->`.
"""

from __future__ import annotations

import inspect
import re
import typing
from enum import Enum
from pathlib import Path
from typing import Any

from mffsr.cli.app import app

README = Path(__file__).parents[1] / "README.md"
SECTION = re.compile(r"(<!-- options: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rows(command: str) -> list[str]:
    """Return a line for each visible option of a command."""
    function = {found.name: found.callback for found in app.registered_commands if found.callback}[command]
    kinds = typing.get_type_hints(function, include_extras=True)
    lines = []
    for name, parameter in inspect.signature(function).parameters.items():
        kind, option = typing.get_args(kinds[name])
        if hasattr(option, "param_decls") and type(option).__name__ == "OptionInfo" and not option.hidden:
            lines.append(_row(name, kind, option, parameter.default))
    return lines


def _row(name: str, kind: Any, option: Any, default: Any) -> str:
    first = (option.default,) if isinstance(option.default, str) else ()  # where Annotated puts it
    given = (*first, *(option.param_decls or ())) or (f"--{name.replace('_', '-')}",)
    names = ", ".join(f"`{part}`" for declared in given for part in declared.split("/"))
    choices = [choice.value for choice in _enum(kind)]
    value = ("|".join(choices) or option.metavar or "").replace("|", "\\|")
    meaning, _, told = option.help.rstrip(".").partition(".  [")
    return f"| {names} {value}".rstrip() + f" | {meaning} | {told.rstrip(']') or _default(given, default)} |"


def _enum(kind: Any) -> list[Any]:
    """Return the choices of an option that is one of a few, or may be left out."""
    for part in (kind, *typing.get_args(kind)):
        if isinstance(part, type) and issubclass(part, Enum):
            return list(part)
    return []


def _default(given: tuple[str, ...], value: Any) -> str:
    if isinstance(value, bool):
        return f"`{given[-1].split('/')[0]}`" if value else ""
    value = getattr(value, "value", value)
    return "" if value in (None, "") else f"`{value}`"


def table(command: str) -> str:
    """Return the table of a command; of `batch`, what `fuse` does not have or means otherwise."""
    lines = rows(command)
    if command == "batch":
        known = rows("fuse")
        lines = [line for line in lines if line not in known]
    return "\n".join([f"| option of `{command}` | meaning | default |", "| --- | --- | --- |", *lines, ""])


def filled(text: str) -> str:
    """Return text with all its tables made anew."""
    return SECTION.sub(lambda found: found[1] + table(found[2]) + found[3], text)


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
