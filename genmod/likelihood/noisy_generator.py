"""The density of a generator under declared noise: p_sigma(x) = integral of N(x; G(z), sigma^2 I) p(z) dz.

A generator alone has no density: its images lie on a surface of no volume. With noise whose sigma is
declared, or fitted to held-out images, it has one. It is had as a stochastic lower bound by annealed
importance sampling, with the gap to the upper bound on images of the model's own.

Sigma is fitted by Monte Carlo expectation maximisation: chains of Hamiltonian moves follow p(z | x; sigma)
while sigma, from large to small, maximises the mean of log p(x | z; sigma) over them.
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
from genmod.errors import GenmodError, Unscorable
from genmod.interface.batch import Batch
from genmod.interface.log_prob import LogProb, Prepared
from genmod.interface.options import ScoreOptions
from genmod.likelihood import ais, hmc
from genmod.likelihood.ais import AISOptions
from genmod.likelihood.hmc import Target
from genmod.manifest import ImageSpec
from genmod.rng import Rng, rng_for

Decode = Callable[[Tensor, Tensor | None], Tensor]
"""(z_NZ, labels_N) -> images (N, C, H, W)."""

SIGMA_RANGE = 1.0 / 512, 2.0
"""Where sigma is sought: a quarter of a pixel's bin to the whole range."""

_PARABOLA, _STRIDE = 0.05, 0.3
"""Distance of the three values of log sigma that a step looks at, and the longest step."""


class NoisyGeneratorScore(ScoreOptions):
    """How to bound log p_sigma."""

    sigma: Annotated[float, Field(gt=0)] | Literal["fit"] | None = None
    """Of the declared noise, in network units ([-1, 1]); ``fit``: what makes held-out images (split val) most
    probable. Without it there is no density."""
    measure: Literal["counts", "lebesgue"] = "counts"
    """``counts``: probability of the pixels, the noise integrated over their bins. ``lebesgue``: density at
    the middles of their bins, as the literature gives it. The gap is measured on counts."""
    ais: AISOptions = AISOptions()
    """What is spent on a row."""
    fit_rows: int = Field(default=32, ge=1)
    """Held-out images that sigma is fitted to."""
    fit_rounds: int = Field(default=300, ge=4)
    """Moves of the chains, each followed by a step of sigma; its geometric mean over the last quarter counts.
    The fact ``sigma_drift`` says by what part that still differs from the quarter before."""
    fit_chains: int = Field(default=4, ge=1)
    """Of each image."""
    simulated_rows: int = Field(default=4, ge=0)
    """Images of the model's own on which the gap between both bounds is measured; 0 for none."""

    @classmethod
    def tiny(cls) -> Self:
        """Milliseconds, sigma given."""
        return cls(sigma=0.5, ais=AISOptions.tiny(), simulated_rows=2)

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """With a given sigma, of the pixels and of the bins' middles."""
        return cls.tiny(), cls.tiny().model_copy(update={"measure": "lebesgue"})

    @property
    def prepares(self) -> bool:
        """If sigma is to be fitted, or the gap measured."""
        return self.held_out_rows > 0 or self.simulated_rows > 0

    @property
    def held_out_rows(self) -> int:
        """To fit sigma."""
        return self.fit_rows if self.sigma == "fit" else 0

    def probe(self) -> tuple[Self, float]:
        """A few temperatures; time is in proportion."""
        few = self.ais.model_copy(update={"temperatures": 4, "pilot_temperatures": 2})
        whole = self.ais.moves() / few.moves()
        return self.model_copy(update={"sigma": 0.5, "ais": few}), whole

    def require_sigma(self, why: str) -> None:
        """Raise Unscorable if there is no declared noise."""
        if self.sigma is None:
            raise Unscorable(
                f"{why}, so there is no log-likelihood to estimate; declare observation noise with "
                "model.NAME.score.sigma: fit (or a number), which adds it to what is scored, or leave "
                "this model out of score",
                hint="set model.NAME.score.sigma: fit to score it",
            )


@dataclass(frozen=True)
class NoisyGenerator:
    """A generator under noise."""

    decode: Decode
    latents: int
    """Z."""
    spec: ImageSpec
    dtype: torch.dtype
    """Of the generator's weights."""

    def likelihood(self, sigma: float, measure: str) -> PixelLikelihood:
        """p(x | z) for noise of some sigma."""
        binned = BinnedGaussian(sigma, self.spec.levels)
        return binned if measure == "counts" else PointGaussian(sigma)

    def target(self, batch: Batch, sigma: float, measure: str) -> Target:
        """Chains from the prior to the posterior of each row."""
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
        """The lower bound of each row. ``options.sigma`` must be a number by now."""
        assert isinstance(options.sigma, float), (
            "sigma is fitted by prepare, before anything is scored"
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
        """Fit sigma if it is to be fitted; measure the gap of both bounds on the model's own images."""
        metadata: dict[str, float] = {}
        if options.sigma == "fit":
            assert batch is not None, "held-out rows to fit sigma to"
            sigma, metadata["sigma_drift"] = self.fit_sigma(batch, rng.fold("sigma"), options)
            options = options.model_copy(update={"sigma": sigma})
        assert isinstance(options.sigma, float)
        metadata["sigma"] = options.sigma
        if options.simulated_rows:
            metadata |= self._gap(rng.fold("simulated"), options.sigma, options)
        return Prepared(options, metadata)

    def _gap(self, rng: Rng, sigma: float, options: NoisyGeneratorScore) -> dict[str, float]:
        """Bidirectional Monte Carlo on draws of (z, x)."""
        device = rng.index_B.device
        rng = rng_for(rng.seed, rng.purpose, range(options.simulated_rows), device)
        labels_B = rng.fold("label").integers(self.spec.classes) if self.spec.classes else None
        z_BZ = rng.fold("z").normal(self.latents, dtype=self.dtype)
        likelihood = self.likelihood(sigma, "counts")
        with torch.no_grad():
            x_BCHW = likelihood.draw(self.decode(z_BZ, labels_B), rng.fold("noise"))
        batch = Batch(units.to_pixels(x_BCHW), labels_B, rng.index_B)
        found = ais.sandwich(self.target(batch, sigma, "counts"), z_BZ, rng, options.ais)
        rows = math.sqrt(options.simulated_rows)
        return {
            "gap_nats": float(found.gap_B.mean()),
            "gap_nats_stderr": float(found.gap_B.std()) / rows if rows > 1 else 0.0,
            "gap_rows": options.simulated_rows,
            "simulated_lower_nats": float(found.lower_B.mean()),
            "simulated_upper_nats": float(found.upper_B.mean()),
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
        path: list[float] = []
        for number in range(options.fit_rounds):
            target = self.target(batch, math.exp(log_sigma), options.measure)
            chains = hmc.at(target, u_NZ, row_N)
            chains, accepted_N = hmc.move(
                target,
                chains,
                rng_N.at(number),
                b=1.0,
                step_B=log_step_B.exp(),
                leapfrog=options.ais.leapfrog,
            )
            log_step_B += accepted_N.view(-1, count).mean(1) - ais.ACCEPTANCE
            u_NZ = chains.u_NZ
            with torch.no_grad():
                image_NCHW = self.decode(u_NZ.to(self.dtype), labels_N)

            def mean_nats(log_sigma: float, image_NCHW: Tensor = image_NCHW) -> float:
                likelihood = self.likelihood(math.exp(log_sigma), options.measure)
                return float(likelihood.nats(image_NCHW, x_NCHW).mean())

            log_sigma = min(high, max(low, log_sigma + _newton(mean_nats, log_sigma)))
            path.append(log_sigma)
        quarter = len(path) // 4
        last, before = path[-quarter:], path[-2 * quarter : -quarter]
        log_sigma = sum(last) / quarter
        if not low + _PARABOLA < log_sigma < high - _PARABOLA:
            raise GenmodError(
                f"cannot fit sigma: the best value {math.exp(log_sigma):.3g} is at the end of the range "
                f"{SIGMA_RANGE[0]:.3g} .. {SIGMA_RANGE[1]:g}; train the model longer, or set "
                "model.NAME.score.sigma to a number"
            )
        return math.exp(log_sigma), math.expm1(log_sigma - sum(before) / quarter)


def _newton(value: Callable[[float], float], at: float) -> float:
    """The step towards a maximum, by the parabola through three values; at most :data:`_STRIDE`."""
    below, here, above = (value(at + side * _PARABOLA) for side in (-1, 0, 1))
    slope, bend = (above - below) / (2 * _PARABOLA), (above - 2 * here + below) / _PARABOLA**2
    step = -slope / bend if bend < 0 else math.copysign(_STRIDE, slope) if slope else 0.0
    return min(_STRIDE, max(-_STRIDE, step))


def _prior_nats(z_NZ: Tensor) -> Tensor:
    zeros_NZ = torch.zeros_like(z_NZ, dtype=torch.float64)
    return Gaussian(zeros_NZ, zeros_NZ).nats(z_NZ.double())
