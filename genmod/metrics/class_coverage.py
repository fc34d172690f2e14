"""Class coverage: is any class nearly absent from the samples? Letters: K classes."""

from __future__ import annotations

from scipy.special import betaincinv
from torch import Tensor

from genmod.metrics.protocol import LEVEL, Interval


def class_coverage(fake_K: Tensor, real_K: Tensor) -> tuple[float, Interval]:
    """The smallest ratio, over all classes, of the share among samples to the share in the reference.

    0 where a class is absent, at most 1. For few rows per class it is below 1 also for real images, by
    chance: the floor shows by how much. Both ends of the interval are those of exact intervals of the classes
    (Clopper and Pearson 1934), the upper end with the error divided over the classes, because the smallest of
    several ratios is small by chance.

    Args:
        fake_K: samples that the classifier assigns to each class.
        real_K: reference images that it assigns to each class.
    """
    rows, total = int(fake_K.sum()), int(real_K.sum())
    classes = real_K.nonzero()[:, 0].tolist()
    tail = (1 - LEVEL) / 2
    ratios: list[float] = []
    lows: list[float] = []
    highs: list[float] = []
    for label in classes:
        hits, share = int(fake_K[label]), float(real_K[label]) / total
        low = float(betaincinv(hits, rows - hits + 1, tail)) if hits else 0.0
        upper = 1 - tail / len(classes)
        high = float(betaincinv(hits + 1, rows - hits, upper)) if hits < rows else 1.0
        ratios.append(hits / rows / share)
        lows.append(low / share)
        highs.append(high / share)
    method = "exact, Clopper and Pearson, over all classes"
    interval = Interval(low=min(1.0, *lows), high=min(1.0, *highs), level=LEVEL, method=method)
    return min(1.0, *ratios), interval
