"""One stage's network with everything that trains it: one step, validation, and the files of the run."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mffsr.checkpoint import load, read_header, save_network
from mffsr.device import Runtime
from mffsr.errors import CheckpointError, TrainingError, UsageError
from mffsr.model import FAPN, FN, FapnConfig, SrnConfig
from mffsr.model.dense import DenseResidualBlock
from mffsr.model.joint import decide
from mffsr.model.transition import transition
from mffsr.training import losses
from mffsr.training.batches import focus_batch, fusion_batch, sr_batch
from mffsr.training.degrade import Degradation
from mffsr.training.log import Log
from mffsr.training.muon import build_optimizers, set_rate
from mffsr.training.photos import Photos
from mffsr.training.processes import Processes
from mffsr.training.replay import Ahead, Replay
from mffsr.training.stages import Stage
from mffsr.training.state import Average, load_state, save_state
from mffsr.training.synth import mask_bank
from mffsr.training.teachers import SHARE, Teachers
from mffsr.training.validate import MOST, SCORES, focus_scores, fusion_scores, sr_scores

__all__ = ["RunOptions", "Trainer", "learning_rate", "log_file", "state_file", "weight_file"]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run is about, beside its stage; stored in the run folder and compared on resuming."""

    scale: int
    degradation: Degradation = "photo"
    seed: int = 0
    fapn: FapnConfig = field(default_factory=FapnConfig)
    gradient_embedding: bool = True
    shallow_deep: bool = True
    features: int = 32  # width of SRN and of its blocks' growth
    blocks: int = 10  # of SRN

    @property
    def srn(self) -> SrnConfig:
        """The configuration of SRN and FN."""
        return SrnConfig(
            scale=self.scale,
            features=self.features,
            growth=self.features,
            blocks=self.blocks,
            gradient_embedding=self.gradient_embedding,
            shallow_deep=self.shallow_deep,
        )


def learning_rate(stage: Stage, step: int) -> float:
    """Return the rate of a step: linear warm-up, then a cosine down to 1 % of the highest."""
    warm = min(1.0, (step + 1) / stage.warmup)
    done = min(1.0, step / stage.steps)
    return stage.rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


@lru_cache(maxsize=1)  # the stages of a run share it
def _masks(seed: int) -> NDArray[np.uint8]:
    return mask_bank(192, 256, np.random.default_rng([seed, 4]))


def _name(stage: Stage, scale: int) -> str:
    return "fapn" if stage.name == "fapn" else f"x{scale}"


def state_file(run: Path, stage: Stage, scale: int) -> Path:
    """Return where a stage keeps its resumable state."""
    return run / f"{_name(stage, scale)}-{stage.name}-state.safetensors"


def log_file(run: Path, stage: Stage, scale: int) -> Path:
    """Return where a stage keeps its table; the picture beside it is a PNG of the same name."""
    return run / f"{_name(stage, scale)}-{stage.name}.csv"


def weight_file(run: Path, stage: Stage, scale: int) -> Path:
    """Return where a stage keeps the weights that are its result."""
    return run / f"{_name(stage, scale)}.safetensors"


def _layout(stage: Stage, runtime: Runtime) -> torch.memory_format:
    """Return how tensors lie while a stage trains: channels last, where convolutions are fastest.

    But in float32 on a CPU the gradients of a convolution's weights take twice as long so, which makes a step
    of FAPN a quarter slower. SRN's dense blocks see to that themselves (`mffsr.model.dense`).
    """
    slow = stage.name == "fapn" and runtime.device.type == "cpu" and runtime.dtype == torch.float32
    return torch.contiguous_format if slow else torch.channels_last


class Trainer:
    """One stage's network, optimisers, average and files."""

    def __init__(
        self,
        stage: Stage,
        options: RunOptions,
        photos: Photos,
        validation: Photos,
        run: Path,
        runtime: Runtime,
        *,
        initial: Path | None = None,
        fapn: Path | None = None,
        teachers: Sequence[Path] = (),
        processes: Processes | None = None,
        compiled: bool | None = None,
    ) -> None:
        self.stage, self.options, self.runtime = stage, options, runtime
        self.processes = processes or Processes()
        self.photos, self.validation = photos, validation
        self.weights = weight_file(run, stage, options.scale)
        self.state = state_file(run, stage, options.scale)
        self.log = Log(log_file(run, stage, options.scale), SCORES[stage.name])
        self._layout = _layout(stage, runtime)
        self.network = self._begin(initial).to(memory_format=self._layout)  # type: ignore[call-overload]
        trained = self.network.srn if stage.name == "srn" and isinstance(self.network, FN) else self.network
        self.parameters = [p for p in trained.parameters() if p.requires_grad]
        on_cuda = runtime.device.type == "cuda"
        self.optimizers = build_optimizers(self.parameters, stage.rate)
        self.average = Average(self.network, stage.ema)
        self.guide: FAPN | None = None
        self._guide_sha = ""
        if stage.name == "joint":
            self.guide, self._guide_sha = self._load_guide(fapn)
        if teachers and stage.name != "srn":
            raise UsageError(f"teachers were given for the stage {stage.name}: they teach srn alone")
        self.teachers = Teachers(teachers, options.scale, runtime) if teachers else None
        self.masks = torch.from_numpy(_masks(options.seed)).to(runtime.device)
        self._sums = torch.zeros(2, device=runtime.device)  # of losses and gradient norms since `mean_loss`
        self._summed = 0
        if on_cuda:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True  # every batch has the same shape
        self.compiled = on_cuda and find_spec("triton") is not None if compiled is None else compiled
        self._forward = self._forward_pass(self.network)
        self._focus: Callable[..., Any] | None = self._compile(self.guide) if self.guide is not None else None
        self._replay = (
            Replay(self._train) if self.compiled and on_cuda and self.processes.count == 1 else None
        )
        self._ahead = Ahead(self._make_batch, runtime.device) if self._replay else None

    def _begin(self, initial: Path | None) -> FAPN | FN:
        """Build the network on its device, from random or given weights."""
        stage, options = self.stage, self.options
        torch.manual_seed(options.seed)
        network: FAPN | FN = FAPN(options.fapn) if stage.name == "fapn" else FN(options.srn)
        begun = False
        if initial is not None:
            begun = _warm_start(network, initial, same_scale=stage.name == "joint") == "joint"
        if isinstance(network, FN) and stage.name == "joint" and not begun:
            network.d2.load_state_dict(network.srn.d1.state_dict())
        return self.runtime.place(network)

    def _load_guide(self, fapn: Path | None) -> tuple[FAPN, str]:
        """Load the fixed FAPN of the joint stage."""
        if fapn is None:
            raise UsageError("the joint stage needs a trained FAPN\ntrain it first, or name its weights")
        found = load(fapn, kind="fapn")
        if not isinstance(found.network, FAPN):
            raise TypeError(type(found.network))
        guide: FAPN = self.runtime.place(found.network)
        return guide, found.sha256

    def _compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function) if self.compiled else function

    def _forward_pass(self, network: FAPN | FN) -> Callable[..., Any]:
        """Return what turns the images of a batch into what the loss is taken of."""
        if isinstance(network, FAPN):
            return self._compile(network.logits)
        # Block by block: the code of the first serves all that are alike. The whole would take minutes.
        for block in network.modules() if self.compiled else ():
            if isinstance(block, DenseResidualBlock):
                block.compile(dynamic=False)
        return network.srn if self.stage.name == "srn" else network

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Within the block the trainer is at work; on CUDA on a stream of its own, as recording asks for."""
        if self._ahead is None:
            yield
            return
        stream = torch.cuda.Stream(self.runtime.device)
        stream.wait_stream(torch.cuda.current_stream(self.runtime.device))
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            self._ahead.close()

    # -- one step -----------------------------------------------------------------------------------------

    def batch(self, step: int) -> Any:
        """Return this process's share of the step's batch."""
        return self._ahead(step) if self._ahead is not None and self.makes_ahead else self._make_batch(step)

    @property
    def makes_ahead(self) -> bool:
        """Whether batches are made beside training: not before the step is recorded, which must be alone."""
        return self._replay is not None and self._replay.recorded

    def _make_batch(self, step: int) -> Any:
        stage, options = self.stage, self.options
        first = self.processes.rank * stage.batch
        samples = range(first, first + stage.batch)
        data = (self.photos, self.masks, stage.patch)
        low = (options.scale, options.degradation)
        with torch.inference_mode(False), torch.no_grad():
            if stage.name == "fapn":
                return focus_batch(*data, options.seed, step, samples)
            if stage.name == "joint":
                return fusion_batch(*data, *low, options.seed, step, samples)
            total = stage.batch * self.processes.count
            make = partial(sr_batch, *data, *low, options.seed, samples=samples, total=total)
            if self.teachers is None:
                return make(step)
            return self.teachers.batch(make, step, 3 * stage.batch * (options.scale * stage.patch) ** 2)

    def step(self, step: int, batch: Any) -> None:
        """Train one step. Nothing waits for the device: the loss is summed up there, see `mean_loss`."""
        self.network.train()
        for optimizer in self.optimizers:
            set_rate(optimizer, learning_rate(self.stage, step))
        self.average.set_step(step)
        batch = type(batch)(*(t.contiguous(memory_format=self._layout) for t in batch))
        (self._replay or self._train)(batch)
        self._summed += 1

    def _train(self, batch: Any) -> None:
        """Do a step's work on the device; the same whatever the step."""
        loss = self._loss(batch)
        loss.backward()
        total = self.processes.average_gradients(self.parameters, loss.detach())
        norm = nn.utils.clip_grad_norm_(self.parameters, self.stage.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.average.update()
        self._sums += torch.stack((total, norm))

    def _loss(self, batch: Any) -> Tensor:
        stage = self.stage
        if stage.name == "fapn":
            with self.runtime.autocast():
                logits = self._forward(batch.image1, batch.image2)
            return losses.fapn_loss(logits.float(), *batch)
        if stage.name == "srn":
            with self.runtime.autocast():
                enlarged = self._forward(batch.low)
            loss = losses.super_resolution_loss(enlarged, batch.high)
            if self.teachers is None:
                return loss
            taught = losses.super_resolution_loss(enlarged, batch.taught)
            return (1 - SHARE) * loss + SHARE * taught
        if self._focus is None:
            raise TypeError("the joint stage has no FAPN")
        with torch.no_grad(), self.runtime.autocast():
            first = decide(self._focus(batch.low1, batch.low2))
            masks = transition(torch.cat((first, 1 - first), 1), (batch.low1, batch.low2))
        with self.runtime.autocast():
            fused = self._forward((batch.low1, batch.low2), masks)
        return losses.fusion_loss(fused, batch.sharp, (batch.high1, batch.high2), masks)

    def mean_loss(self, step: int) -> float:
        """Return the mean loss of the steps since the last call; the only place that waits for the device.

        Raises TrainingError where a loss or a gradient was not finite.
        """
        loss, norm = self._sums.tolist()
        steps, self._summed = max(1, self._summed), 0
        self._sums.zero_()
        if math.isfinite(loss) and math.isfinite(norm):
            return float(loss / steps)
        raise self._diverged(step, "the loss" if not math.isfinite(loss) else "the gradient")

    def _diverged(self, step: int, what: str) -> TrainingError:
        kept = (
            f"the last good state is kept in {self.state}" if self.state.exists() else "nothing was saved yet"
        )
        return TrainingError(
            f"{what} of {self.stage.name} is no longer a finite number, at step {step} or shortly before\n"
            f"{kept}\nuse a lower --rate (now {self.stage.rate:g}) with --resume"
        )

    # -- what is measured and kept ------------------------------------------------------------------------

    def averaged(self) -> FAPN | FN:
        """Return a copy of the network with the averaged weights, in evaluation mode."""
        network = FAPN(self.options.fapn) if isinstance(self.network, FAPN) else FN(self.options.srn)
        network.load_state_dict(self.average.tensors)
        if isinstance(network, FN) and self.stage.name == "srn":
            network.d2.load_state_dict(network.srn.d1.state_dict())  # usable before the joint stage
        self.runtime.place(network)
        return network.eval()

    def validate(self) -> dict[str, float]:
        """Score the averaged network on the validation photos."""
        network, count = self.averaged(), min(MOST, len(self.validation))
        with self.runtime.autocast():
            if isinstance(network, FAPN):
                return focus_scores(network, self.validation, self.masks, count)
            if self.guide is not None:
                return fusion_scores(self.guide, network, self.validation, self.masks, count)
            return sr_scores(network, self.validation, self.options.degradation, count)

    def save(self, step: int) -> None:
        """Write the resumable state, then the averaged weights; each file is the old one or the new one."""
        if self.processes.rank:
            return
        if not self.average.finite():
            raise self._diverged(step, "a weight")
        save_state(
            self.state, self.network, self.average, self.optimizers, {"step": step, **self._settings()}
        )
        self._save_weights(step)

    def _save_weights(self, step: int) -> None:
        description = {
            "stage": self.stage.name,
            "steps": str(step),
            "data": self.options.degradation,
            "batch": str(self.stage.batch * self.processes.count),
            "patch": str(self.stage.patch),
            "rate": f"{self.stage.rate:g}",
            "seed": str(self.options.seed),
        }
        save_network(self.averaged(), self.weights, description)

    def _settings(self) -> dict[str, object]:
        """Return everything that decides what the next step does; a resumed run must agree in it."""
        return {
            "stage": asdict(self.stage),
            "options": asdict(self.options),
            "run": {
                "processes": self.processes.count,
                "photos": self.photos.fingerprint(),
                "fapn": self._guide_sha,
                "teachers": self.teachers.sha256 if self.teachers else [],
            },
        }

    def resume(self) -> int:
        """Restore the run's last state and return the step it was saved after.

        Another learning rate is accepted, so that a run that diverged can go on with a lower one.
        """
        info = load_state(self.state, self.network, self.average, self.optimizers)
        now = json.loads(json.dumps(self._settings()))
        changed = [
            f"{name} was {before!r}, now {after!r}"
            for part, values in now.items()
            for name, before, after in _differences(info.get(part), values)
            if name != "rate"
        ]
        if changed:
            raise UsageError(
                f"{self.state}: this run was started with other settings\n"
                f"{'; '.join(changed)[:300]}\nuse the same ones, or another --out"
            )
        step = int(str(info["step"]))
        if self.processes.rank == 0 and self._weights_are_stale(step):  # killed between state and weights
            self._save_weights(step)
        return step

    def _weights_are_stale(self, step: int) -> bool:
        if not self.weights.exists():
            return True
        header = read_header(self.weights)
        later = self.stage.name == "srn" and header.get("stage") == "joint"  # which begins with SRN's
        return not later and (header.get("stage"), header.get("steps")) != (self.stage.name, str(step))


def _differences(before: object, now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, before, now) of the settings that differ; those a state does not name count as equal."""
    for name, value in before.items() if isinstance(before, Mapping) else ():
        if isinstance(value, Mapping):
            yield from _differences(value, now.get(name, {}))
        elif now.get(name) != value:
            yield name, value, now.get(name)


def _warm_start(network: FAPN | FN, path: Path, *, same_scale: bool) -> str:
    """Take over every tensor of a weight file that fits in name and shape; return the stage it is of.

    With `same_scale` the network must be the same one.
    """
    if same_scale and isinstance(network, FN):
        found = load(path, kind="fn", scale=network.config.scale)
        other = _differences(json.loads(found.header["config"]), asdict(network.config))
        if changed := [f"{name} is {theirs}, asked for is {ours}" for name, theirs, ours in other]:
            raise CheckpointError(  # an ablated one would go on as another, and say nothing
                f"{path}: weights of another network than the joint stage is to train\n"
                f"{'; '.join(changed)}\ngive the options that srn was trained with (--no-sdfc, --no-geb)"
            )
    else:
        found = load(path)
    given, own = found.network.state_dict(), network.state_dict()
    fitting = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    if len(fitting) < len(own) // 2:
        raise CheckpointError(
            f"{path}: only {len(fitting)} of {len(own)} tensors fit the network to be trained\n"
            f"it holds {found.kind} weights of configuration {found.header['config']}"
        )
    network.load_state_dict(own | fitting)
    return found.header.get("stage", "")
