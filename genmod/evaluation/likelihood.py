"""Log-likelihoods in an evaluation: bits per dimension as a metric, and a histogram. Letters: N rows."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from genmod import units
from genmod.config import fingerprint
from genmod.evaluation.differences import MetricDifference
from genmod.evaluation.meter import Reference
from genmod.manifest import Manifest
from genmod.metrics.intervals import mean_interval
from genmod.metrics.protocol import LIKELIHOOD, MetricValue, Protocol
from genmod.report.charts import Histogram
from genmod.scoring.table import Scores

BITS_PER_DIM = "bits_per_dim"
"""Name of the metric."""

BINS = 40
TAIL = 0.005
"""Share of scores at either end that a histogram counts in ``below`` and ``above`` instead of in bins."""


def mean_bits_per_dim(
    scores: Scores, split: object, reference: Reference, keys: Collection[str]
) -> MetricValue | None:
    """Mean bits per dimension of reference rows, with Student's interval over new rows.

    The protocol has the kind of the likelihood, the estimator's budget and the rows, so that only
    likelihoods of one kind on the same rows are compared.

    Args:
        scores: log-likelihoods of rows of the dataset that the model was trained on.
        split: the split of these rows.
        reference: the real images, and the settings.
        keys: those of all rows of the reference's split. Rows that a later dataset has added are left out.

    Returns:
        None if the scores are of another split, or of fewer than two reference rows.
    """
    config, label = reference.config, scores.label
    bits = _bits_by_key(scores, reference, keys)
    if split != config.reference or len(bits) < 2:
        return None
    bits_N = torch.tensor(list(bits.values()), dtype=torch.float64)
    digest = fingerprint(label)
    protocol = Protocol(
        metric=BITS_PER_DIM,
        features=f"{label.label}@{digest[:8]}",
        features_digest=digest,
        reference_digest=reference.digest,
        reference_split=config.reference,
        n_real=len(bits),
        n_fake=0,
        settings={
            LIKELIHOOD: f"{label.label} by {label.estimator} of {label.of}, {label.measure}",
            "rows": fingerprint(sorted(bits)),
            **{f"budget.{name}": value for name, value in label.budget.items()},
        },
    )
    return MetricValue.of(protocol, *mean_interval(bits_N))


def likelihood_gain(
    candidate: tuple[Scores, object],
    champion: tuple[Scores, object],
    reference: Reference,
    keys: Collection[str],
) -> MetricDifference | None:
    """Gain in mean bits per dimension from the same rows, with Student's standard error over new rows.

    Rows that are unlikely under one model are mostly so under the other, so the rows' differences vary less
    than the values.

    Args:
        candidate: scores of reference rows, and their split.
        champion: the same of the champion.
        reference: as for :func:`mean_bits_per_dim`.
        keys: as for :func:`mean_bits_per_dim`.

    Returns:
        None if likelihoods, estimators or rows differ.
    """
    values = [mean_bits_per_dim(*side, reference, keys) for side in (candidate, champion)]
    first, second = values
    if first is None or second is None or first.protocol_digest != second.protocol_digest:
        return None
    candidate_bits, champion_bits = (
        _bits_by_key(scores, reference, keys) for scores, _ in (candidate, champion)
    )
    gains = [champion_bits[key] - bits for key, bits in candidate_bits.items()]
    gain_N = torch.tensor(gains, dtype=torch.float64)
    rows = len(gains)
    return MetricDifference(
        metric=second.name,
        better="lower",
        gain=float(gain_N.mean()),
        stderr=float(gain_N.std()) / rows**0.5,
        freedom=rows - 1,
        paired=True,
        rows=rows,
    )


def _bits_by_key(scores: Scores, reference: Reference, keys: Collection[str]) -> dict[str, float]:
    """Bits per dimension of the scored rows that are among the reference's, by key."""
    spec = reference.extractor.config.spec
    bits_N = units.bits_per_dim(scores.nats_B, spec.dims, scores.label.measure, spec.levels)
    assert isinstance(bits_N, Tensor)
    known = frozenset(keys)
    pairs = zip(scores.rows.keys, bits_N.tolist(), strict=True)
    return {key: bits for key, bits in pairs if key in known}


def score_metadata(manifest: Manifest, scores: Scores) -> dict[str, Any]:
    """Metadata of the scores' manifest, with a histogram."""
    metadata = {
        key: value for key, value in manifest.metadata.items() if not isinstance(value, list)
    }
    return {**metadata, "histogram": histogram(scores.nats_B).model_dump(mode="json")}


def histogram(values_N: Tensor) -> Histogram:
    """Histogram of finite values; the outermost :data:`TAIL` at either end is only counted."""
    low, high = (float(values_N.quantile(q)) for q in (TAIL, 1 - TAIL))
    if not high > low:
        low, high = low - 0.5, high + 0.5
    inside_N = values_N[(values_N >= low) & (values_N <= high)]
    counts = torch.histc(inside_N, BINS, low, high).to(torch.int64).tolist()
    below, above = int((values_N < low).sum()), int((values_N > high).sum())
    return Histogram(low=low, high=high, counts=tuple(counts), below=below, above=above)
