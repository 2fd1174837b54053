"""Evaluation: the paper's protocol on pairs without ground truth, and synthetic brackets that have one.

    pairs ─ crop to a multiple of T ─ reduce by 1/T ─ fuse_bracket ─ six metrics against the originals
    sharp photos ─ two depths, blur, reduce, JPEG ─ fuse_bracket ─ PSNR-Y, SSIM-Y, focus map against the truth

The bracket is fused by `mffsr.engine.fuse_bracket`, as for every user, and the result rounded to 8 bits as it
would be written to a PNG, so the numbers are those of the product. Frames are not registered unless asked
for: Lytro's are registered already, and resampling them would change what is compared. Halos are kept unless
asked for: the six metrics compare with the frames, which have them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mffsr.checkpoint import assemble, load, load_model
from mffsr.device import Runtime, choose
from mffsr.engine import Fusion, fuse_bracket
from mffsr.errors import BracketError, MffsrError, UsageError
from mffsr.evaluate_files import Bracket, Pixels, check_sizes, colour, crop, load_all
from mffsr.evaluate_scores import Evaluation, Progress, Row, Scores, fusion_scores, scores, truth_scores
from mffsr.evaluate_synthetic import (
    Reduction,
    SyntheticBracket,
    bicubic,
    label_scores,
    reduce,
    synthetic_bracket,
)
from mffsr.events import Events
from mffsr.model import JointModel
from mffsr.photo import Photo
from mffsr.plan import plan_tiles
from mffsr.render import render

__all__ = [
    "OURS",
    "Engine",
    "ablations",
    "evaluate_pairs",
    "evaluate_results",
    "evaluate_truth",
    "load_engine",
]

OURS = "mffsr"


# The product ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A loaded model and how to run it."""

    model: JointModel
    runtime: Runtime
    tile: int | None = None
    align: bool = False
    clear_halos: bool = False
    events: Events | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)  # of the weight files, by name

    @property
    def scale(self) -> int:
        """Enlargement, 1…4."""
        return self.model.scale

    def fuse(self, frames: Sequence[Pixels], paths: Sequence[Path] | None = None) -> Fusion:
        """Fuse frames of one size as `mffsr fuse` does, to 8 bits. Raises what `fuse_bracket` raises."""
        names: Sequence[Path | None] = paths or [None] * len(frames)
        photos = [Photo(pixels=frame, path=path) for frame, path in zip(frames, names, strict=True)]
        fusion = fuse_bracket(
            photos,
            self.model,
            self.runtime,
            tile=self.tile,
            align=self.align,
            clear_halos=self.clear_halos,
            depth=8,
            events=self.events,
        )
        height, width = (side * self.scale for side in frames[0].shape[:2])
        if fusion.photo.size != (width, height):
            which = f"{paths[0]}: " if paths else ""
            raise MffsrError(
                f"{which}registration cut the frames, so the result cannot be compared\n"
                "use --no-align for this set"
            )
        return fusion

    def picture(self, frames: Sequence[Pixels], paths: Sequence[Path] | None = None) -> Pixels:
        """Fuse frames and return the picture alone, uint8."""
        return self.fuse(frames, paths).photo.pixels.astype(np.uint8, copy=False)

    def enlarge(self, image: Pixels) -> Pixels:
        """Super-resolve one image: the product's renderer with a single source that wins everywhere."""
        tile = plan_tiles(self.runtime, self.model, image.shape, self.tile, depth=8).render
        labels = np.zeros(image.shape[:2], np.uint16)
        rendered = render(self.model, [image], labels, self.runtime, tile=tile, depth=8)
        return rendered.pixels.astype(np.uint8, copy=False)

    def alone(self) -> Engine:
        """Return the same focus network without super-resolution; it tells nothing that was told already."""
        return replace(self, model=assemble(self.model.fapn), events=None)

    def named(self, name: str) -> Engine:
        """Return the same; whatever it tells begins with the name of what is fused."""
        if (told := self.events) is None:
            return self
        return replace(self, events=Events(warning=lambda text: told.warning(f"{name}: {text}")))


def load_engine(
    scale: int,
    weights: str = "photo",
    *,
    device: str = "auto",
    precision: str = "auto",
    max_memory: int | None = None,
    tile: int | None = None,
    align: bool = False,
    clear_halos: bool = False,
    events: Events | None = None,
) -> Engine:
    """Load the model for `scale` (see `mffsr.checkpoint.find` for `weights`) onto a device."""
    runtime = choose(device, precision, max_memory)
    model, parts = load_model(scale, weights)
    sha256 = {part.path.name: part.sha256 for part in parts}
    return Engine(
        model=runtime.place(model),
        runtime=runtime,
        tile=tile,
        align=align,
        clear_halos=clear_halos,
        events=events,
        sha256=sha256,
    )


def ablations(folder: Path, engine: Engine) -> list[tuple[str, Engine]]:
    """Return the engine with each sub-folder's networks in place of its own, named by the sub-folder.

    A sub-folder holds `fapn.safetensors`, `x2.safetensors` (of the engine's scale), or both, as training
    writes them; those of other scales are passed over. Raises CheckpointError for damaged files, UsageError
    where no sub-folder holds any.
    """
    found: list[tuple[str, Engine]] = []
    for run in sorted(folder.iterdir()):
        fapn, fn = run / "fapn.safetensors", run / f"x{engine.scale}.safetensors"
        focus = load(fapn, kind="fapn").network if fapn.exists() else None
        enlarging = load(fn, kind="fn", scale=engine.scale).network if fn.exists() else None
        if focus is None and enlarging is None:
            continue
        model = assemble(focus or engine.model.fapn, enlarging or engine.model.fn)
        found.append((run.name, replace(engine, model=engine.runtime.place(model))))
    if not found:
        raise UsageError(
            f"{folder}: no sub-folder of it holds fapn.safetensors"
            + (f" or x{engine.scale}.safetensors" if engine.scale > 1 else "")
            + "\nexpected one for each run of mffsr train"
        )
    return found


# The paper's protocol -------------------------------------------------------------------------------------


def evaluate_pairs(
    brackets: Sequence[Bracket],
    engine: Engine,
    *,
    reduction: Reduction = "paper",
    baselines: bool = False,
    variants: Sequence[tuple[str, Engine]] = (),
    jobs: int = 1,
    progress: Progress = lambda stage, done, total: None,
) -> list[Evaluation]:
    """Reduce each bracket by 1/T, fuse and super-resolve it, and compare it with the originals.

    Originals are cropped to a multiple of T from the top left (the paper does not say how it did; Lytro's
    520 pixels become 519 at ×3). At scale 1 the originals themselves are fused. The first Evaluation is ours
    (`OURS`), then the `variants`, then with `baselines` the two-step ways (see `_others`). Metrics are
    computed by `jobs` processes. Raises PhotoError, BracketError and what `fuse_bracket` raises.
    """
    for bracket in brackets:
        check_sizes(bracket.paths, engine.scale)
    others = _count_others(engine, len(brackets[0].frames)) if baselines and brackets else 0
    total = len(brackets) * (1 + len(variants) + others)
    with scores(jobs, total, progress) as table:
        for number, bracket in enumerate(brackets):
            originals = [crop(image, engine.scale, bracket.paths[0]) for image in load_all(bracket.paths)]
            frames = [reduce(image, engine.scale, reduction) for image in originals]
            progress("Fusing", number, len(brackets))
            made = _pictures(engine, frames, bracket, variants, baselines)
            for method, picture in made:
                table.add(table.row(method, bracket.name), fusion_scores, originals, picture)
        progress("Fusing", len(brackets), len(brackets))
        return table.results()


def evaluate_results(
    brackets: Sequence[Bracket],
    results: dict[str, Path],
    *,
    method: str,
    scale: int = 1,
    jobs: int = 1,
    progress: Progress = lambda stage, done, total: None,
) -> list[Evaluation]:
    """Compare another method's results, one per bracket's name, with the originals.

    Originals are cropped as for ours, to a multiple of `scale`. Raises KeyError for a bracket without a
    result (see `require_complete`), BracketError for a result of another size, PhotoError.
    """
    for bracket in brackets:
        check_sizes(bracket.paths, scale)
    with scores(jobs, len(brackets), progress) as table:
        for bracket in brackets:
            originals = [crop(image, scale, bracket.paths[0]) for image in load_all(bracket.paths)]
            result = load_all([results[bracket.name]])[0]
            if result.shape[:2] != originals[0].shape[:2]:
                raise BracketError(
                    f"{results[bracket.name]}: {result.shape[1]}×{result.shape[0]}, expected "
                    f"{originals[0].shape[1]}×{originals[0].shape[0]}, the originals of {bracket.name}\n"
                    "--scale T crops them to a multiple of T"
                )
            table.add(table.row(method, bracket.name), fusion_scores, originals, result)
        return table.results()


def _pictures(
    engine: Engine,
    frames: Sequence[Pixels],
    bracket: Bracket,
    variants: Sequence[tuple[str, Engine]],
    baselines: bool,
) -> Iterator[tuple[str, Pixels]]:
    yield OURS, engine.named(bracket.name).picture(frames, bracket.paths)
    for name, other in variants:
        yield name, other.named(f"{bracket.name}, {name}").picture(frames, bracket.paths)
    if baselines:
        yield from _others(engine, frames, bracket.frames)


def _count_others(engine: Engine, frames: int) -> int:
    return (4 if engine.scale > 1 else 1) + frames


def _others(engine: Engine, frames: Sequence[Pixels], names: Sequence[str]) -> Iterator[tuple[str, Pixels]]:
    """Yield what else could be done with the same networks: Table III's two orders, and no fusion at all.

    Both orders with bicubic enlargement and with SRN (decoded by D2, which the joint stage trains; D1 is
    not trained further there), and each source alone, enlarged by SRN. At scale 1: each source, and
    their average.
    """
    alone, scale = engine.alone(), engine.scale
    if scale > 1:
        fused = alone.picture(frames)
        enlarged = [engine.enlarge(frame) for frame in frames]
        yield "bicubic, then fusion", alone.picture([bicubic(frame, scale) for frame in frames])
        yield "fusion, then bicubic", bicubic(fused, scale)
        yield "SRN, then fusion", alone.picture(enlarged)
        yield "fusion, then SRN", engine.enlarge(fused)
    else:
        enlarged = list(frames)
        yield "average", np.mean(frames, axis=0).round().astype(np.uint8)
    for name, image in zip(names, enlarged, strict=True):
        yield f"source {name} alone", image


# The synthetic protocol -----------------------------------------------------------------------------------


def evaluate_truth(
    photos: Sequence[Path],
    engine: Engine,
    *,
    seed: int = 0,
    reduction: Reduction = "antialiased",
    baselines: bool = False,
    variants: Sequence[tuple[str, Engine]] = (),
    jobs: int = 1,
    progress: Progress = lambda stage, done, total: None,
) -> list[Evaluation]:
    """Make a bracket of each sharp photo, whole, fuse it, and compare it with the truth.

    Boundaries are hard and matte in turn; all that is random depends on `seed` and the photo's place
    alone. Each image has, beside PSNR (dB) and SSIM of the luma with a border of T left out:

    label_accuracy     share of rightly chosen frames among the pixels on which the frames differ
    boundary_accuracy  the same within 3 pixels of a boundary; NaN where there is no such pixel
    ceiling_…          of super-resolving the all-in-focus photo itself, reduced and JPEG 90 like the frames
    sr_…, bicubic_…    (scale 2 and up) of super-resolving it without JPEG, and of bicubic enlargement

    Returns and raises as `evaluate_pairs`.
    """
    scale = engine.scale
    for path in photos:
        check_sizes([path], scale)
    others = _count_others(engine, 2) if baselines else 0
    total = len(photos) * ((4 if scale > 1 else 2) + len(variants) + others)
    with scores(jobs, total, progress) as table:
        for number, path in enumerate(photos):
            sharp = colour(crop(load_all([path])[0], scale, path))
            matte, rng = number % 2 == 1, np.random.default_rng([seed, number])
            made = synthetic_bracket(sharp, scale, rng, matte=matte, reduction=reduction)
            progress("Fusing", number, len(photos))
            row = table.row(OURS, path.name, boundary="matte" if matte else "hard")
            fusion = engine.named(path.name).fuse(made.frames, [path, path])
            table.add(row, truth_scores, sharp, fusion.photo.pixels, scale)
            row.values.update(label_scores(made, fusion.labels))
            _limits(table, row, engine, made)
            for name, other in variants:
                other_row = table.row(name, path.name)
                fusion = other.named(f"{path.name}, {name}").fuse(made.frames)
                table.add(other_row, truth_scores, sharp, fusion.photo.pixels, scale)
                other_row.values.update(label_scores(made, fusion.labels))
            for method, picture in _others(engine, made.frames, ("A", "B")) if baselines else ():
                table.add(table.row(method, path.name), truth_scores, sharp, picture, scale)
        progress("Fusing", len(photos), len(photos))
        return table.results()


def _limits(table: Scores, row: Row, engine: Engine, made: SyntheticBracket) -> None:
    """Add what super-resolution alone reaches on the all-in-focus photo."""
    scale = engine.scale
    table.add(row, truth_scores, made.sharp, engine.enlarge(made.all_in_focus), scale, prefix="ceiling_")
    if scale > 1:
        table.add(row, truth_scores, made.sharp, engine.enlarge(made.clean), scale, prefix="sr_")
        table.add(row, truth_scores, made.sharp, bicubic(made.clean, scale), scale, prefix="bicubic_")
