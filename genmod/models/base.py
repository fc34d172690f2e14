"""The one interface of all families, and the registry: one file of this folder is one family.

A family's file defines ``Model``, a final subclass of :class:`GenerativeModel`. Nothing outside the
file names it. Letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from genmod import units
from genmod.config import Config, parse
from genmod.data.batch import Batch
from genmod.errors import ConfigError, did_you_mean
from genmod.likelihood.codes import Encoding
from genmod.manifest import ImageSpec
from genmod.nets.adaptive import Adaptive
from genmod.rng import Rng, key_of


class DataStats(Config):
    """What a model may know of its training data beforehand, in network units ([-1, 1])."""

    mean: tuple[float, ...]
    """Of each channel, over the training split."""
    std: tuple[float, ...]
    """Of each channel, over the training split."""

    @property
    def sigma(self) -> float:
        """Standard deviation over channels together (root of the mean variance)."""
        return (sum(s * s for s in self.std) / len(self.std)) ** 0.5


@dataclass(frozen=True)
class Phase:
    """One optimiser and one loss."""

    name: str
    modules: tuple[str, ...]
    """Names of the model's direct children whose parameters this phase moves."""
    every: int = 1
    """It takes part in the last of so many steps. Each step has rows of its own and counts them, whichever
    phases take part, so that who takes part is a function of the clock alone."""


@dataclass(frozen=True)
class Losses:
    """What a phase's forward pass gives."""

    total: Tensor
    """Scalar to descend: the mean over the batch."""
    terms: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Detached scalars, units in the names (``kl_nats``), means over the batch."""


COUNTS = units.COUNTS
"""Measure of discrete data: probability of the pixels themselves."""

LogProbLabel = Literal[
    "exact",
    "exact_to_tolerance",
    "lower_bound",
    "stochastic_lower_bound",
    "estimate",
    "stochastic_upper_bound",
    "upper_bound",
]
"""How a number relates to the true log p of what ``of`` names.

``exact``: up to the arithmetic. ``exact_to_tolerance``: up to the tolerance in the budget. ``lower_bound``,
``upper_bound``: in expectation, and the mean of evaluations whose scatter is the standard error.
``stochastic_...``: a bound in expectation after a logarithm of random weights, or up to a solver's error.
``estimate``: on neither side. An estimator has no label that ``genmod selftest density`` does not bear out.
"""


@dataclass(frozen=True)
class LogProb:
    """Log-likelihoods of B rows, with what they are."""

    nats_B: Tensor
    """float64, summed over dimensions."""
    stderr_B: Tensor
    """float64, Monte Carlo standard error of each row's number; 0 if it is not random."""
    label: LogProbLabel
    estimator: str
    """Name with version, e.g. ``iwae``."""
    of: str
    """Which model object's density: prior, sampler, dequantisation."""
    measure: str
    """``counts``, or ``lebesgue[low,high]``: a density on a declared range (:mod:`genmod.units`)."""
    budget: Mapping[str, int | float | str]
    """What was spent: ``{"k": 64}``. The same for all rows."""
    columns: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """More numbers of each row, (B,), units in the names: ``calls``, ``solver_error_nats``."""

    def __post_init__(self) -> None:
        shape = self.nats_B.shape
        assert len(shape) == 1, shape
        for numbers_B in (self.stderr_B, *self.columns.values()):
            assert numbers_B.shape == shape, (numbers_B.shape, shape)
        assert self.nats_B.dtype == self.stderr_B.dtype == torch.float64
        assert not (self.label.startswith("exact") and bool((self.stderr_B > 0).any()))

    def bits_per_dim(self, spec: ImageSpec) -> Tensor:
        """(B,): -log2 P of each row's pixels, per dimension; of a density, see :mod:`genmod.units`."""
        bits_B = units.bits_per_dim(self.nats_B, spec.dims, self.measure, spec.levels)
        assert isinstance(bits_B, Tensor)
        return bits_B


class Options(Config):
    """What a family leaves to the recipe."""

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """Beside the usual, one for each option that changes what is done: for contract tests."""
        return ()


class SampleOptions(Options):
    """How to sample. Families subclass it with what they can do."""

    @property
    def draws_from_p(self) -> bool:
        """Whether images are draws from the model's p(x): not so with guidance, truncation, few steps."""
        return True

    @property
    def sampler(self) -> str:
        """Name for manifests and reports."""
        return "ancestral"

    def ladder(self) -> tuple[tuple[str, int, Self], ...]:
        """(Curve, calls of the net, options) from quick to fine; nothing if there is no choice."""
        return ()


class ScoreOptions(Options):
    """How to estimate log p. Families subclass it."""

    max_rows: int | None = Field(default=None, gt=0)
    """Score at most so many rows with this model; for estimators that take minutes a row."""

    @classmethod
    def tiny(cls) -> Self:
        """Options that take milliseconds a row and ask for a density: for contract tests."""
        return cls()

    @property
    def prepares(self) -> bool:
        """Whether :meth:`GenerativeModel.prepare_scores` has something to do before rows are scored."""
        return False

    @property
    def held_out_rows(self) -> int:
        """Rows of real data, of the split val, that it wants."""
        return 0

    def probe(self) -> tuple[Self, float]:
        """Options that do a small part of the work, and how many times longer these ones take."""
        return self, 1.0


@dataclass(frozen=True)
class Prepared:
    """What is known before rows are scored."""

    how: Any
    """The options with nothing left open."""
    facts: Mapping[str, float]
    """Numbers for the scores' manifest and the report, units in the names."""


class FamilyConfig(Options, ABC):
    """A family's own configuration, the recipe's ``model.<name>.net``."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """A real but small model that trains in milliseconds: for contract tests and the doctor."""


class GenerativeModel(Adaptive, Encoding, ABC):
    """A density p(x | label) and a sampler of it."""

    Config: ClassVar[type[FamilyConfig]]
    Sample: ClassVar[type[SampleOptions]]
    Score: ClassVar[type[ScoreOptions]]

    def __init__(self, config: FamilyConfig, spec: ImageSpec, stats: DataStats) -> None:
        super().__init__()
        self.config = config
        self.spec = spec
        self.stats = stats

    @classmethod
    def check(cls, config: Any, spec: ImageSpec) -> None:
        """Raise ConfigError if this family cannot model such images. Asked when the plan is made."""

    @classmethod
    def check_sampling(cls, config: Any, how: Any, spec: ImageSpec) -> None:
        """Raise ConfigError if such a model cannot be sampled so. Asked when the plan is made."""

    @classmethod
    def check_scorable(cls, config: Any, how: Any) -> None:
        """Raise Unscorable if log p cannot be had. Asked when the plan is made."""

    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """What one training step does, in order. Not all of them have :attr:`Phase.every` above 1."""

    @abstractmethod
    def loss(self, phase: str, batch: Batch, rng: Rng, nimg: int) -> Losses:
        """A phase's loss on a batch.

        Args:
            phase: a name from :meth:`phases`.
            batch: the rows.
            rng: one row for each of the batch, already keyed to this run; fold purposes from it.
            nimg: images seen before this step, the clock of all schedules.
        """

    @abstractmethod
    def sample(self, labels_B: Tensor | None, rng: Rng, how: Any) -> Tensor:
        """Make B = len(rng) images, (B, C, H, W) in [-1, 1]. ``how`` is this family's ``Sample``.

        Row b depends on the weights, ``labels_B[b]``, ``rng``'s row b and ``how``, on no other row.
        """

    @abstractmethod
    def log_prob(self, batch: Batch, rng: Rng, how: Any) -> LogProb:
        """Log-likelihood of each row; ``how`` is this family's ``Score``. Unscorable if there is none."""

    def prepare_scores(self, batch: Batch | None, rng: Rng, how: Any) -> Prepared:
        """Fit what ``how`` leaves open, and measure what can be said of the estimate itself.

        Args:
            batch: ``how.held_out_rows`` rows of real data; None if it wants none.
            rng: keyed to this model's preparation; a row for each of the batch.
            how: this family's ``Score``.
        """
        return Prepared(how, {})

    def parameters_of(self, phase: Phase) -> dict[str, nn.Parameter]:
        """Names and parameters that a phase moves."""
        return {
            f"{module}.{name}": parameter
            for module in phase.modules
            for name, parameter in self.get_submodule(module).named_parameters()
        }


def families() -> tuple[str, ...]:
    """Names of all families: the files of this folder."""
    import genmod.models as package

    return tuple(
        sorted(info.name for info in pkgutil.iter_modules(package.__path__) if info.name != "base")
    )


def family(name: str) -> type[GenerativeModel]:
    """The model class of a family."""
    if name not in families():
        raise ConfigError(f"no family is called {name!r}; {did_you_mean(name, families())}")
    return importlib.import_module(f"genmod.models.{name}").Model


class ModelConfig(Config):
    """Everything needed to build a model again; config.json of a checkpoint or model folder."""

    family: str
    net: dict[str, Any]
    spec: ImageSpec
    stats: DataStats

    def build(self, seed: int = 0) -> GenerativeModel:
        """A new model. Its weights are a pure function of this configuration and the seed."""
        model_class = family(self.family)
        net = parse(model_class.Config, self.net, f"model ({self.family}) net")
        model_class.check(net, self.spec)
        with torch.random.fork_rng(devices=[]):
            low, high = key_of(seed, f"init/{self.family}")
            torch.manual_seed(high << 31 | low >> 1)
            return model_class(net, self.spec, self.stats)
