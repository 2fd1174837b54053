"""Memory, devices, numbers, time. Scenarios 44–51."""

from __future__ import annotations

from pathlib import Path

import drivers
import numpy as np
import samples
from bench import Bench, check, complete, mib, pixels_of
from registry import scenario

HOOKS = Path(__file__).with_name("hooks.py")
CRAFT = Path(__file__).with_name("craft.py")
MODERATE, LARGE = (1000, 800), (4000, 3000)
LONG = 5400.0  # s


def _photos(bench: Bench) -> tuple[tuple[int, int], tuple[str, str]]:
    """Write a large bracket; return its size and names."""
    size = LARGE if bench.slow else MODERATE
    samples.write_bracket(bench.folder, size, 1, ("p.jpg", "q.jpg"))
    return size, ("p.jpg", "q.jpg")


def difference(one: Path, other: Path) -> int:
    """Return by how much two 8-bit pictures differ at most."""
    return int(np.abs(pixels_of(one).astype(int) - pixels_of(other)).max())


@scenario(44)
def a_limited_address_space_gives_smaller_tiles_not_an_end(bench: Bench) -> str:
    size, photos = _photos(bench)
    limit = 3000 << 20
    before = drivers.limited_address_space(limit)
    run = bench.good(photos=photos, scale=2, before=before, patience=LONG)
    check(complete(bench.folder / "out.png") == (2 * size[0], 2 * size[1]), "size")
    return f"{size[0]}×{size[1]} within {mib(limit)}: peak {mib(run.peak)} resident"


@scenario(45)
def a_limited_memory_group_gives_smaller_tiles_not_an_end(bench: Bench) -> str:
    size, photos = _photos(bench)
    limit = (1500 if bench.slow else 900) << 20
    with drivers.memory_limit(limit) as memory:
        run = bench.good(photos=photos, scale=2, before=memory.before, patience=LONG)
        told = f"peak {mib(memory.peak)} of the group, {mib(run.peak)} of the program"
    check(complete(bench.folder / "out.png") == (2 * size[0], 2 * size[1]), "size")
    return f"{size[0]}×{size[1]} within {mib(limit)}: {told}"


@scenario(46)
def a_full_graphics_card_halves_the_tiles_and_ends_at_the_smallest(bench: Bench) -> str:
    samples.write_bracket(bench.folder, (300, 200))
    bench.good()
    line = ("fuse", "a.jpg", "b.jpg", "-s", 3)
    run = bench.spawn([bench.python, HOOKS, "out-of-memory=250", *line, "-o", "small.png"])
    check(run.code == 0, run.told)
    halved = run.err.count("out of memory: going on with tiles of")
    check(halved >= 1, "no word of smaller tiles", run.told)
    off = difference(bench.folder / "out.png", bench.folder / "small.png")
    check(off <= 1, f"differs by {off}")
    hopeless = [bench.python, HOOKS, "out-of-memory=1", *line, "-q", "-o", "x.png"]
    bench.refused(lambda: bench.spawn(hopeless), "memory", codes=[1])
    return f"halved {halved} times, differs by {off}/255; refused where nothing fits"


@scenario(47)
def a_missing_device_is_a_usage_error_that_lists_those_there(bench: Bench) -> str:
    for device in ("cuda:9", "nonsense", "mps:3"):
        bench.refuses("--device", device, words=[device, "available", "cpu"], codes=[2])
    bench.environment["CUDA_VISIBLE_DEVICES"] = ""
    bench.refuses("--device", "cuda", words=["cuda", "available", "cpu"], codes=[2])
    run = bench.run("fuse", "a.jpg", "b.jpg", "-s", 1, "-o", "auto.png")
    check(run.code == 0 and run.err.count("device: ") == 1, run.told)
    return next(line for line in run.err.splitlines() if line.startswith("device: "))


@scenario(48)
def a_missing_operator_or_an_unforeseen_error_ends_with_advice(bench: Bench) -> str:
    line = ("fuse", "a.jpg", "b.jpg", "-q", "-s", 1, "-o", "x.png")
    gap = [bench.python, HOOKS, "mps-gap", *line]
    run = bench.refused(lambda: bench.spawn(gap), "--device cpu", codes=[1])
    foreign = [bench.python, HOOKS, "foreign-error", *line]
    bench.refused(lambda: bench.spawn(foreign), "nobody foresaw this", "--debug", codes=[1])
    return run.err.strip().splitlines()[-1]


@scenario(49)
def weights_and_numbers_that_are_not_finite_become_no_picture(bench: Bench) -> str:
    (bench.folder / "w").mkdir()
    check(bench.spawn([bench.python, CRAFT, 3, "w"]).code == 0, "no weights were made")
    bench.refuses("--weights", "w/nan.safetensors", words=["nan.safetensors", "not finite"], codes=[1])
    bench.refuses("--weights", "w/overflow.safetensors", words=["not finite"], codes=[1])
    return "NaN in the weights, infinite activations"


@scenario(50)
def runs_repeat_and_neither_threads_nor_tiles_change_the_picture(bench: Bench) -> str:
    samples.write_bracket(bench.folder, (300, 200))
    bench.good(out="one.png")
    bench.good(out="two.png")
    check(
        (bench.folder / "one.png").read_bytes() == (bench.folder / "two.png").read_bytes(), "two runs differ"
    )
    told = []
    for tile in (64, 128, 256):
        bench.good("--tile", tile, out=f"{tile}.png")
        told.append((f"tile {tile}", difference(bench.folder / "one.png", bench.folder / f"{tile}.png")))
    bench.environment["OMP_NUM_THREADS"] = "2"
    bench.good(out="threads.png")
    told.append(("2 threads", difference(bench.folder / "one.png", bench.folder / "threads.png")))
    check(all(off <= 1 for _, off in told), told)
    return "same bytes twice; " + ", ".join(f"{name} differs by {off}/255" for name, off in told)


@scenario(51)
def what_can_be_known_beforehand_is_said_before_computing(bench: Bench) -> str:
    samples.write(bench.folder / "wide.jpg", samples.textured((97, 64)))
    (bench.folder / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (bench.folder / "notes.txt").write_text("no weights")
    two = ("a.jpg", "b.jpg")
    cases: dict[str, list[object]] = {
        "no such photo": ["a.jpg", "missing.jpg"],
        "damaged photo": ["a.jpg", "cut.png"],
        "other size": ["a.jpg", "wide.jpg"],
        "unknown extension": [*two, "-o", "x.xyz"],
        "missing folder": [*two, "-o", "none/x.png"],
        "input as output": [*two, "-o", "a.jpg", "-f"],
        "tile": [*two, "--tile", "none"],
        "memory": [*two, "--max-memory", "lots"],
        "focus map": [*two, "--focus-map", "map.jpg"],
        "device": [*two, "--device", "cuda:7"],
        "no such weights": [*two, "--weights", "none.safetensors"],
        "not weights": [*two, "--weights", "notes.txt"],
        "wrong scale": [*two, "-s", 2, "--weights", bench.bundled("photo-x4")],
    }
    spent = {}
    for name, line in cases.items():
        before = [] if "-o" in line else ["-o", "x.png"]
        command = ("fuse", *line, *before, "-q")
        spent[name] = bench.refused(lambda command=command: bench.run(*command)).cpu  # type: ignore[misc]
    with drivers.disk(bench.folder / "disk", "size=16k"):
        spent["full disk"] = bench.refuses(out="disk/x.png", words=["No space left"], codes=[1]).cpu
    slowest = max(spent, key=lambda name: spent[name])
    late = {name: round(seconds, 1) for name, seconds in spent.items() if seconds >= 2}
    check(not late, "seconds of computing before the refusal:", late)
    return f"{len(spent)} mistakes, slowest: {slowest} after {spent[slowest]:.1f} s"
