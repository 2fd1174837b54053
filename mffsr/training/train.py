"""The training loop: one stage after the other, resumable at any step, on any number of processes."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mffsr.checkpoint import load, save_network
from mffsr.device import Runtime
from mffsr.errors import CheckpointError, TrainingError
from mffsr.model import FAPN, FN, FapnConfig, SrnConfig
from mffsr.model.joint import decide, soft_transition
from mffsr.training import losses
from mffsr.training.batches import LR_MARGIN, MARGIN, focus_batch, fusion_batch, sr_batch
from mffsr.training.degrade import Degradation
from mffsr.training.photos import Photos
from mffsr.training.stages import Stage
from mffsr.training.state import Average, load_state, save_state
from mffsr.training.synth import mask_bank
from mffsr.training.validate import focus_scores, fusion_scores, sr_scores

__all__ = ["Processes", "Report", "RunOptions", "patch_needed", "train_stage"]

LOG_FIELDS = ("step", "loss", "rate", "seconds", "data_share")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run is about, beside its stage; stored in the run folder and compared on resuming."""

    scale: int
    degradation: Degradation = "photo"
    seed: int = 0
    fapn: FapnConfig = field(default_factory=FapnConfig)
    gradient_embedding: bool = True
    shallow_deep: bool = True

    @property
    def srn(self) -> SrnConfig:
        """The configuration of SRN and FN."""
        return SrnConfig(
            scale=self.scale, gradient_embedding=self.gradient_embedding, shallow_deep=self.shallow_deep
        )


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those that train together (torchrun); alone by default."""

    rank: int = 0
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the loop tells after every step."""

    stage: str
    step: int
    steps: int
    loss: float
    rate: float
    data_share: float  # of the time since the last report spent on making batches
    images_per_second: float
    scores: Mapping[str, float] | None = None  # validation, where it was due


def patch_needed(stage: Stage, scale: int) -> int:
    """Return the smallest side of a photo, in pixels, that this stage can cut its patches from."""
    if stage.name == "fapn":
        return stage.patch + 2 * MARGIN
    return (stage.patch + 2 * LR_MARGIN) * scale + 2 * MARGIN


def learning_rate(stage: Stage, step: int) -> float:
    """Return the rate of a step: linear warm-up, then a cosine down to 1 % of the highest."""
    warm = min(1.0, (step + 1) / stage.warmup)
    done = min(1.0, step / stage.steps)
    return stage.rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def train_stage(
    stage: Stage,
    options: RunOptions,
    photos: Photos,
    validation: Photos,
    run: Path,
    runtime: Runtime,
    *,
    initial: Path | None = None,
    fapn: Path | None = None,
    resume: bool = False,
    until: int | None = None,
    processes: Processes | None = None,
    validate_every: int = 1000,
    save_every: int = 250,
    on_report: Callable[[Report], None] = lambda report: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train one stage and return its weight file, `fapn.safetensors` or `x<scale>.safetensors` in `run`.

    `initial` starts from given weights (of any scale: what fits is taken); `fapn` is the fixed FAPN of the
    joint stage. `resume` goes on from the run's last saved state, exactly. Stops after step `until`, or
    at the next step once `should_stop()` is true; the state is saved then. Raises TrainingError when the loss
    is not finite (the last good state is kept).
    """
    processes = processes or Processes()
    trainer = _Trainer(stage, options, photos, validation, run, runtime, initial, fapn, processes)
    step = trainer.resume() if resume and trainer.state.exists() else 0
    last = min(stage.steps, until or stage.steps)
    clock, data_time, counted = time.perf_counter(), 0.0, 0
    while step < last and not should_stop():
        begun = time.perf_counter()
        batch = trainer.batch(step)
        data_time += time.perf_counter() - begun
        loss = trainer.step(step, batch)
        step += 1
        counted += 1
        due = step % validate_every == 0 or step == stage.steps
        if step % 10 == 0 or due or step == last:
            value = trainer.check(loss, step)
            elapsed = time.perf_counter() - clock
            report = Report(
                stage=stage.name,
                step=step,
                steps=stage.steps,
                loss=value,
                rate=learning_rate(stage, step - 1),
                data_share=data_time / elapsed,
                images_per_second=counted * stage.batch * processes.count / elapsed,
                scores=trainer.validate() if due and processes.rank == 0 else None,
            )
            trainer.log(report, elapsed)
            on_report(report)
            clock, data_time, counted = time.perf_counter(), 0.0, 0
        if step % save_every == 0 or due:
            trainer.save(step)
    trainer.save(step)
    return trainer.weights


class _Trainer:
    """One stage's network, optimiser, average and files."""

    def __init__(
        self,
        stage: Stage,
        options: RunOptions,
        photos: Photos,
        validation: Photos,
        run: Path,
        runtime: Runtime,
        initial: Path | None,
        fapn: Path | None,
        processes: Processes,
    ) -> None:
        self.stage, self.options, self.runtime, self.processes = stage, options, runtime, processes
        self.photos, self.validation = photos, validation
        name = "fapn" if stage.name == "fapn" else f"x{options.scale}"
        self.weights = run / f"{name}.safetensors"
        self.state = run / f"{name}-{stage.name}-state.safetensors"
        self.log_file = run / f"{name}-{stage.name}.csv"
        device = runtime.device
        torch.manual_seed(options.seed)
        self.network: FAPN | FN = FAPN(options.fapn) if stage.name == "fapn" else FN(options.srn)
        if initial is not None:
            _warm_start(self.network, initial)
        begun = initial is not None and load(initial).header.get("stage") == "joint"
        if isinstance(self.network, FN) and stage.name == "joint" and not begun:
            self.network.d2.load_state_dict(self.network.srn.d1.state_dict())
        self.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        trained = self.network.srn if stage.name == "srn" and isinstance(self.network, FN) else self.network
        self.parameters = [p for p in trained.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=stage.rate, betas=(0.9, 0.99))
        self.average = Average(self.network, stage.ema)
        self.guide: FAPN | None = None
        if stage.name == "joint":
            if fapn is None:
                raise TrainingError(
                    "the joint stage needs a trained FAPN: train it first, or name its weights"
                )
            guide = load(fapn, kind="fapn").network
            if not isinstance(guide, FAPN):
                raise TypeError(type(guide))
            self.guide = guide.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        bank = mask_bank(192, 256, np.random.default_rng([options.seed, 4]))
        self.masks = torch.from_numpy(bank).to(device)

    # -- one step -----------------------------------------------------------------------------------------

    def batch(self, step: int) -> Any:
        """Make this process's share of the step's batch."""
        stage, options = self.stage, self.options
        first = self.processes.rank * stage.batch
        samples = range(first, first + stage.batch)
        with torch.inference_mode(False), torch.no_grad():
            if stage.name == "fapn":
                return focus_batch(self.photos, self.masks, stage.patch, options.seed, step, samples)
            make = sr_batch if stage.name == "srn" else fusion_batch
            return make(
                self.photos,
                self.masks,
                stage.patch,
                options.scale,
                options.degradation,
                options.seed,
                step,
                samples,
            )

    def step(self, step: int, batch: Any) -> Tensor:
        """Train one step and return its loss, still on the device."""
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.stage, step)
        batch = type(batch)(*(t.contiguous(memory_format=torch.channels_last) for t in batch))
        loss = self._loss(batch)
        loss.backward()
        total = loss.detach()
        if self.processes.count > 1:
            total = self._share_gradients(total)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.stage.clip)
        if bool(torch.isfinite(norm)):  # a single overflow is skipped, a lasting one stops in `check`
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.network, step)
        return total

    def _loss(self, batch: Any) -> Tensor:
        network, stage = self.network, self.stage
        if isinstance(network, FAPN):
            with self.runtime.autocast():
                logits = network.logits(batch.image1, batch.image2)
            return losses.fapn_loss(logits.float(), *batch)
        if stage.name == "srn":
            with self.runtime.autocast():
                enlarged = network.srn(batch.low)
            return losses.super_resolution_loss(enlarged, batch.high)
        if self.guide is None:
            raise TrainingError("the joint stage needs a trained FAPN")
        with torch.no_grad(), self.runtime.autocast():
            first = decide(self.guide(batch.low1, batch.low2))
            masks = soft_transition(torch.cat((first, 1 - first), 1))
        with self.runtime.autocast():
            fused = network((batch.low1, batch.low2), masks)
        return losses.fusion_loss(fused, batch.sharp, (batch.high1, batch.high2), masks)

    def _share_gradients(self, loss: Tensor) -> Tensor:
        """Average gradients and loss over all processes."""
        flat = torch.cat(
            [p.grad.reshape(-1) for p in self.parameters if p.grad is not None] + [loss.reshape(1)]
        )
        torch.distributed.all_reduce(flat)
        flat /= self.processes.count
        at = 0
        for p in self.parameters:
            if p.grad is not None:
                p.grad.copy_(flat[at : at + p.grad.numel()].view_as(p.grad))
                at += p.grad.numel()
        return flat[-1]

    def check(self, loss: Tensor, step: int) -> float:
        """Return the loss as a number; raises TrainingError where it is not finite."""
        value = float(loss)
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {step} of {self.stage.name}\n"
                f"the last good state is kept in {self.state.name}; resume with a lower --rate"
            )
        return value

    # -- what is measured and kept ------------------------------------------------------------------------

    def averaged(self) -> FAPN | FN:
        """Return a copy of the network with the averaged weights, in evaluation mode."""
        network = FAPN(self.options.fapn) if isinstance(self.network, FAPN) else FN(self.options.srn)
        network.load_state_dict(self.average.tensors)
        if isinstance(network, FN) and self.stage.name == "srn":
            network.d2.load_state_dict(network.srn.d1.state_dict())  # usable before the joint stage
        network.to(self.runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.eval()

    def validate(self) -> dict[str, float]:
        """Score the averaged network on the validation photos."""
        network, count = self.averaged(), min(24, len(self.validation))
        with self.runtime.autocast():
            if isinstance(network, FAPN):
                return focus_scores(network, self.validation, self.masks, count)
            if self.guide is not None:
                return fusion_scores(self.guide, network, self.validation, self.masks, count)
            return sr_scores(network, self.validation, self.options.degradation, count)

    def log(self, report: Report, seconds: float) -> None:
        """Append a row to the run's CSV."""
        if self.processes.rank:
            return
        new = not self.log_file.exists()
        scores = dict(report.scores or {})
        with self.log_file.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow([*LOG_FIELDS, "scores"])
            row = [
                report.step,
                f"{report.loss:.6f}",
                f"{report.rate:.3g}",
                f"{seconds:.2f}",
                f"{report.data_share:.3f}",
            ]
            writer.writerow([*row, json.dumps({k: round(v, 4) for k, v in scores.items()}) if scores else ""])

    def save(self, step: int) -> None:
        """Write the resumable state and the averaged weights."""
        if self.processes.rank:
            return
        info = {"step": step, "stage": asdict(self.stage), "options": asdict(self.options)}
        save_state(self.state, self.network, self.average, self.optimizer, info)
        save_network(
            self.averaged(),
            self.weights,
            stage=self.stage.name,
            steps=str(step),
            data=self.options.degradation,
            batch=str(self.stage.batch * self.processes.count),
        )

    def resume(self) -> int:
        """Restore the run's last state and return the step it was saved after."""
        info = load_state(self.state, self.network, self.average, self.optimizer)
        now = json.loads(json.dumps({"stage": asdict(self.stage), "options": asdict(self.options)}))
        for part in ("stage", "options"):
            before = info.get(part)
            if before != now[part]:
                raise TrainingError(
                    f"{self.state}: this run was started with other settings\n"
                    f"then: {before}\nnow: {now[part]}\nuse the same options, or another --out"
                )
        return int(str(info["step"]))


def _warm_start(network: FAPN | FN, path: Path) -> None:
    """Take over every tensor of a weight file that has the same name and shape here."""
    given = load(path).network.state_dict()
    own = network.state_dict()
    fitting = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    if len(fitting) < len(own) // 2:
        raise CheckpointError(
            f"{path}: only {len(fitting)} of {len(own)} tensors fit the network to be trained"
        )
    network.load_state_dict(own | fitting)


def join_processes() -> Processes:
    """Join the processes that torchrun started, or stay alone."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes()
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return Processes(rank=int(os.environ["RANK"]), count=count)


def shorten(stage: Stage, **changes: float | int | None) -> Stage:
    """Return the stage with the given fields replaced, None meaning unchanged."""
    return replace(stage, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]
