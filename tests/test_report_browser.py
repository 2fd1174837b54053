"""A report in a real browser: it wipes, zooms and pans, fetches nothing, and is readable on a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import Browser, browser, find_browser
from test_report import MAKING, NASTY, told

from mffsr.photo.web import jpeg
from mffsr.report import Entry, bracket_page, index_page, read_card
from mffsr.report.pictures import Detail, Picture, Pictures

RED, GREEN, BLUE = (220, 30, 30), (30, 160, 30), (30, 30, 220)
SIZE = (900, 600)


@pytest.fixture(scope="module")
def page() -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no chromium or chrome is installed")
    with browser(program) as opened:
        yield opened


def plain(colour, width: int = SIZE[0], height: int = SIZE[1]) -> Picture:
    """Return a picture of one colour."""
    return Picture(jpeg(np.full((height, width, 3), colour, np.uint8), 95), width, height)


def pictures() -> Pictures:
    """Photos are red and blue, their details darker; what is fused is green."""
    labels = np.zeros((300, 450, 3), np.uint8)
    labels[:, :225] = (255, 0, 0)
    labels[:, 225:] = (0, 0, 255)
    dark = plain([c // 2 for c in RED]), plain([c // 2 for c in GREEN])
    return Pictures(
        result=plain(GREEN),
        sources={0: plain(RED), 1: plain(BLUE)},
        thumbs={0: plain(RED, 90, 60), 1: plain(BLUE, 90, 60)},
        details=[Detail(frame=0, result=dark[1], source=dark[0], thumb=plain(RED, 90, 60))],
        labels=cv2.imencode(".png", labels[:, :, ::-1])[1].tobytes(),
        ground=plain((200, 200, 200), 450, 300),
        cover=plain(GREEN, 90, 60),
        colours=["#ff0000", "#0000ff", "#00ff00"],
        zoom=0.5,
        brightened=False,
    )


def write_page(path: Path, **more) -> Path:
    data = told(**more)
    data["frames"][2] = {"path": "c.jpg", "share": 0.0, "dropped": "shows another scene"}
    path.write_text(bracket_page(data, pictures(), MAKING), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return write_page(tmp_path_factory.mktemp("report") / "r.html", warnings=["b.jpg: look at it"])


@pytest.fixture
def opened(page, report) -> Browser:
    page.open(report, 1200, 900)
    return page


def stage(page: Browser) -> tuple[float, float, float, float]:
    """Return left, top, width and height of the stage in the window."""
    box = page.evaluate(
        "(() => { const b = document.getElementById('stage').getBoundingClientRect();"
        " return [b.left, b.top, b.width, b.height] })()"
    )
    return tuple(box)


def seen(page: Browser, folder: Path, across: float, down: float = 0.3) -> str:
    """Return which colour the stage shows at a place, 0…1."""
    left, top, width, height = stage(page)
    page.screenshot(folder / "seen.png")
    pixels = cv2.imread(str(folder / "seen.png"))[:, :, ::-1]
    at = pixels[round(top + down * height), round(left + across * width)].astype(int)
    return ("red", "green", "blue")[int(at.argmax())]


def wipe(page: Browser) -> int:
    return int(page.evaluate("document.getElementById('divider').getAttribute('aria-valuenow')"))


def shown_width(page: Browser) -> float:
    return page.evaluate("document.querySelector('#results img:not([hidden])').getBoundingClientRect().width")


def click(page: Browser, selector: str, number: int = 0) -> None:
    page.evaluate(f"document.querySelectorAll({selector!r})[{number}].click()")


def test_all_images_load_and_nothing_is_fetched(page, report):
    page.requests.clear()
    page.complaints.clear()
    page.open(report)
    loaded = page.evaluate(
        "Promise.all([...document.images].map((i) => i.decode().then(() => i.naturalWidth > 0)))"
    )
    assert len(loaded) == 10
    assert all(loaded)
    assert {url for url in page.requests if not url.startswith("data:")} == {report.as_uri()}
    assert page.complaints == []


def test_the_mouse_wipes(opened, tmp_path):
    assert wipe(opened) == 50
    assert [seen(opened, tmp_path, x) for x in (0.1, 0.4, 0.6, 0.9)] == ["red", "red", "green", "green"]
    left, top, width, height = stage(opened)
    opened.drag((left + width / 2, top + height / 2), (left + width * 0.25, top + height / 2))
    assert wipe(opened) == 25
    assert [seen(opened, tmp_path, x) for x in (0.1, 0.4, 0.6, 0.9)] == ["red", "green", "green", "green"]
    opened.drag((left + width * 0.25, top + height / 2), (left + width + 50, top + height / 2))
    assert wipe(opened) == 100
    assert seen(opened, tmp_path, 0.97) == "red"


def test_a_finger_wipes(opened):
    opened.call("Emulation.setTouchEmulationEnabled", enabled=True)
    left, top, width, height = stage(opened)
    opened.touch((left + width * 0.5, top + height / 2), (left + width * 0.8, top + height / 2))
    opened.call("Emulation.setTouchEmulationEnabled", enabled=False)
    assert wipe(opened) == 80


def test_keys_do_all_of_it(opened, tmp_path):
    opened.evaluate("document.getElementById('divider').focus()")
    opened.press("ArrowRight")
    assert wipe(opened) == 52
    opened.press("Home")
    assert wipe(opened) == 0
    assert seen(opened, tmp_path, 0.1) == "green"
    opened.press(" ", up=False)
    assert seen(opened, tmp_path, 0.9) == "red", "the photo alone while the key is held"
    opened.call("Input.dispatchKeyEvent", type="keyUp", key=" ")
    assert seen(opened, tmp_path, 0.9) == "green"
    opened.press("End")
    assert wipe(opened) == 100
    opened.press("]")
    assert seen(opened, tmp_path, 0.1) == "blue", "the next photo"
    opened.press("]")
    assert seen(opened, tmp_path, 0.1) == "red"
    for key, factor in (("3", 3), ("1", 1)):
        opened.press(key)
        assert shown_width(opened) == pytest.approx(factor * SIZE[0])
    opened.press("+")
    assert shown_width(opened) == pytest.approx(1.25 * SIZE[0])
    opened.press("0")
    assert shown_width(opened) == pytest.approx(stage(opened)[2], abs=1)


def test_zooming_and_panning(opened):
    def where() -> list[float]:
        return opened.evaluate(
            "(() => { const b = document.querySelector('#results img').getBoundingClientRect();"
            " const c = document.querySelector('#sources img').getBoundingClientRect();"
            " return [b.left, b.top, c.left, c.top] })()"
        )

    click(opened, "[data-zoom='3']")
    assert shown_width(opened) == pytest.approx(3 * SIZE[0])
    assert (
        opened.evaluate("document.querySelector('[data-zoom=\"3\"]').getAttribute('aria-pressed')") == "true"
    )
    before = where()
    left, top, width, height = stage(opened)
    opened.drag((left + width * 0.7, top + height / 2), (left + width * 0.7 - 100, top + height / 2 - 60))
    after = where()
    assert np.subtract(after, before) == pytest.approx([-100, -60, -100, -60], abs=1)
    assert wipe(opened) == 50, "panning does not wipe"
    opened.drag((left + width / 2, top + height / 2), (left + width * 0.3, top + height / 2))
    assert wipe(opened) == pytest.approx(30, abs=1), "the divider does"
    for _ in range(8):
        opened.drag((left + width * 0.8, top + height / 2), (left + 5, top + height / 2))
    assert where()[0] + 3 * SIZE[0] == pytest.approx(left + width, abs=1), "it stays within the picture"
    wheel = {"x": left + width / 2, "y": top + height / 2, "deltaX": 0, "deltaY": 5000}
    opened.evaluate("document.getElementById('stage').focus()")
    opened.call("Input.dispatchMouseEvent", type="mouseWheel", **wheel)
    assert shown_width(opened) == pytest.approx(width, abs=1)


def test_one_pixel_is_one_pixel_of_a_dense_screen(page, report):
    page.open(report, 1200, 900)
    page.call("Emulation.setDeviceMetricsOverride", width=1200, height=900, deviceScaleFactor=2, mobile=False)
    click(page, "[data-zoom='1']")
    assert shown_width(page) == pytest.approx(SIZE[0] / 2)


def test_photos_and_details_are_chosen(opened, tmp_path):
    click(opened, ".strip button", 1)
    assert seen(opened, tmp_path, 0.1) == "blue"
    assert opened.evaluate("document.getElementById('before').textContent") == "b.jpg"
    click(opened, ".strip button", 2)
    assert [seen(opened, tmp_path, x) for x in (0.1, 0.9)] == ["red", "green"]
    assert opened.evaluate("[...document.querySelectorAll('.layer img:not([hidden])')].length") == 2
    pressed = "[...document.querySelectorAll('.strip button')].map((b) => b.getAttribute('aria-pressed'))"
    assert opened.evaluate(pressed) == ["false", "false", "true"]


def test_the_legend_shows_one_photo_alone(opened):
    pixels = """(async () => {
        const image = document.getElementById('labels'), canvas = document.createElement('canvas');
        await new Promise((done) => setTimeout(done, 300));
        await image.decode();
        canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
        const context = canvas.getContext('2d');
        context.drawImage(image, 0, 0);
        return [50, 400].map((x) => [...context.getImageData(x, 100, 1, 1).data].slice(0, 3));
    })()"""
    assert opened.evaluate(pixels) == [[255, 0, 0], [0, 0, 255]]
    click(opened, ".legend button", 1)
    assert opened.evaluate(pixels) == [[48, 48, 48], [0, 0, 255]]
    click(opened, ".legend button", 0)
    assert opened.evaluate(pixels) == [[255, 0, 0], [48, 48, 48]]
    click(opened, ".legend button", 0)
    assert opened.evaluate(pixels) == [[255, 0, 0], [0, 0, 255]]


CONTRASTS = """(() => {
    const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (c) => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
    const ground = (element) => {
        for (let e = element; e; e = e.parentElement) {
            const colour = numbers(getComputedStyle(e).backgroundColor);
            if (colour.length < 4 || colour[3] > 0.5) return colour;
        }
    };
    return [...document.querySelectorAll('h1,h2,h3,p,th,td,dt,dd,code,li,figcaption,.legend span,.legend b')]
        .filter((e) => e.getClientRects().length && e.textContent.trim() && !e.closest('.stage'))
        .map((e) => [light(numbers(getComputedStyle(e).color)), light(ground(e))])
        .map(([a, b]) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
})()"""
PHONE = """(() => {
    const small = [...document.querySelectorAll('body *')].filter((e) => e.getClientRects().length
        && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
        .map((e) => parseFloat(getComputedStyle(e).fontSize));
    return [document.documentElement.scrollWidth, Math.min(...small)];
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_are_both_readable(page, report, dark):
    page.open(report, dark=dark)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == dark
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 30
    assert min(contrasts) >= 4.5, "WCAG AA"


def test_readable_at_the_width_of_a_phone(page, tmp_path):
    long = ("a" * 150 + ".jpg", "photo with many words in its name " * 5 + ".jpg", NASTY[0])
    path = write_page(tmp_path / "r.html", warnings=[long[0]], output="x" * 200 + ".png")
    long_page = bracket_page(
        told(long, output="x" * 120 + ".png", warnings=[long[0]]),
        pictures(),
        replace(MAKING, command="mffsr fuse " + " ".join(long), device="d" * 90),
    )
    (tmp_path / "long.html").write_text(long_page)
    entries = [Entry(bracket="b" * 90, event="done", link="r.html", card=read_card(path), reason="r" * 99)]
    (tmp_path / "index.html").write_text(index_page("t" * 90, entries, "c" * 90))
    for file in ("r.html", "long.html", "index.html"):
        page.open(tmp_path / file, 360, 740)
        width, smallest = page.evaluate(PHONE)
        assert width <= 360, file
        assert smallest >= 12, file


def test_an_index_shows_its_pages(page, tmp_path):
    write_page(tmp_path / "p & q.html")
    entries = [
        Entry(bracket="one", event="done", link="p%20%26%20q.html", card=read_card(tmp_path / "p & q.html")),
        Entry(bracket="two", event="failed", reason="b.jpg: is empty"),
    ]
    (tmp_path / "i.html").write_text(index_page("shoot", entries, "mffsr batch"))
    page.requests.clear()
    page.complaints.clear()
    page.open(tmp_path / "i.html")
    assert page.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    assert {url for url in page.requests if not url.startswith("data:")} == {(tmp_path / "i.html").as_uri()}
    assert page.complaints == []
    assert page.evaluate("document.querySelector('a').href") == (tmp_path / "p & q.html").as_uri().replace(
        "&", "%26"
    )
