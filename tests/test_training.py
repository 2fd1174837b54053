"""Training in this process: losses, schedule, exact resuming, ablations, divergence."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from conftest import textured, tiny_fapn, tiny_fn
from PIL import Image
from torch import Tensor

from mffsr import metrics
from mffsr.checkpoint import load, load_model, save_network
from mffsr.device import Runtime, choose
from mffsr.errors import CheckpointError, MffsrError, TrainingError, UsageError
from mffsr.model import FAPN, FapnConfig
from mffsr.training import losses, teachers, trainer, validate
from mffsr.training.curve import draw_curves
from mffsr.training.meter import Meter
from mffsr.training.photos import Photos, sharp_blocks
from mffsr.training.stages import STAGES, Stage
from mffsr.training.state import Average
from mffsr.training.teachers import SHARE, Teachers
from mffsr.training.train import Report, RunOptions, patch_needed, train_stage
from mffsr.training.trainer import learning_rate, state_file

FAPN_STAGE, SRN_STAGE, JOINT_STAGE = (
    replace(stage, steps=10, batch=2, patch=16, warmup=2) for stage in STAGES
)
TINY = RunOptions(scale=2, fapn=FapnConfig(width=8, blocks=2), features=8, blocks=2)


@pytest.fixture(scope="module")
def photos() -> Photos:
    images = [textured(160, 200, seed) for seed in range(3)]
    planes = [torch.from_numpy(np.ascontiguousarray(i.transpose(2, 0, 1))) for i in images]
    return Photos(planes, [sharp_blocks(i) for i in images], ["a", "b", "c"])


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("guide") / "fapn.safetensors"
    save_network(tiny_fapn(), path)
    return path


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(
    stage: Stage, options: RunOptions, photos: Photos, run: Path, runtime: Runtime, **more: object
) -> int:
    """Train a stage on a few photos and return the step that it ended with."""
    run.mkdir(exist_ok=True)
    one = Photos([photos.images[0].clone()], photos.sharp[:1], photos.names[:1])
    _, step = train_stage(stage, options, photos, one, run, runtime, **more)  # type: ignore[arg-type]
    return step


class StopAfter:
    """Asks to stop once so many steps were made; the loop asks before each."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


# -- losses ------------------------------------------------------------------------------------------------


def test_losses_are_zero_at_the_truth() -> None:
    torch.manual_seed(0)
    sharp, other = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    truth = (torch.rand(2, 1, 32, 32) > 0.5).float()
    image1, image2 = torch.where(truth > 0, sharp, other), torch.where(truth > 0, other, sharp)
    logits = 60 * (torch.cat((truth, 1 - truth), 1) - 0.5)
    loss = losses.fapn_loss(logits, image1, image2, sharp, truth, torch.ones_like(truth))
    assert float(loss) < 1e-5
    wrong = losses.fapn_loss(-logits, image1, image2, sharp, truth, torch.ones_like(truth))
    assert float(wrong) > 1

    def undecided(maps: torch.Tensor, said: torch.Tensor) -> float:
        return float(losses.fapn_loss(maps, sharp, sharp, sharp, said, torch.zeros_like(said)))

    assert undecided(logits, truth) == undecided(logits, 1 - truth), "nothing is true there"
    assert undecided(0 * logits, truth) < undecided(0.1 * logits, truth) < undecided(logits, truth)
    assert float(losses.super_resolution_loss(sharp, sharp)) == 0
    masks = torch.cat((truth, 1 - truth), 1)
    assert float(losses.fusion_loss(sharp, sharp, (sharp, sharp), masks)) == 0


def test_ssim_is_the_metric() -> None:
    image = textured(80, 96)
    noisy = (image + np.random.default_rng(0).normal(0, 12, image.shape)).clip(0, 255).astype(np.uint8)
    ours = losses.ssim(*(torch.from_numpy(x.transpose(2, 0, 1) / 255)[None] for x in (image, noisy)))
    planes = [metrics.ssim(image[:, :, c], noisy[:, :, c]) for c in range(3)]
    assert float(ours) == pytest.approx(np.mean(planes), abs=0.005)
    assert float(losses.ssim(torch.rand(1, 1, 20, 20), torch.zeros(1, 1, 20, 20))) < 0.2


def test_ssim_does_not_depend_on_how_exactly_a_device_convolves(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs may round what they convolve to TF32, ten bits; SSIM's variances are differences of means."""
    convolve = torch.nn.functional.conv2d

    def rough(x: Tensor, weight: Tensor, *given: Any, **named: Any) -> Tensor:
        return convolve(x.half().to(x.dtype), weight.half().to(x.dtype), *given, **named)

    bright = 0.9 + 0.02 * torch.from_numpy(textured(48, 48).transpose(2, 0, 1)[None] / np.float32(255))
    soft = torch.nn.functional.avg_pool2d(bright, 3, 1, 1, count_include_pad=False)
    exact = float(losses.ssim(bright.double(), soft.double()))
    monkeypatch.setattr(torch.nn.functional, "conv2d", rough)
    assert float(losses.ssim(bright, soft)) == pytest.approx(exact, abs=1e-3)


def test_masked_terms_of_the_fusion_loss_carry_gradient() -> None:
    """Equation (20): with the frames' terms alone, each pixel is drawn to the frame whose mask it lies in."""
    fused = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
    masks = torch.zeros(1, 2, 4, 4)
    masks[:, 0, :, :2], masks[:, 1, :, 2:] = 1, 1
    frames = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    losses.fusion_loss(fused, fused.detach(), frames, masks).backward()
    assert fused.grad is not None
    assert bool((fused.grad[..., 0] > 0).all())
    assert bool((fused.grad[..., -1] < 0).all())


def test_every_term_reaches_the_weights(photos: Photos, cpu: Runtime, tmp_path: Path, guide: Path) -> None:
    for stage in (FAPN_STAGE, SRN_STAGE, JOINT_STAGE):
        made = trainer.Trainer(stage, TINY, photos, photos, tmp_path, cpu, fapn=guide)
        made._loss(made.batch(0)).backward()
        without = [p for p in made.parameters if p.grad is None or not bool(p.grad.any())]
        assert len(without) <= len(made.parameters) // 10  # a dead ReLU of a tiny network
        if made.guide is not None:
            assert not any(p.requires_grad for p in made.guide.parameters())


# -- the schedule and the loop -----------------------------------------------------------------------------


def test_the_rate_warms_up_and_falls_to_a_hundredth() -> None:
    stage = Stage(name="srn", steps=1000, batch=1, patch=16, rate=1e-3, warmup=100)
    rates = [learning_rate(stage, step) for step in range(1001)]
    assert rates[0] == pytest.approx(1e-5)
    assert rates[:95] == sorted(rates[:95])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert max(rates) == pytest.approx(1e-3, rel=0.05)
    assert rates[-1] == pytest.approx(1e-5)
    with pytest.raises(ValueError, match="expected at least 1"):
        replace(stage, steps=0)


def test_the_needed_photo_size_is_enough_and_not_too_much(photos: Photos) -> None:
    assert patch_needed(FAPN_STAGE, 2) == 96  # every second bracket is made twice as large
    for stage, scale in ((FAPN_STAGE, 2), (SRN_STAGE, 2), (SRN_STAGE, 3), (SRN_STAGE, 4)):
        needed = patch_needed(stage, scale)
        plane = torch.zeros(3, needed, needed, dtype=torch.uint8)
        exact = Photos([plane], [np.ones((needed // 32, needed // 32), np.float32)], ["exact"])
        options = replace(TINY, scale=scale)
        cpu = Runtime(device=torch.device("cpu"), dtype=torch.float32, memory=0, reason="")
        trainer.Trainer(stage, options, exact, photos, Path(), cpu).batch(0)


def test_the_average_forgets_its_beginning() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 5)
    average = Average(layer, 0.999)
    torch.nn.init.constant_(layer.weight, 1)
    for step in range(200):
        average.set_step(step)
        average.update()
    assert float(average.tensors["weight"]) == pytest.approx(1, abs=0.01)
    torch.nn.init.constant_(layer.weight, math.inf)
    average.update()
    assert not average.finite()


@pytest.mark.parametrize(("decay", "share"), [(0.5, 0.5), (0.999, 0.001)])
def test_the_average_moves_by_what_its_decay_leaves(decay: float, share: float) -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    average = Average(layer, decay)
    torch.nn.init.ones_(layer.weight)
    average.set_step(10**6)
    average.update()
    assert float(average.tensors["weight"]) == pytest.approx(share, rel=1e-3)
    assert average.finite()
    torch.nn.init.constant_(layer.weight, 1e9)
    average.update()
    assert not average.finite(), "more than float16 holds"


def test_a_run_learns_and_leaves_table_curve_weights_and_state(
    photos: Photos, cpu: Runtime, tmp_path: Path
) -> None:
    stage, reports = replace(SRN_STAGE, steps=60, rate=4e-3), []
    train(stage, TINY, photos, tmp_path, cpu, validate_every=30, save_every=20, on_report=reports.append)
    rows = table(tmp_path / "x2-srn.csv")
    assert [int(row["step"]) for row in rows] == [0, 10, 20, 30, 40, 50, 60] == [r.step for r in reports]
    assert float(rows[-1]["loss"]) < 0.8 * float(rows[1]["loss"])
    assert float(rows[-1]["psnr_y"]) > float(rows[0]["psnr_y"])
    assert float(rows[0]["psnr_y_bicubic"]) > 10
    assert not rows[2]["psnr_y"]
    assert 0 < float(rows[-1]["data_share"]) < 1
    assert float(rows[-1]["images_per_second"]) > 0
    assert not rows[-1]["gpu_busy"]
    with Image.open(tmp_path / "x2-srn.png") as curve:
        assert curve.size == (800, 720)  # loss, PSNR and SSIM
    found = load(tmp_path / "x2.safetensors", kind="fn", scale=2)
    expected = {"stage": "srn", "steps": "60", "data": "photo", "rate": "0.004", "seed": "0"}
    expected |= {"batch": str(stage.batch), "patch": str(stage.patch)}
    assert expected.items() <= found.header.items()
    assert state_file(tmp_path, stage, 2).exists()
    assert not list(tmp_path.glob(".*tmp"))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def states(run: Path) -> dict[str, dict[str, object]]:
    """Return everything that is in a run's files, but for the order of their headers' entries."""
    found = {}
    for path in run.glob("*.safetensors"):
        with safetensors.safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
            found[path.name] = tensors | dict(file.metadata())
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [FAPN_STAGE, SRN_STAGE, JOINT_STAGE], ids=lambda stage: stage.name)
def test_a_stopped_run_resumes_exactly(
    photos: Photos, tmp_path: Path, guide: Path, stage: Stage, precision: str
) -> None:
    if precision == "bf16" and choose("cpu").dtype != torch.bfloat16:
        pytest.skip("bf16 is slow on this processor")
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    runtime = Runtime(device=torch.device("cpu"), dtype=dtype, memory=0, reason="")
    often = {"save_every": 4, "validate_every": 8, "fapn": guide}
    assert train(stage, TINY, photos, tmp_path / "whole", runtime, **often) == 10
    seed = int.from_bytes(os.urandom(4), "little")
    stops = sorted(np.random.default_rng(seed).choice(np.arange(1, 10), 3, replace=False).tolist())
    done = 0
    for stop in [*stops, 10]:
        steps = StopAfter(stop - done)
        done = train(stage, TINY, photos, tmp_path / "cut", runtime, resume=True, should_stop=steps, **often)
        assert done == stop
    same = states(tmp_path / "cut") == states(tmp_path / "whole")
    assert same, f"seed {seed}, stopped at {stops}"
    name = "fapn-fapn" if stage.name == "fapn" else f"x2-{stage.name}"
    rows = table(tmp_path / "cut" / f"{name}.csv")
    assert [int(row["step"]) for row in rows] == sorted({0, 4, 8, 10, *stops})


def test_a_finished_stage_is_left_alone_and_lost_weights_come_back(
    photos: Photos, cpu: Runtime, tmp_path: Path
) -> None:
    train(SRN_STAGE, TINY, photos, tmp_path, cpu)
    before = states(tmp_path)
    (tmp_path / "x2.safetensors").unlink()  # as if killed between the state and the weights
    assert train(SRN_STAGE, TINY, photos, tmp_path, cpu, resume=True) == 10
    assert states(tmp_path) == before


def test_resuming_needs_the_same_settings_but_takes_another_rate(
    photos: Photos, cpu: Runtime, tmp_path: Path
) -> None:
    train(SRN_STAGE, TINY, photos, tmp_path, cpu, should_stop=StopAfter(3))
    for stage, options in (
        (replace(SRN_STAGE, batch=3), TINY),
        (SRN_STAGE, replace(TINY, seed=1)),
        (SRN_STAGE, replace(TINY, degradation="paper")),
    ):
        with pytest.raises(UsageError, match=r"other settings\n(batch|seed|degradation) was .*, now "):
            train(stage, options, photos, tmp_path, cpu, resume=True)
    fewer = Photos(photos.images[:2], photos.sharp[:2], photos.names[:2])
    with pytest.raises(UsageError, match="photos was"):
        train(SRN_STAGE, TINY, fewer, tmp_path, cpu, resume=True)
    slower = replace(SRN_STAGE, rate=1e-4)
    assert train(slower, TINY, photos, tmp_path, cpu, resume=True) == 10


def test_a_damaged_state_is_refused(photos: Photos, cpu: Runtime, tmp_path: Path) -> None:
    train(SRN_STAGE, TINY, photos, tmp_path, cpu, should_stop=StopAfter(1))
    state = state_file(tmp_path, SRN_STAGE, 2)
    whole = bytearray(state.read_bytes())
    whole[-9] ^= 1
    state.write_bytes(whole)
    with pytest.raises(TrainingError, match=r"damaged.*\nremove it to begin this stage anew"):
        train(SRN_STAGE, TINY, photos, tmp_path, cpu, resume=True)
    state.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match=r"cannot be read .*\nremove it to begin this stage anew"):
        train(SRN_STAGE, TINY, photos, tmp_path, cpu, resume=True)


# -- what goes wrong ---------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(
    photos: Photos, cpu: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(SRN_STAGE, TINY, photos, tmp_path, cpu, save_every=2, should_stop=StopAfter(4))
    before = states(tmp_path)
    whole = losses.super_resolution_loss
    calls = iter(range(100))
    monkeypatch.setattr(
        losses, "super_resolution_loss", lambda a, b: whole(a, b) * (math.nan if next(calls) == 1 else 1)
    )
    with pytest.raises(TrainingError, match=r"the loss of srn is no longer .*\n.*last good state is kept in"):
        train(SRN_STAGE, TINY, photos, tmp_path, cpu, save_every=2, resume=True)
    assert states(tmp_path) == before
    monkeypatch.undo()
    assert train(SRN_STAGE, TINY, photos, tmp_path, cpu, save_every=2, resume=True) == 10


@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_a_huge_rate_stops_with_nothing_broken_saved(
    photos: Photos, cpu: Runtime, tmp_path: Path, rate: float
) -> None:
    wild = replace(SRN_STAGE, rate=rate, warmup=1)
    with pytest.raises(TrainingError, match="no longer a finite number"):
        train(wild, TINY, photos, tmp_path, cpu, save_every=1, validate_every=100)
    for path in tmp_path.glob("x2.safetensors"):
        load(path)  # finite, or it is refused


def test_a_full_disk_keeps_the_last_checkpoint(
    photos: Photos, cpu: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(SRN_STAGE, TINY, photos, tmp_path, cpu, should_stop=StopAfter(4))
    before = states(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MffsrError, match="No space left"):
        train(SRN_STAGE, TINY, photos, tmp_path, cpu, resume=True)
    monkeypatch.undo()
    assert states(tmp_path) == before
    assert not list(tmp_path.glob(".*tmp"))


def test_weights_of_another_kind_or_scale_are_refused(
    photos: Photos, cpu: Runtime, tmp_path: Path, tiny_weights: Path, guide: Path
) -> None:
    x3 = tiny_weights / "x3.safetensors"
    with pytest.raises(CheckpointError, match="scale 3, but scale 2"):
        train(JOINT_STAGE, TINY, photos, tmp_path, cpu, initial=x3, fapn=guide)
    with pytest.raises(CheckpointError, match="only 0 of"):
        train(SRN_STAGE, TINY, photos, tmp_path, cpu, initial=guide)
    with pytest.raises(CheckpointError, match="holds fn weights, expected fapn"):
        train(JOINT_STAGE, TINY, photos, tmp_path, cpu, fapn=x3)
    with pytest.raises(UsageError, match="needs a trained FAPN"):
        train(JOINT_STAGE, TINY, photos, tmp_path, cpu)


def test_teachers_say_the_mean_of_their_pictures_of_photos_each_turned_another_way(
    cpu: Runtime, tmp_path: Path, tiny_weights: Path
) -> None:
    paths = [tiny_weights / "x2.safetensors", tmp_path / "other.safetensors"]
    other = load(paths[0]).network
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    save_network(other, paths[1])
    low = torch.rand(2, 3, 16, 16)
    said = Teachers(paths, 2, cpu).ask(low, 1)
    with torch.no_grad():
        each = [
            load(path).network.srn(low.rot90(turns, (2, 3))).rot90(-turns, (2, 3))  # type: ignore[union-attr, operator]
            for turns, path in zip((1, 3), paths, strict=True)
        ]
    assert torch.allclose(said, torch.stack(each).mean(0), atol=1e-5)
    assert (each[0] - each[1]).abs().max() > 1e-6


def test_half_of_the_loss_is_taken_to_what_the_teachers_say(
    photos: Photos, cpu: Runtime, tmp_path: Path, tiny_weights: Path
) -> None:
    x2 = tiny_weights / "x2.safetensors"
    alone, taught = (
        trainer.Trainer(SRN_STAGE, TINY, photos, photos, tmp_path, cpu, teachers=given)
        for given in ((), (x2,))
    )
    batch = taught.batch(0)
    loss = taught._loss(batch)
    with torch.no_grad():
        distance = (alone._forward(batch.low) - Teachers([x2], 2, cpu).ask(batch.low, 0)).abs().mean()
        expected = (1 - SHARE) * alone._loss(batch) + SHARE * distance
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-4)
    loss.backward()
    assert not any(p.grad is not None for n in taught.teachers._networks for p in n.parameters())  # type: ignore[union-attr]


def test_batches_come_again_turned_and_their_teachers_are_asked_once(
    photos: Photos, cpu: Runtime, tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x2 = tiny_weights / "x2.safetensors"
    taught = trainer.Trainer(SRN_STAGE, TINY, photos, photos, tmp_path, cpu, teachers=[x2])
    monkeypatch.setattr(teachers, "KEPT", 3 * taught.batch(0).taught.numel() * 2)  # three batches a round
    first = [taught.batch(step) for step in range(3)]
    monkeypatch.setattr(Teachers, "ask", None)
    seen = {first[1].low.numpy().tobytes()}
    for turns in range(1, 8):
        batch = taught.batch(1 + 3 * turns)
        for part, before in zip(batch, first[1], strict=True):
            turn = teachers.NEXT_TURN * turns % 8
            assert torch.equal(part, teachers._turned(before, turn))
        seen.add(batch.low.numpy().tobytes())
    assert len(seen) == 8  # every way once
    assert torch.equal(taught.batch(25).low, first[1].low)


def test_teachers_of_another_scale_or_stage_are_refused_and_others_on_resuming(
    photos: Photos, cpu: Runtime, tmp_path: Path, tiny_weights: Path
) -> None:
    x2 = tiny_weights / "x2.safetensors"
    with pytest.raises(CheckpointError, match="scale 3, but scale 2"):
        train(SRN_STAGE, TINY, photos, tmp_path, cpu, teachers=[tiny_weights / "x3.safetensors"])
    with pytest.raises(UsageError, match="they teach srn alone"):
        train(FAPN_STAGE, TINY, photos, tmp_path, cpu, teachers=[x2])
    train(SRN_STAGE, TINY, photos, tmp_path, cpu, teachers=[x2], should_stop=StopAfter(2))
    with pytest.raises(UsageError, match="other settings\nteachers was"):
        train(SRN_STAGE, TINY, photos, tmp_path, cpu, resume=True)


def test_warm_start_takes_what_fits(photos: Photos, cpu: Runtime, tmp_path: Path, tiny_weights: Path) -> None:
    x2 = tiny_weights / "x2.safetensors"
    given = load(x2).network.state_dict()
    for scale in (2, 3, 4):
        options = replace(TINY, scale=scale)
        network = trainer.Trainer(SRN_STAGE, options, photos, photos, tmp_path, cpu, initial=x2).network
        own = network.state_dict()
        fits = {k for k in own if k in given and given[k].shape == own[k].shape}
        assert all(torch.equal(own[k], given[k]) for k in fits)
        assert len(fits) >= len(own) - 2


def test_d2_begins_as_d1_and_a_joint_run_as_it_was(
    photos: Photos, cpu: Runtime, tmp_path: Path, guide: Path
) -> None:
    train(SRN_STAGE, TINY, photos, tmp_path, cpu)
    weights = tmp_path / "x2.safetensors"
    again = {"initial": weights, "fapn": guide}
    begun = trainer.Trainer(JOINT_STAGE, TINY, photos, photos, tmp_path, cpu, **again).network
    assert torch.equal(begun.d2.layers[0].weight, begun.srn.d1.layers[0].weight)
    train(JOINT_STAGE, TINY, photos, tmp_path, cpu, **again)
    begun = trainer.Trainer(JOINT_STAGE, TINY, photos, photos, tmp_path, cpu, **again).network
    assert not torch.equal(begun.d2.layers[0].weight, begun.srn.d1.layers[0].weight)


@pytest.mark.parametrize("before", [{"shallow_deep": False}, {}], ids=str)
def test_the_joint_stage_trains_no_other_network_than_srn_did(
    photos: Photos, cpu: Runtime, tmp_path: Path, guide: Path, before: dict[str, bool]
) -> None:
    now = {} if before else {"shallow_deep": False}
    train(SRN_STAGE, replace(TINY, **before), photos, tmp_path, cpu)
    weights = tmp_path / "x2.safetensors"
    kept = weights.read_bytes()
    message = f"\nshallow_deep is {not before}, asked for is {not now}\n.*--no-sdfc"
    with pytest.raises(CheckpointError, match=message):
        train(JOINT_STAGE, replace(TINY, **now), photos, tmp_path, cpu, initial=weights, fapn=guide)
    assert weights.read_bytes() == kept


# -- ablations ---------------------------------------------------------------------------------------------

ABLATIONS = [
    ("fapn", {"affinity": False}),
    *(("fapn", {"attention": kind}) for kind in ("sam-cam", "cam-sam", "sam", "cam", "none")),
    ("srn", {"shallow_deep": False}),
    ("srn", {"gradient_embedding": False}),
    ("srn", {"shallow_deep": False, "gradient_embedding": False}),
    *(("srn", {"degradation": kind}) for kind in ("photo", "clean", "paper")),
    ("srn", {"scale": 3}),
    ("srn", {"scale": 4}),
    ("joint", {"degradation": "paper"}),
    ("joint", {"shallow_deep": False, "gradient_embedding": False}),
]


@pytest.mark.parametrize(("name", "switches"), ABLATIONS, ids=str)
def test_every_ablation_trains_saves_loads_and_evaluates(
    photos: Photos, cpu: Runtime, tmp_path: Path, guide: Path, name: str, switches: dict[str, object]
) -> None:
    stage = {"fapn": FAPN_STAGE, "srn": SRN_STAGE, "joint": JOINT_STAGE}[name]
    if name == "fapn":
        options = replace(TINY, fapn=replace(TINY.fapn, **switches))  # type: ignore[arg-type]
    else:
        options = replace(TINY, **switches)  # type: ignore[arg-type]
    reports: list[Report] = []
    train(stage, options, photos, tmp_path, cpu, fapn=guide, on_report=reports.append)
    assert reports[-1].step == 10
    assert reports[-1].scores is not None
    assert all(math.isfinite(score) for score in reports[-1].scores.values())
    (tmp_path / "fapn.safetensors").exists() or (tmp_path / "fapn.safetensors").symlink_to(guide)
    scale = 1 if name == "fapn" else options.scale
    model, _ = load_model(scale, str(tmp_path))
    config = model.fapn.config if name == "fapn" else model.fn.config  # type: ignore[union-attr]
    assert config == (options.fapn if name == "fapn" else options.srn)
    low = torch.from_numpy(textured(32, 48).transpose(2, 0, 1) / np.float32(255))[None]
    with torch.inference_mode():
        maps = model.focus(low, low.flip(3))
        fused = model.render((low, low.flip(3)), torch.full((1, 2, 32, 48), 0.5))
    assert fused.shape == (1, 3, 32 * scale, 48 * scale)
    assert bool(torch.isfinite(fused).all())
    assert maps.m1.shape == (1, 1, 32, 48)


def test_of_a_large_photo_the_centre_is_validated(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_fn(2)
    monkeypatch.setattr(validate, "LARGEST", 100)
    found = validate.sr_scores(network, photos, "clean", 1)
    centre = photos.images[0][:, 30:130, 50:150].clone()
    assert found == validate.sr_scores(network, Photos([centre], photos.sharp[:1], ["a"]), "clean", 1)


# -- the picture and the meter -----------------------------------------------------------------------------


def test_curves_are_drawn_whatever_the_values() -> None:
    assert draw_curves("nothing yet", {}).size == (800, 240)
    falling = [(float(step), 0.9**step + 1e-4) for step in range(1, 100)]
    steep = np.asarray(draw_curves("x", {"loss": falling}))
    assert (steep < 200).any()
    drawn = draw_curves(
        "x", {"loss": [(1.0, 0.5), (2.0, math.inf)], "psnr_y": [(0.0, 20.0)], "psnr_y_bicubic": [(0.0, 20.0)]}
    )
    assert drawn.size == (800, 480)


def test_the_meter_reads_the_tool_and_survives_its_absence(tmp_path: Path) -> None:
    tool = tmp_path / "smi"
    tool.write_text("#!/bin/sh\necho 93\n")
    tool.chmod(0o755)
    meter = Meter([str(tool)], pause=0.01)
    meter.start()
    while not meter._samples:
        meter._ended.wait(0.01)
    assert meter.read() == pytest.approx(0.93)
    meter.stop()
    meter.join(5)
    absent = Meter([str(tmp_path / "none")])
    absent.start()
    absent.join(5)
    assert absent.read() is None


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler's own, which it means to hide
def test_compiled_training_is_the_same_function(photos: Photos, cpu: Runtime, tmp_path: Path) -> None:
    """With the compiler's tracing but no code generation, which needs a C++ compiler."""
    whole = torch.compile

    def traced(function: object, **options: bool) -> object:
        return whole(function, backend="eager", **options)  # type: ignore[call-overload]

    found: list[Tensor] = []
    for compiled in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "compile", traced)
            made = trainer.Trainer(SRN_STAGE, TINY, photos, photos, tmp_path, cpu, compiled=compiled)
            made.step(0, made.batch(0))
        found.append(made._sums)
        assert isinstance(made.network, torch.nn.Module)
        assert not any("_orig_mod" in name for name in made.network.state_dict())
    assert torch.allclose(*found, rtol=1e-5)


def test_the_guide_is_a_fapn(guide: Path) -> None:
    assert isinstance(load(guide, kind="fapn").network, FAPN)
