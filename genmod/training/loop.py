"""The training loop, the only one: each phase computes its loss and gradients and steps, then the EMA moves.

It names no family. Letters: B batch, K quantities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from genmod import storage
from genmod.errors import TrainingDiverged
from genmod.interface.batch import Batch
from genmod.interface.model import GenerativeModel
from genmod.interface.model_store import GRIDS
from genmod.memory import keep_freed
from genmod.training import ema
from genmod.training.checkpoint import resume
from genmod.training.ddp_warmup import MAX_COMMUTATIVE_RANKS, ddp_warmup, require_grad_only
from genmod.training.layout import compile_nets, place_model, prepare_batch
from genmod.training.metric_log import MetricPoint, MetricWriter
from genmod.training.monitors.rollback import handle_divergence, run_collapse_monitor
from genmod.training.optim import PhaseOptimiser
from genmod.training.phase import PhaseModule, accumulate_gradients
from genmod.training.plan import due
from genmod.training.setup import Batches, Plan
from genmod.training.speed import SpeedClock
from genmod.training.state import TrainState, stack_scalars
from genmod.training.writer import BackgroundWriter, storage_errors
from genmod.world import World

_STEP_QUANTITIES = ("grad_norm", "lr")
"""Logged for each phase in addition to its loss and terms."""


def train(model: GenerativeModel, batches: Batches, world: World, plan: Plan) -> TrainState:
    """Train a model, from its newest checkpoint if there is one. Collective: every rank calls it.

    The process keeps freed memory from here on (:func:`genmod.memory.keep_freed`).

    Args:
        model: moved to the world's device; the same weights on every rank.
        batches: opens each rank's rows.
        world: the processes that train together.
        plan: equal on all ranks.

    Returns:
        The final state, on every rank.

    Raises:
        TrainingDiverged: on all ranks alike, if a loss is not finite and no collapse monitor rolls back.
        TrainingCollapsed: on all ranks alike, if no rollback is left.
        ConfigError: the settings do not fit the model.
        StorageError: checkpoints, metrics or images cannot be written.
    """
    keep_freed()
    run = _Run.start(model, world, plan)
    state, total_nimg = run.state, run.total_nimg
    if state.nimg >= total_nimg:
        return state
    stream, mark = batches(state.nimg), world.heartbeat.mark
    try:
        with ExitStack() as stack:
            stack.enter_context(run.writer)
            if run.metric_log is not None:
                stack.enter_context(run.metric_log)
            while state.nimg < total_nimg:
                mark("data")
                run.step(run.clock.next_of(stream))
                mark("evaluation")
                run.on_interval()
            mark("last checkpoint")
    finally:
        stream.close()
        model.requires_grad_(True)
    return state


@dataclass
class _Run:
    """One call of :func:`train`."""

    state: TrainState
    world: World
    plan: Plan
    total_nimg: int
    """Images seen when training ends."""
    modules: Sequence[nn.Module]
    """Each phase's loss, wrapped for gradient exchange."""
    average: ema.Average
    clock: SpeedClock
    metric_log: MetricWriter | None
    """On rank 0, if the plan has a root."""
    writer: BackgroundWriter = field(default_factory=BackgroundWriter)
    """Writes checkpoints, on rank 0."""
    warmed_up: bool = False

    @classmethod
    def start(cls, model: GenerativeModel, world: World, plan: Plan) -> Self:
        """Set up device, memory layout, EMA, optimisers and DDP; restore the newest checkpoint."""
        config, phases = plan.config, model.phases()
        config.check_phases(phases)
        place_model(model, world.device, config)
        optimisers = [PhaseOptimiser(model, p, config.optim_of(p.name)) for p in phases]
        state = TrainState(0, model, ema.averaged(model), optimisers)
        if plan.checkpoints is not None:
            resume(plan.checkpoints, state, world)
        if config.compile:
            compile_nets(model)
        modules: list[nn.Module] = []
        for phase in phases:
            # DDP exchanges the gradients of parameters that require grad when it wraps them.
            require_grad_only(model, phase)
            modules.append(world.wrap(PhaseModule(model, phase, plan.seed, config.precision)))
        log_here = plan.root is not None and world.rank == 0
        metric_log = MetricWriter(plan.root, state.nimg) if log_here and plan.root else None
        average, clock = ema.Average(state.ema, model), SpeedClock(state.nimg)
        return cls(state, world, plan, config.total_nimg, modules, average, clock, metric_log)

    def step(self, batch: Batch) -> None:
        """One step: every phase whose turn it is, on this rank's rows of one global batch."""
        state, config = self.state, self.plan.config
        after_nimg = state.nimg + config.batch
        batch = prepare_batch(batch, self.world.device, config)
        # Three or more ranks fix DDP's order of addition before the first step.
        if not self.warmed_up and self.world.size > MAX_COMMUTATIVE_RANKS:
            rows = batch.rows(slice(len(batch) // config.accumulate))
            ddp_warmup(state.model, self.modules, rows)
        self.warmed_up = True
        middle_nimg = state.nimg + config.batch / 2
        keys: list[str] = []
        values: list[Tensor] = []
        # Gradients and optimiser step of each phase.
        for optimiser, module in zip(state.optimisers, self.modules, strict=True):
            phase = optimiser.phase
            if not due(state.nimg, after_nimg, phase.every * config.batch):
                continue
            terms = accumulate_gradients(
                optimiser,
                module,
                batch,
                nimg=state.nimg,
                config=config,
                heartbeat=self.world.heartbeat,
            )
            lr = optimiser.lr_at(middle_nimg, self.total_nimg) * state.monitor_state.lr_scale
            norm = optimiser.step(lr)
            keys += [f"{phase.name}/{name}" for name in (*terms, *_STEP_QUANTITIES)]
            values += [*terms.values(), norm, torch.full_like(norm, lr, dtype=torch.float64)]
        # Buffers that the model adapts, e.g. an augmentation probability.
        if adapting := state.model.adapts():
            terms_K = stack_scalars([values[keys.index(key)] for key in adapting])
            state.model.adapt(self.world.mean(terms_K), config.batch)
        state.nimg = after_nimg
        self.average.update(ema.decay_at(config, state.nimg))
        state.step_metrics.add(state.nimg, keys, stack_scalars(values))

    def on_interval(self) -> None:
        """Do what is due after a step: evaluate, log, draw, save. Collective: all ranks call it."""
        self.writer.check()
        state, plan, config = self.state, self.plan, self.plan.config
        log = self._due(config.log_every_nimg)
        save = plan.checkpoints is not None and self._due(config.checkpoint_every_nimg)
        losses, metrics = self._evaluate(reduce=log or save)
        if log:
            metrics = _prefixed("train", state.step_metrics.average(self.world)) | metrics
        if plan.collapse is not None and self._due(plan.collapse.config.every_nimg):
            metrics |= run_collapse_monitor(plan.collapse, state, self.world, plan.root)
        self._draw()
        if metrics and self.metric_log is not None:
            timing = self.clock.timing(state.nimg) if log else {}
            self.metric_log.append(MetricPoint(state.nimg, metrics, timing))
        if log:
            self.clock.restart(state.nimg)
        if save and self.world.rank == 0:
            self._save(losses)

    def _due(self, every_nimg: int | None) -> bool:
        """Whether the last step reached a multiple of the cadence, or the end of training."""
        if every_nimg is None:
            return False
        nimg = self.state.nimg
        return nimg >= self.total_nimg or due(nimg - self.plan.config.batch, nimg, every_nimg)

    def _evaluate(self, reduce: bool) -> tuple[dict[str, float], dict[str, float]]:
        """Validation losses, and the metrics to log. Every value is checked to be finite."""
        state, plan = self.state, self.plan
        check_samples = plan.collapse is not None and self._due(plan.collapse.config.every_nimg)
        check_latents = plan.latents is not None and self._due(plan.latents.config.every_nimg)
        losses, usage = dict[str, float](), dict[str, float]()
        try:
            if reduce or check_samples or check_latents:
                state.step_metrics.reduce(self.world)
            if plan.validation is not None and self._due(plan.config.validate_every_nimg):
                losses = plan.validation.evaluate(state.ema, state.nimg, self._terms(), self.world)
            if plan.latents is not None and check_latents:
                usage = plan.latents.evaluate(
                    state.ema, state.monitor_state, state.nimg, self.world
                )
        except TrainingDiverged as error:
            handle_divergence(error, plan.collapse, state, self.world, plan.root)
        return losses, _prefixed("val", losses) | usage

    def _terms(self) -> dict[str, tuple[str, ...]]:
        """Names of the loss and terms of each phase that had a turn."""
        names = [optimiser.phase.name for optimiser in self.state.optimisers]
        terms = {name: self.state.step_metrics.terms_of(name) for name in names}
        return {name: keys[: -len(_STEP_QUANTITIES)] for name, keys in terms.items() if keys}

    def _draw(self) -> None:
        """Write the images that are due: samples, and at the end reconstructions and traversals."""
        state, plan, world = self.state, self.plan, self.world
        write = plan.root is not None and world.rank == 0
        if plan.latents is not None and plan.root and write and state.nimg >= self.total_nimg:
            plan.latents.draw(state.ema, plan.root, world.device)
        if plan.grid is not None and self._due(plan.config.grid_every_nimg):
            image = plan.grid.draw(state.ema, world)
            if plan.root and write:
                folder = storage.join(plan.root, GRIDS)
                with storage_errors(folder, f"the sample grid at {state.nimg:,} images"):
                    storage.write_bytes(storage.join(folder, f"{state.nimg:012d}.png"), image)

    def _save(self, losses: Mapping[str, float]) -> None:
        """Start to write a checkpoint. The metric log is written first, since a resume goes on from both."""
        assert self.plan.checkpoints is not None
        if self.metric_log is not None:
            self.metric_log.flush(durable=True)
        # Weights are better or worse by the validation loss, unless phases play against one another.
        names = [optimiser.phase.name for optimiser in self.state.optimisers]
        val_loss = losses.get(f"{names[0]}/loss") if len(names) == 1 else None
        self.writer.submit(partial(self.plan.checkpoints.save, self.state.snapshot(), val_loss))


def _prefixed(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{key}": value for key, value in values.items()}
