"""Normalising flow: neural splines from the box of pixel values to itself, whose density is known exactly.

    z = f(y | label),   z uniform on [-1, 1]^D            log p(y) = log |det df/dy| - D log 2

y is an image spread over its pixels' bins, so it lies in the same box, and so does every draw. f is a chain
of rational-quadratic splines, one for each dimension, whose knots a masked net gives from the dimensions
before it. The density of y is exact. The probability of the pixels is an integral of it over their bins:
that is bounded from below, by draws of y (uniform dequantisation). The yard-stick of the other families;
for images of few dimensions, since the nets are dense.
Letters: B batch, C channels, H height, W width, D = C H W, E embedding, K bins of a spline,
S points, N = S B.

References:
    Neural spline flows, Durkan et al. 2019, https://arxiv.org/abs/1906.04032
    Masked autoregressive flow for density estimation, Papamakarios et al. 2017,
    https://arxiv.org/abs/1705.07057
    A note on the evaluation of generative models (uniform dequantisation, sec. 3.1), Theis et al. 2016,
    https://arxiv.org/abs/1511.01844
    Learning discrete distributions by dequantization (importance-weighted, sec. 3.2), Hoogeboom et al. 2020,
    https://arxiv.org/abs/2001.11235
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, Literal, Self, cast, final

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from zuko.flows import MaskedAutoregressiveTransform
from zuko.lazy import LazyComposedTransform
from zuko.transforms import MonotonicRQSTransform

from genmod import units
from genmod.interface.batch import Batch
from genmod.interface.estimator_check import EstimatorCheck
from genmod.interface.log_prob import LogProb
from genmod.interface.model import DataStats, GenerativeModel, Losses, Phase, TrainBriefly
from genmod.interface.options import FamilyConfig, SampleOptions, ScoreOptions
from genmod.likelihood import iwae
from genmod.manifest import ImageSpec
from genmod.models.flow.selftest import checks
from genmod.permutation import shuffle
from genmod.rng import Rng

_LOG_SLOPE = math.log(1e3)
"""Slopes of a spline at its knots are between the exponentials of -this and this."""


class FlowConfig(FamilyConfig):
    """The chain of splines and the nets that bend them."""

    transforms: int = Field(default=4, ge=1)
    """Links of the chain. The first goes through the pixels in their order, the others in shuffled ones."""
    order: Literal["coupling", "autoregressive"] = "coupling"
    """What a dimension's spline may depend on. ``autoregressive``: all dimensions before it; a draw takes D
    passes of each net. ``coupling``: the second half depends on the first; a draw takes 2."""
    bins: int = Field(default=8, ge=2)
    """K, pieces of each spline."""
    widths: tuple[int, ...] = Field(default=(128, 128), min_length=1)
    """Hidden layers of each net."""
    embedding: int = Field(default=16, ge=1)
    """Length of a class's embedding, for data with labels."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.widths) < 1:
            raise ValueError("widths must be positive")
        return self

    @classmethod
    def tiny(cls) -> Self:
        """Two links of 4 pieces, one hidden layer of 16."""
        return cls(transforms=2, bins=4, widths=(16,), embedding=4)

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """Every dimension after all before it."""
        return (cls.tiny().model_copy(update={"order": "autoregressive"}),)


class FlowSample(SampleOptions):
    """There is one way to sample: a draw from the box, backwards through the splines."""

    @property
    def sampler(self) -> str:
        """The inverse of f."""
        return "inverse"


class FlowScore(ScoreOptions):
    """Whether to bound the probability of the pixels, or to give the density at one point of their bins."""

    dequantise: Literal["uniform", "none"] = "uniform"
    """``uniform`` bounds the probability of the pixels; ``none`` gives the density at the bins' middles."""
    k: int = Field(default=1, ge=1)
    """With ``uniform``: draws within the logarithm; the bound grows with it towards log P."""
    repeats: int = Field(default=8, ge=1)
    """With ``uniform``: evaluations of the bound that are averaged."""
    chunk: int = Field(default=1024, ge=1)
    """Rows of one call of the nets: memory, not the result."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.k * self.repeats < 2:
            raise ValueError("k = 1 needs repeats of at least 2, else there is no standard error")
        return self

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """The importance-weighted bound, and the density of a point."""
        return cls(k=4, repeats=3), cls(dequantise="none")


class BoxSpline(MonotonicRQSTransform):
    """A rational-quadratic spline from [-1, 1] onto itself, with slopes of its own at both ends too."""

    def __init__(self, widths: Tensor, heights: Tensor, slopes: Tensor) -> None:
        """Unbounded numbers, (..., K), (..., K) and (..., K + 1): all 0 are the identity."""
        widths, heights, slopes = (
            t if t.dtype == torch.float64 else t.float() for t in (widths, heights, slopes)
        )
        super().__init__(widths, heights, slopes[..., 1:-1], bound=1.0)
        self.derivatives = torch.exp(slopes / (1 + slopes.abs() / _LOG_SLOPE))

    def bin(self, k: Any) -> tuple[Tensor, ...]:
        """A piece by number; what rounding puts outside the box belongs to its outermost piece."""
        return super().bin(k.clamp(0, self.bins - 1))


class Splines(nn.Module):
    """f and its inverse, for rows of D numbers in [-1, 1]."""

    def __init__(self, config: FlowConfig, dims: int, context: int) -> None:
        """``context`` is the length of the vector that f depends on beside y, 0 for none."""
        super().__init__()
        count = config.bins
        self.chain = LazyComposedTransform(
            *(
                MaskedAutoregressiveTransform(
                    dims,
                    context,
                    passes=2 if config.order == "coupling" else None,
                    order=cast(Any, _order(dims, number)),
                    univariate=BoxSpline,
                    shapes=cast(Any, ((count,), (count,), (count + 1,))),
                    hidden_features=config.widths,
                )
                for number in range(config.transforms)
            )
        )

    def forward(self, y_BD: Tensor, e_BE: Tensor | None) -> tuple[Tensor, Tensor]:
        """The image of y, (B, D), and the log density of y, (B,) in nats."""
        z_BD, stretch_B = self.chain(e_BE).call_and_ladj(y_BD)
        return z_BD, stretch_B - y_BD.shape[1] * math.log(2.0)

    def inverse(self, z_BD: Tensor, e_BE: Tensor | None) -> Tensor:
        """The point whose image is z, (B, D)."""
        return self.chain(e_BE).inv(z_BD)


@final
class Model(GenerativeModel):
    """p(y | label) as the image of a uniform distribution."""

    Config = FlowConfig
    Sample = FlowSample
    Score = FlowScore

    def __init__(self, config: FlowConfig, spec: ImageSpec, stats: DataStats) -> None:
        super().__init__(config, spec, stats)
        embedding = config.embedding if spec.classes else 0
        self.classes = nn.Embedding(spec.classes, embedding) if spec.classes else nn.Identity()
        self.splines = Splines(config, spec.dims, embedding)

    @classmethod
    def density_checks(cls, seed: int, train: TrainBriefly) -> Iterator[EstimatorCheck]:
        """Exactness, Gibbs' inequality and draws of models trained on mixtures."""
        return checks(seed, train)

    def phases(self) -> tuple[Phase, ...]:
        """One: maximum likelihood."""
        return (Phase("likelihood", ("splines", "classes") if self.spec.classes else ("splines",)),)

    def loss(self, phase: str, batch: Batch, rng: Rng, nimg: int) -> Losses:
        """The bound on -log P(pixels | label) of one dequantisation, in nats."""
        assert phase == "likelihood", phase
        nats_B = self._bounds(self.splines, batch, rng, range(1))[0]
        total = -nats_B.mean()
        bits = torch.as_tensor(units.bits_per_dim(nats_B.mean(), self.spec.dims))
        return Losses(total, {"nll_nats": total.detach(), "nll_bits_per_dim": bits.detach()})

    @torch.no_grad()
    def sample(self, labels_B: Tensor | None, rng: Rng, options: FlowSample) -> Tensor:
        """A uniform draw of the box, addressed by ``rng``'s rows, backwards through f in float64."""
        splines = _in_float64(self.splines)
        z_BD = _middle(rng.fold("latent").uniform(self.spec.dims, dtype=torch.float64)) * 2 - 1
        y_BD = splines.inverse(z_BD, self._embed(labels_B, torch.float64))
        x_BCHW = y_BD.unflatten(1, self.spec.shape)
        return (units.binarise(x_BCHW) if self.spec.levels == 2 else x_BCHW).to(self._dtype)

    @torch.no_grad()
    def log_prob(self, batch: Batch, rng: Rng, options: FlowScore) -> LogProb:
        """In float64: the exact density of one point, or a bound on the integral over the pixels' bins."""
        splines = _in_float64(self.splines)
        given = ", given the label" if self.spec.classes else ""
        if options.dequantise == "none":
            nats_B = self._nats(splines, batch.x_BCHW(torch.float64), batch.labels_B)
            return LogProb(
                nats_B=nats_B,
                stderr_B=torch.zeros_like(nats_B),
                label="exact",
                estimator="change-of-variables",
                of=f"flow{given}, at the middles of bins",
                measure=units.NETWORK,
                budget={"evaluations": 1},
            )
        total, per_call = options.k * options.repeats, max(1, options.chunk // len(batch))
        draws_SB = torch.cat(
            [
                self._bounds(splines, batch, rng, range(first, min(first + per_call, total)))
                for first in range(0, total, per_call)
            ]
        )
        nats_B, stderr_B = iwae.iwae_bound(draws_SB, options.k)
        return LogProb(
            nats_B=nats_B,
            stderr_B=stderr_B,
            label="lower_bound" if options.k == 1 else "stochastic_lower_bound",
            estimator="change-of-variables",
            of=f"flow{given}, uniform dequantisation",
            measure=units.COUNTS,
            budget={"k": options.k, "repeats": options.repeats},
        )

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.splines.parameters()).dtype

    def _embed(self, labels_B: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Class embeddings, or None for data without labels."""
        if not self.spec.classes:
            return None
        assert labels_B is not None, "a class-conditional model needs labels"
        return self.classes(labels_B).to(dtype)

    def _nats(self, splines: Splines, y_BCHW: Tensor, labels_B: Tensor | None) -> Tensor:
        """Log density of images, (B,)."""
        return splines(y_BCHW.flatten(1), self._embed(labels_B, y_BCHW.dtype))[1]

    def _bounds(self, splines: Splines, batch: Batch, rng: Rng, draws: range) -> Tensor:
        """(S, B): log density at S points of each row's bins, and the bins' log volume.

        The mean over points is at most log P. Point s of a row is addressed by (``rng``'s row, step s).
        """
        dtype, count = next(splines.parameters()).dtype, len(draws)
        rng = rng.fold("dequantise")
        u_NCHW = torch.cat([rng.at(s).uniform(*self.spec.shape, dtype=dtype) for s in draws])
        x_NCHW = batch.x_BCHW(dtype).repeat(count, 1, 1, 1)
        y_NCHW = units.dequantise(x_NCHW, _middle(u_NCHW), self.spec.levels)
        labels_N = None if batch.labels_B is None else batch.labels_B.repeat(count)
        volume = units.log_bin_volume(self.spec.dims, self.spec.levels)
        return self._nats(splines, y_NCHW, labels_N).view(count, -1) + volume


def _order(dims: int, number: int) -> Tensor:
    """The place of each dimension in a link's order: a function of the link's number alone."""
    places_D = torch.arange(dims)
    return shuffle(places_D, dims, 0, f"flow/order/{number}") if number else places_D


def _middle(u: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) of 24 or 32 bits moved half a step up, so that none is 0."""
    return u + (2.0**-33 if u.dtype == torch.float64 else 2.0**-25)


def _in_float64(splines: Splines) -> Splines:
    """The same function, computed in float64 whatever the weights are stored in."""
    if next(splines.parameters()).dtype == torch.float64:
        return splines
    return deepcopy(splines).double()
