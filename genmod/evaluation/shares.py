"""Rows to compare in equal class shares: a distance between mixtures measures their shares before all else.

Samples are usually dealt out evenly over classes, real images are not. So samples, and the training images of
the floor, are taken in the shares of the reference, of the classes that all three have. Shares that differ by
no more than chance are left as they are. Letters: N rows, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genmod.config import fingerprint
from genmod.errors import ConfigError
from genmod.evaluation.images import Images
from genmod.metrics.chance import shares_differ
from genmod.metrics.protocol import EvaluateConfig

_NAMED_CLASSES = 10
"""A protocol lists at most as many classes, and has the digest of more."""


@dataclass(frozen=True)
class Compared:
    """Samples, training images for the floor, and reference images, to be compared with one another."""

    samples: Images
    train: Images
    real: Images
    sample_rows_N: Tensor
    """Number of each sample among all that were given, (N,)."""
    given: tuple[int, int, int]
    """Rows of the three that were given."""
    classes: str = ""
    """How the classes were made comparable, for the protocol; empty if the rows were taken as they are."""

    def metadata(self) -> dict[str, Any] | None:
        """What was taken of what, as JSON values; None if the rows were taken as they are."""
        if not self.classes:
            return None
        return {
            "classes": self.classes,
            "samples": len(self.samples),
            "of_samples": self.given[0],
            "reference": len(self.real),
            "of_reference": self.given[2],
        }

    def check_rows(self, config: EvaluateConfig) -> None:
        """ConfigError if the rows are too few for the metrics."""
        least = config.neighbours + 2
        if min(len(self.samples), len(self.real)) >= least:
            return
        given = ", ".join(map(str, self.given[:2])) + f" and {self.given[2]}"
        taken = f"{len(self.samples)} samples and {len(self.real)} reference images"
        raise ConfigError(
            f"evaluate needs at least {least} samples, training images and reference images for "
            f"evaluate.neighbours={config.neighbours}, got {given} (split {config.reference})"
            + (f", in equal class shares {taken}" if self.classes else "")
            + "; provide more images, or lower evaluate.neighbours"
        )


def equal_shares(samples: Images, train: Images, real: Images, classes: int, rows: int) -> Compared:
    """Take rows in equal class shares, in an order in which every part from the start has them too.

    Without labels, or if the shares of samples and reference differ by no more than chance, the first rows
    are taken. Else as many samples as possible in the shares of the reference, and as many training images;
    the first ones of each class. Classes that one of the three lacks are left out.

    Args:
        samples: samples, with the labels that were asked for.
        train: training images in random order, for the floor.
        real: reference images in random order.
        classes: number of classes K.
        rows: most samples.
    """
    given = len(samples), len(train), len(real)
    samples = samples.first(rows)
    if samples.labels_N is None or train.labels_N is None or real.labels_N is None:
        return _as_they_are(samples, train, real, given)
    made_K, train_K, real_K = (
        _counts(labels_N, classes) for labels_N in (samples.labels_N, train.labels_N, real.labels_N)
    )
    if int(made_K.sum()) == len(samples) and not shares_differ(made_K, real_K):
        return _as_they_are(samples, train, real, given)
    most_K = torch.minimum(made_K, train_K)
    real_K = torch.where(most_K > 0, real_K, 0)
    chosen_K = _largest(most_K, real_K)
    sample_rows_N = _spread(samples.labels_N, chosen_K)
    return Compared(
        samples.rows(sample_rows_N),
        train.rows(_spread(train.labels_N, chosen_K)),
        real.rows(_spread(real.labels_N, real_K)),
        sample_rows_N,
        given,
        _text(real_K),
    )


def _as_they_are(
    samples: Images, train: Images, real: Images, given: tuple[int, int, int]
) -> Compared:
    rows = min(len(samples), len(train))
    return Compared(samples.first(rows), train.first(rows), real, torch.arange(rows), given)


def _counts(labels_N: Tensor, classes: int) -> Tensor:
    """Rows of each class, (K,); other labels are not counted."""
    return labels_N[(labels_N >= 0) & (labels_N < classes)].bincount(minlength=classes)


def _largest(most_K: Tensor, real_K: Tensor) -> Tensor:
    """The largest counts in the shares of ``real_K`` with none above ``most_K``, up to rounding."""
    most, wanted = most_K.tolist(), real_K.tolist()
    parts = [(m / w, m, w) for m, w in zip(most, wanted, strict=True) if w]
    if not parts:
        return torch.zeros_like(most_K)
    # The scarcest class decides; whole numbers, so that the result is exact.
    _, part, whole = min(parts)
    return torch.minimum((2 * part * real_K + whole) // (2 * whole), most_K)


def _spread(labels_N: Tensor, counts_K: Tensor) -> Tensor:
    """The first rows of each class, each class spread evenly over the result."""
    rows: list[Tensor] = []
    places: list[Tensor] = []
    for label in counts_K.nonzero()[:, 0].tolist():
        count = int(counts_K[label])
        rows.append((labels_N == label).nonzero()[:count, 0])
        places.append((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    if not rows:
        return torch.zeros(0, dtype=torch.int64)
    return torch.cat(rows)[torch.cat(places).sort(stable=True).indices]


def _text(real_K: Tensor) -> str:
    """What was compared, for the protocol."""
    taken = real_K.nonzero()[:, 0].tolist()
    if len(taken) == len(real_K):
        return "in the reference's shares"
    if len(taken) <= _NAMED_CLASSES:
        return f"in the reference's shares, only {', '.join(map(str, taken))}"
    return f"in the reference's shares, only {len(taken)} with digest {fingerprint(taken)[:12]}"


def labels_by_name(labels_N: Tensor, names: tuple[str, ...], wanted: tuple[str, ...]) -> Tensor:
    """Labels in the order of other class names; -1 for a class that they lack.

    Args:
        labels_N: numbers of classes in ``names``.
        names: class names of the labels' dataset; empty if it has none.
        wanted: class names of the other dataset; empty if it has none.
    """
    if not names or not wanted or names == wanted:
        return labels_N
    places = {name: place for place, name in enumerate(wanted)}
    table = torch.tensor([places.get(name, -1) for name in names], dtype=torch.int64)
    return table[labels_N]
