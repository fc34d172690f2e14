"""The recipe's ``train`` section, and what follows from it. The only clock is ``nimg``, images seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from genmod.config import Config, as_json, fingerprint, parse
from genmod.data.order.mixed import integer_weights
from genmod.data.order.training_order import MAIN, OrderConfig
from genmod.errors import ConfigError, did_you_mean
from genmod.interface.model import Phase
from genmod.interface.options import MAX_NIMG
from genmod.interface.registry import ModelConfig
from genmod.training.monitors.collapse import CollapseConfig
from genmod.training.monitors.latents import LatentMonitorConfig

Beta = Annotated[float, Field(ge=0, le=1)]
"""Decay of a moment."""


class OptimConfig(Config):
    """AdamW and its learning rate schedule."""

    lr: float = Field(default=1e-3, gt=0, le=1e3)
    """Peak learning rate."""
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    """Decay of the first and second moment per step."""
    eps: float = Field(default=1e-8, gt=0, le=1)
    """Added to the denominator of AdamW."""
    weight_decay: float = Field(default=0.0, ge=0, le=1e3)
    """Decoupled, times the learning rate."""
    clip_norm: float | None = Field(default=1.0, gt=0, le=1e12)
    """Maximum gradient norm of a phase; null for no clipping."""
    warmup_nimg: int = Field(default=5_000, ge=0, le=MAX_NIMG)
    """Images over which the learning rate grows linearly from 0."""
    decay: Literal["none", "linear", "cosine", "stages"] = "cosine"
    """Decay from the end of warm-up to the end of training. ``stages``: eight stages, each three times as
    long as the one before, in equal ratios down to a tenth (Burda et al. 2016, sec. 5)."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """Final learning rate of the decay, as a share of ``lr``."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"got betas {self.betas}, expected two numbers in [0, 1)")
        return self


Workers = Annotated[int, Field(gt=0, le=65_536)]
"""A number of training workers."""


class WorkerRange(Config):
    """Between ``min`` and ``max`` workers, as many as the cluster has room for."""

    min: Workers
    """Training waits for so many, and continues with them after nodes were lost."""
    max: Workers
    """Training grows to so many when there is room."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"got min {self.min} above max {self.max}")
        return self


class TrainConfig(Config):
    """The recipe's ``train`` section; ``model.NAME.train`` overrides it for one model."""

    order: OrderConfig = OrderConfig()
    """The order of the training stream."""
    nimg: int = Field(default=200_000, gt=0, le=MAX_NIMG // 10)
    """Images to train on, repetitions included; rounded up to whole steps."""
    batch: int = Field(default=128, gt=0, le=1 << 20)
    """Images per step, over all workers."""
    workers: Workers | WorkerRange = 1
    """Processes that share each batch; ``{min: 1, max: 3}`` lets their number follow the cluster. The rows
    of each step and their noise do not depend on it."""
    accumulate: int = Field(default=1, gt=0, le=1 << 20)
    """Gradient accumulation: parts of each worker's share of a batch, to save memory."""
    optim: OptimConfig = OptimConfig()
    phase_optim: dict[str, Annotated[dict[str, Any], Field(max_length=32)]] = Field(
        default={}, max_length=16
    )
    """Name of a phase -> settings that override ``optim`` for it."""
    ema_halflife_nimg: int = Field(default=20_000, ge=0, le=MAX_NIMG)
    """Half-life of the EMA in images; 0 for no averaging."""
    ema_rampup: float | None = Field(default=0.05, gt=0, le=1e6)
    """Maximum EMA half-life as a share of the images seen so far; null for no limit."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """``bf16`` computes losses under autocast. It is for GPUs; most CPUs are many times slower with it."""
    compile: bool = False
    """Compile the nets with torch.compile. The first step then takes minutes."""
    channels_last: bool = False
    """Store images and convolution weights in channels-last memory format. On CPUs a U-Net is about 5 %
    slower with it and a GAN about 2 % faster (tests/benchmarks/gan.py)."""
    log_every_nimg: int = Field(default=2_000, gt=0, le=MAX_NIMG)
    """Images between logged metrics, which are averages over them. Like the other cadences, it takes effect
    at the first step at or after each multiple."""
    validate_every_nimg: int | None = Field(default=20_000, gt=0, le=MAX_NIMG)
    """Images between validations of the EMA weights on fixed rows with fixed noise; null for none."""
    validation_rows: int = Field(default=256, gt=0, le=10_000_000)
    """Rows of the ``val`` split for validation, at most."""
    collapse_monitor: CollapseConfig | None = None
    """Compare samples with validation rows and roll back on a collapse; for GANs. Null turns it off."""
    latent_monitor: LatentMonitorConfig | None = LatentMonitorConfig()
    """Check that a model with latents uses them, if ``val`` has rows. Null turns it off."""
    grid_every_nimg: int | None = Field(default=50_000, gt=0, le=MAX_NIMG)
    """Images between grids of samples from fixed noise; null for none."""
    grid_images: int = Field(default=40, gt=0, le=10_000)
    """Samples in a grid."""
    checkpoint_every_nimg: int | None = Field(default=20_000, gt=0, le=MAX_NIMG)
    """Images between checkpoints, the most that a crash can cost; null for no checkpoints."""
    keep_checkpoints: int = Field(default=2, gt=0, le=10_000)
    """Number of newest checkpoints to keep. The one with the best validation loss is kept too; others are
    deleted once a new one is safe."""
    decoded_mib: int = Field(default=256, ge=0, le=1 << 24)
    """Memory of each worker for decoded pixels, in MiB. Rows that fit are read and decoded only once."""
    max_failures: int = Field(default=3, ge=0, le=10_000)
    """Restarts of a group whose workers crashed. Errors that a retry would meet again are not retried."""
    hang_timeout_s: float = Field(default=600, gt=0, le=1e7)
    """A worker without progress for this many seconds counts as hung: its rank is logged, its stack is
    saved, and the group restarts. Must exceed the time of a compilation, a validation and a sample grid."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for workers in range(self.least_workers, self.most_workers + 1):
            parts = workers * self.accumulate
            if self.batch % parts:
                raise ValueError(
                    f"got batch {self.batch}, expected a multiple of workers x accumulate = {parts}; "
                    f"the nearest is {max(parts, round(self.batch / parts) * parts)}"
                )
        return self

    @property
    def least_workers(self) -> int:
        """Workers without which training waits."""
        return self.workers if isinstance(self.workers, int) else self.workers.min

    @property
    def most_workers(self) -> int:
        """Workers that train if the cluster has room for them."""
        return self.workers if isinstance(self.workers, int) else self.workers.max

    @property
    def total_nimg(self) -> int:
        """Images seen when training ends: ``nimg`` rounded up to whole steps."""
        return -(-self.nimg // self.batch) * self.batch

    def optim_of(self, phase: str) -> OptimConfig:
        """The optimiser settings of one phase."""
        changes = self.phase_optim.get(phase, {})
        merged = self.optim.model_dump(exclude_unset=True) | changes
        return parse(OptimConfig, merged, f"train.phase_optim.{phase}")

    def check_phases(self, phases: Iterable[Phase]) -> None:
        """Raise ConfigError if ``phase_optim`` names a phase that the model does not have."""
        names = [phase.name for phase in phases]
        for name in self.phase_optim:
            if name not in names:
                raise ConfigError(
                    f"train.phase_optim: the model has no phase {name!r}; {did_you_mean(name, names)}"
                )
        for name in names:
            self.optim_of(name)

    def result(self) -> dict[str, Any]:
        """The fields that the trained weights depend on, up to rounding.

        Without the fields about the number of processes, the memory format, and what is logged and kept.
        """
        fields = {key: value for key, value in as_json(self).items() if key not in _NO_EFFECT}
        return fields | {"order": self.order.result()}


_NO_EFFECT = {
    "workers",
    "accumulate",
    "compile",
    "channels_last",
    "log_every_nimg",
    "validate_every_nimg",
    "validation_rows",
    "latent_monitor",
    "grid_every_nimg",
    "grid_images",
    "checkpoint_every_nimg",
    "keep_checkpoints",
    "decoded_mib",
    "max_failures",
    "hang_timeout_s",
}


def due(before_nimg: int, nimg: int, every_nimg: int | None) -> bool:
    """Whether the step from ``before_nimg`` to ``nimg`` reaches a multiple of the cadence."""
    return every_nimg is not None and nimg // every_nimg > before_nimg // every_nimg


def training_fingerprint(
    model: ModelConfig,
    config: TrainConfig,
    data_digest: str,
    seed: int,
    mixed: Mapping[str, str] | None = None,
    *,
    start: str | None = None,
) -> str:
    """Fingerprint of everything that a trained model's weights depend on.

    Args:
        model: its configuration.
        config: the recipe's ``train``.
        data_digest: of the recipe's dataset.
        seed: of the training.
        mixed: URL -> digest of each other dataset in ``train.order.mixture``.
        start: digest of the model whose weights it starts from, None for random weights.
    """
    digests = {**(mixed or {}), MAIN: data_digest}
    mix = config.order.mixture
    whole = integer_weights(list(mix.values())) if mix else ()
    shares = sorted((digests[url], weight) for url, weight in zip(mix, whole, strict=True))
    distills = [] if start is None else [["start", start]]
    return fingerprint("train", model, config.result(), data_digest, seed, *shares, *distills)
