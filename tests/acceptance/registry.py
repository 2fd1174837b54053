"""The scenarios, by number."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bench import Bench

Drive = Callable[[Bench], str]  # returns what was measured


class Scenario(NamedTuple):
    """One fault and what the program has to make of it."""

    number: int
    name: str
    drive: Drive


SCENARIOS: dict[int, Scenario] = {}


def scenario(number: int) -> Callable[[Drive], Drive]:
    """Enter a function as the scenario of that number; its name says what happens."""

    def enter(drive: Drive) -> Drive:
        if number in SCENARIOS:
            raise ValueError(f"two scenarios of number {number}")
        SCENARIOS[number] = Scenario(number, drive.__name__.replace("_", " "), drive)
        return drive

    return enter
