"""Expected times of training, sampling and scoring on this machine, measured on a small part of each.

The measured training step is the training loop's own: loss, gradients, clipping, optimiser and average at the
batch of one worker. Images are sampled and scored in the recipe's micro-batches with the model's options.
Workers run in parallel while their threads fit the cores; more workers share them.

Not measured: reading data, which the loop does ahead of time; validation, pictures and checkpoints between
steps; fits before scoring. Models have new weights, with which solvers with adaptive steps may take fewer
steps than with trained weights, and the number of importance samples is not adapted to a target error.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace

import torch

from cluster.session import LOCAL, ClusterConfig, address_of
from genmod import storage
from genmod.costs.measured import FIRST_ROWS, Budget, Clock, call_time, extrapolated, torch_threads
from genmod.data.format.shards import write_shard
from genmod.errors import TrainingDiverged
from genmod.generation.config import SampleConfig
from genmod.generation.request import SampleRequest
from genmod.generation.synthetic import SAMPLE_SPLIT, SampleGenerator
from genmod.interface.batch import Batch
from genmod.interface.model import GenerativeModel
from genmod.interface.options import SampleOptions, ScoreOptions
from genmod.manifest import ImageSpec
from genmod.rng import rng_for
from genmod.scoring.config import ScoreConfig
from genmod.scoring.ood_scores import compressed_bits
from genmod.training.loop import Plan, train
from genmod.training.plan import TrainConfig, due
from genmod.world import SingleProcess

BUDGET_S = 1.5
"""CPU time of one measurement. The quickstart has eight, so its dry run takes about 15 seconds."""

RAY_START_S = 5.0
"""A local Ray, once for each command. This and the next two are rough values for two cores, not measured."""

GROUP_START_S = 12.0
"""Processes of one group of training workers, up to their first step."""

POOL_START_S = 6.0
"""Processes of one pool of actors, up to their first unit of work."""

EXCHANGE_BYTES_PER_S = 2e9
"""Gradients between two processes of one machine, by Gloo."""

_GRADIENT_BYTES = 4
_MOST_STEPS = 200
_SCRATCH = "memory://expected-times"


@dataclass(frozen=True)
class Expected:
    """Seconds of one model's part of a stage, without the start of processes."""

    usual_s: float
    """All steps or micro-batches after the first."""
    first_s: float
    """Additional time of the first step or micro-batch."""

    @property
    def total_s(self) -> float:
        """Start-up and work together, in seconds."""
        return self.first_s + self.usual_s


@dataclass(frozen=True)
class Cores:
    """Processors that workers share."""

    count: float
    """Of the machine; infinite on a cluster, where each worker gets the CPUs that it requests."""
    threads: int
    """Of one worker."""
    slots: float
    """Workers that run at the same time."""

    @classmethod
    def of(cls, cluster: ClusterConfig) -> Cores:
        """The cores of this machine, or of a cluster that is as large as the recipe requests."""
        threads = max(1, int(cluster.cpus_per_worker))
        if address_of(cluster) != LOCAL:
            return cls(math.inf, threads, math.inf)
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        logical = cluster.cpus or count or 1
        return cls(count or 1, threads, max(1, int(logical / cluster.cpus_per_worker)))

    def slowdown(self, workers: int) -> float:
        """Factor by which each of several workers is slower than one alone."""
        return max(1.0, workers * self.threads / self.count)

    def active(self, workers: int, units: int) -> int:
        """Workers of a pool that have a unit of work at the same time."""
        return int(max(1, min(workers, units, self.slots)))


def training_time(model: GenerativeModel, config: TrainConfig, cores: Cores) -> Expected:
    """Time of a whole training. The model is left as it is."""
    workers = config.most_workers
    share = config.batch // (workers * config.accumulate)
    with torch_threads(cores.threads):
        points = _step_times(model, config, share)
    step_s = extrapolated([(rows, usual_s) for rows, _, usual_s in points], share)
    exchange_s = 0.0
    if workers > 1:
        gradients = sum(parameter.numel() for parameter in model.parameters()) * _GRADIENT_BYTES
        exchange_s = 2 * gradients * (1 - 1 / workers) / EXCHANGE_BYTES_PER_S
    steps = config.total_nimg // config.batch
    usual_s = steps * (step_s * cores.slowdown(workers) + exchange_s)
    return Expected(usual_s, first_s=max(0.0, points[0][1] - points[0][2]))


def sampling_time(
    model: GenerativeModel,
    options: SampleOptions,
    request: SampleRequest,
    config: SampleConfig,
    cores: Cores,
) -> Expected:
    """Time of sampling a whole synthetic dataset, images encoded and written, none rejected."""
    stored_as = config.stored_as(model.spec.classes)

    def micro_batch(rows: int) -> None:
        generator = SampleGenerator(model, options, request.labels, 0, rows)
        pixels_BCHW = generator.micro_batch_of(0).batch.pixels_BCHW
        images = (generator.row(i, pixels, "0" * 64) for i, pixels in enumerate(pixels_BCHW))
        write_shard(_SCRATCH, "images", SAMPLE_SPLIT, model.spec, images, stored_as=stored_as)

    try:
        with torch_threads(cores.threads):
            timed = call_time(micro_batch, config.micro_batch, BUDGET_S)
    finally:
        storage.remove(_SCRATCH)
    active = cores.active(config.workers, -(-request.rows // config.shard_rows))
    calls = request.rows / config.micro_batch
    return Expected(timed.usual_s * calls / active * cores.slowdown(active), timed.first_s)


def scoring_time(
    model: GenerativeModel, options: ScoreOptions, rows: int, config: ScoreConfig, cores: Cores
) -> Expected:
    """Time of scoring a number of rows. Slow estimators are measured on a part of their work."""
    small, factor = options.probe()
    device = next(model.parameters()).device

    def micro_batch(size: int) -> None:
        batch = noise_batch(model.spec, size)
        compressed_bits(batch.pixels_BCHW)
        batch = batch.to(device)
        model.log_prob(batch, rng_for(0, "plan", batch.index_B), small).nats_B.cpu()

    size = config.batch_rows
    with torch_threads(cores.threads):
        timed = call_time(micro_batch, size, BUDGET_S)
    active = cores.active(config.workers, -(-rows // config.rows_per_task))
    usual_s = factor * timed.usual_s * -(-rows // size) / active * cores.slowdown(active)
    return Expected(usual_s, timed.first_s)


def start_up_s(stages: Collection[str]) -> float:
    """Seconds until Ray, and the processes of each of these stages, compute."""
    groups = sum(stage in {"train", "distill"} for stage in stages)
    pools = sum(stage in {"sample", "score"} for stage in stages)
    return RAY_START_S + groups * GROUP_START_S + pools * POOL_START_S


def noise_batch(spec: ImageSpec, rows: int, start: int = 0) -> Batch:
    """Images of uniform noise, with labels if images have any; ``index_B`` counts from ``start``."""
    rng = rng_for(0, "plan", range(rows))
    pixels_BCHW = rng.integers(spec.levels, *spec.shape) * (255 // (spec.levels - 1))
    labels_B = rng.fold("label").integers(spec.classes) if spec.classes else None
    return Batch(pixels_BCHW.to(torch.uint8), labels_B, torch.arange(start, start + rows))


def _step_times(
    model: GenerativeModel, config: TrainConfig, share: int
) -> list[tuple[int, float, float]]:
    """(rows of a part, seconds of the first step, of a usual step), from small to large parts."""
    budget = Budget(BUDGET_S)
    least = _period(model) + 2
    points: list[tuple[int, float, float]] = []
    rows = min(share, FIRST_ROWS)
    while True:
        # Smaller parts are timed for the least number of steps, the real one for the whole budget.
        left_s = budget.left_s() if rows == share else 0.0
        points.append((rows, *_timed_steps(model, config, rows, left_s)))
        step_s = points[-1][2] / rows
        fitting = [size for size in (share, 4 * rows) if least * step_s * size <= BUDGET_S]
        if rows == share or not fitting:
            return points
        rows = min(share, fitting[0])


def _timed_steps(
    model: GenerativeModel, config: TrainConfig, rows: int, budget_s: float
) -> tuple[float, float]:
    """Seconds of the first step and of a usual step of one worker, whose parts have ``rows`` rows."""
    batch = rows * config.accumulate
    small = config.model_copy(
        update={
            "batch": batch,
            "nimg": max(_MOST_STEPS, config.total_nimg // config.batch) * batch,
            "workers": 1,
            "compile": False,
            "collapse_monitor": None,
            "log_every_nimg": max(1, config.log_every_nimg * batch // config.batch),
        }
    )
    model = deepcopy(model)
    stream = _TimedStream(model, small, budget_s)
    with contextlib.suppress(_Enough, TrainingDiverged):
        train(model, stream.at, SingleProcess(), Plan(small, 0))
    return stream.first_s, stream.usual_s()


def _period(model: GenerativeModel) -> int:
    """Steps after which the same phases take part again."""
    return math.lcm(*(phase.every for phase in model.phases()))


class _Enough(Exception):
    """Ends a training whose steps have been timed."""


class _TimedStream:
    """Batches of noise for the training loop; measures the seconds from one to the next."""

    def __init__(self, model: GenerativeModel, config: TrainConfig, budget_s: float) -> None:
        self.config = config
        self.first_s = 0.0
        self._every = [phase.every for phase in model.phases()]
        self._period = _period(model)
        self._batch = noise_batch(model.spec, config.batch)
        self._step = 0
        self._seconds: dict[tuple[bool, ...], list[float]] = defaultdict(list)
        self._budget = Budget(budget_s)
        self._clock = Clock()

    def at(self, nimg: int) -> _TimedStream:
        """The stream from a position on; training starts at 0."""
        assert nimg == 0, nimg
        return self

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            _Enough: every kind of step was timed, and the time is up.
        """
        seconds = self._clock.lap()
        if self._step == 1:
            self.first_s = seconds
        elif self._step > 1:
            self._seconds[self._turns(self._step)].append(seconds)
        over = self._budget.left_s() < 0 or self._step > _MOST_STEPS
        if over and self._step > self._period + 1:
            raise _Enough
        start = self._step * self.config.batch
        self._step += 1
        batch = replace(self._batch, index_B=torch.arange(start, start + self.config.batch))
        self._clock.lap()
        return batch

    def close(self) -> None:
        """Nothing to stop."""

    def _turns(self, step: int) -> tuple[bool, ...]:
        """Which phases take part in a step, counted from 1."""
        after = step * self.config.batch
        before = after - self.config.batch
        return tuple(due(before, after, every * self.config.batch) for every in self._every)

    def usual_s(self) -> float:
        """Seconds of a step after the first: medians by kind of step, averaged over a period."""
        kinds = [self._turns(step) for step in range(1, self._period + 1)]
        medians = [statistics.median(self._seconds[kind]) for kind in kinds if self._seconds[kind]]
        return statistics.mean(medians) if medians else self.first_s
