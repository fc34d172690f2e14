"""The density of a generator with observation noise: p_sigma(x) = integral of N(x; G(z), sigma^2 I) p(z) dz.

A generator alone has no density, because its images form a set of volume 0. With Gaussian noise it has one.
Sigma is set in the recipe or fitted to held-out images. Annealed importance sampling yields a stochastic
lower bound on log p_sigma, and its gap to the upper bound is measured on simulated images.

Sigma is fitted by Monte Carlo expectation maximisation: Hamiltonian chains follow p(z | x; sigma), while
sigma, from large to small, maximises the mean of log p(x | z; sigma) over the chains.
Letters: B batch, C channels, H height, W width, Z latents, N chains.

References:
    On the quantitative analysis of decoder-based generative models, Wu et al. 2017,
    https://arxiv.org/abs/1611.04273
    A Monte Carlo implementation of the EM algorithm, Wei and Tanner 1990,
    https://doi.org/10.1080/01621459.1990.10474930
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from genmod import units
from genmod.distributions.decoders import PixelLikelihood
from genmod.distributions.gaussian import Gaussian
from genmod.distributions.noise import BinnedGaussian, PointGaussian
from genmod.errors import DataError, GenmodError, Unscorable
from genmod.interface.batch import Batch
from genmod.interface.log_prob import LogProb, Prepared
from genmod.interface.options import ScoreOptions
from genmod.likelihood import ais, hmc
from genmod.likelihood.ais import AISOptions
from genmod.likelihood.hmc import Target
from genmod.manifest import ImageSpec
from genmod.rng import Rng, rng_for

Decode = Callable[[Tensor, Tensor | None], Tensor]
"""The generator: (z_NZ, labels_N) -> images (N, C, H, W) in network units."""

SIGMA_RANGE = 1.0 / 512, 2.0
"""Range of the fitted sigma: a quarter of a pixel's bin to the whole range of values."""

_DIFFERENCE, _MAX_STEP = 0.05, 0.3
"""Step of the finite differences in log sigma, and the largest Newton step."""


class NoisyGeneratorScore(ScoreOptions):
    """Options of the bound on log p_sigma."""

    sigma: Annotated[float, Field(ge=1e-6, le=1e3)] | Literal["fit"] | None = None
    """Standard deviation of the observation noise in network units ([-1, 1]). ``fit``: maximum likelihood on
    held-out images (split val). If not given, there is no density."""
    measure: Literal["counts", "lebesgue"] = "counts"
    """``counts``: probability of the pixels, the noise integrated over their bins. ``lebesgue``: density at
    the middles of the bins, as in the literature. The gap is always measured with counts."""
    ais: AISOptions = AISOptions()
    """Options of annealed importance sampling."""
    fit_rows: int = Field(default=32, ge=1, le=1_000_000)
    """Held-out images for the fit of sigma."""
    fit_rounds: int = Field(default=300, ge=4, le=1_000_000)
    """Rounds of the fit: a move of all chains, then a step of sigma. The result is the geometric mean over
    the last quarter; ``sigma_drift`` is its relative change from the quarter before."""
    fit_chains: int = Field(default=4, ge=1, le=1_024)
    """Chains per image in the fit."""
    simulated_rows: int = Field(default=4, ge=0, le=100_000)
    """Simulated images on which the gap between lower and upper bound is measured; 0 for none."""

    @classmethod
    def tiny(cls) -> Self:
        """Options that take milliseconds, with a given sigma."""
        return cls(sigma=0.5, ais=AISOptions.tiny(), simulated_rows=2)

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """Probability of the pixels, and density at the middles of the bins."""
        return cls.tiny(), cls.tiny().model_copy(update={"measure": "lebesgue"})

    @property
    def prepares(self) -> bool:
        """Whether sigma is fitted or the gap is measured before scoring."""
        return self.held_out_rows > 0 or self.simulated_rows > 0

    @property
    def held_out_rows(self) -> int:
        """Number of held-out images for the fit of sigma."""
        return self.fit_rows if self.sigma == "fit" else 0

    def probe(self) -> tuple[Self, float]:
        """A few temperatures, since time is proportional to their number."""
        short = self.ais.model_copy(update={"temperatures": 4, "pilot_temperatures": 2})
        factor = self.ais.moves() / short.moves()
        return self.model_copy(update={"sigma": 0.5, "ais": short}), factor

    def require_sigma(self, reason: str) -> None:
        """Check that observation noise is set.

        Args:
            reason: why the model has no density without it, for the error.

        Raises:
            Unscorable: ``sigma`` is not set.
        """
        if self.sigma is None:
            raise Unscorable(
                f"{reason}, so it cannot be scored; set model.NAME.score.sigma: fit (or a number) to score "
                "the model with observation noise, or deselect this model",
                hint="set model.NAME.score.sigma: fit to score it",
            )


@dataclass(frozen=True)
class NoisyGenerator:
    """A generator with observation noise, as a density."""

    decode: Decode
    latents: int
    """Z, the number of latents."""
    spec: ImageSpec
    dtype: torch.dtype
    """Dtype of the generator's weights."""

    def likelihood(self, sigma: float, measure: str) -> PixelLikelihood:
        """p(x | z) with noise of std ``sigma``, for measure ``counts`` or ``lebesgue``."""
        binned = BinnedGaussian(sigma, self.spec.levels)
        return binned if measure == "counts" else PointGaussian(sigma)

    def target(self, batch: Batch, sigma: float, measure: str) -> Target:
        """The annealing target of a batch: from the prior to the posterior of each row."""
        x_BCHW = batch.x_BCHW(torch.float64)
        likelihood = self.likelihood(sigma, measure)

        def log_joint(z_NZ: Tensor, row_N: Tensor) -> Tensor:
            labels_N = None if batch.labels_B is None else batch.labels_B[row_N]
            return likelihood.nats(self.decode(z_NZ, labels_N), x_BCHW[row_N]) + _prior_nats(z_NZ)

        zeros_BZ = torch.zeros(
            len(batch), self.latents, dtype=self.dtype, device=batch.index_B.device
        )
        return Target(Gaussian(zeros_BZ, zeros_BZ), log_joint)

    def log_prob(self, batch: Batch, rng: Rng, options: NoisyGeneratorScore) -> LogProb:
        """Stochastic lower bound of each row; ``options.sigma`` must be a number, see :meth:`prepare`."""
        if not isinstance(options.sigma, float):  # as read from the receipt of the setup task
            raise DataError(
                f"score.sigma is {options.sigma!r}, but rows need a number; remove the folder of the scores "
                "and score again"
            )
        target = self.target(batch, options.sigma, options.measure)
        nats_B, stderr_B = ais.lower_bound(target, rng, options.ais)
        given = " given the label" if self.spec.classes else ""
        pixels = ", moved to the nearest pixel" if options.measure == "counts" else ""
        return LogProb(
            nats_B=nats_B,
            stderr_B=stderr_B,
            label="stochastic_lower_bound",
            estimator="ais-hmc",
            of=f"generator{given} with noise of sigma {options.sigma:.6g}{pixels}",
            measure=units.COUNTS if options.measure == "counts" else units.NETWORK,
            budget=options.ais.budget(),
        )

    def prepare(self, batch: Batch | None, rng: Rng, options: NoisyGeneratorScore) -> Prepared:
        """Fit sigma if ``options.sigma`` is ``fit``; measure the gap of the bounds on simulated images.

        Args:
            batch: held-out images, for the fit.
            rng: one row per held-out image.
            options: the score options.

        Returns:
            Options with sigma as a number, and the measurements.
        """
        metadata: dict[str, float] = {}
        if options.sigma == "fit":
            assert batch is not None, "fitting sigma needs held-out rows"
            sigma, metadata["sigma_drift"] = self.fit_sigma(batch, rng.fold("sigma"), options)
            options = options.model_copy(update={"sigma": sigma})
        assert isinstance(options.sigma, float)
        metadata["sigma"] = options.sigma
        if options.simulated_rows:
            metadata |= self._gap(rng.fold("simulated"), options.sigma, options)
        return Prepared(options, metadata)

    def _gap(self, rng: Rng, sigma: float, options: NoisyGeneratorScore) -> dict[str, float]:
        """Gap of the bounds on draws of (z, x), by bidirectional Monte Carlo."""
        device = rng.index_B.device
        rng = rng_for(rng.seed, rng.purpose, range(options.simulated_rows), device)
        labels_B = rng.fold("label").integers(self.spec.classes) if self.spec.classes else None
        z_BZ = rng.fold("z").normal(self.latents, dtype=self.dtype)
        likelihood = self.likelihood(sigma, "counts")
        with torch.no_grad():
            x_BCHW = likelihood.draw(self.decode(z_BZ, labels_B), rng.fold("noise"))
        batch = Batch(units.to_pixels(x_BCHW), labels_B, rng.index_B)
        bounds = ais.sandwich(self.target(batch, sigma, "counts"), z_BZ, rng, options.ais)
        root_rows = math.sqrt(options.simulated_rows)
        return {
            "gap_nats": float(bounds.gap_B.mean()),
            "gap_nats_stderr": float(bounds.gap_B.std()) / root_rows if root_rows > 1 else 0.0,
            "gap_rows": options.simulated_rows,
            "simulated_lower_nats": float(bounds.lower_B.mean()),
            "simulated_upper_nats": float(bounds.upper_B.mean()),
        }

    def fit_sigma(
        self, batch: Batch, rng: Rng, options: NoisyGeneratorScore
    ) -> tuple[float, float]:
        """Maximum-likelihood sigma within :data:`SIGMA_RANGE`, and its relative change at the end."""
        count, low, high = options.fit_chains, math.log(SIGMA_RANGE[0]), math.log(SIGMA_RANGE[1])
        row_N = torch.arange(len(batch), device=batch.index_B.device).repeat_interleave(count)
        rng_N = rng.repeat(count)
        x_NCHW = batch.x_BCHW(torch.float64)[row_N]
        labels_N = None if batch.labels_B is None else batch.labels_B[row_N]
        log_sigma, log_step_B = math.log(0.5), torch.full((len(batch),), -1.0).double()
        log_step_B = log_step_B.to(row_N.device)
        u_NZ = rng_N.fold("start").normal(self.latents, dtype=torch.float64)
        log_sigmas: list[float] = []
        for number in range(options.fit_rounds):
            # E step: move all chains at the current sigma, and adapt their step sizes.
            target = self.target(batch, math.exp(log_sigma), options.measure)
            chains = hmc.chains_at(target, u_NZ, row_N)
            chains, accepted_N = hmc.move(
                target,
                chains,
                rng_N.at(number),
                b=1.0,
                step_B=log_step_B.exp(),
                leapfrog=options.ais.leapfrog,
            )
            log_step_B += accepted_N.view(-1, count).mean(1) - ais.TARGET_ACCEPTANCE
            u_NZ = chains.u_NZ
            with torch.no_grad():
                image_NCHW = self.decode(u_NZ.to(self.dtype), labels_N)

            # M step: a Newton step of log sigma on the mean log-likelihood of the chains.
            def mean_nats(log_sigma: float, image_NCHW: Tensor = image_NCHW) -> float:
                likelihood = self.likelihood(math.exp(log_sigma), options.measure)
                return float(likelihood.nats(image_NCHW, x_NCHW).mean())

            log_sigma = min(high, max(low, log_sigma + _newton_step(mean_nats, log_sigma)))
            log_sigmas.append(log_sigma)
        quarter = len(log_sigmas) // 4
        last, before = log_sigmas[-quarter:], log_sigmas[-2 * quarter : -quarter]
        log_sigma = sum(last) / quarter
        if not low + _DIFFERENCE < log_sigma < high - _DIFFERENCE:
            raise GenmodError(
                f"cannot fit sigma: the best value {math.exp(log_sigma):.3g} is at the end of the range "
                f"{SIGMA_RANGE[0]:.3g} .. {SIGMA_RANGE[1]:g}; train the model longer, or set "
                "model.NAME.score.sigma to a number"
            )
        return math.exp(log_sigma), math.expm1(log_sigma - sum(before) / quarter)


def _newton_step(function: Callable[[float], float], x: float) -> float:
    """Newton step towards a maximum, by finite differences; at most :data:`_MAX_STEP`."""
    below, middle, above = (function(x + side * _DIFFERENCE) for side in (-1, 0, 1))
    slope = (above - below) / (2 * _DIFFERENCE)
    curvature = (above - 2 * middle + below) / _DIFFERENCE**2
    uphill = math.copysign(_MAX_STEP, slope) if slope else 0.0
    step = -slope / curvature if curvature < 0 else uphill
    return min(_MAX_STEP, max(-_MAX_STEP, step))


def _prior_nats(z_NZ: Tensor) -> Tensor:
    """Log density of N(0, 1), (N,) float64 in nats."""
    zeros_NZ = torch.zeros_like(z_NZ, dtype=torch.float64)
    return Gaussian(zeros_NZ, zeros_NZ).nats(z_NZ.double())
