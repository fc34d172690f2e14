"""The loop, the only one: for each phase zero, loss, backward, step; then the average. It knows no family.

Letters: B batch, K quantities.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from genmod import storage
from genmod.errors import TrainingDiverged
from genmod.interface.batch import Batch
from genmod.interface.model import GenerativeModel, Phase
from genmod.interface.model_store import GRIDS
from genmod.memory import keep_freed
from genmod.rng import Rng
from genmod.training import ema
from genmod.training.checkpoint import Checkpoints, resume
from genmod.training.ddp_warmup import MAX_COMMUTATIVE_RANKS, ddp_warmup, require_grad_only
from genmod.training.layout import compile_nets, compute_gradients, place_model, prepare_batch
from genmod.training.metric_log import MetricPoint, write_metrics
from genmod.training.monitors.collapse import CollapseMonitor
from genmod.training.monitors.latents import LatentMonitor
from genmod.training.monitors.rollback import handle_divergence, run_collapse_monitor
from genmod.training.monitors.validation import SampleGrid, Validation
from genmod.training.optim import PhaseOptimiser
from genmod.training.plan import TrainConfig, due
from genmod.training.precision import autocast
from genmod.training.state import TrainState, stack_scalars
from genmod.training.writer import BackgroundWriter, storage_errors
from genmod.world import World

_OF_THE_STEP = ("grad_norm", "lr")  # noted of a phase beside its loss and terms


class Stream(Protocol):
    """A rank's rows of each global batch, in order; ``index_B`` is their position in the stream."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def close(self) -> None:
        """Stop; nothing comes after this."""
        ...


Batches = Callable[[int], Stream]
"""The stream from a position, given as images seen."""


@dataclass(frozen=True)
class Plan:
    """What to do beside the steps themselves, and where to."""

    config: TrainConfig
    seed: int
    root: str | None = None
    """URL of the folder that metrics and pictures go to; None for nowhere."""
    checkpoints: Checkpoints | None = None
    validation: Validation | None = None
    grid: SampleGrid | None = None
    samples: CollapseMonitor | None = None
    latents: LatentMonitor | None = None


def train(model: GenerativeModel, batches: Batches, world: World, plan: Plan) -> TrainState:
    """Train a model, from where its newest checkpoint is. The process keeps freed memory from then on.

    Args:
        model: moved to the world's device; the same weights on every rank.
        batches: each rank's own rows.
        world: the processes that train together; every one of them calls this.
        plan: alike on all ranks.

    Returns:
        The state at the end, on every rank.

    Raises:
        TrainingDiverged: on all ranks alike, if a loss is not finite and samples are not watched.
        TrainingCollapsed: on all ranks alike, if the recipe allows no further way back.
        ConfigError: the settings do not fit the model.
    """
    keep_freed()
    run = _Run.start(model, world, plan)
    state, total_nimg = run.state, plan.config.total_nimg
    if state.nimg >= total_nimg:
        return state
    stream, mark = batches(state.nimg), world.heartbeat.mark
    try:
        with run.writer:
            while state.nimg < total_nimg:
                mark("data")
                run.step(next(stream))
                mark("look")
                run.look()
            mark("last checkpoint")
    finally:
        stream.close()
        model.requires_grad_(True)
    return state


class _PhaseModule(nn.Module):
    """A phase's loss as a forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, model: GenerativeModel, phase: Phase, seed: int, precision: str) -> None:
        super().__init__()
        self.model = model
        self.phase = phase
        self.seed = seed
        self.precision = precision

    def forward(self, batch: Batch, nimg: int) -> tuple[Tensor, dict[str, Tensor]]:
        rng = Rng(self.seed, f"train/{self.phase.name}", batch.index_B)
        with autocast(self.precision, batch.index_B.device):
            losses = self.model.loss(self.phase.name, batch, rng, nimg)
        return losses.total, {"loss": losses.total.detach(), **losses.terms}


@dataclass
class _Run:
    """One call of :func:`train`."""

    state: TrainState
    world: World
    plan: Plan
    wrapped: Sequence[nn.Module]
    """For each phase."""
    average: ema.Average
    writer: BackgroundWriter = field(default_factory=BackgroundWriter)
    """Of checkpoints, on rank 0."""
    warmed_up: bool = False
    start_s: float = 0.0
    start_cpu_s: float = 0.0
    start_nimg: int = 0

    @classmethod
    def start(cls, model: GenerativeModel, world: World, plan: Plan) -> Self:
        """Put everything in its place: device, layout, average, optimisers, the newest checkpoint."""
        config, phases = plan.config, model.phases()
        config.check_phases(phases)
        place_model(model, world.device, config)
        optimisers = [PhaseOptimiser(model, p, config.optim_of(p.name)) for p in phases]
        state = TrainState(0, model, ema.averaged(model), optimisers)
        if plan.checkpoints is not None:
            resume(plan.checkpoints, state, world)
        if config.compile:
            compile_nets(model)
        wrapped: list[nn.Module] = []
        for phase in phases:
            require_grad_only(model, phase)
            module = _PhaseModule(model, phase, plan.seed, config.precision)
            wrapped.append(world.wrap(module))
        run = cls(state, world, plan, wrapped, ema.Average(state.ema, model))
        run.restart_clock()
        return run

    def step(self, batch: Batch) -> None:
        """Every phase whose turn it is once, on this rank's rows of one global batch."""
        state, config = self.state, self.plan.config
        after_nimg = state.nimg + config.batch
        batch = prepare_batch(batch, self.world.device, config)
        if not self.warmed_up and self.world.size > MAX_COMMUTATIVE_RANKS:
            ddp_warmup(
                state.model, self.wrapped, batch.rows(slice(len(batch) // config.accumulate))
            )
        self.warmed_up = True
        middle_nimg = state.nimg + config.batch / 2
        keys: list[str] = []
        values: list[Tensor] = []
        for optimiser, module in zip(state.optimisers, self.wrapped, strict=True):
            if not due(state.nimg, after_nimg, optimiser.phase.every * config.batch):
                continue
            terms = self._gradients(optimiser, module, batch)
            lr = optimiser.lr_at(middle_nimg, config.total_nimg) * state.monitor_state.lr_scale
            norm = optimiser.step(lr)
            keys += [f"{optimiser.phase.name}/{name}" for name in (*terms, *_OF_THE_STEP)]
            values += [*terms.values(), norm, torch.full_like(norm, lr, dtype=torch.float64)]
        if wanted := state.model.adapts():
            means_K = self.world.mean(stack_scalars([values[keys.index(key)] for key in wanted]))
            state.model.adapt(means_K, config.batch)
        state.nimg = after_nimg
        self.average.update(ema.decay_at(config, state.nimg))
        state.step_metrics.add(state.nimg, keys, stack_scalars(values))

    def _gradients(
        self, optimiser: PhaseOptimiser, module: nn.Module, batch: Batch
    ) -> dict[str, Tensor]:
        """Fill in the gradients of one phase; its terms, averaged over the parts of the batch."""
        parts = self.plan.config.accumulate
        rows = len(batch) // parts
        optimiser.begin()
        sums: dict[str, Tensor] = {}
        for part in range(parts):
            some = batch.rows(slice(part * rows, (part + 1) * rows))
            with _silent(module, last=part == parts - 1):
                self.world.heartbeat.mark(f"{optimiser.phase.name} forward")
                loss, terms = module(some, self.state.nimg)
                self.world.heartbeat.mark(f"{optimiser.phase.name} backward")
                compute_gradients(loss if parts == 1 else loss / parts, self.plan.config)
            for name, value in terms.items():
                sums[name] = sums[name] + value if name in sums else value
        return sums if parts == 1 else {name: value / parts for name, value in sums.items()}

    def look(self) -> None:
        """Whatever is due after a step: metrics, validation, picture, checkpoint. All ranks come here."""
        self.writer.check()
        state, plan, config = self.state, self.plan, self.plan.config
        before_nimg, last = state.nimg - config.batch, state.nimg >= config.total_nimg

        def now(every_nimg: int | None) -> bool:
            return every_nimg is not None and (last or due(before_nimg, state.nimg, every_nimg))

        log, metrics = now(config.log_every_nimg), dict[str, float]()
        saves = plan.checkpoints is not None and now(config.checkpoint_every_nimg)
        samples = plan.samples
        looks = samples is not None and now(samples.config.every_nimg)
        terms = {
            name: found[: -len(_OF_THE_STEP)]
            for name in (optimiser.phase.name for optimiser in state.optimisers)
            if (found := state.step_metrics.terms_of(name))  # a phase may have had no turn yet
        }
        found, used = dict[str, float](), dict[str, float]()
        latents = plan.latents
        encodes = latents is not None and now(latents.config.every_nimg)
        try:
            if log or looks or saves or encodes:
                state.step_metrics.settle(self.world)
            if plan.validation is not None and now(config.validate_every_nimg):
                found = plan.validation.measure(state.ema, state.nimg, terms, self.world)
            if latents is not None and encodes:
                used = latents.look(state.ema, state.monitor_state, state.nimg, self.world)
        except TrainingDiverged as error:
            handle_divergence(error, samples, state, self.world, plan.root)
        if log:
            metrics |= _prefixed("train", state.step_metrics.close(self.world))
        metrics |= _prefixed("val", found) | used
        if samples is not None and looks:
            metrics |= run_collapse_monitor(samples, state, self.world, plan.root)
        if latents is not None and last and plan.root is not None and self.world.rank == 0:
            latents.show(state.ema, plan.root, self.world.device)
        if plan.grid is not None and now(config.grid_every_nimg):
            self._write_grid(plan.grid.draw(state.ema, self.world))
        if metrics and plan.root is not None and self.world.rank == 0:
            write_metrics(
                plan.root, MetricPoint(state.nimg, metrics, self._timing() if log else {})
            )
        if log:
            self.restart_clock()
        if plan.checkpoints is not None and saves and self.world.rank == 0:
            save, snapshot = plan.checkpoints.save, state.snapshot()
            self.writer.begin(partial(save, snapshot, self._val_loss(found)))

    def _val_loss(self, found: Mapping[str, float]) -> float | None:
        """What says which weights are better. Phases that play against one another have no such loss."""
        names = [optimiser.phase.name for optimiser in self.state.optimisers]
        return found.get(f"{names[0]}/loss") if len(names) == 1 else None

    def restart_clock(self) -> None:
        """Speeds are measured from here."""
        self.start_s, self.start_cpu_s = time.monotonic(), time.process_time()
        self.start_nimg = self.state.nimg

    def _timing(self) -> dict[str, float]:
        images = self.state.nimg - self.start_nimg
        wall_s = time.monotonic() - self.start_s
        cpu_s = time.process_time() - self.start_cpu_s
        return {"images_per_s": images / max(wall_s, 1e-9), "wall_s": wall_s, "cpu_s": cpu_s}

    def _write_grid(self, picture: bytes) -> None:
        if self.plan.root is not None and self.world.rank == 0:
            folder, nimg = storage.join(self.plan.root, GRIDS), self.state.nimg
            with storage_errors(folder, f"the picture at {nimg:,} images"):
                storage.write_bytes(storage.join(folder, f"{nimg:012d}.png"), picture)


def _silent(module: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Gradients are exchanged in the last part of a batch only."""
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()


def _prefixed(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{key}": value for key, value in values.items()}
