"""TIFF directories: the structure of TIFF files, of most camera RAWs and of every EXIF block.

`TiffReader` walks directories without ever trusting an offset or a count. `Exif` is a block as
four dictionaries of values; `parse_exif` reads it, `build_exif` lays it out again. Values stay
raw bytes in the block's own byte order, so that what is not understood is still kept.

References: TIFF 6.0, section 2; BigTIFF as in LibTIFF; EXIF 2.32 (CIPA DC-008), section 4.6.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import BinaryIO, Literal, NamedTuple

__all__ = [
    "RATIONAL",
    "Entry",
    "Exif",
    "IfdError",
    "TiffReader",
    "UnknownTypeError",
    "Value",
    "append_to_tiff",
    "as_ratio",
    "build_exif",
    "parse_exif",
]

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 1, 2, 3, 4, 5, 7
_LARGEST_LONG = (1 << 32) - 1
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TYPE_SIZES |= {16: 8, 17: 8, 18: 8}  # BigTIFF
_INTEGER_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_MAGICS = {42, 43, 0x55, 0x4F52, 0x5352}  # TIFF, BigTIFF, and what Panasonic and Olympus RAWs say instead

_POINTERS = {"exif": 0x8769, "gps": 0x8825, "interop": 0xA005}
_MAKER_NOTE = 0x927C
_PIN_BELOW = 60_000  # a maker note further on cannot keep its place in a JPEG segment of 64 KiB


class IfdError(ValueError):
    """A directory that cannot be what it claims."""


class UnknownTypeError(IfdError):
    """A field of a type that TIFF does not know, hence of unknown length."""


class Entry(NamedTuple):
    """One field of a directory as it stands in the file."""

    type: int
    number: int
    position: int  # offset of the value's first byte from the start of the block


class Directory(NamedTuple):
    """The fields of one directory by tag, and the offset of the next directory (0: none)."""

    entries: dict[int, Entry]
    next: int


class TiffReader:
    """Walks the directories of a TIFF-structured stream.

    `stream` is seekable; offset 0 is the byte order mark. Raises `IfdError` for whatever does
    not fit into the stream.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.size = stream.seek(0, io.SEEK_END)
        head = self._at(0, min(16, self.size))
        if len(head) < 8 or head[:2] not in (b"II", b"MM"):
            raise IfdError("no TIFF byte order mark")
        self.order: Literal["<", ">"] = "<" if head[:2] == b"II" else ">"
        self.magic = struct.unpack(self.order + "H", head[2:4])[0]
        if self.magic not in _MAGICS:
            raise IfdError("no TIFF magic number")
        self.big = self.magic == 43
        if self.big and len(head) < 16:
            raise IfdError("BigTIFF header cut short")
        self.first: int = struct.unpack(
            self.order + ("Q" if self.big else "I"), head[8:16] if self.big else head[4:8]
        )[0]

    def _at(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise IfdError(f"{length} bytes at offset {offset} lie beyond the end")
        self.stream.seek(offset)
        data = self.stream.read(length)
        if len(data) != length:
            raise IfdError("short read")
        return data

    def directory(self, offset: int) -> Directory:
        """The directory at `offset`; its values are not read yet, so their place may be a lie."""
        if offset <= 0:
            raise IfdError("no directory")
        counter, width, inline = ("Q", 20, 8) if self.big else ("H", 12, 4)
        head = struct.calcsize("=" + counter)
        (count,) = struct.unpack(self.order + counter, self._at(offset, head))
        if count == 0 or count > 0xFFFF:
            raise IfdError(f"a directory of {count} fields")
        table = self._at(offset + head, count * width)
        entries: dict[int, Entry] = {}
        for index in range(count):
            start = index * width
            tag, kind, number = struct.unpack(
                self.order + ("HHQ" if self.big else "HHI"), table[start : start + width - inline]
            )
            position = offset + head + start + width - inline
            if number * _TYPE_SIZES.get(kind, 0) > inline:
                pointer = table[start + width - inline : start + width]
                (position,) = struct.unpack(self.order + ("Q" if self.big else "I"), pointer)
            entries.setdefault(tag, Entry(kind, number, position))
        end = offset + head + count * width
        following = 0
        if end + inline <= self.size:  # some EXIF blocks end without the pointer to the next directory
            (following,) = struct.unpack(self.order + ("Q" if self.big else "I"), self._at(end, inline))
        return Directory(entries, following)

    def length(self, entry: Entry) -> int:
        """Bytes of the value; raises for an unknown type."""
        if entry.type not in _TYPE_SIZES:
            raise UnknownTypeError(f"unknown field type {entry.type}")
        return entry.number * _TYPE_SIZES[entry.type]

    def raw(self, entry: Entry) -> bytes:
        """The value's bytes in the stream's byte order."""
        return self._at(entry.position, self.length(entry))

    def integers(self, entry: Entry) -> tuple[int, ...]:
        """The value as integers; raises if its type is none."""
        code = _INTEGER_CODES.get(entry.type)
        if code is None:
            raise IfdError(f"field type {entry.type} is no integer")
        return struct.unpack(f"{self.order}{entry.number}{code}", self.raw(entry))


class Value(NamedTuple):
    """One EXIF value: TIFF type, number of items, bytes in the block's order, offset there (0: new)."""

    type: int
    number: int
    data: bytes
    home: int = 0


def as_ratio(number: float) -> Fraction:
    """A non-negative number as two of 32 bits, as exact as these allow."""
    number = min(max(number, 0.0), float(_LARGEST_LONG))
    return Fraction(number).limit_denominator(min(10_000, int(_LARGEST_LONG / max(number, 1.0))))


@dataclass(kw_only=True)
class Exif:
    """An EXIF block without its thumbnail. `order` is "<" or ">"; the rest maps tags to values."""

    order: Literal["<", ">"] = "<"
    main: dict[int, Value] = field(default_factory=dict)
    exif: dict[int, Value] = field(default_factory=dict)
    gps: dict[int, Value] = field(default_factory=dict)
    interop: dict[int, Value] = field(default_factory=dict)
    damaged: int = 0  # fields that could not be read and are left out

    def integers(self, kind: int, *numbers: int) -> Value:
        """BYTE, SHORT or LONG values."""
        return Value(
            kind, len(numbers), struct.pack(f"{self.order}{len(numbers)}{_INTEGER_CODES[kind]}", *numbers)
        )

    def text(self, text: str) -> Value:
        """An ASCII value; other characters become question marks."""
        data = text.encode("ascii", "replace").replace(b"\0", b" ") + b"\0"
        return Value(ASCII, len(data), data)

    def rational(self, number: float) -> Value:
        """One non-negative RATIONAL, as exact as 32 bits allow."""
        return self._rational(as_ratio(number))

    def _rational(self, ratio: Fraction) -> Value:
        return Value(RATIONAL, 1, struct.pack(self.order + "II", ratio.numerator, ratio.denominator))

    def multiply(self, directory: dict[int, Value], tags: Iterable[int], factor: int) -> None:
        """Multiply RATIONALs, exactly where 32 bits allow; whatever else stands there is left out."""
        for tag in tags:
            value = directory.pop(tag, None)
            if value is None or value.type != RATIONAL or value.number != 1:
                continue
            above, below = struct.unpack(self.order + "II", value.data)
            if below:
                ratio = Fraction(above * factor, below)
                fits = ratio.numerator <= _LARGEST_LONG
                directory[tag] = self._rational(ratio if fits else as_ratio(float(ratio)))

    def first_integer(self, directory: dict[int, Value], tag: int) -> int | None:
        """The first integer of a value, or None."""
        value = directory.get(tag)
        if value is None or value.type not in _INTEGER_CODES or value.number < 1:
            return None
        code = _INTEGER_CODES[value.type]
        return int(struct.unpack_from(self.order + code, value.data)[0])

    def first_ratio(self, directory: dict[int, Value], tag: int) -> float | None:
        """The first RATIONAL of a value, or None (also where it is 0 or its denominator is)."""
        value = directory.get(tag)
        if value is None or value.type != RATIONAL or value.number < 1:
            return None
        above, below = struct.unpack_from(self.order + "II", value.data)
        return above / below if above and below else None


def parse_exif(
    source: bytes | TiffReader,
    *,
    keep: Callable[[int], bool] = lambda _tag: True,
    largest: int = 1 << 20,
) -> Exif:
    """Read the main directory with its EXIF, GPS and interoperability directories.

    `keep` chooses the tags of the main directory; a value of more than `largest` bytes counts as
    damaged. Raises `IfdError` if there is no readable main directory.
    """
    reader = source if isinstance(source, TiffReader) else TiffReader(io.BytesIO(source))
    result = Exif(order=reader.order)
    top = reader.directory(reader.first).entries
    places = {"exif": top.get(_POINTERS["exif"]), "gps": top.get(_POINTERS["gps"])}
    result.main = _values(
        reader, {t: e for t, e in top.items() if keep(t) and t not in _POINTERS.values()}, result, largest
    )
    for name, pointer in places.items():
        entries = _pointed(reader, pointer, result)
        if name == "exif":
            inner = _pointed(reader, entries.pop(_POINTERS["interop"], None), result)
            result.interop = _values(reader, inner, result, largest)
        setattr(result, name, _values(reader, entries, result, largest))
    return result


def _pointed(reader: TiffReader, pointer: Entry | None, result: Exif) -> dict[int, Entry]:
    if pointer is None:
        return {}
    try:
        return dict(reader.directory(reader.integers(pointer)[0]).entries)
    except (IfdError, IndexError):
        result.damaged += 1
        return {}


def _values(reader: TiffReader, entries: dict[int, Entry], result: Exif, largest: int) -> dict[int, Value]:
    values = {}
    for tag, entry in entries.items():
        try:
            if reader.length(entry) > largest:
                raise IfdError("value too long")
            values[tag] = Value(entry.type, entry.number, reader.raw(entry), entry.position)
        except IfdError:
            result.damaged += 1
    return values


class _Arena:
    """Places blocks one after the other, around one block that keeps its place."""

    def __init__(self, start: int, pinned: tuple[int, bytes] | None) -> None:
        self.blocks: list[tuple[int, bytes]] = []
        self.start = self.low = self.high = start
        self.low_end = start
        if pinned is not None:
            self.blocks.append(pinned)
            self.low_end = pinned[0]
            self.high = pinned[0] + len(pinned[1])
            self.high += self.high % 2

    def reserve(self, length: int) -> int:
        """The even offset of `length` free bytes."""
        if self.low + length <= self.low_end:
            offset, self.low = self.low, self.low + length + length % 2
        else:
            offset, self.high = self.high, self.high + length + length % 2
        return offset

    def bytes(self) -> bytes:
        result = bytearray(max(self.high, self.low) - self.start)
        for offset, data in self.blocks:
            result[offset - self.start : offset - self.start + len(data)] = data
        return bytes(result)


def _lay_out(exif: Exif, arena: _Arena, *, big: bool = False) -> int:
    """Place all directories and values of `exif`; returns the offset of the main directory."""
    directories = {"main": dict(exif.main), "exif": dict(exif.exif)}
    directories |= {"gps": dict(exif.gps), "interop": dict(exif.interop)}
    head, width, inline = (8, 20, 8) if big else (2, 12, 4)
    offsets: dict[str, int] = {}
    for name, parent in (("interop", "exif"), ("gps", "main"), ("exif", "main")):
        if directories[name]:
            directories[parent][_POINTERS[name]] = Value(LONG, 1, b"")  # its data is known further down
    for name, values in directories.items():
        if values:
            offsets[name] = arena.reserve(head + width * len(values) + inline)
    for name, pointer in _POINTERS.items():
        for values in directories.values():
            if pointer in values and name in offsets:
                kind = 16 if big else LONG
                values[pointer] = Value(
                    kind, 1, struct.pack(exif.order + ("Q" if big else "I"), offsets[name])
                )
    pins = {offset for offset, _ in arena.blocks}
    for name, offset in offsets.items():
        table = struct.pack(exif.order + ("Q" if big else "H"), len(directories[name]))
        for tag, value in sorted(directories[name].items()):
            table += struct.pack(exif.order + ("HHQ" if big else "HHI"), tag, value.type, value.number)
            if len(value.data) <= inline:
                table += value.data.ljust(inline, b"\0")
                continue
            if tag == _MAKER_NOTE and value.home in pins:
                place = value.home
            else:
                place = arena.reserve(len(value.data))
                arena.blocks.append((place, value.data))
            table += struct.pack(exif.order + ("Q" if big else "I"), place)
        arena.blocks.append((offset, table + b"\0" * inline))
    return offsets["main"]


def build_exif(exif: Exif) -> bytes:
    """Lay out a block again, thumbnail left out.

    The maker note keeps its offset where that is possible, since many cameras store offsets in it
    that count from the start of the block.
    """
    note = exif.exif.get(_MAKER_NOTE)
    pinned = None
    if note is not None and 8 <= note.home <= _PIN_BELOW and len(note.data) > 4:
        pinned = (note.home, note.data)
    if not exif.main:
        exif.main[0x0131] = exif.text("mffsr")  # the main directory must not be empty
    arena = _Arena(8, pinned)
    main = _lay_out(exif, arena)
    mark = b"II" if exif.order == "<" else b"MM"
    return mark + struct.pack(exif.order + "HI", 42, main) + arena.bytes()


def append_to_tiff(stream: BinaryIO, exif: Exif, extra: Iterable[tuple[int, Value]]) -> None:
    """Give the TIFF file in `stream` (read and write) the fields of `exif` and `extra` as well.

    The file's own fields win over those of `exif`; `extra` wins over both. The file's byte order
    must be that of `exif`. The directory is written anew at the end of the file.
    """
    reader = TiffReader(stream)
    if reader.order != exif.order:
        raise ValueError("byte order of the EXIF block and of the TIFF file differ")
    own = parse_exif(reader, largest=1 << 32)
    merged = Exif(order=exif.order, exif=exif.exif, gps=exif.gps, interop=exif.interop)
    merged.main = {**exif.main, **own.main, **dict(extra)}
    end = stream.seek(0, io.SEEK_END)
    arena = _Arena(end + end % 2, None)
    main = _lay_out(merged, arena, big=reader.big)
    stream.write(b"\0" * (end % 2) + arena.bytes())
    stream.seek(8 if reader.big else 4)
    stream.write(struct.pack(exif.order + ("Q" if reader.big else "I"), main))
    stream.seek(0, io.SEEK_END)
