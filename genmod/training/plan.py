"""What the recipe's ``train`` section says, and what follows from it. The only clock is images seen, nimg."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from genmod.config import Config, as_json, fingerprint, parse
from genmod.data.order.mixed import integer_weights
from genmod.data.order.training_order import MAIN, OrderConfig
from genmod.errors import ConfigError, did_you_mean
from genmod.interface.model import Phase
from genmod.interface.registry import ModelConfig
from genmod.training.monitors.collapse import CollapseConfig
from genmod.training.monitors.latents import LatentMonitorConfig


class OptimConfig(Config):
    """AdamW and the schedule of its learning rate."""

    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the first and second moment per step."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator of AdamW."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled, times the learning rate."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Upper limit of a phase's gradient norm; null for none."""
    warmup_nimg: int = Field(default=5_000, ge=0)
    """Images over which the learning rate grows linearly from 0."""
    decay: Literal["none", "linear", "cosine", "stages"] = "cosine"
    """From the end of warm-up to the end of training. ``stages``: eight, each three times as long as the one
    before, in equal ratios down to a tenth (Burda et al. 2016, sec. 5)."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """What the decay ends at, as a share of ``lr``."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}, wanted two numbers in [0, 1)")
        return self


class TrainConfig(Config):
    """The recipe's ``train``, which a model may change by its own ``train``."""

    order: OrderConfig = OrderConfig()
    """Which row comes when."""
    nimg: int = Field(default=200_000, gt=0)
    """Images to train on, counting repetitions; rounded up to whole steps."""
    batch: int = Field(default=128, gt=0)
    """Images of a step, over all workers."""
    workers: int = Field(default=1, gt=0)
    """Processes that share each batch."""
    accumulate: int = Field(default=1, gt=0)
    """Parts that each worker's share of a batch is computed in, to save memory."""
    optim: OptimConfig = OptimConfig()
    phase_optim: dict[str, dict[str, Any]] = {}
    """What differs from ``optim`` in a phase of the model, by the phase's name."""
    ema_halflife_nimg: int = Field(default=20_000, ge=0)
    """Images after which a weight's share of its moving average has halved; 0 for no averaging."""
    ema_rampup: float | None = Field(default=0.05, gt=0)
    """The half-life is at most this share of the images seen so far; null for no limit."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """``bf16`` computes losses by autocast; for GPUs, since most CPUs are many times slower in it."""
    compile: bool = False
    """Compile the nets with torch.compile; the first step then takes minutes."""
    channels_last: bool = False
    """Keep images and convolution weights with the channels last in memory. Not by itself: on CPUs it takes a
    twentieth longer for a U-Net, and gives a GAN's step two hundredths (tests/benchmarks/gan.py)."""
    log_every_nimg: int = Field(default=2_000, gt=0)
    """Metrics are averages over so many images. This and the other cadences: the first step at or after."""
    validate_every_nimg: int | None = Field(default=20_000, gt=0)
    """Between losses of the averaged weights on fixed rows with fixed noise; null for none."""
    validation_rows: int = Field(default=256, gt=0)
    """Rows of the ``val`` split that are used for it, at most."""
    collapse_monitor: CollapseConfig | None = None
    """Compare samples with validation rows now and then, and act on a collapse; for GANs. Null for not."""
    latent_monitor: LatentMonitorConfig | None = LatentMonitorConfig()
    """Look now and then whether a model with latents uses them, if ``val`` has rows; null for not."""
    grid_every_nimg: int | None = Field(default=50_000, gt=0)
    """Between pictures of samples from fixed noise; null for none."""
    grid_images: int = Field(default=40, gt=0)
    """Samples in a picture."""
    checkpoint_every_nimg: int | None = Field(default=20_000, gt=0)
    """What a crash may cost at most; null for none."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """The newest so many are kept, and the one with the best validation loss; others are deleted when a
    new one is safe."""
    decoded_mib: int = Field(default=256, ge=0)
    """Memory of each worker for decoded pixels. Rows that fit in it are read and decoded once."""
    max_failures: int = Field(default=3, ge=0)
    """How often workers that crashed are started again. Faults that would come again are not retried."""
    hang_timeout_s: float = Field(default=600, gt=0)
    """A worker that comes no further for so long is taken to hang: it is named, its stack is written down,
    and the group is started again. Longer than a compilation, a validation and a picture of samples take."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        parts = self.workers * self.accumulate
        if self.batch % parts:
            raise ValueError(
                f"batch {self.batch} does not divide by workers x accumulate = {parts}; "
                f"the nearest that does is {max(parts, round(self.batch / parts) * parts)}"
            )
        return self

    @property
    def total_nimg(self) -> int:
        """Images seen when training ends: ``nimg`` rounded up to whole steps."""
        return -(-self.nimg // self.batch) * self.batch

    def optim_of(self, phase: str) -> OptimConfig:
        """The optimiser of a phase."""
        changes = self.phase_optim.get(phase, {})
        merged = self.optim.model_dump(exclude_unset=True) | changes
        return parse(OptimConfig, merged, f"train.phase_optim.{phase}")

    def check_phases(self, phases: Iterable[Phase]) -> None:
        """Refuse settings for a phase that the model does not have. Raises ConfigError."""
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

        Not: how many processes share the work, in which layout it is computed, what is logged and kept.
        """
        fields = {key: value for key, value in as_json(self).items() if key not in _HOW}
        return fields | {"order": self.order.result()}


_HOW = {
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
    """What a trained model was made from.

    Args:
        model: its configuration.
        config: the recipe's ``train``.
        data_digest: of the recipe's dataset.
        seed: of the run.
        mixed: URL -> digest of each other dataset in ``train.order.mixture``.
        start: digest of the model whose weights it starts from, None for new ones.
    """
    digests = {**(mixed or {}), MAIN: data_digest}
    mix = config.order.mixture
    whole = integer_weights(list(mix.values())) if mix else ()
    shares = sorted((digests[url], weight) for url, weight in zip(mix, whole, strict=True))
    distills = [] if start is None else [["start", start]]
    return fingerprint("train", model, config.result(), data_digest, seed, *shares, *distills)
