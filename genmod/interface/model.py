"""The interface of all families.

A family's module defines ``Model``, a final subclass of :class:`GenerativeModel`. No code outside the module
names it. Letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field
from torch import Tensor, nn

from genmod.config import Config
from genmod.errors import ConfigError
from genmod.interface.adaptive import Adaptive
from genmod.interface.batch import Batch
from genmod.interface.estimator_check import EstimatorCheck
from genmod.interface.latents import LatentModel
from genmod.interface.log_prob import LogProb, Prepared
from genmod.interface.options import FamilyConfig, SampleOptions, ScoreOptions
from genmod.interface.portable import PortableNet
from genmod.manifest import ImageSpec
from genmod.rng import Rng

Problem = Literal["diverged", "collapsed", "posterior_collapse"]
"""What can go wrong in training.

``diverged``: a number is not finite. ``collapsed``: samples lost their diversity (mode collapse).
``posterior_collapse``: q(z | x) is nearly the prior.
"""

_HINTS: dict[Problem, str] = {
    "diverged": "lower train.optim.lr, lengthen train.optim.warmup_nimg, or set train.optim.clip_norm",
    "collapsed": "lower train.optim.lr, lengthen train.optim.warmup_nimg, or train on more data",
    "posterior_collapse": "lower train.optim.lr or lengthen train.optim.warmup_nimg",
}


class DataStats(Config):
    """Moments of the training data that a model may use, in network units ([-1, 1])."""

    mean: tuple[Annotated[float, Field(ge=-10, le=10)], ...] = Field(min_length=1, max_length=3)
    """Mean of each channel over the training split."""
    std: tuple[Annotated[float, Field(ge=0, le=10)], ...] = Field(min_length=1, max_length=3)
    """Standard deviation of each channel over the training split."""

    @property
    def sigma(self) -> float:
        """Standard deviation of all channels together: the root of the mean variance."""
        return (sum(s * s for s in self.std) / len(self.std)) ** 0.5


@dataclass(frozen=True)
class Phase:
    """A part of the training step with its own optimiser and loss."""

    name: str
    modules: tuple[str, ...]
    """Names of the model's direct children whose parameters this phase updates."""
    every: int = 1
    """k: the phase takes part in one step of k, the last. Each step counts its rows, whichever phases take
    part, so participation is a function of the images seen."""


@dataclass(frozen=True)
class Losses:
    """Loss and logged terms of a phase."""

    total: Tensor
    """Scalar to minimise: the mean over the batch."""
    terms: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Detached scalars, units in the names (``kl_nats``), means over the batch."""


class TrainBriefly(Protocol):
    """Trains a model on rows drawn from a known distribution; returns the trained model."""

    def __call__(
        self,
        model: GenerativeModel,
        draw: Callable[[Rng], Batch],
        *,
        seed: int,
        steps: int,
        lr: float,
    ) -> GenerativeModel:
        """Take ``steps`` optimizer steps with learning rate ``lr`` on rows that ``draw`` returns."""
        ...


class GenerativeModel(Adaptive, LatentModel, ABC):
    """A density p(x | label), and a sampler of it."""

    Config: ClassVar[type[FamilyConfig]]
    """Configuration of the net and the loss, the recipe's ``model.NAME.net``."""
    Sample: ClassVar[type[SampleOptions]]
    """Sampling options, the recipe's ``sample``."""
    Score: ClassVar[type[ScoreOptions]]
    """Options of the log p estimator, the recipe's ``score``."""
    not_diffusers: ClassVar[str] = "diffusers has no class of this architecture"
    """Why the model cannot be a model of the package diffusers."""

    def __init__(self, config: FamilyConfig, spec: ImageSpec, stats: DataStats) -> None:
        super().__init__()
        self.config = config
        self.spec = spec
        self.stats = stats

    @classmethod
    def check(cls, config: Any, spec: ImageSpec) -> None:
        """Raise ConfigError if this family cannot model such images. Called before any work."""

    @classmethod
    def check_sampling(cls, config: Any, options: Any, spec: ImageSpec) -> None:
        """Raise ConfigError if the options do not fit the model. Called before any work."""

    @classmethod
    def check_scorable(cls, config: Any, options: Any) -> None:
        """Raise Unscorable if the model has no log p with these options. Called before any work."""

    @classmethod
    def hint(cls, problem: Problem) -> str:
        """Advice that ends the message about a problem: which settings to change.

        A family overrides this to name its own settings (``net.*``); the default names those of training.
        """
        return _HINTS[problem]

    @classmethod
    def density_checks(cls, seed: int, train: TrainBriefly) -> Iterator[EstimatorCheck]:
        """Check this family's ``log_prob`` against known densities, for ``genmod selftest density``.

        By default there are none: estimators that several families share are checked in
        :mod:`genmod.selftest`.

        Args:
            seed: of rows and trainings.
            train: trains a model for some seconds.
        """
        del seed, train
        return iter(())

    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """Phases of a training step, in order. At least one takes part in every step."""

    @abstractmethod
    def loss(self, phase: str, batch: Batch, rng: Rng, nimg: int) -> Losses:
        """Compute a phase's loss on a batch.

        Args:
            phase: a name from :meth:`phases`.
            batch: the rows.
            rng: one row for each row of the batch, keyed to this run; fold purposes from it.
            nimg: images seen before this step, the clock of all schedules.
        """

    @abstractmethod
    def sample(self, labels_B: Tensor | None, rng: Rng, options: Any) -> Tensor:
        """Draw B = len(rng) images, (B, C, H, W) in [-1, 1]. ``options`` is this family's ``Sample``.

        Row b depends on the weights, ``labels_B[b]``, ``rng``'s row b and ``options``, and on no other row.
        """

    @abstractmethod
    def log_prob(self, batch: Batch, rng: Rng, options: Any) -> LogProb:
        """Estimate each row's log-likelihood. ``options`` is this family's ``Score``.

        Raises:
            Unscorable: the model has no density with these options.
        """

    def prepare_scores(self, batch: Batch | None, rng: Rng, options: Any) -> Prepared:
        """Fit the open values of ``options``, and measure the accuracy of the estimator.

        Args:
            batch: ``options.held_out_rows`` rows of real data; None if that is 0.
            rng: keyed to this model's preparation; one row for each row of the batch.
            options: this family's ``Score``.
        """
        return Prepared(options, {})

    def portable_net(self) -> PortableNet:
        """The network that other programs can run.

        Raises:
            ConfigError: this family has none.
        """
        raise ConfigError(
            "this family has no network that other programs can run; use genmod sample"
        )

    def parameters_of(self, phase: Phase) -> dict[str, nn.Parameter]:
        """Parameters that a phase updates, by name."""
        return {
            f"{module}.{name}": parameter
            for module in phase.modules
            for name, parameter in self.get_submodule(module).named_parameters()
        }
