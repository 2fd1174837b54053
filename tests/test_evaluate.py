"""`mffsr eval`: protocols, tables, files that are missing, and that the numbers are those of the product."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import signal
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import data_folder, textured
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from mffsr.checkpoint import read_header, save_network
from mffsr.cli.app import app
from mffsr.cli.evaluate import spread
from mffsr.cli.evaluate_tables import Line, Sheet, to_csv, to_latex, to_text
from mffsr.device import choose
from mffsr.engine import fuse_bracket
from mffsr.errors import BracketError, MffsrError, UsageError
from mffsr.evaluate import OURS, Engine, evaluate_pairs, evaluate_truth, load_engine
from mffsr.evaluate_files import Bracket, find_brackets, find_photos, find_results, load_all, require_complete
from mffsr.evaluate_scores import Evaluation, Row, Scores, _Workers, bootstrap, truth_scores
from mffsr.evaluate_synthetic import SyntheticBracket, _mask, label_scores, reduce, synthetic_bracket
from mffsr.metrics import fusion_metrics
from mffsr.model import FAPN, FN, FapnConfig, SrnConfig
from mffsr.paper_tables import COLUMNS, TABLE_I, TABLE_II, TABLE_III, TABLE_IV, paper_rows
from mffsr.photo import Photo
from mffsr.training.synth import kernel

Pixels = NDArray[np.uint8]
METRICS = {"Q_MI", "Q_NICE", "Q_G", "Q_P", "Q_S", "Q_Y"}


# Material -------------------------------------------------------------------------------------------------


def scene(seed: int, height: int = 51, width: int = 62) -> Pixels:
    """Noise of two sizes: sharp everywhere, different in every channel."""
    rng = np.random.default_rng(seed)
    fine = rng.integers(0, 256, (height, width, 3)).astype(np.float32)
    coarse = cv2.resize(rng.integers(0, 256, (6, 7, 3)).astype(np.float32), (width, height))
    return np.clip(0.4 * cv2.GaussianBlur(fine, (0, 0), 0.6) + 0.6 * coarse, 0, 255).astype(np.uint8)


def pair(seed: int, **size: int) -> tuple[Pixels, Pixels]:
    """Two frames of a scene, each sharp in one half."""
    sharp = scene(seed, **size)
    soft = cv2.GaussianBlur(sharp, (0, 0), 2)
    half = sharp.shape[1] // 2
    left = np.concatenate([sharp[:, :half], soft[:, half:]], 1)
    right = np.concatenate([soft[:, :half], sharp[:, half:]], 1)
    return left, right


def write(path: Path, pixels: Pixels) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny networks for scales 1 and 2, and one of ablated ones in it."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(5)
    save_network(FAPN(FapnConfig(width=8, blocks=1)), folder / "fapn.safetensors")
    save_network(FN(SrnConfig(scale=2, features=8, growth=8, blocks=1)), folder / "x2.safetensors")
    without = folder / "ablations" / "w-o CAM"
    without.mkdir(parents=True)
    save_network(FAPN(FapnConfig(width=8, blocks=1, attention="sam")), without / "fapn.safetensors")
    return folder


@pytest.fixture(scope="module")
def engine(weights: Path) -> Engine:
    return load_engine(2, str(weights), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for seed, name in enumerate(("s-2", "s-10", "s-1")):
        for frame, pixels in zip("AB", pair(seed), strict=True):
            write(folder / f"{name}-{frame}.png", pixels)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(2):
        write(folder / f"{seed}.png", scene(seed + 10, height=97, width=129))
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def as_json(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    data: dict[str, Any] = json.loads(result.stdout)
    return data


def ours(weights: Path, *arguments: object) -> list[object]:
    return [*arguments, "--weights", weights, "--device", "cpu", "--precision", "fp32", "-j", 1, "-q"]


# One fused photo ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--sources A B --fused F", "--sources A --sources B --fused F"),
        ("--fused F --sources A B C", "--fused F --sources A --sources B --sources C"),
        ("--sources A --sources B -q", "--sources A --sources B -q"),
        ("--sources=A B -f", "--sources=A --sources B -f"),
        ("--sources A B --json --sources C", "--sources A --sources B --json --sources C"),
        ("--sources --fused F", "--sources --fused F"),
        ("--sources", "--sources"),
        ("--pairs D x", "--pairs D x"),
    ],
)
def test_an_option_takes_several_values(given: str, expected: str) -> None:
    assert spread(given.split(), "--sources") == expected.split()


@pytest.mark.parametrize("form", ["together", "repeated"])
def test_any_fused_image(tmp_path: Path, form: str) -> None:
    left, right = pair(3)
    a, b = write(tmp_path / "a.png", left), write(tmp_path / "b.png", right)
    fused = write(tmp_path / "f.png", scene(3))
    sources = [a, b] if form == "together" else [a, "--sources", b]
    data = as_json("--sources", *sources, "--fused", fused)
    assert data == json.loads(json.dumps(fusion_metrics([left, right], scene(3))))
    assert set(data) == {"per_channel", "mean"}
    assert set(data["mean"]) == METRICS
    table = run("--sources", *sources, "--fused", fused).stdout
    assert [line.split()[0] for line in table.splitlines() if line[:1] in "RGBm"] == ["R", "G", "B", "mean"]
    assert f"{data['mean']['Q_NICE']:.4f}" in table


def test_three_sources_of_which_one_is_gray(tmp_path: Path) -> None:
    left, right = pair(3)
    gray = left[:, :, 1]
    paths = [write(tmp_path / f"{i}.png", pixels) for i, pixels in enumerate((left, right, gray, scene(3)))]
    data = as_json("--sources", *paths[:3], "--fused", paths[3])
    expected = fusion_metrics([left, right, np.repeat(gray[:, :, None], 3, 2)], scene(3))
    assert data["mean"] == expected["mean"]


def test_only_gray_gives_one_channel(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.png", scene(i)[:, :, 0]) for i in range(3)]
    assert len(as_json("--sources", *paths[:2], "--fused", paths[2])["per_channel"]["Q_G"]) == 1


def test_sizes_that_differ_are_named(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.png", scene(i, width=60 + i // 2)) for i in range(3)]
    result = run("--sources", *paths[:2], "--fused", paths[2])
    assert result.exit_code == 1
    assert f"{paths[2]}: 61×51, but 0.png is 60×51" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--sources a.png b.png --fused f.png --csv a.png", "a.png: is one of the inputs"),
        ("--sources a.png b.png --fused f.png --latex ./f.png", "f.png: is one of the inputs"),
        ("--sources a.png b.png --fused f.png --csv t --latex ./t", "t: is another file of this command"),
        ("--pairs . --csv a.png", "a.png: is one of the inputs"),
        ("--truth . --latex b.png", "b.png: is one of the inputs"),
        ("--pairs . --fused . --csv f.png", "f.png: is one of the inputs"),
    ],
)
def test_tables_replace_no_photo_and_not_each_other(
    arguments: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = [write(Path(name), scene(0)).read_bytes() for name in ("a.png", "b.png", "f.png")]
    result = run(*arguments.split(), "-f")
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert [Path(name).read_bytes() for name in ("a.png", "b.png", "f.png")] == before
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "expected one of --sources, --pairs and --truth"),
        ("--sources a b --pairs d", "--sources and --pairs given"),
        ("--sources a b", "--sources without --fused"),
        ("--sources a --fused f", "expected at least 2"),
        ("--truth d --fused f", "not with --truth"),
        ("--pairs d --protocol synthetic", "does not go with --pairs"),
        ("--truth d --protocol paper", "does not go with --truth"),
        ("--pairs d --fused f --baselines", "--baselines does not go with --fused"),
        ("--pairs d --fused f --weights clean", "--weights does not go with --fused"),
        ("--sources a b --fused f --align", "--align does not go with --fused"),
        ("--sources a b --fused f --clear-halos", "--clear-halos does not go with --fused"),
        ("--sources a b --fused f --reduce paper", "--reduce does not go with --fused"),
        ("--sources a b --fused f --scale 2", "--scale does not go with --sources"),
        ("--pairs nowhere --fused nowhere", "nowhere: not a folder"),
        ("--pairs nowhere --ablations nothing", "nothing: not a folder"),
        ("--pairs . --fused .", "no photos"),
    ],
)
def test_what_does_not_go_together(
    arguments: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) <= 5


# The paper's protocol -------------------------------------------------------------------------------------


def test_reduction_is_what_it_is_called() -> None:
    image = scene(1, 48, 60)
    assert np.array_equal(reduce(image, 3, "paper"), cv2.resize(image, (20, 16), interpolation=2))
    pillow = np.asarray(Image.fromarray(image).resize((20, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(reduce(image, 3, "antialiased"), pillow)
    assert reduce(image[:, :, :1], 2, "paper").shape == reduce(image[:, :, :1], 2, "antialiased").shape
    assert reduce(image, 1, "paper") is image


def test_pairs_measure_the_product(pairs: Path, weights: Path, engine: Engine) -> None:
    data = as_json(*ours(weights, "--pairs", pairs, "--scale", 2, "--protocol", "paper"))
    settings = {"scale": 2, "weights": str(weights), "reduce": "paper", "align": False, "clear_halos": False}
    settings |= {"device": "cpu", "precision": "fp32"}
    names = ("fapn.safetensors", "x2.safetensors")
    settings["sha256"] = {name: read_header(weights / name)["sha256"] for name in names}
    assert settings.items() <= data.items()
    assert set(data) == {*settings, "mean", "ci95", "images"}
    assert [image["name"] for image in data["images"]] == ["s-1", "s-2", "s-10"]
    assert all(set(image) == METRICS | {"name"} for image in data["images"])
    for key in METRICS:
        values = [image[key] for image in data["images"]]
        assert data["mean"][key] == pytest.approx(np.mean(values))
        assert min(values) <= data["ci95"][key][0] <= data["mean"][key] <= data["ci95"][key][1] <= max(values)
    # By hand: odd rows cut off at the bottom, OpenCV's bicubic, the engine, 8 bits.
    originals = [np.ascontiguousarray(image[:50, :62]) for image in pair(2)]
    frames = [Photo(pixels=cv2.resize(o, (31, 25), interpolation=cv2.INTER_CUBIC)) for o in originals]
    fusion = fuse_bracket(
        frames, engine.model, choose("cpu", "fp32"), align=False, clear_halos=False, depth=8
    )
    expected = fusion_metrics(originals, fusion.photo.pixels)["mean"]
    assert {key: data["images"][0][key] for key in METRICS} == pytest.approx(expected, abs=1e-9)


def test_the_reduction_can_be_chosen(pairs: Path, weights: Path) -> None:
    options = ours(weights, "--pairs", pairs)
    assert as_json(*options, "--reduce", "paper") == as_json(*options)
    antialiased = as_json(*options, "--reduce", "antialiased")
    assert antialiased["reduce"] == "antialiased"
    assert antialiased["mean"] != as_json(*options)["mean"]


def test_the_tables_say_how_photos_were_reduced(pairs: Path, weights: Path) -> None:
    options = ours(weights, "--pairs", pairs)
    assert "antialias" not in run(*options).stdout
    text = run(*options, "--reduce", "antialiased").stdout
    assert text.count("--reduce antialiased") == 2, "each table's title"
    assert "the paper reduces without antialiasing: not comparable with these" in text


def test_the_table_holds_the_papers_rows(pairs: Path, weights: Path) -> None:
    text = run(*ours(weights, "--pairs", pairs)).stdout
    assert "paper: Ours" in text
    assert "0.8226  0.4757  0.5605  0.8998  0.8451  0.7849" in text
    assert "10.1109/TNNLS.2024.3367782" in text
    assert "over the 20 pairs of Lytro" in text  # three pairs do not compare with twenty
    assert "95 % from" in text


def test_warnings_name_the_scene_and_come_once(weights: Path, tmp_path: Path) -> None:
    for name, value in (("a", 60), ("b", 200)):
        for frame, pixels in zip("AB", pair(1), strict=True):
            pixels[:, 12:] = value  # plain
            write(tmp_path / f"{name}-{frame}.png", pixels)
            write(tmp_path / "sharp" / f"{name}.png", pixels)
    for folder, names in (("--pairs", "ab"), ("--truth", ["a.png", "b.png"])):
        place = tmp_path if folder == "--pairs" else tmp_path / "sharp"
        said = run(*ours(weights, folder, place, "--baselines")[:-1]).stderr
        warned = [line for line in said.splitlines() if line.startswith("warning: ")]
        assert [line.split(":")[1].strip() for line in warned] == list(names), said


def test_scale_1_fuses_the_originals(pairs: Path, weights: Path) -> None:
    result = run(*ours(weights, "--pairs", pairs, "--scale", 1, "--baselines"), "--json")
    data = json.loads(result.stdout)
    assert list(data["baselines"]) == ["average", "source A alone", "source B alone"]
    left, right = pair(2)
    mean = np.mean([left, right], axis=0).round().astype(np.uint8)
    expected = fusion_metrics([left, right], mean)["mean"]
    assert {k: data["baselines"]["average"]["images"][0][k] for k in METRICS} == pytest.approx(expected)
    assert "Table VI" in run(*ours(weights, "--pairs", pairs, "--scale", 1)).stdout


def test_baselines_and_ablations(pairs: Path, weights: Path, tmp_path: Path) -> None:
    for number in (1, 2, 10):  # under the names that Table III knows
        for frame in "AB":
            write(
                tmp_path / f"lytro-0{number % 7}-{frame}.png",
                np.asarray(Image.open(pairs / f"s-{number}-{frame}.png")),
            )
    options = ours(weights, "--pairs", tmp_path, "--baselines", "--ablations", weights / "ablations")
    result = run(*options, "--json")
    assert list(json.loads(result.stdout)["baselines"]) == [
        "w-o CAM",
        "bicubic, then fusion",
        "fusion, then bicubic",
        "SRN, then fusion",
        "fusion, then SRN",
        "source A alone",
        "source B alone",
    ]
    result = run(*ours(weights, "--pairs", tmp_path, "--ablations", pairs))  # a folder without any run
    assert result.exit_code == 2
    assert "no sub-folder of it holds fapn.safetensors or x2.safetensors" in result.stderr
    text = run(*options).stdout
    assert "lytro-03, ×2" in text
    assert "lytro-05, ×2" not in text
    assert "\nSR-Fusion " in text
    assert "paper: SR-Fusion" in text
    assert "paper: w/o SAM+CAM" in text


def test_workers_give_the_same_numbers(pairs: Path, engine: Engine) -> None:
    brackets, _ = find_brackets(pairs)
    said: list[tuple[str, int, int]] = []
    one = evaluate_pairs(brackets, engine)
    two = evaluate_pairs(brackets, engine, jobs=2, progress=lambda *step: said.append(step))
    assert [e.as_json() for e in one] == [e.as_json() for e in two]
    assert ("Measuring", 3, 3) in said
    assert ("Fusing", 3, 3) in said


# Files ----------------------------------------------------------------------------------------------------


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).touch()
    return folder


def test_brackets_are_found_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "lytro-01-B.jpg", "lytro-01-A.jpg", "x_2.PNG", "x_1.PNG", "x_3.PNG", "notes.txt")
    touch(tmp_path, "y-1-b.tif", "y-1-a.tif", ".hidden-A.jpg")
    brackets, faults = find_brackets(tmp_path)
    assert [(b.name, [p.name for p in b.paths]) for b in brackets] == [
        ("lytro-01", ["lytro-01-A.jpg", "lytro-01-B.jpg"]),
        ("y-1", ["y-1-a.tif", "y-1-b.tif"]),
    ]
    assert faults == [f"x_{n}.PNG is one frame more than the other brackets have" for n in (1, 2, 3)]


def test_triples_are_brackets_too(tmp_path: Path) -> None:
    touch(tmp_path, *(f"t-{n}-{frame}.jpg" for n in (1, 2) for frame in "ABC"))
    brackets, faults = find_brackets(tmp_path)
    assert [(len(b.paths), b.frames) for b in brackets] == [(3, ("A", "B", "C"))] * 2
    assert not faults


@pytest.mark.parametrize("kinds", [("A", "B"), ("source_1", "source_2"), ("sourceA", "sourceB"), ("1", "2")])
def test_a_folder_of_each_frame_holds_brackets_too(kinds: tuple[str, str], tmp_path: Path) -> None:
    for kind in (*kinds, "truth", "full_clear"):  # those of other kinds are no frames
        (tmp_path / kind).mkdir()
        touch(tmp_path / kind, "10.jpg", "2.jpg", "pair-A.jpg")
    (tmp_path / "D").mkdir()  # without photos
    brackets, faults = find_brackets(tmp_path)
    assert [(b.name, [p.relative_to(tmp_path).as_posix() for p in b.paths]) for b in brackets] == [
        (name, [f"{kind}/{name}.jpg" for kind in kinds]) for name in ("2", "10", "pair-A")
    ]
    assert not faults
    (tmp_path / kinds[1] / "10.jpg").unlink()
    touch(tmp_path / kinds[0], "2.png")
    brackets, faults = find_brackets(tmp_path)
    assert [bracket.name for bracket in brackets] == ["pair-A"]
    assert len(faults) == 2
    assert re.fullmatch(rf"{kinds[0]}/2\..* is there under another extension, too", faults[0])
    assert faults[1] == f"{kinds[1]}/10.jpg is missing"
    touch(tmp_path, "other.jpg")  # photos of the folder itself count first
    with pytest.raises(UsageError, match=r"no brackets found\nexpected names such as scene-A\.jpg"):
        find_brackets(tmp_path)


@pytest.mark.parametrize(
    ("remove", "add", "named"),
    [
        ("s-2-B.png", "", "s-2-B.png is missing"),
        ("s-2-A.png", "", "s-2-A.png is missing"),
        ("", "s-2-C.png", "s-2-C.png is one frame more"),
        ("", "s-2-B.jpg", "is there under another extension"),
        ("", "stray.png", "stray.png is not a frame"),
    ],
)
def test_no_mean_over_a_silently_smaller_set(
    remove: str, add: str, named: str, tmp_path: Path, pairs: Path, weights: Path
) -> None:
    for path in pairs.iterdir():
        if path.name != remove:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    if add:
        (tmp_path / add).write_bytes((pairs / "s-2-B.png").read_bytes())
    options = ours(weights, "--pairs", tmp_path)
    result = run(*options)
    assert (result.exit_code, result.stdout) == (1, "")
    assert named in result.stderr
    assert "--allow-missing" in result.stderr
    allowed = run(*[o for o in options if o != "-q"], "--allow-missing", "--json")
    assert allowed.exit_code == 0, allowed.output
    data = json.loads(allowed.stdout)
    assert named in data["missing"][0]
    assert f"the means are over {len(data['images'])} brackets" in allowed.stderr


def results_of(pairs: Path, folder: Path, pattern: str = "{}.png") -> Path:
    for bracket in find_brackets(pairs)[0]:
        write(folder / pattern.format(bracket.name), load_all(bracket.paths[:1])[0])
    return folder


@pytest.mark.parametrize("pattern", ["{}.png", "GACN_{}-fused.png", "{}_result.bmp.png"])
def test_results_of_another_method(pattern: str, pairs: Path, tmp_path: Path) -> None:
    folder = results_of(pairs, tmp_path / "gacn", pattern)
    data = as_json("--pairs", pairs, "--fused", folder, "-j", 1)
    left, right = pair(2)
    expected = fusion_metrics([left, right], left)["mean"]
    assert {key: data["images"][0][key] for key in METRICS} == pytest.approx(expected)
    assert [image["name"] for image in data["images"]] == ["s-1", "s-2", "s-10"]
    assert "gacn" in run("--pairs", pairs, "--fused", folder, "-j", 1).stdout


def test_a_missing_result_is_named(pairs: Path, tmp_path: Path) -> None:
    folder = results_of(pairs, tmp_path)
    (folder / "s-10.png").unlink()
    write(folder / "other.png", scene(1))
    result = run("--pairs", pairs, "--fused", folder, "-j", 1)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no result for s-10" in result.stderr
    assert "other.png" in result.stderr
    allowed = run("--pairs", pairs, "--fused", folder, "-j", 1, "--allow-missing")
    assert allowed.exit_code == 0
    assert "the means are over 2 brackets" in allowed.stderr
    assert "2 brackets (1 missing or left out)" in allowed.stdout


def test_results_that_cannot_be_told_apart(pairs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    for name in ("x_s-1.png", "y_s-1.png", "s-2.png", "s-10.png"):
        write(folder / name, scene(1))
    with pytest.raises(MffsrError, match=r"x_s-1\.png and y_s-1\.png could both be s-1"):
        find_results(folder, find_brackets(pairs)[0])
    write(folder / "s-1.png", scene(1))
    assert find_results(folder, find_brackets(pairs)[0])[0]["s-1"].name == "s-1.png"


def test_one_result_is_not_two_scenes(tmp_path: Path) -> None:
    brackets = [Bracket(name, ("A", "B"), ()) for name in ("flower", "garden")]
    write(tmp_path / "flower_garden.png", scene(1, height=20, width=20))
    with pytest.raises(MffsrError, match=r"flower_garden\.png could be the result of flower and of garden"):
        find_results(tmp_path, brackets)


def test_an_ablation_is_not_averaged_into_another_method(pairs: Path, engine: Engine) -> None:
    with pytest.raises(MffsrError, match="mffsr: two methods of this name"):
        evaluate_pairs(find_brackets(pairs)[0], engine, variants=[("mffsr", engine)])


def test_a_result_of_the_longer_name_is_not_one_of_the_shorter(tmp_path: Path) -> None:
    brackets = [Bracket(name, ("A", "B"), ()) for name in ("flower", "flower-2")]
    for name in ("m_flower", "m_flower-2"):
        write(tmp_path / f"{name}.png", scene(1, height=20, width=20))
    found, missing, beyond = find_results(tmp_path, brackets)
    assert {name: path.name for name, path in found.items()} == {
        "flower": "m_flower.png",
        "flower-2": "m_flower-2.png",
    }
    assert not missing
    assert not beyond


def test_frames_are_in_natural_order_and_of_all_formats_that_are_read(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        (tmp_path / f"s_{number}.avif").touch()
    (bracket,), faults = find_brackets(tmp_path)
    assert bracket.frames == ("1", "2", "10")
    assert not faults


@pytest.mark.parametrize("option", ["--pairs", "--truth"])
def test_no_model_is_loaded_for_photos_that_are_not_there(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mffsr.evaluate.load_engine", None)
    result = run(option, tmp_path)
    assert result.exit_code == 2
    assert (
        result.stderr == f"error: {tmp_path}: no photos (no file there is named as one: .jpg, .png, .tif …)\n"
    )


def test_a_title_of_several_lines_stays_a_comment() -> None:
    line = Line("x", {"Q_G": 0.5})
    sheet = Sheet(title="of a\n\\input{b}\rc", first="image", columns=["Q_G"], lines=[line])
    assert to_latex([sheet]).startswith("% of a \\input{b} c\n\\begin{tabular}")


def test_a_pool_that_broke_is_told_in_words() -> None:
    class Broken(Executor):
        def submit(self, *_: object, **__: object) -> Future[Any]:
            raise BrokenProcessPool

    measured = Scores(Broken(), 0, 1, lambda *_: None)
    with pytest.raises(MffsrError, match="a worker process died, probably for lack of memory"):
        measured.add(measured.row("m", "a"), truth_scores)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no such thing here")
def test_processes_that_measure_never_hear_of_ctrl_c() -> None:
    with _Workers(1) as workers:
        held = workers.submit(signal.pthread_sigmask, signal.SIG_BLOCK, ()).result()
    assert signal.SIGINT in held  # from their very beginning: being loaded, they would print a traceback
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_results_of_another_size(pairs: Path, tmp_path: Path) -> None:
    folder = results_of(pairs, tmp_path)
    write(folder / "s-2.png", scene(1)[:50, :62])
    result = run("--pairs", pairs, "--fused", folder, "-j", 1)
    assert result.exit_code == 1
    assert "s-2.png: 62×50, expected 62×51" in result.stderr
    for name in ("s-1.png", "s-10.png"):
        write(folder / name, scene(1)[:50, :62])
    assert run("--pairs", pairs, "--fused", folder, "-j", 1, "--scale", 2).exit_code == 0


def test_frames_of_other_sizes_are_named_before_anything_is_computed(
    weights: Path, tmp_path: Path, engine: Engine
) -> None:
    write(tmp_path / "a-A.png", scene(1))
    write(tmp_path / "a-B.png", scene(1)[:40])
    with pytest.raises(BracketError, match=r"a-B\.png: 62×40, but a-A\.png is 62×51"):
        evaluate_pairs(find_brackets(tmp_path)[0], engine)


def test_frames_that_registration_cuts_are_named(weights: Path, tmp_path: Path) -> None:
    wide = textured(200, 206)
    for name, left in (("q-A", 0), ("q-B", 6)):
        write(tmp_path / f"{name}.png", np.ascontiguousarray(wide[:, left : left + 200]))
    result = run(*ours(weights, "--pairs", tmp_path, "--align"))
    assert result.exit_code == 1
    assert "q-A.png: registration cut the frames" in result.stderr
    assert "use --no-align" in result.stderr


def test_photos_too_small_to_measure(tmp_path: Path, engine: Engine) -> None:
    for frame in "AB":
        write(tmp_path / f"a-{frame}.png", scene(1, 12, 40))
    with pytest.raises(BracketError, match="too small to be evaluated at ×2\nexpected at least 16×16"):
        evaluate_pairs(find_brackets(tmp_path)[0], engine)


def test_a_sharp_photo_that_will_not_do_is_named_before_anything_is_computed(
    tmp_path: Path, engine: Engine
) -> None:
    good = write(tmp_path / "a.png", scene(1))
    small = write(tmp_path / "b.png", scene(1, 15, 40))
    other = tmp_path / "c.png"
    other.write_text("no photo")
    fused: list[str] = []
    for last in (small, other):
        with pytest.raises(MffsrError, match=last.name):
            evaluate_truth([good, last], engine, progress=lambda stage, *_: fused.append(stage))
    assert not fused


def test_long_lists_are_cut(tmp_path: Path) -> None:
    with pytest.raises(MffsrError, match=r"f7 … and 4 more\n"):
        require_complete(tmp_path, [f"f{n}" for n in range(12)])
    with pytest.raises(UsageError, match="no brackets"):
        find_brackets(touch(tmp_path, "a.png", "b.png"))


# Synthetic brackets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("matte", [False, True])
def test_synthetic_brackets_are_what_their_truth_says(scale: int, matte: bool) -> None:
    sharp = scene(4, 96 * scale, 132 * scale)
    made = synthetic_bracket(sharp, scale, np.random.default_rng(7), matte=matte)
    assert [frame.shape for frame in made.frames] == [(96, 132, 3)] * 2
    assert made.truth.shape == (96, 132)
    assert 0.05 < made.truth.mean() < 0.95
    errors = [cv2.blur(np.abs(f.astype(float) - made.all_in_focus).mean(2), (7, 7)) for f in made.frames]
    inside = cv2.erode(made.truth.astype(np.uint8), np.ones((9, 9))) == cv2.dilate(
        made.truth.astype(np.uint8), np.ones((9, 9))
    )
    chosen = np.choose(made.truth, errors)[inside]
    other = np.choose(1 - made.truth, errors)[inside]
    assert (chosen < other).mean() > 0.95
    perfect = label_scores(made, made.truth)
    assert perfect == {"label_accuracy": 1.0, "boundary_accuracy": 1.0}
    wrong = label_scores(made, (1 - made.truth).astype(np.uint16))
    assert wrong == {"label_accuracy": 0.0, "boundary_accuracy": 0.0}


def test_synthetic_photos_are_what_a_camera_of_jpegs_keeps() -> None:
    made = synthetic_bracket(scene(4, 64, 80), 1, np.random.default_rng(7), matte=False)
    file = io.BytesIO()
    Image.fromarray(made.clean).save(file, "JPEG", quality=90, subsampling="4:2:0")
    assert np.abs(made.all_in_focus.astype(int) - np.asarray(Image.open(file))).mean() < 0.5
    assert np.abs(made.all_in_focus.astype(int) - made.clean).mean() > 2


@pytest.mark.parametrize("scale", [1, 3])
def test_synthetic_blur_is_measured_in_pixels_of_the_frames(
    scale: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float] = []

    def spy(radius: float, *, disc: bool, size: int) -> NDArray[np.float32]:
        drawn.append(radius)
        return kernel(radius, disc=disc, size=size)

    monkeypatch.setattr("mffsr.evaluate_synthetic.kernel", spy)
    for seed in range(8):
        synthetic_bracket(scene(4, 12 * scale, 15 * scale), scale, np.random.default_rng(seed), matte=False)
    radii = np.reshape(drawn, (8, 2, 2))  # of each frame's nearer and farther layer
    assert ((radii == 0).sum(1) == 1).all(), "each layer is sharp in one of the frames"
    assert ((radii == 0).sum(2) == 1).all(), "each frame has one of them sharp"
    assert 0 < (radii[:, 0, 0] == 0).sum() < 8, "not always the same one"
    assert scale <= radii[radii > 0].min()
    assert 4 * scale < radii.max() <= 6 * scale


@pytest.mark.parametrize("scale", [1, 4])
def test_both_depths_of_a_synthetic_bracket_are_large_and_their_border_is_narrow(scale: int) -> None:
    for seed in range(40):
        layer = _mask(40 * scale, 60 * scale, scale, np.random.default_rng(seed))
        assert 0.08 < layer.mean() < 0.92
        first = (layer > 0.5).astype(np.uint8)
        border = cv2.dilate(first, np.ones((3, 3))) != cv2.erode(first, np.ones((3, 3)))
        assert ((layer > 0.1) & (layer < 0.9)).sum() < 1.1 * border.sum()


@pytest.mark.parametrize(
    ("wrong", "everywhere", "boundary"),
    [
        (slice(0, 10), 0.75, 1.0),
        (slice(17, 20), 0.925, 0.5),
        (slice(20, 23), 0.925, 0.5),
        (slice(16, 17), 0.975, 1.0),
    ],
)
def test_labels_near_a_boundary_are_counted_apart(wrong: slice, everywhere: float, boundary: float) -> None:
    frames = [scene(4, 30, 40), scene(5, 30, 40)]
    truth = (np.arange(40) >= 20)[None].repeat(30, 0).astype(np.uint16)
    labels = truth.copy()
    labels[:, wrong] = 1 - labels[:, wrong]
    scores = label_scores(SyntheticBracket(frames, frames[0], frames[0], frames[0], truth), labels)
    assert scores == pytest.approx({"label_accuracy": everywhere, "boundary_accuracy": boundary})


def test_synthetic_brackets_come_from_the_seed() -> None:
    sharp = scene(4, 64, 80)
    one, same, other = (
        synthetic_bracket(sharp, 2, np.random.default_rng(seed), matte=True) for seed in (1, 1, 2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(one.frames, same.frames, strict=True))
    assert not np.array_equal(one.truth, other.truth)


def test_labels_without_a_difference_have_no_accuracy() -> None:
    flat = np.full((64, 64, 3), 90, np.uint8)
    made = synthetic_bracket(flat, 1, np.random.default_rng(1), matte=False)
    assert all(math.isnan(value) for value in label_scores(made, made.truth).values())


def test_truth(photos: Path, weights: Path) -> None:
    options = ours(weights, "--truth", photos, "--scale", 2, "--protocol", "synthetic", "--seed", 3)
    data = as_json(*options)
    assert (data["scale"], data["reduce"], data["seed"]) == (2, "antialiased", 3)
    assert [(i["name"], i["boundary"]) for i in data["images"]] == [("0.png", "hard"), ("1.png", "matte")]
    assert list(data["mean"]) == [
        *("psnr_y", "ssim_y", "label_accuracy", "boundary_accuracy"),
        *("ceiling_psnr_y", "ceiling_ssim_y", "sr_psnr_y", "sr_ssim_y", "bicubic_psnr_y", "bicubic_ssim_y"),
    ]
    assert 0 <= data["mean"]["label_accuracy"] <= 1
    assert data["mean"]["psnr_y"] < data["mean"]["ceiling_psnr_y"]  # the focus map is random
    assert data == as_json(*options)
    assert data["mean"] != as_json(*options, "--seed", 4)["mean"]


def test_the_clean_numbers_by_hand(photos: Path, engine: Engine) -> None:
    row = evaluate_truth(find_photos(photos)[:1], engine)[0].rows[0]
    sharp = np.ascontiguousarray(load_all(find_photos(photos)[:1])[0][:96, :128])
    low = Image.fromarray(sharp).resize((64, 48), Image.Resampling.BICUBIC)
    large = np.asarray(low.resize((128, 96), Image.Resampling.BICUBIC))
    expected = truth_scores(sharp, large, 2)
    assert row.values["bicubic_psnr_y"] == pytest.approx(expected["psnr_y"])
    assert row.values["bicubic_ssim_y"] == pytest.approx(expected["ssim_y"])
    alone = fuse_bracket(
        [Photo(pixels=np.asarray(low))] * 2,
        engine.model,
        engine.runtime,
        align=False,
        clear_halos=False,
        depth=8,
    )
    assert row.values["sr_psnr_y"] == pytest.approx(
        truth_scores(sharp, alone.photo.pixels, 2)["psnr_y"], abs=0.02
    )


def test_truth_at_scale_1_with_baselines(photos: Path, weights: Path) -> None:
    options = ours(weights, "--truth", photos, "--scale", 1, "--baselines")
    data = as_json(*options)
    assert "sr_psnr_y" not in data["mean"]
    assert list(data["baselines"]["average"]["mean"]) == ["psnr_y", "ssim_y"]
    text = run(*options).stdout
    assert "source A alone" in text
    assert "at edges" in text


# Numbers and tables ---------------------------------------------------------------------------------------


def test_bootstrap() -> None:
    values = np.random.default_rng(0).normal(5, 1, 40)
    low, high = bootstrap(values)
    assert (low, high) == bootstrap(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(40), rel=0.1)
    assert bootstrap([0.25]) == (0.25, 0.25)
    assert all(math.isnan(end) for end in bootstrap([1.0, math.inf]))


def test_what_is_not_finite_becomes_null() -> None:
    rows = [Row("a", {"psnr_y": math.inf, "ssim_y": 1.0}, {}), Row("b", {"psnr_y": 30.0, "ssim_y": 0.5}, {})]
    data = Evaluation(method=OURS, rows=rows).as_json()
    assert data["mean"] == {"psnr_y": None, "ssim_y": 0.75}
    assert data["ci95"]["psnr_y"] == [None, None]
    assert data["images"] == [
        {"name": "a", "psnr_y": None, "ssim_y": 1.0},
        {"name": "b", "psnr_y": 30.0, "ssim_y": 0.5},
    ]
    json.dumps(data, allow_nan=False)


def test_the_papers_tables_agree_with_each_other() -> None:
    best = TABLE_I[2][-1]
    assert TABLE_IV[-1].values == best.values == (0.8226, 0.4757, 0.5605, 0.8998, 0.8451, 0.7849)
    assert [len(rows) for rows in TABLE_I.values()] == [10, 10, 10]
    for image in ("lytro-03", "lytro-05"):
        assert TABLE_II[image][-1].values == TABLE_III[image][-1].values
    assert paper_rows(1)[0] == "Table VI"
    assert paper_rows(6)[1] == ()
    assert all(len(row.values) == len(COLUMNS) for s in (1, 2, 3, 4) for row in paper_rows(s)[1])


def test_files_of_numbers(pairs: Path, weights: Path, tmp_path: Path) -> None:
    table, tex = tmp_path / "t.csv", tmp_path / "t.tex"
    options = ours(weights, "--pairs", pairs, "--csv", table, "--latex", tex)
    data = as_json(*options)
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert [row["image"] for row in rows] == ["s-1", "s-2", "s-10", "mean", "ci95 low", "ci95 high"]
    assert float(rows[3]["Q_G"]) == data["mean"]["Q_G"]
    assert r"paper: RDSR-DRPL & 0.8209 & 0.4039" in tex.read_text(encoding="utf-8")
    again = run(*options)
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    assert run(*options, "--force").exit_code == 0


def test_text_csv_and_latex_of_a_sheet() -> None:
    lines = [
        Line("a_b, 50 %", {"Q_G": 0.5, "psnr_y": math.inf}),
        Line("c", {"Q_G": math.nan}),
        Line("odd", {"Q_G": 0.9}, apart=True, rival=False),
    ]
    sheet = Sheet(title="T", first="x", columns=["Q_G", "psnr_y"], lines=lines, compared=True)
    assert to_text([sheet]).splitlines() == [
        "T",
        "x             Q_G  PSNR-Y",
        "-------------------------",
        "a_b, 50 %  0.5000       ∞",
        "c               –       –",
        "-------------------------",
        "odd        0.9000       –",
    ]
    tex = to_latex([sheet])
    assert r"a\_b, 50 \% & \textbf{0.5000}" in tex
    assert r"odd & 0.9000" in tex
    assert to_csv([["a", 0.5, math.nan, None]]) == "a,0.5,,\n"


def test_a_line_without_a_number_hides_the_best_from_nobody() -> None:
    lines = [Line("first", {"Q_G": math.nan}), Line("a", {"Q_G": 0.25}), Line("b", {"Q_G": 0.5})]
    tex = to_latex([Sheet(title="t", first="x", columns=["Q_G"], lines=lines, compared=True)])
    assert r"b & \textbf{0.5000}" in tex
    assert tex.count("textbf") == 1


def test_latex_is_told_of_what_is_infinite() -> None:
    sheet = Sheet(title="t", first="x", columns=["psnr_y"], lines=[Line("same", {"psnr_y": math.inf})])
    assert r"same & $\infty$ \\" in to_latex([sheet])
    assert "∞" in to_text([sheet])


def test_a_terminal_gets_a_drawn_table(monkeypatch: pytest.MonkeyPatch) -> None:
    sheet = Sheet(title="T", first="x", columns=["Q_G"], lines=[Line("[a]", {"Q_G": 0.5})])
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    drawn = to_text([sheet])
    assert "─" in drawn
    assert "[a]" in drawn
    monkeypatch.setenv("COLUMNS", "8")  # too narrow: nothing is cut off
    assert "0.5000" in to_text([sheet])


# With the data --------------------------------------------------------------------------------------------


def test_lytro_is_understood() -> None:
    brackets, faults = find_brackets(data_folder("lytro"))
    assert [bracket.name for bracket in brackets] == [f"lytro-{n:02}" for n in range(1, 21)]
    assert not faults
    assert [len(bracket.paths) for bracket in find_brackets(data_folder("lytro/triple"))[0]] == [3] * 4


def test_the_reference_toolbox_through_the_command() -> None:
    folder = data_folder("lytro").parent.parent / "reference"
    if not (folder / "metrics.json").is_file():
        pytest.skip(f"no metrics.json in {folder}: no reference values to compare with")
    entry = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["values"][0]
    data = as_json("--sources", folder / entry["A"], folder / entry["B"], "--fused", folder / entry["F"])
    for key in METRICS:
        assert data["per_channel"][key] == pytest.approx(entry[key], abs=1e-6)
