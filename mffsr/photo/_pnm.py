"""Binary PGM and PPM (P5, P6): what image tools exchange; 16 bits stay 16 bits."""

from __future__ import annotations

import re
from typing import BinaryIO

import numpy as np

from ._decoded import Decoded, Header

__all__ = ["decode", "header"]

_HEAD = re.compile(rb"P([56])" + rb"(?:\s|#[^\n\r]*[\n\r])+(\d{1,10})" * 3 + rb"\s")


def _parse(stream: BinaryIO) -> tuple[Header, int, int]:
    stream.seek(0)
    match = _HEAD.match(stream.read(4096))
    if match is None:
        raise ValueError("the PNM header is damaged")
    kind, width, height, largest = (int(group) for group in match.groups())
    if not (width > 0 and height > 0 and 0 < largest < 65536):
        raise ValueError(f"a PNM of {width}×{height} pixels up to {largest}")
    head = Header(
        width=width,
        height=height,
        bit_depth=16 if largest > 255 else 8,
        channels=3 if kind == 6 else 1,
        format="PNM",
    )
    return head, largest, match.end()


def header(stream: BinaryIO) -> Header:
    """The header of a binary PGM or PPM."""
    return _parse(stream)[0]


def decode(stream: BinaryIO) -> Decoded:
    """Pixels scaled to the full range of 8 or 16 bits, as the header's largest value asks."""
    head, largest, start = _parse(stream)
    kind = np.dtype(">u2" if head.bit_depth == 16 else "u1")
    count = head.width * head.height * head.channels
    stream.seek(start)
    data = stream.read(count * kind.itemsize)
    if len(data) < count * kind.itemsize:
        raise ValueError("the PNM is cut short")
    pixels = np.frombuffer(data, kind).reshape(head.height, head.width, head.channels)
    full = 65535 if head.bit_depth == 16 else 255
    if largest != full:
        wide = (np.minimum(pixels, largest).astype(np.uint32) * full + largest // 2) // largest
        return Decoded(pixels=wide.astype(kind.newbyteorder("=")))
    return Decoded(pixels=pixels.astype(kind.newbyteorder("=")))
