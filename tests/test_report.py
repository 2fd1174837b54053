"""The report: its pictures are what was fused, its page tells everything, and nothing can be smuggled in."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import threading
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
from conftest import bracket, textured, tiny_model
from typer.testing import CliRunner

import mffsr.report
from mffsr.cli.app import app
from mffsr.engine import fuse_bracket
from mffsr.focus_map import preview
from mffsr.frames import FrameStore
from mffsr.photo import Photo, read_photo, write_photo
from mffsr.photo._colour import srgb_profile
from mffsr.photo.tone import SRGB
from mffsr.photo.web import jpeg, web_pixels
from mffsr.report import Entry, Making, bracket_page, index_page, is_ours, read_card, take_pictures
from mffsr.report import pictures as pictures_module
from mffsr.report.page import _frames
from mffsr.report.pictures import BUDGET, DETAIL, LONGEST

COLOURS = ("#000", "#777", "#fff")
LARGEST_PAGE = 15_000_000  # bytes
MAKING = Making(
    command="mffsr fuse a.jpg b.jpg --report r.html",
    device="CPU, test",
    weights=[("photo-x2.safetensors", "0123456789abcdef" * 4)],
    versions={"mffsr": "9.8.7", "torch": "6.5.4"},
)


class Page(HTMLParser):
    """What a browser would find."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.content: dict[str, str] = {"script": "", "style": ""}
        self.words = ""
        self.images: list[bytes] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.words += " "
        self._inside = tag
        self.elements.append((tag, dict(attrs)))
        source = dict(attrs).get("src")
        if source is not None:
            head, data = source.split(",", 1)
            assert re.fullmatch(r"data:image/(png|jpeg);base64", head)
            self.images.append(base64.b64decode(data, validate=True))

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside in self.content:
            self.content[self._inside] += data
        else:
            self.words += data


def decoded(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(float) - b).mean())


@pytest.fixture(scope="module")
def fused(cpu):
    """Return the registered frames and the result of a small bracket."""
    kept = {}
    near, far, sharp, _ = bracket(96, 128)
    photos = [Photo(pixels=pixels) for pixels in (near, sharp, far)]
    fusion = fuse_bracket(photos, tiny_model(2), cpu, inspect=lambda frames, result: kept.update(frames))
    return kept, fusion


def told(names=("a.jpg", "b.jpg", "c.jpg"), **more):
    placed = {"shift": [1.25, -0.5], "rotation": -0.125, "scale": 1.0125, "exposure": 0.333, "gain": [1.26]}
    frames = [
        {"path": name, "share": share, **placed, "ecc": 0.987, "residual": 0.25, "reference": not index}
        for index, (name, share) in enumerate(zip(names, (0.5, 0.3, 0.2), strict=True))
    ]
    return {
        "input": {"width": 128, "height": 96, "depth": 16},
        "output": "out/fused.png",
        "width": 256,
        "height": 192,
        "depth": 16,
        "scale": 2,
        "frames": frames,
        "undecided": 0.0312,
        "seconds": {"align": 1.0, "focus": 2.0, "enlarge": 3.0, "total": 7.5},
        "warnings": [],
    } | more


def test_pictures_are_the_result_and_the_frames_by_bicubic_interpolation(fused):
    frames, fusion = fused
    pictures = take_pictures(frames, fusion, 2)
    assert difference(decoded(pictures.result.data), fusion.photo.pixels) < 4
    assert sorted(pictures.sources) == [0, 1, 2]
    for index, picture in pictures.sources.items():
        bicubic = cv2.resize(frames[index], (256, 192), interpolation=cv2.INTER_CUBIC)
        assert difference(decoded(picture.data), bicubic) < 4
        linear = cv2.resize(frames[index], (256, 192), interpolation=cv2.INTER_NEAREST)
        assert difference(decoded(picture.data), linear) > difference(decoded(picture.data), bicubic)
    assert pictures.zoom == 1
    assert pictures.details == []


@pytest.mark.parametrize("top", [1023, 4095])
def test_what_scientific_cameras_count_is_shown_as_one_would_see_it(top, cpu):
    near, far, sharp, _ = bracket(96, 128)
    lightness = [cv2.cvtColor(p, cv2.COLOR_RGB2GRAY)[:, :, None] for p in (near, sharp, far)]
    linear = [np.rint(SRGB.table(p.dtype)[p] * top).astype(np.uint16) for p in lightness]
    taken = []

    def inspect(frames, fusion):
        taken.append(take_pictures(frames, fusion, 1))

    fuse_bracket([Photo(pixels=p) for p in linear], tiny_model(1), cpu, align=False, inspect=inspect)
    for index, picture in taken[0].sources.items():
        shown = decoded(picture.data)[:, :, :1]
        assert difference(shown, lightness[index]) < 4
    assert "here they are shown brighter" in bracket_page(told(), taken[0], MAKING)


def test_the_focus_map_has_the_colours_of_the_legend(fused):
    frames, fusion = fused
    pictures = take_pictures(frames, fusion, 2)
    image = decoded(pictures.labels)
    small = cv2.resize(fusion.labels, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    assert (image == preview(small, 3)).all()
    legend = [tuple(bytes.fromhex(colour[1:])) for colour in pictures.colours]
    assert {tuple(colour) for colour in image.reshape(-1, 3).tolist()} <= set(legend)
    assert len(set(legend)) == 3


@pytest.mark.parametrize("noise", [12, 90])
def test_large_photos_make_pages_of_bounded_size_with_details_at_full_size(fused, noise):
    rng = np.random.default_rng(3)
    large = textured(2400, 3600).astype(np.int16)
    large = (large + rng.integers(-noise, noise + 1, large.shape, np.int16)).clip(0, 255).astype(np.uint8)
    small = cv2.resize(large, (1800, 1200), interpolation=cv2.INTER_AREA)
    labels = np.zeros((1200, 1800), np.uint16)
    labels[:, 900:] = 1
    labels[700:] = 2
    fusion = replace(fused[1], photo=Photo(pixels=large), labels=labels)
    pictures = take_pictures(dict.fromkeys(range(3), small), fusion, 2)
    page = bracket_page(told(), pictures, MAKING)
    assert len(page.encode()) < LARGEST_PAGE
    assert sum(len(p.data) for p in (pictures.result, *pictures.sources.values())) < 1.1 * BUDGET
    assert 0.1 < pictures.zoom < 1
    assert {(p.width, p.height) for p in pictures.sources.values()} == {pictures.result[1:]}
    assert sorted(detail.frame for detail in pictures.details) == [0, 1, 2]
    for detail in pictures.details:
        result, source = decoded(detail.result.data), decoded(detail.source.data)
        assert result.shape == source.shape == (DETAIL[1], DETAIL[0], 3)
        corner = np.ascontiguousarray(result[:64, :64, 1])
        found = cv2.matchTemplate(np.ascontiguousarray(large[:, :, 1]), corner, cv2.TM_CCOEFF_NORMED)
        _, _, _, (x, y) = cv2.minMaxLoc(found)
        part = large[y : y + DETAIL[1], x : x + DETAIL[0]]
        assert difference(result, part) < 18, "a detail is a part of the result as it is"
        middle = labels[(y + DETAIL[1] // 2) // 2, (x + DETAIL[0] // 2) // 2]
        assert middle == detail.frame
        soft = cv2.resize(small, (3600, 2400), interpolation=cv2.INTER_CUBIC)
        assert difference(source, soft[y : y + DETAIL[1], x : x + DETAIL[0]]) < 8


@pytest.mark.parametrize("shape", [(2, 35_000), (35_000, 2)])  # twice that is more than JPEG holds
def test_strips_that_no_jpeg_could_hold_are_reduced(fused, shape):
    small = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    large = small.repeat(2, 0).repeat(2, 1)
    labels = np.zeros(shape, np.uint16)
    labels.ravel()[labels.size // 2 :] = 1
    fusion = replace(fused[1], photo=Photo(pixels=large), labels=labels)
    pictures = take_pictures(dict.fromkeys(range(2), small), fusion, 2)
    assert max(decoded(pictures.result.data).shape) == LONGEST
    assert pictures.zoom == LONGEST / 70_000
    assert pictures.details


def test_frames_in_a_file_give_the_same_pictures(fused, monkeypatch):
    frames, fusion = fused
    monkeypatch.setattr(pictures_module, "LARGEST", 128 * 96)
    monkeypatch.setattr("mffsr.frames.IN_MEMORY", 0)
    with FrameStore(len(frames)) as store:
        for index, frame in frames.items():
            store.put(index, frame)
        stored = {index: store[index] for index in frames}
        assert not any(isinstance(frame, np.ndarray) for frame in stored.values())
        assert take_pictures(stored, fusion, 2) == take_pictures(frames, fusion, 2)


def test_many_photos_share_the_bytes(fused):
    large = cv2.resize(textured(400, 600), (1800, 1200), interpolation=cv2.INTER_CUBIC)
    labels = np.arange(400 * 600).reshape(400, 600) * 80 // (400 * 600)
    fusion = replace(
        fused[1], photo=Photo(pixels=large), labels=labels.astype(np.uint16), shares=[1 / 80] * 80
    )
    pictures = take_pictures(dict.fromkeys(range(80), textured(400, 600)), fusion, 3)
    assert len(pictures.sources) == 80
    frame = told()["frames"][0]
    page = bracket_page(told(frames=[frame] * 80), pictures, MAKING)
    assert len(page.encode()) < LARGEST_PAGE


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 1), (np.uint16, 1), (np.uint16, 3)])
def test_gray_and_deep_photos_look_as_they_are(cpu, dtype, channels):
    factor = np.iinfo(dtype).max // 255
    near, far, *_ = bracket(64, 80)
    photos = [
        Photo(pixels=np.ascontiguousarray(p[:, :, :channels]).astype(dtype) * factor) for p in (near, far)
    ]
    pictures = []
    fusion = fuse_bracket(
        photos, tiny_model(2), cpu, inspect=lambda f, r: pictures.append(take_pictures(f, r, 2))
    )
    shown = decoded(pictures[0].result.data)
    assert difference(shown, np.repeat(fusion.photo.pixels // factor, 3 // channels, axis=2)) < 4


def test_colours_are_converted_from_their_profile():
    profile = srgb_profile()
    swapped = profile.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    red = np.zeros((8, 8, 3), np.uint8)
    red[:, :, 0] = 255
    assert (web_pixels(red, swapped)[0, 0] > 250).tolist() == [False, False, True]
    assert (web_pixels(red, None) == red).all()
    assert (web_pixels(red, b"no profile") == red).all()
    assert decoded(jpeg(web_pixels(red, profile), 95))[4, 4, 0] > 250


def test_the_page_tells_everything(fused):
    frames, fusion = fused
    warnings = ["b.jpg: something to look at"]
    dropped = {"path": "c.jpg", "share": 0.0, "dropped": "does not show the scene of the others"}
    data = told(warnings=warnings)
    data["frames"][2] = dropped
    pictures = take_pictures({0: frames[0], 1: frames[1]}, fusion, 2)
    page = Page(bracket_page(data, pictures, MAKING))
    words = " ".join(page.words.split())
    for expected in (
        "fused.png", "a.jpg", "b.jpg", "c.jpg", "128 × 96, 16 bits → 256 × 192, 16 bits", "×2",
        "+1.25, −0.50 px", "−0.125°", "1.0125", "+0.33 EV", "0.987", "0.2 px", "50.0%", "30.0%",
        "left out: does not show the scene of the others", "3.1% of the picture", *warnings, MAKING.command,
        "7.5 s", "9.8.7", "6.5.4", "CPU, test", *MAKING.weights[0],
        "Reading, registering 1.0 s", "Finding focus 2.0 s", "Enlarging, fusing 3.0 s",
        "Loading, writing 1.5 s",
    ):  # fmt: skip
        assert expected in words, expected
    kept = [pictures.result, *pictures.sources.values(), *pictures.thumbs.values(), pictures.ground]
    assert {*(p.data for p in kept), pictures.labels} == set(page.images)


def test_a_page_of_photos_that_were_not_registered(fused):
    frames, fusion = fused
    data = told()
    data["frames"] = [{"path": f["path"], "share": f["share"]} for f in data["frames"]]
    assert "not registered" in Page(bracket_page(data, take_pictures(frames, fusion, 2), MAKING)).words


NASTY = (
    "<img src=x onerror=alert(1)>.jpg",
    "\"><script>alert(1)</script> $body ${style} 'onload=alert(1) x='.jpg",
    "\u202egpj.\udcff\x07&amp;.jpg",
)


def test_file_names_stay_text(fused):
    """Whatever stands in a name, in a warning or in the command: no element, attribute or script of it."""
    frames, fusion = fused
    pictures = take_pictures(frames, fusion, 2)
    plain = bracket_page(told(warnings=["w"]), pictures, MAKING)
    nasty = bracket_page(
        told(NASTY, output=NASTY[1], warnings=[NASTY[0]]),
        pictures,
        replace(MAKING, command=NASTY[1], device=NASTY[0], weights=[(NASTY[1], NASTY[0])]),
    )
    entries = [Entry(bracket=name, event="failed", reason=name) for name in NASTY]
    harmless = [Entry(bracket="b", event="failed", reason="r")] * 3
    pages = [(plain, nasty), (index_page("t", harmless, "c"), index_page(NASTY[1], entries, NASTY[0]))]
    for expected, page in pages:
        page.encode()
        assert "\u202e" not in page
        found, wanted = Page(page), Page(expected)
        assert [tag for tag, _ in found.elements] == [tag for tag, _ in wanted.elements]
        assert [set(attrs) for _, attrs in found.elements] == [set(attrs) for _, attrs in wanted.elements]
        assert found.content["script"] == wanted.content["script"]
        assert NASTY[0] in found.words
    assert "alert" not in Page(nasty).content["script"]


def test_only_what_is_on_the_page_may_run_and_nothing_be_fetched(fused):
    frames, fusion = fused
    page = bracket_page(told(), take_pictures(frames, fusion, 2), MAKING)
    for text in (page, index_page("t", [], "c")):
        found = Page(text)
        policy = next(a["content"] for t, a in found.elements if t == "meta" and "http-equiv" in a)
        assert policy.startswith("default-src 'none'; img-src data:; ")
        for kind in ("style", "script"):
            digest = base64.b64encode(hashlib.sha256(found.content[kind].encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}'" in policy
        plain = re.sub(r'"data:[^"]*"', "", text)  # pictures also stand in the script's data, as base64
        assert not re.search(r"https?:|(?<![\w+/])//[a-z]|@import|url\(", plain)
        assert not [a for _, attrs in found.elements for a in attrs if a.startswith("on") or a == "style"]


def test_an_index_reads_the_cards_of_pages(fused, tmp_path):
    frames, fusion = fused
    pictures = take_pictures(frames, fusion, 2)
    page = tmp_path / "b.html"
    page.write_text(bracket_page(told(output=NASTY[0], warnings=["w"]), pictures, MAKING))
    card = read_card(page)
    assert card is not None
    assert card[:-1] == (NASTY[0], 256, 192, 16, 3, 1, 7.5)
    assert card.cover == pictures.cover
    found = Page(index_page("shoot", [Entry(bracket="b", event="done", link="b.html", card=card)], "c"))
    assert pictures.cover.data in found.images
    assert "3 photos → 256 × 192, 16 bits, 7.5 s" in found.words
    assert "1 warning" in found.words
    assert ("a", {"href": "b.html"}) in found.elements
    assert is_ours(page)
    endless = b'<meta name="mffsr-card" content="[1, Infinity, 1, 1, 1, 1, 1, [&quot;&quot;, 1, 1]]">'
    for content in (b"", b"\xff\xfe", b'<meta name="mffsr-card" content="[1, 2]">', b"<html>", endless):
        page.write_bytes(content)
        assert read_card(page) is None
        assert not is_ours(page)
    assert read_card(tmp_path / "missing.html") is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a pipe needs POSIX")
def test_a_pipe_is_no_page_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.html")
    looked = threading.Thread(target=is_ours, args=(tmp_path / "pipe.html",), daemon=True)
    looked.start()
    looked.join(5)
    assert not looked.is_alive()
    assert not is_ours(tmp_path / "pipe.html")


# The command line


@pytest.fixture
def folder(tmp_path) -> Path:
    near, far, *_ = bracket(64, 80)
    for name, pixels in (("a.png", near), ("b.png", far)):
        write_photo(Photo(pixels=pixels), tmp_path / name)
    return tmp_path


@pytest.fixture
def fuse(folder, tiny_weights, monkeypatch):
    monkeypatch.chdir(folder)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["mffsr", "fuse", *arguments])
        return CliRunner().invoke(app, ["fuse", "--weights", str(tiny_weights), *arguments])

    return run


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".mffsr-*") if path.suffix == ".tmp"]


def test_cells_stand_in_their_columns():
    head = [cell.split("</th>")[0] for cell in _frames(told(), COLOURS).split('scope="col">')[1:]]
    frames = [{"path": "a.jpg", "share": 0.75}, {"path": "b.jpg", "share": 0.25}]
    for row in _frames({"frames": frames}, COLOURS).split("<tr>")[2:]:
        cells = row.split("<t")[1:]  # of the number, the name, and what COLUMNS says
        assert len(cells) == len(head)
        assert "not registered" in cells[head.index("Shift x, y")]
        assert "%" in cells[head.index("Share")]
    dropped = {"path": "c.jpg", "share": 0.0, "dropped": "is black"}
    assert 'colspan="7"' in _frames({"frames": [*frames, dropped]}, COLOURS)


def test_what_registration_cannot_tell_is_a_dash():
    frames = [frame | {"residual": None} for frame in told()["frames"]]
    assert '<td data-label="Off by">–</td>' in _frames({"frames": frames}, COLOURS)


def test_fuse_writes_a_report(fuse, folder):
    result = fuse("a.png", "b.png", "-o", "out 1.png", "--report", "r.html", "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["report"] == "r.html"
    page = Page((folder / "r.html").read_text())
    assert "mffsr fuse a.png b.png -o 'out 1.png' --report r.html --json" in page.words
    for frame in data["frames"]:
        assert f"{frame['share']:.1%}" in page.words
    for name in ("fapn.safetensors", "x2.safetensors"):
        assert name in page.words
    pixels = read_photo(folder / "out 1.png").pixels
    assert min(difference(decoded(i), pixels) for i in page.images if decoded(i).shape == pixels.shape) < 4
    assert sorted(p.name for p in folder.iterdir()) == ["a.png", "b.png", "out 1.png", "r.html"]


def test_the_report_is_checked_before_anything_is_computed(fuse, folder):
    (folder / "old.html").write_text("precious")
    for name, code, word in (
        ("old.html", 1, "exists already"),
        ("r.pdf", 2, "expected a name such as report.html"),
        ("none/r.html", 1, "does not exist"),
        ("a.png", 2, "HTML file"),
    ):
        result = fuse("a.png", "b.png", "-o", "out.png", "--report", name)
        assert (result.exit_code, word in result.stderr) == (code, True), result.stderr
        assert "Registering" not in result.stderr
    assert (folder / "old.html").read_text() == "precious"
    assert not (folder / "out.png").exists()
    (folder / "b.html").write_bytes((folder / "b.png").read_bytes())
    result = fuse("a.png", "b.html", "-o", "out.png", "--report", "b.html", "-f")
    assert result.exit_code == 2
    assert "is one of the inputs" in result.stderr
    result = fuse("a.png", "b.png", "-o", "out.png", "--report", "old.html", "--on-exists", "rename")
    assert result.exit_code == 0, result.stderr
    assert (folder / "old.html").read_text() == "precious"
    assert is_ours(folder / "old-2.html")


@pytest.mark.parametrize("step", ["take_pictures", "bracket_page"])
def test_a_fault_of_the_report_never_loses_the_photo(fuse, folder, monkeypatch, step):
    assert fuse("a.png", "b.png", "-o", "good.png").exit_code == 0
    (folder / "r.html").write_text("old")

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(mffsr.report, step, fail)
    result = fuse("a.png", "b.png", "-o", "out.png", "--report", "r.html", "-f")
    assert result.exit_code == 1
    assert result.stdout == "out.png\n"
    assert "warning: the photo is complete, but not its report r.html: not enough memory" in result.stderr
    assert (folder / "out.png").read_bytes() == (folder / "good.png").read_bytes()
    assert (folder / "r.html").read_text() == "old"
    assert leftovers(folder) == []
    result = fuse("a.png", "b.png", "-o", "out.png", "--report", "r.html", "-f", "-q")
    assert result.exit_code == 1
    assert result.stderr == (  # --quiet hides no cause of an exit code
        "warning: the photo is complete, but not its report r.html: not enough memory\n"
    )


# Many brackets


@pytest.fixture
def shoot(tmp_path) -> Path:
    for number, name in enumerate(("one", "two #2", "three")):
        near, far, *_ = bracket(64, 80, seed=number)
        (tmp_path / "in" / name).mkdir(parents=True)
        write_photo(Photo(pixels=near), tmp_path / "in" / name / "a.png")
        write_photo(Photo(pixels=far), tmp_path / "in" / name / "b.png")
    return tmp_path


@pytest.fixture
def batch(shoot, tiny_weights, monkeypatch):
    monkeypatch.chdir(shoot)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["mffsr", "batch", *arguments])
        given = ["batch", "in", "-o", "out", "--weights", str(tiny_weights), "--report", "r.html", *arguments]
        return CliRunner().invoke(app, given)

    return run


def links(index: Path) -> list[Path]:
    return [
        index.parent / unquote(attrs["href"]) for tag, attrs in Page(index.read_text()).elements if tag == "a"
    ]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_batch_has_an_index_and_a_page_of_each_bracket(batch, shoot, workers):
    if workers != "1":
        pytest.importorskip("distributed")
    (shoot / "in" / "three" / "b.png").write_bytes(b"no photo")
    result = batch("--json", "--workers", workers)
    assert result.exit_code == 1, result.stderr
    done = [e for line in result.stdout.splitlines() if (e := json.loads(line))["event"] == "done"]
    assert sorted(e["report"] for e in done) == ["r/one_x2.png.html", "r/two #2_x2.png.html"]
    index = Page((shoot / "r.html").read_text())
    assert "2 done · 1 failed" in " ".join(index.words.split())
    assert "b.png: is not a photo" in index.words
    found = links(shoot / "r.html")
    assert sorted(found) == [shoot / "r" / "one_x2.png.html", shoot / "r" / "two #2_x2.png.html"]
    for page in found:
        assert "mffsr batch --json" in Page(page.read_text()).words
        assert read_card(page).cover.data in index.images
    assert leftovers(shoot) == []


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_index_in_the_output_folder_that_is_not_there_yet(batch, shoot, workers):
    if workers != "1":
        pytest.importorskip("distributed")
    shutil.rmtree(shoot / "in" / "three")
    result = batch("--report", "out/pages/index.html", "--workers", workers)
    assert result.exit_code == 0, result.stderr
    assert [path.exists() for path in links(shoot / "out" / "pages" / "index.html")] == [True, True]
    assert batch("--report", "elsewhere/index.html", "-o", "out2").exit_code == 1


def test_resume_brings_the_index_up_to_date(batch, shoot):
    assert batch().exit_code == 0
    pages = {path: path.read_bytes() for path in links(shoot / "r.html")}
    assert len(pages) == 3
    refused = batch()
    assert refused.exit_code == 1
    assert "r.html: exists already" in refused.stderr
    (shoot / "out" / "one_x2.png").unlink()
    again = batch("--resume")
    assert again.exit_code == 0, again.stderr
    assert "1 done · 2 skipped" in " ".join(Page((shoot / "r.html").read_text()).words.split())
    assert sorted(links(shoot / "r.html")) == sorted(pages)
    changed = [path.name for path, before in pages.items() if path.read_bytes() != before]
    assert changed == ["one_x2.png.html"], "the pages of skipped brackets stay"
    (shoot / "r.html").write_text("precious")
    assert batch("--resume").exit_code == 1
    assert (shoot / "r.html").read_text() == "precious"


def test_resume_does_a_bracket_again_whose_page_is_missing(batch, shoot):
    assert batch().exit_code == 0
    photo, page = shoot / "out" / "one_x2.png", shoot / "r" / "one_x2.png.html"
    before = photo.read_bytes()
    page.unlink()
    again = batch("--resume")
    assert again.exit_code == 0, again.stderr
    assert "1 done, 0 failed, 2 skipped" in again.stderr
    assert page in links(shoot / "r.html")
    assert is_ours(page)
    assert photo.read_bytes() == before


def test_resume_finds_the_pages_of_a_batch_that_renames(batch, shoot):
    (shoot / "out").mkdir()
    (shoot / "out" / "one_x2.png").write_text("precious")
    (shoot / "r.html").write_text("precious")
    assert batch("--on-exists", "rename").exit_code == 0
    pages = links(shoot / "r-2.html")
    assert shoot / "r-2" / "one_x2-2.png.html" in pages
    again = batch("--on-exists", "rename", "--resume", "--json")
    assert again.exit_code == 0, again.stderr
    assert "0 done, 0 failed, 3 skipped" in again.stderr
    told = [json.loads(line) for line in again.stdout.splitlines()]
    skipped = [event["output"] for event in told if event["event"] == "skipped"]
    assert sorted(skipped) == ["out/one_x2-2.png", "out/three_x2.png", "out/two #2_x2.png"]
    assert sorted(links(shoot / "r-2.html")) == sorted(pages)
    assert {path.name for path in shoot.glob("r*")} == {"r.html", "r-2.html", "r-2"}


def test_a_fault_of_a_page_fails_no_bracket(batch, shoot, monkeypatch):
    def fail(*_):
        raise ValueError("no page today")

    monkeypatch.setattr(mffsr.report, "bracket_page", fail)
    result = batch()
    assert result.exit_code == 1
    assert "3 done, 0 failed" in result.stderr
    assert result.stderr.count("the photo is complete, but not its report") == 3
    assert "3 of the brackets' reports could not be written" in result.stderr
    assert len(list((shoot / "out").glob("*.png"))) == 3
    assert "3 done" in Page((shoot / "r.html").read_text()).words
    assert links(shoot / "r.html") == []
