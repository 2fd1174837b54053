"""The program with a fault put into it: hooks.py FAULT[=VALUE] ARGUMENT... runs `mffsr ARGUMENT...`."""

from __future__ import annotations

import sys
from typing import Any

import torch

from mffsr.__main__ import main
from mffsr.model import JointModel


def out_of_memory(side: str) -> None:
    """The graphics card has no memory for pictures with a side of more than so many pixels."""
    render, focus = JointModel.render, JointModel.focus

    def enough(image: torch.Tensor) -> None:
        if max(image.shape[2:]) > int(side):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    def small_render(
        self: JointModel, images: list[torch.Tensor], *rest: Any, **options: Any
    ) -> torch.Tensor:
        enough(images[0])
        return render(self, images, *rest, **options)

    def small_focus(self: JointModel, image: torch.Tensor, *rest: Any) -> object:
        enough(image)
        return focus(self, image, *rest)

    JointModel.render, JointModel.focus = small_render, small_focus  # type: ignore[assignment,method-assign]


def mps_gap(_value: str) -> None:
    """An operator is missing on Apple's graphics processors."""

    def missing(*_arguments: object) -> object:
        raise NotImplementedError(
            "The operator 'aten::unfold' is not currently implemented for the MPS device."
        )

    JointModel.focus = missing  # type: ignore[assignment,method-assign]


def foreign_error(_value: str) -> None:
    """Something fails in a way that nobody foresaw."""

    def fail(*_arguments: object) -> object:
        raise KeyError("nobody foresaw this")

    JointModel.focus = fail  # type: ignore[assignment,method-assign]


if __name__ == "__main__":
    name, _, value = sys.argv.pop(1).partition("=")
    {"out-of-memory": out_of_memory, "mps-gap": mps_gap, "foreign-error": foreign_error}[name](value)
    main()
