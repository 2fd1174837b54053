"""Folders → brackets → plan → brackets: nothing of torch."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import bracket, data_folder, textured

from mffsr.batch_plan import check_template, inside, plan_text, read_plan, target_name
from mffsr.errors import MffsrError, PhotoError, UsageError
from mffsr.photo import Photo, write_photo
from mffsr.photo._ifd import Exif, Value, build_exif
from mffsr.photo.brackets import Bracket, Found, _prefer_raw, find_brackets
from mffsr.photo.capture import read_capture, similarity, thumbnail
from mffsr.text import natural


def camera_exif(seconds: float | None, *, exposure: float = 0.01, sequence: int = 0, model="One") -> bytes:
    """Return the EXIF data of a shot, taken at 12:00:00 plus some seconds."""
    exif = Exif()
    exif.main[0x010F], exif.main[0x0110] = exif.text("Panasonic"), exif.text(model)
    if seconds is not None:
        whole = int(seconds)
        exif.exif[0x9003] = exif.text(f"2024:05:01 12:{whole // 60:02}:{whole % 60:02}")
        exif.exif[0x9291] = exif.text(f"{seconds - whole:.2f}"[2:])
    exif.exif[0x829A], exif.exif[0x829D] = exif.rational(exposure), exif.rational(4)
    if sequence:
        fields = struct.pack("<HHIHxx", 0x2A, 3, 1, 3) + struct.pack("<HHII", 0x2B, 4, 1, sequence)
        note = b"Panasonic\0\0\0" + struct.pack("<H", 2) + fields + bytes(4)
        exif.exif[0x927C] = Value(7, len(note), note)
    return build_exif(exif)


def shoot(folder: Path, name: str, pixels, seconds: float | None = None, **options) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    plain = seconds is None and not options
    exif = None if plain else camera_exif(seconds, **options)
    write_photo(Photo(pixels=pixels, exif=exif), folder / name)
    return folder / name


def names(found) -> dict[str, list[str]]:
    return {b.name: [photo.name for photo in b.photos] for b in found.brackets}


@pytest.fixture(scope="module")
def pair():
    near, far, _, _ = bracket(96, 128, blur=3)
    return near, far


@pytest.fixture(scope="module")
def other():
    return textured(96, 128, seed=99)


def test_natural_order():
    assert sorted(["a10", "a2", "A1", "b", "10", "9"], key=natural) == ["9", "10", "A1", "a2", "a10", "b"]


def test_sub_folders_are_brackets_in_natural_order(tmp_path, pair):
    for folder in ("day10", "day9/flower", "day9/bee", "empty", ".hidden"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("day10", "day9/flower", "day9/bee", ".hidden"):
        for name in ("p10.jpg", "p9.jpg"):
            shoot(tmp_path / folder, name, pair[0])
    shoot(tmp_path / "day10", "p9-fused-x3.jpg", pair[0])
    shoot(tmp_path / "day10", ".p1.jpg", pair[0])
    (tmp_path / "day10" / "notes.txt").touch()
    shoot(tmp_path / "lonely", "p.jpg", pair[0])
    found = find_brackets(tmp_path)
    assert list(names(found).items()) == [
        ("day9/bee", ["p9.jpg", "p10.jpg"]),
        ("day9/flower", ["p9.jpg", "p10.jpg"]),
        ("day10", ["p9.jpg", "p10.jpg"]),
    ]
    assert [path.name for path, _ in found.left_out] == ["p.jpg"]
    assert names(find_brackets(tmp_path, skip={str(tmp_path / "day9")})) == {"day10": ["p9.jpg", "p10.jpg"]}


def test_the_photos_of_one_folder_are_parted_by_time(tmp_path, pair):
    for number, seconds in enumerate([0, 0.5, 1, 20, 21.5, 40, 41, 42, 43, 59], 8):
        shoot(tmp_path, f"IMG_{number}.jpg", pair[number % 2], seconds)
    shoot(tmp_path, "IMG_18.jpg", pair[0], 60, exposure=0.5)
    shoot(tmp_path, "IMG_19.jpg", pair[0], 60.5, exposure=0.5, model="Two")
    found = find_brackets(tmp_path)
    assert names(found) == {
        "IMG_8": ["IMG_8.jpg", "IMG_9.jpg", "IMG_10.jpg"],
        "IMG_11": ["IMG_11.jpg", "IMG_12.jpg"],
        "IMG_13": [f"IMG_{n}.jpg" for n in range(13, 17)],
    }
    assert [path.name for path, _ in found.left_out] == ["IMG_17.jpg", "IMG_18.jpg", "IMG_19.jpg"]
    assert len(find_brackets(tmp_path, group="folder").brackets) == 1
    assert [len(b.photos) for b in find_brackets(tmp_path, group="none").brackets] == [12]
    sub = tmp_path / "more"
    shoot(sub, "x.jpg", pair[0], 0)
    shoot(sub, "y.jpg", pair[1], 1)
    shoot(sub, "z.jpg", pair[0], 30)
    assert list(names(find_brackets(tmp_path, group="time"))) == ["IMG_8", "IMG_11", "IMG_13", "more/x"]
    assert list(names(find_brackets(tmp_path, group="auto"))) == ["IMG_8", "IMG_11", "IMG_13", "more"]
    assert list(names(find_brackets(tmp_path, group="none"))) == [tmp_path.name]
    with pytest.raises(UsageError, match="expected one of"):
        find_brackets(tmp_path, group="size")


def test_other_scenes_are_no_bracket_however_fast(tmp_path, pair, other):
    for number, pixels in enumerate([*pair, other, *reversed(pair)]):
        shoot(tmp_path, f"{number}.jpg", pixels, number / 10)
    found = find_brackets(tmp_path)
    assert names(found) == {"0": ["0.jpg", "1.jpg"], "3": ["3.jpg", "4.jpg"]}
    assert similarity(thumbnail(tmp_path / "0.jpg"), thumbnail(tmp_path / "1.jpg")) > 0.9
    assert similarity(thumbnail(tmp_path / "0.jpg"), thumbnail(tmp_path / "2.jpg")) < 0.5


def test_brackets_of_one_name_get_outputs_of_their_own(tmp_path, pair):
    for name, pixels in (("a.png", pair[0]), ("b.png", pair[1])):
        shoot(tmp_path / "a", name, pixels)
        shoot(tmp_path / "a" / "a", name, pixels)
    for name, pixels in (("a.jpg", pair[0]), ("b.jpg", pair[1])):
        shoot(tmp_path, name, pixels)
    assert list(names(find_brackets(tmp_path))) == ["a", "a-2", "a/a"]
    assert list(names(find_brackets(tmp_path / "a", group="folder"))) == ["a", "a-2"]


def test_slow_but_even_shots_are_a_bracket(tmp_path):
    pair = bracket(96, 128, blur=1)[:2]
    for number in range(5):
        shoot(tmp_path, f"{number}.jpg", pair[number % 2], 12 * number)
    assert [len(b.photos) for b in find_brackets(tmp_path).brackets] == [5]


@pytest.mark.parametrize(("folder", "count"), [("stacks/pcb7", 7), ("stacks/noahpeeters28", 28)])
def test_real_brackets_in_one_folder(folder, count):
    found = find_brackets(data_folder(folder))
    assert [len(b.photos) for b in found.brackets] == [count]


def test_real_pairs_without_times():
    found = find_brackets(data_folder("lytro"), group="auto")
    pairs = [[p.stem[-1] for p in b.photos] for b in found.brackets if "triple" not in b.name]
    assert pairs == [["A", "B"]] * 20


def test_without_times_content_decides(tmp_path, pair, other):
    for name, pixels in (("a.png", pair[0]), ("b.png", pair[1]), ("c.png", other)):
        shoot(tmp_path, name, pixels)
    assert names(find_brackets(tmp_path)) == {"a": ["a.png", "b.png"]}


def test_what_the_camera_counted_is_believed(tmp_path, pair):
    for number, sequence in enumerate([1, 2, 3, 1, 2]):
        shoot(tmp_path, f"{number}.jpg", pair[number % 2], 10 * number, sequence=sequence)
    assert read_capture(tmp_path / "1.jpg").sequence == 2
    found = find_brackets(tmp_path)
    assert names(found) == {"0": ["0.jpg", "1.jpg", "2.jpg"], "3": ["3.jpg", "4.jpg"]}
    assert found.brackets[0].why == "the camera's focus bracket"


def olympus_exif(head: bytes, order: str, drive: tuple[int, ...], *, cut: int = 0) -> bytes:
    """Return EXIF data with a maker's note of Olympus: one directory leads to the drive mode's."""
    start = len(head) + 4
    first = start + 2 + 2 * 12 + 4
    text, settings = (
        struct.pack(order + "HHII", 0x207, 2, 900, 9000),
        struct.pack(order + "HHII", 0x2020, 13, 1, first),
    )
    inline = struct.pack(order + "HHIHH", 0x301, 3, 2, 0, 1)
    values = struct.pack(order + f"{len(drive)}H", *drive)
    where = values.ljust(4, b"\0") if len(values) <= 4 else struct.pack(order + "I", first + 2 + 2 * 12 + 4)
    mode = struct.pack(order + "HHI", 0x600, 3, len(drive)) + where
    count, end = struct.pack(order + "H", 2), bytes(4)
    byte_order = b"II\3\0" if order == "<" else b"MM\0\3"
    note = head + byte_order + count + text + settings + end + count + inline + mode + end + values
    note = note[: len(note) - cut]
    exif = Exif()
    exif.exif[0x927C] = Value(7, len(note), note)
    return build_exif(exif)


@pytest.mark.parametrize("head", [b"OLYMPUS\0", b"OM SYSTEM\0\0\0"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("drive", "cut", "sequence"),
    [
        ((5, 7, 1 << 6, 0, 4), 0, 7),
        ((5, 2, 1 << 6), 0, 2),
        ((5, 7, 1 << 6, 0, 4), 3, None),  # the note is cut short
        ((5, 7, 1 << 6, 0, 4), 60, None),
        ((5, 7, 1, 0, 4), 0, None),  # a bracket of exposures
        ((1, 7, 0, 0, 4), 0, None),  # a burst
        ((0, 0), 0, None),
    ],
)
def test_olympus_counts_focus_brackets(tmp_path, pair, head, order, drive, cut, sequence):
    exif = olympus_exif(head, order, drive, cut=cut)
    write_photo(Photo(pixels=pair[0], exif=exif), tmp_path / "a.jpg")
    assert read_capture(tmp_path / "a.jpg").sequence == sequence


def test_a_damaged_photo_stays_with_its_neighbours(tmp_path, pair):
    for number, seconds in enumerate([0, 1, 30, 31]):
        shoot(tmp_path, f"{number}.jpg", pair[number % 2], seconds)
    (tmp_path / "1b.jpg").write_bytes(b"damaged")
    assert names(find_brackets(tmp_path)) == {"0": ["0.jpg", "1.jpg", "1b.jpg"], "2": ["2.jpg", "3.jpg"]}


def test_links_end_and_every_photo_is_taken_once(tmp_path, pair):
    for name in ("a.jpg", "b.jpg"):
        shoot(tmp_path / "in" / "one", name, pair[0])
    (tmp_path / "in" / "loop").symlink_to(".")
    (tmp_path / "in" / "one" / "up").symlink_to("..")
    (tmp_path / "in" / "again").symlink_to("one")
    (tmp_path / "in" / "one" / "c.jpg").symlink_to("a.jpg")
    found = find_brackets(tmp_path / "in")
    assert sum(len(b.photos) for b in found.brackets) == 2
    assert len(found.brackets) == 1


def test_a_link_in_circles_costs_no_bracket(tmp_path, pair):
    for name in ("a.jpg", "b.jpg"):
        shoot(tmp_path / "in", name, pair[0])
    for name in ("loop", "c.jpg"):
        (tmp_path / "in" / name).symlink_to(name)
    found = find_brackets(tmp_path / "in", group="folder")
    assert names(found) == {"in": ["a.jpg", "b.jpg", "c.jpg"]}  # the photo fails where it is read
    ((path, why),) = found.left_out
    assert path == tmp_path / "in" / "loop"
    assert why.startswith("cannot be read: ")


def test_folders_of_thumbnails_and_deleted_photos_are_no_brackets(tmp_path, pair):
    for place in ("one", "one/@eaDir/a.jpg", "#recycle/two", "$RECYCLE.BIN/S-1-5"):
        for name in ("a.jpg", "b.jpg"):
            shoot(tmp_path / place, name, pair[0])
    found = find_brackets(tmp_path)
    assert names(found) == {"one": ["a.jpg", "b.jpg"]}
    assert not found.left_out


def test_a_raw_is_taken_instead_of_its_jpeg(tmp_path, pair):
    for name in ("a", "b"):
        shoot(tmp_path / "in", f"{name}.jpg", pair[0]).with_suffix(".NEF").touch()
    found = find_brackets(tmp_path, group="folder")
    assert names(found) == {"in": ["a.NEF", "b.NEF"]}
    assert len(found.left_out) == 2


def test_the_jpegs_of_thousands_of_raws_are_left_out_at_once(tmp_path):
    """A look at each one for every photo took four times as long for twice as many."""

    class Counted(type(tmp_path)):
        compared = 0

        def __eq__(self, other):
            Counted.compared += 1
            return super().__eq__(other)

        __hash__ = type(tmp_path).__hash__

    photos = [Counted(f"{number}{suffix}") for number in range(500) for suffix in (".jpg", ".NEF")]
    found = Found()
    assert _prefer_raw(photos, found) == photos[1::2]
    assert [path for path, _ in found.left_out] == photos[::2]
    assert Counted.compared < 20 * len(photos)


def test_what_people_made_of_a_raw_is_not_left_out(tmp_path, pair):
    for name in ("a.jpg", "a.HIF", "a.tif", "a.png"):
        shoot(tmp_path / "in", "x.jpg", pair[0]).rename(tmp_path / "in" / name)
    (tmp_path / "in" / "a.NEF").touch()
    found = find_brackets(tmp_path, group="folder")
    assert names(found) == {"in": ["a.NEF", "a.png", "a.tif"]}
    assert sorted(path.name for path, _ in found.left_out) == ["a.HIF", "a.jpg"]


def test_photos_of_more_pixels_than_allowed_are_not_decoded_to_be_grouped(tmp_path, pair, monkeypatch):
    for name, pixels in zip("ab", pair, strict=True):
        shoot(tmp_path, f"{name}.png", pixels)
        shoot(tmp_path, f"{name}c.jpg", pixels)

    decoded = []

    def watch(*_, **__):
        decoded.append(1)
        raise ValueError

    monkeypatch.setattr("mffsr.photo.images._decode", watch)
    monkeypatch.setattr("mffsr.photo._pillow.decode_small", watch)
    found = find_brackets(tmp_path, max_pixels=96 * 128 - 1)
    assert sum(len(b.photos) for b in found.brackets) == 4
    assert not decoded
    find_brackets(tmp_path, max_pixels=96 * 128)
    assert len(decoded) == 4


def test_no_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="not a folder"):
        find_brackets(tmp_path / "none")


def test_a_plan_comes_back_as_it_was(tmp_path, pair):
    odd = ['quote"', "back\\slash", "two\nlines", "é [x] # = '", "\x1b[31m", "\u2028", "tab\t"]
    for name in odd:
        shoot(tmp_path / name, "a.jpg", pair[0])
        shoot(tmp_path / name, "b.jpg", pair[0])
    shoot(tmp_path / "lonely\n[[bracket]]", "p.jpg", pair[0])
    found = find_brackets(tmp_path)
    plan = tmp_path / "plan.toml"
    plan.write_text(plan_text(found, tmp_path))
    back = read_plan(plan)
    assert [(b.name, list(b.photos)) for b in back] == [(b.name, list(b.photos)) for b in found.brackets]
    assert len(back) == len(odd)
    assert "# In no bracket:" in plan.read_text()
    with pytest.raises(UsageError, match="not UTF-8"):
        plan_text(find_brackets_of(os.fsdecode(b"\xff.jpg")), tmp_path)


def test_a_plan_says_why_and_what_is_left_out(tmp_path):
    photos = [tmp_path / "a.jpg", tmp_path / "sub" / "b.jpg", Path("/abs/c.jpg")]
    brackets = [
        Bracket(name="x", photos=photos, why="by\ntime", output="y.tif"),
        Bracket(name="z", photos=photos[:2]),
    ]
    found = Found(brackets=brackets, left_out=[(tmp_path / "d.jpg", "no \x1b[31m partner")])
    text = plan_text(found, tmp_path, ["12 megapixels", ""])
    assert text.split("\n\n", 1)[1].splitlines() == [
        f'folder = "{tmp_path}"',
        "",
        "[[bracket]]  # by time",
        "# 12 megapixels",
        'name = "x"',
        'output = "y.tif"',
        "photos = [",
        '  "a.jpg",',
        '  "sub/b.jpg",',
        '  "/abs/c.jpg",',
        "]",
        "",
        "[[bracket]]",
        'name = "z"',
        "photos = [",
        '  "a.jpg",',
        '  "sub/b.jpg",',
        "]",
        "",
        "# In no bracket:",
        '#   "d.jpg"  # no ?[31m partner',
    ]


def test_a_file_too_large_for_a_plan_is_not_parsed(tmp_path, monkeypatch):
    (tmp_path / "plan.toml").write_text("# a comment")
    assert read_plan(tmp_path / "plan.toml") == []
    monkeypatch.setattr("mffsr.batch_plan.LARGEST", 10)
    with pytest.raises(UsageError, match="too large for a plan"):
        read_plan(tmp_path / "plan.toml")


def find_brackets_of(name: str):
    class Some:
        brackets = [Bracket(name="x", photos=[Path(name)])]  # noqa: RUF012
        left_out = ()

    return Some()


def test_a_plan_edited_by_hand(tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text(
        '[[bracket]]\nname = "x"\nphotos = ["a.jpg", "/abs/b.jpg"]\n'
        '[[bracket]]\nname = "y/z"\noutput = "w.tif"\nphotos = ["c.jpg"]\n'
    )
    one, two = read_plan(plan)
    assert list(one.photos) == [tmp_path / "a.jpg", Path("/abs/b.jpg")]
    assert target_name("{bracket}_x{scale}{ext}", one, 2, ".jpg") == "x_x2.jpg"
    assert target_name("{bracket}_x{scale}{ext}", two, 2, ".jpg") == "w.tif"
    assert read_plan(plan, Path("/else"))[0].photos[0] == Path("/else/a.jpg")
    with pytest.raises(UsageError, match="no name inside the output folder"):
        target_name("{bracket}{ext}", Bracket(name="../x", photos=[]), 2, ".jpg")


@pytest.mark.parametrize("name", ["..", "../x", "a/../../x", "/abs", "", ".", "x\\u0000y", "a/..", "./../x"])
@pytest.mark.parametrize("field", ["name", "output"])
def test_a_plan_cannot_lead_out_of_the_folder(tmp_path, name, field):
    fields = {"name": "fine", field: name}
    lines = "\n".join(f'{key} = "{value}"' for key, value in fields.items())
    plan = tmp_path / "plan.toml"
    plan.write_text(f'[[bracket]]\n{lines}\nphotos = ["a.jpg", "b.jpg"]\n')
    with pytest.raises(UsageError, match="output folder"):
        read_plan(plan)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("no toml", "no plan"),
        ('brackets = "x"', "unknown key"),
        ("bracket = 3", "must be a list"),
        ("bracket = [3]", "table"),
        ('[[bracket]]\nname = "x"', "photos"),
        ('[[bracket]]\nname = "x"\nphotos = [1]', "photos"),
        ('[[bracket]]\nname = "x"\nphotos = [""]', "photos"),
        ('[[bracket]]\nname = 5\nphotos = ["a"]', "must be a string"),
        ("x = " + "[" * 5000, "no plan"),
        ("x = " + "1" * 5000, "no plan|unknown key"),
    ],
)
def test_a_plan_that_is_none_is_refused(tmp_path, text, word):
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(UsageError, match=word):
        read_plan(tmp_path / "plan.toml")
    with pytest.raises(PhotoError, match="cannot be read"):
        read_plan(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "template", ["{x}", "{bracket.__class__}", "{", "../{bracket}", "/{bracket}", "x", ""]
)
def test_templates_are_checked(template):
    with pytest.raises(UsageError, match=r"^--focus-map "):
        check_template("--focus-map", template, 2)


def test_links_out_of_the_output_folder_are_not_followed(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "else").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "else")
    (tmp_path / "out" / "x.jpg").symlink_to(tmp_path / "else" / "x.jpg")
    assert inside(tmp_path / "out", "fine/x.jpg") == tmp_path / "out" / "fine" / "x.jpg"
    for name in ("sub/x.jpg", "x.jpg"):
        with pytest.raises(MffsrError, match="leads out"):
            inside(tmp_path / "out", name)


def test_thumbnails_of_odd_photos(tmp_path):
    for name, pixels in (
        ("flat.png", np.full((50, 60, 3), 9, np.uint8)),
        ("tiny.png", np.zeros((3, 4, 1), np.uint8)),
    ):
        write_photo(Photo(pixels=pixels), tmp_path / name)
        assert thumbnail(tmp_path / name) is None
    deep = textured(100, 90).astype(np.uint16) * 257
    write_photo(Photo(pixels=deep), tmp_path / "deep.tif")
    assert thumbnail(tmp_path / "deep.tif").shape == (32, 32)
    assert thumbnail(tmp_path / "none.jpg") is None
