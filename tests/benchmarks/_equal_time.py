"""What the benchmarks of quality at equal CPU time share: Fashion-MNIST, batches, the probe, the judge.

Letters: N rows, B batch, C channels, H height, W width, D features.
"""

from __future__ import annotations

import gzip
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from genmod import units
from genmod.data.sources.registry import open_source
from genmod.interface.batch import Batch
from genmod.interface.model import GenerativeModel
from genmod.manifest import ImageSpec
from genmod.metrics.features import FeaturesConfig, fit_extractor
from genmod.metrics.frechet import feature_moments, frechet
from genmod.metrics.neighbours import neighbourhoods
from genmod.rng import rng_for
from tests.benchmarks._data_sets import FASHION

GREY = ImageSpec(channels=1, height=28, width=28)
NEIGHBOURS, CHUNK = 5, 100
SHARES = ("coverage", "recall", "density", "precision")
SMALL = False
"""Use 500 digits that a package ships instead of Fashion-MNIST: for quick runs."""
FEATURES = FeaturesConfig()
QUICK = {
    "_equal_time.SMALL": True,
    "_equal_time.FEATURES": FeaturesConfig(rows=200, train_images=256),
}


def digits(every: int) -> tuple[Tensor, Tensor]:
    """uint8 (N, 1, 28, 28) and int64 (N,): one digit of ``every`` of ``builtin:mnist5k``."""
    source = open_source("builtin:mnist5k")
    listing = source.listing()
    rows = slice(None, None, every)  # the rows are sorted by class
    pixels = np.stack(list(source.fetch(listing.refs[rows], listing.fingerprint)))
    assert listing.labels_N is not None
    labels_N = torch.from_numpy(listing.labels_N[rows].astype(np.int64))
    return torch.from_numpy(pixels.reshape(-1, 1, 28, 28).copy()), labels_N


def images(name: str) -> Tensor:
    """uint8 (N, 1, 28, 28) of ``train`` or ``t10k``."""
    if SMALL:
        return digits(10)[0]
    raw = gzip.decompress((FASHION / f"{name}-images-idx3-ubyte.gz").read_bytes())
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 1, 28, 28).copy())


def labels(name: str) -> Tensor:
    """int64 (N,)."""
    if SMALL:
        return digits(10)[1]
    raw = gzip.decompress((FASHION / f"{name}-labels-idx1-ubyte.gz").read_bytes())
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=8).astype(np.int64))


def batches(pixels_NCHW: Tensor, seed: int, batch: int, start: int) -> Iterator[Batch]:
    """Rows drawn with replacement, without labels; what comes at a position depends on it alone."""
    while True:
        index_B = torch.arange(start, start + batch)
        row_B = rng_for(seed, "bench/row", index_B).integers(len(pixels_NCHW), 1)[:, 0]
        yield Batch(pixels_NCHW[row_B], None, index_B)
        start += batch


def fitting(seconds: Callable[[int], float], probe_nimg: int, cpu_s: float, step: int) -> int:
    """How many images, a multiple of ``step``, fit into the CPU time, by what a short training takes."""
    return int(cpu_s * probe_nimg / seconds(probe_nimg)) // step * step


def drawn(model: GenerativeModel, how: Mapping[str, Any], seed: int, draws: int) -> Tensor:
    """uint8 (draws, C, H, W)."""
    sample = model.Sample.model_validate(how)
    parts = [
        model.sample(None, rng_for(seed, "bench/draw", range(i, i + CHUNK)), sample)
        for i in range(0, draws, CHUNK)
    ]
    return units.to_pixels(torch.cat(parts))


class Judge:
    """Compares samples with real rows, in features fitted to training images that never see a model."""

    def __init__(self, train_NCHW: Tensor, real_NCHW: Tensor) -> None:
        spec = GREY.model_copy(update={"classes": 10})
        self.extractor = fit_extractor(FEATURES, spec, train_NCHW, labels("train"), 0)
        self.real_ND = self._features(real_NCHW)
        self.feature_moments = feature_moments(self.real_ND)

    def _features(self, pixels_NCHW: Tensor) -> Tensor:
        return self.extractor.extract(pixels_NCHW).features_ND

    def distance(self, pixels_NCHW: Tensor) -> float:
        """Frechet's, to all the real rows."""
        return frechet(self.feature_moments, feature_moments(self._features(pixels_NCHW)))

    def __call__(self, pixels_NCHW: Tensor) -> dict[str, float]:
        """``fd``, and each of ``SHARES`` against as many real rows as there are samples."""
        fake_ND = self._features(pixels_NCHW)
        near = neighbourhoods(fake_ND, self.real_ND[: len(fake_ND)], NEIGHBOURS, 0)
        shares = {name: getattr(near, name)[0] for name in SHARES}
        return {"fd": frechet(self.feature_moments, feature_moments(fake_ND)), **shares}


def interval(values: list[float]) -> list[float]:
    """Mean and, of several, its 95 % limits by Student's t."""
    mean, n = statistics.mean(values), len(values)
    half = float(stdtrit(n - 1, 0.975)) * statistics.stdev(values) / n**0.5 if n > 1 else 0.0
    return [round(value, 3) for value in ((mean, mean - half, mean + half) if half else (mean,))]
