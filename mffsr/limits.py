"""Figures that all layers share; this module imports nothing, so that --help needs no networks."""

from __future__ import annotations

__all__ = ["MAX_MEGAPIXELS", "SCALES", "SMALLEST_TILE"]

SCALES = (2, 3, 4)  # enlargements that there are networks for; 1 is fusion alone
MAX_MEGAPIXELS = 500  # 3 GB of 16-bit colour: more than nearly any camera takes, less than a bomb needs
SMALLEST_TILE = 64  # side in pixels: with a smaller one, nearly all work would be on what surrounds it
