"""`mffsr eval`: the metrics of any fused image, the paper's protocol and tables, synthetic brackets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from mffsr.cli import options as opt
from mffsr.cli.console import Console, exit_codes
from mffsr.cli.evaluate_tables import to_csv, to_latex, to_text
from mffsr.cli.fuse_job import expand, parse_memory, parse_tile
from mffsr.cli.outputs import check_outputs
from mffsr.errors import UsageError
from mffsr.limits import SCALES

if TYPE_CHECKING:
    from mffsr.cli.evaluate_report import Report
    from mffsr.evaluate import Engine
    from mffsr.evaluate_files import Bracket

__all__ = ["EvalCommand", "evaluate"]


class Protocol(str, Enum):
    """How brackets come about and what they are compared with."""

    paper = "paper"
    synthetic = "synthetic"


class Reduce(str, Enum):
    """How photos are reduced."""

    paper = "paper"
    antialiased = "antialiased"


class EvalCommand(TyperCommand):
    """A command whose --sources takes any number of values: `--sources A B --fused F`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, the option repeated for each of its values."""
        return super().parse_args(ctx, spread(args, "--sources"))


def spread(args: Sequence[str], option: str) -> list[str]:
    """Return the arguments with `option A B` written as `option A option B`."""
    out: list[str] = []
    inside = waiting = False
    for arg in args:
        if waiting and arg.startswith("-"):
            out.append(option)  # without a value: the parser will say so
        if arg == option:
            inside = waiting = True
        elif arg.startswith("-"):
            inside, waiting = arg.startswith(f"{option}="), False
            out.append(arg)
        else:
            out += [option, arg] if inside else [arg]
            waiting = False
    return [*out, option] if waiting else out


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for."""

    pairs: Path | None
    truth: Path | None
    fused: Path | None
    scale: int | None
    reduce: Reduce | None
    seed: int
    weights: str
    baselines: bool
    ablations: Path | None
    allow_missing: bool
    jobs: int

    @property
    def folder(self) -> Path:
        """The folder of what is evaluated."""
        folder = self.pairs or self.truth
        if folder is None:
            raise UsageError("nothing to evaluate")
        return folder


def evaluate(
    sources: Annotated[
        list[str] | None, typer.Option(metavar="A B [C...]", help="Source photos of --fused.")
    ] = None,
    fused: Annotated[
        Path | None,
        typer.Option(
            help="A fused photo, with --sources; a folder of another method's results, with --pairs."
        ),
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="Folder of brackets without ground truth: x-A.jpg, x-B.jpg, y-A.jpg …")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="Folder of sharp photos; brackets are made from them.")
    ] = None,
    scale: Annotated[
        int | None,
        typer.Option(
            "-s",
            "--scale",
            metavar="|".join(map(str, (1, *SCALES))),
            callback=opt.one_of(1, *SCALES),
            help="Enlargement; 1 = fusion alone.  [2; 1 for the results of --fused]",
        ),
    ] = None,
    protocol: Annotated[
        Protocol | None, typer.Option(help="paper for --pairs, synthetic for --truth.")
    ] = None,
    reduce: Annotated[
        Reduce | None,
        typer.Option(help="paper: OpenCV's bicubic, not antialiased; the default with --pairs."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the synthetic brackets.")] = 0,
    weights: opt.Weights = "photo",
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines",
            help="Also measure enlarging and fusing as two steps (Table III), and each source alone.",
        ),
    ] = False,
    ablations: Annotated[
        Path | None,
        typer.Option(help="Folder of runs with ablated networks (Tables II, IV) to evaluate as well."),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave incomplete brackets out, and say so.")
    ] = False,
    align: Annotated[bool, typer.Option("--align/--no-align", help="Register the frames first.")] = False,
    clear_halos: opt.ClearHalos = False,
    jobs: Annotated[
        int, typer.Option("-j", "--jobs", min=0, help="Processes that measure; 0 = one for each core.")
    ] = 0,
    device: opt.Device = "auto",
    precision: opt.Precision = "auto",
    tile: opt.Tile = "auto",
    max_memory: opt.MaxMemory = "",
    as_json: opt.Json = False,
    csv: Annotated[Path | None, typer.Option(help="Also write every number to a CSV file.")] = None,
    latex: Annotated[Path | None, typer.Option(help="Also write the tables as LaTeX.")] = None,
    force: Annotated[bool, typer.Option("-f", "--force", help="Overwrite --csv and --latex.")] = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Measure fused photos: the paper's metrics and tables; PSNR, SSIM and the focus map with a truth."""
    console = Console(quiet=quiet, as_json=as_json)
    with exit_codes(console, debug=debug):
        from mffsr.batch_workers import cores

        request = Request(
            pairs=pairs,
            truth=truth,
            fused=fused,
            scale=scale,
            reduce=reduce,
            seed=seed,
            weights=weights,
            baselines=baselines,
            ablations=ablations,
            allow_missing=allow_missing,
            jobs=jobs or cores(),
        )
        _check(request, sources, protocol, align=align, clear_halos=clear_halos)
        given = expand(sources) if sources else []
        _check_targets([path for path in (csv, latex) if path is not None], request, given, force=force)
        if sources:
            report = _measure(given, fused)
        elif pairs is not None and fused is not None:
            report = _results(request, fused, console)
        else:
            options = {
                "device": device,
                "precision": precision,
                "align": align,
                "clear_halos": clear_halos,
                "tile": parse_tile(tile),
                "max_memory": parse_memory(max_memory),
            }
            report = _run(request, options, console)
        if csv is not None:
            _write(csv, to_csv(report.csv), force)
        if latex is not None:
            _write(latex, to_latex(report.sheets), force)
        console.result("" if as_json else to_text(report.sheets), report.data)


def _check(
    request: Request,
    sources: list[str] | None,
    protocol: Protocol | None,
    *,
    align: bool,
    clear_halos: bool,
) -> None:
    """Refuse what does not go together; raises UsageError."""
    modes = [
        name
        for name, given in (("--sources", sources), ("--pairs", request.pairs), ("--truth", request.truth))
        if given
    ]
    if len(modes) != 1:
        found = f"{' and '.join(modes)} given" if modes else "nothing to evaluate"
        raise UsageError(f"{found}: expected one of --sources, --pairs and --truth")
    if sources and request.fused is None:
        raise UsageError("--sources without --fused: which photo was made of them?")
    if request.truth and request.fused is not None:
        raise UsageError("--fused goes with --sources or --pairs, not with --truth")
    fitting = {"--pairs": Protocol.paper, "--truth": Protocol.synthetic}.get(modes[0])
    if protocol is not None and protocol is not fitting:
        raise UsageError(
            f"--protocol {protocol.value} does not go with {modes[0]}\n"
            "paper needs --pairs, synthetic needs --truth"
        )
    ours = {
        "--baselines": request.baselines,
        "--ablations": request.ablations is not None,
        "--weights": request.weights != "photo",
        "--reduce": request.reduce is not None,
        "--align": align,
        "--clear-halos": clear_halos,
    }
    asked = [option for option, given in ours.items() if given]
    if asked and request.fused is not None:
        raise UsageError(
            f"{asked[0]} does not go with --fused: that photo is made already\n"
            f"{', '.join(ours)} are for our own networks"
        )
    if sources and request.scale is not None:
        raise UsageError("--scale does not go with --sources: it follows from the sizes of the photos")
    if request.ablations is not None and not request.ablations.is_dir():
        raise UsageError(f"{request.ablations}: not a folder")


def _check_targets(
    targets: Sequence[Path], request: Request, sources: Sequence[Path], *, force: bool
) -> None:
    """Refuse files of numbers that cannot be written, or would replace a photo; UsageError, PhotoError."""
    if not targets:
        return
    from mffsr.evaluate_files import find_photos
    from mffsr.photo import resolve_target

    read = list(sources)
    for place in (request.pairs, request.truth, request.fused):
        if place is not None:
            read += find_photos(place) if place.is_dir() else [place]
    check_outputs(targets, read)
    for target in targets:
        resolve_target(target, overwrite=force)


def _write(path: Path, text: str, force: bool) -> None:
    from mffsr.photo import atomic_output

    with atomic_output(path, overwrite=force) as file:
        file.write(text.encode("utf-8"))


# What is run ----------------------------------------------------------------------------------------------


def _measure(sources: Sequence[Path], fused: Path | None) -> Report:
    from mffsr.cli.evaluate_report import channels_report
    from mffsr.evaluate_scores import measure

    if fused is None or fused.is_dir():
        raise UsageError(f"{fused}: is a folder; with --sources, --fused is one photo")
    return channels_report(measure(sources, fused), str(fused))


def _engine(request: Request, options: dict[str, Any], console: Console) -> Engine:
    from mffsr.evaluate import load_engine
    from mffsr.events import Events

    events = Events(warning=console.warning)
    engine = load_engine(request.scale or 2, request.weights, events=events, **options)
    console.message(f"device: {engine.runtime.reason}")
    return engine


def _run(request: Request, options: dict[str, Any], console: Console) -> Report:
    """Evaluate our own networks; `options` are those of `load_engine`."""
    from mffsr.evaluate_files import find_photos

    photos = find_photos(request.truth) if request.truth is not None else []
    brackets, faults = _brackets(request, console) if request.pairs is not None else ([], [])
    engine = _engine(request, options, console)  # after the photos: a slip in a name is told at once

    from mffsr.cli.evaluate_report import pairs_report, truth_report
    from mffsr.evaluate import ablations, evaluate_pairs, evaluate_truth

    common: dict[str, Any] = {
        "baselines": request.baselines,
        "variants": ablations(request.ablations, engine) if request.ablations else [],
        "jobs": request.jobs,
        "progress": console.progress,
    }
    how = f", weights {request.weights}"
    common["reduction"] = "antialiased" if request.truth is not None else "paper"
    if request.reduce is not None:
        common["reduction"] = request.reduce.value
        how += f", --reduce {request.reduce.value}"
    settings = {
        "scale": engine.scale,
        "weights": request.weights,
        "sha256": dict(engine.sha256),
        "device": str(engine.runtime.device),
        "precision": engine.runtime.precision,
        "reduce": common["reduction"],
        "align": engine.align,
        "clear_halos": engine.clear_halos,
    }
    if request.truth is not None:
        with console.live():
            found = evaluate_truth(photos, engine, seed=request.seed, **common)
        about = f"{len(photos)} synthetic brackets of {request.truth}, seed {request.seed}{how}"
        return truth_report(found, about, settings | {"seed": request.seed})
    with console.live():
        found = evaluate_pairs(brackets, engine, **common)
    return pairs_report(
        found,
        _about(brackets, faults, request) + how,
        settings,
        faults,
        ablated=bool(common["variants"]),
        as_the_paper=request.reduce is not Reduce.antialiased,
    )


def _results(request: Request, fused: Path, console: Console) -> Report:
    """Evaluate another method's results."""
    from mffsr.cli.evaluate_report import pairs_report
    from mffsr.evaluate import evaluate_results
    from mffsr.evaluate_files import find_results, listed, require_complete

    if not fused.is_dir():
        raise UsageError(f"{fused}: not a folder; with --pairs, --fused is a folder of results")
    brackets, faults = _brackets(request, console)
    results, missing, extra = find_results(fused, brackets)
    if extra:
        console.warning(f"{fused}: belong to no bracket and are not measured: {listed(extra)}")
    require_complete(fused, missing, allow_missing=request.allow_missing)
    brackets = [bracket for bracket in brackets if bracket.name in results]
    _say_left_out(fused, missing, brackets, console)
    scale = request.scale or 1
    with console.live():
        found = evaluate_results(
            brackets,
            results,
            method=fused.resolve().name,
            scale=scale,
            jobs=request.jobs,
            progress=console.progress,
        )
    faults += missing
    return pairs_report(found, _about(brackets, faults, request), {"scale": scale}, faults)


def _about(brackets: list[Bracket], faults: list[str], request: Request) -> str:
    left_out = f" ({len(faults)} missing or left out)" if faults else ""
    return f"{len(brackets)} brackets{left_out} of {request.folder}"


def _brackets(request: Request, console: Console) -> tuple[list[Bracket], list[str]]:
    from mffsr.evaluate_files import find_brackets, require_complete

    brackets, faults = find_brackets(request.folder)
    require_complete(request.folder, faults, allow_missing=request.allow_missing)
    _say_left_out(request.folder, faults, brackets, console)
    return brackets, faults


def _say_left_out(folder: Path, faults: list[str], brackets: list[Bracket], console: Console) -> None:
    from mffsr.evaluate_files import listed

    if not brackets:
        raise UsageError(f"{folder}: nothing is left to evaluate: {listed(faults)}")
    if faults:
        console.warning(f"{folder}: {listed(faults)}: the means are over {len(brackets)} brackets")
