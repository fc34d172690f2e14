"""Normalizing flow of neural splines from the box of pixel values onto itself, with an exact density.

    z = f(y | label),   z uniform on [-1, 1]^D            log p(y) = log |det df/dy| - D log 2

y is an image dequantised over its pixels' bins, so y and every draw are in the same box. f is a chain of
rational-quadratic splines, one for each dimension, whose knots a masked net computes from the dimensions
before it. The density of y is exact. The probability of the pixels is its integral over their bins, which
draws of y bound from below (uniform dequantisation). The flow is a reference for the other families, for
images of few dimensions, since its nets are dense.
Letters: B batch, C channels, H height, W width, D = C H W, E embedding, S points, N = S B.

References:
    A note on the evaluation of generative models (uniform dequantisation, sec. 3.1), Theis et al. 2016,
    https://arxiv.org/abs/1511.01844
    Learning discrete distributions by dequantization (importance-weighted, sec. 3.2), Hoogeboom et al. 2020,
    https://arxiv.org/abs/2001.11235
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import final

import torch
from torch import Tensor, nn

from genmod import units
from genmod.errors import ConfigError
from genmod.interface.batch import Batch
from genmod.interface.estimator_check import EstimatorCheck
from genmod.interface.log_prob import LogProb
from genmod.interface.model import DataStats, GenerativeModel, Losses, Phase, TrainBriefly
from genmod.interface.portable import PortableNet
from genmod.likelihood import iwae
from genmod.manifest import ImageSpec
from genmod.models.flow.config import FlowConfig, FlowSample, FlowScore
from genmod.models.flow.selftest import checks
from genmod.models.flow.splines import Splines, size_of
from genmod.rng import Rng

_MAX_WEIGHTS = 1 << 28
_MAX_MASK_ENTRIES = 1 << 30
"""The masks are built from values, so a flow cannot be counted on the meta device. The default flow of
CIFAR-10 has 0.05e9 weights and 0.95e9 entries, a byte each while it is built."""


@final
class Model(GenerativeModel):
    """p(y | label): the uniform distribution, transformed by the inverse of f."""

    Config = FlowConfig
    Sample = FlowSample
    Score = FlowScore
    not_diffusers = "diffusers has no class for normalising flows"

    def __init__(self, config: FlowConfig, spec: ImageSpec, stats: DataStats) -> None:
        super().__init__(config, spec, stats)
        embedding = config.embedding if spec.classes else 0
        self.classes = nn.Embedding(spec.classes, embedding) if spec.classes else nn.Identity()
        self.splines = Splines(config, spec.dims, embedding)

    @classmethod
    def check(cls, config: FlowConfig, spec: ImageSpec) -> None:
        """Refuse images of so many dimensions that the masks of the dense nets exhaust memory."""
        context = config.embedding if spec.classes else 0
        weights, entries = size_of(config, spec.dims, context)
        if weights > _MAX_WEIGHTS or entries > _MAX_MASK_ENTRIES:
            raise ConfigError(
                f"flow: the net has {weights:,} weights and {entries:,} mask entries for images of "
                f"{spec.dims:,} dimensions, expected at most {_MAX_WEIGHTS:,} and {_MAX_MASK_ENTRIES:,}; "
                "use smaller net.transforms, net.widths and net.bins, smaller images, or another family"
            )

    @classmethod
    def density_checks(cls, seed: int, train: TrainBriefly) -> Iterator[EstimatorCheck]:
        """Exactness, Gibbs' inequality and draws of models trained on mixtures."""
        return checks(seed, train)

    def phases(self) -> tuple[Phase, ...]:
        """One phase, of maximum likelihood."""
        return (Phase("likelihood", ("splines", "classes") if self.spec.classes else ("splines",)),)

    def loss(self, phase: str, batch: Batch, rng: Rng, nimg: int) -> Losses:
        """An upper bound on -log P(pixels | label), from one dequantisation, in nats."""
        assert phase == "likelihood", phase
        nats_B = self._bounds(self.splines, batch, rng, range(1))[0]
        total = -nats_B.mean()
        bits = torch.as_tensor(units.bits_per_dim(nats_B.mean(), self.spec.dims))
        return Losses(total, {"nll_nats": total.detach(), "nll_bits_per_dim": bits.detach()})

    @torch.no_grad()
    def sample(self, labels_B: Tensor | None, rng: Rng, options: FlowSample) -> Tensor:
        """Transform a uniform draw, addressed by ``rng``'s rows, by the inverse of f, in float64."""
        splines = _in_float64(self.splines)
        z_BD = (
            _open_interval(rng.fold("latent").uniform(self.spec.dims, dtype=torch.float64)) * 2 - 1
        )
        y_BD = splines.inverse(z_BD, self._embed(labels_B, torch.float64))
        x_BCHW = y_BD.unflatten(1, self.spec.shape)
        return (units.binarise(x_BCHW) if self.spec.levels == 2 else x_BCHW).to(self._dtype)

    def portable_net(self) -> PortableNet:
        """None: sampling searches the bins of splines, for which ONNX has no operator."""
        raise ConfigError(
            "a flow searches the bins of its splines, for which ONNX has no operator; use genmod sample"
        )

    @torch.no_grad()
    def log_prob(self, batch: Batch, rng: Rng, options: FlowScore) -> LogProb:
        """The exact density at one point, or a bound on the integral over the pixels' bins, in float64."""
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
        """(S, B): log density at S points of each row's bins, plus the bins' log volume.

        The expectation is at most log P. Point s of a row is addressed by (``rng``'s row, step s).
        """
        dtype, count = next(splines.parameters()).dtype, len(draws)
        rng = rng.fold("dequantise")
        u_NCHW = torch.cat([rng.at(s).uniform(*self.spec.shape, dtype=dtype) for s in draws])
        x_NCHW = batch.x_BCHW(dtype).repeat(count, 1, 1, 1)
        y_NCHW = units.dequantise(x_NCHW, _open_interval(u_NCHW), self.spec.levels)
        labels_N = None if batch.labels_B is None else batch.labels_B.repeat(count)
        volume = units.log_bin_volume(self.spec.dims, self.spec.levels)
        return self._nats(splines, y_NCHW, labels_N).view(count, -1) + volume


def _open_interval(u: Tensor) -> Tensor:
    """Move uniform numbers of 24 or 32 bits in [0, 1) up by half a step, so that none is 0."""
    return u + (2.0**-33 if u.dtype == torch.float64 else 2.0**-25)


def _in_float64(splines: Splines) -> Splines:
    """The same function with its weights in float64."""
    if next(splines.parameters()).dtype == torch.float64:
        return splines
    return deepcopy(splines).double()
