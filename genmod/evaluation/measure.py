"""Evaluate samples against real images: all metrics, each with its floor and its ceiling.

Letters: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import RootModel

from genmod import storage
from genmod.config import fingerprint
from genmod.documents import validate
from genmod.errors import sanitize
from genmod.evaluation.images import Images, uniform_noise
from genmod.evaluation.meter import Meter, Reference
from genmod.evaluation.shares import Compared, equal_shares
from genmod.evaluation.utility import utility
from genmod.metrics.protocol import Better, MetricResult, MetricValue

BETTER: dict[str, Better] = {
    "fd": "lower",
    "fd_infinity": "lower",
    "kid": "lower",
    "precision": "higher",
    "recall": "higher",
    "density": "higher",
    "coverage": "higher",
    "clipped_density": "higher",
    "clipped_coverage": "higher",
    "c2st": "lower",
    "class_balance": "lower",
    "class_coverage": "higher",
    "label_accuracy": "higher",
    "utility": "higher",
    "bits_per_dim": "lower",
    "duplicates": "lower",
    "support_size": "higher",
    "memorisation": "lower",
    "leakage": "lower",
}
"""Metrics in the order of the report, and the direction in which each is better."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of samples, and the classes in them."""

    metrics: tuple[MetricResult, ...]
    class_counts: dict[str, list[int]] | None
    """Images that the classifier assigns to each class, for ``samples`` and ``reference``."""
    class_shares: dict[str, Any] | None = None
    """How samples and reference were brought to equal class shares; None if they were left as they are."""

    def metadata(self) -> dict[str, Any]:
        """The metrics and class counts as JSON values."""
        shares = {} if self.class_shares is None else {"class_shares": self.class_shares}
        return {
            "metrics": [
                {**metric.model_dump(mode="json"), "relative_position": metric.relative_position}
                for metric in self.metrics
            ],
            "class_counts": self.class_counts,
            **shares,
        }


class _Metrics(RootModel[tuple[MetricResult, ...]]):
    """The metrics of an evaluation."""


def metrics_from(metadata: Mapping[str, Any]) -> tuple[MetricResult, ...]:
    """The metrics in the metadata of an evaluation.json. DataError if they are no metrics."""
    entries: Any = metadata.get("metrics")
    if isinstance(entries, list):
        entries = [_without_position(entry) for entry in cast("list[Any]", entries)]
    where = f"the evaluation of {sanitize(str(metadata.get('model'))[:80])}"
    remedy = "remove its folder and run genmod evaluate again"
    return validate(_Metrics, entries, "a list of metrics", where, remedy).root


def _without_position(entry: Any) -> Any:
    """A metric without its relative position, which is computed from the other fields."""
    if not isinstance(entry, dict):
        return entry
    fields = cast("dict[str, Any]", entry)
    return {key: value for key, value in fields.items() if key != "relative_position"}


class Baselines:
    """Measurements that sets of samples with the same labels share: of real images, and of noise.

    They are measured for the first set, and again for one that is compared with other images.
    """

    def __init__(self) -> None:
        self._key = ""
        self._found: tuple[Meter, dict[str, MetricValue], dict[str, MetricValue]] | None = None

    def of(
        self, same: Compared, reference: Reference
    ) -> tuple[Meter, dict[str, MetricValue], dict[str, MetricValue]]:
        """The meter of the reference, floors and ceilings."""
        labels = same.samples.labels_N if same.classes else None
        parts = [same.real, same.train, Images(same.samples.pixels_NCHW[:0], labels)]
        key = fingerprint([_digest(each) for each in parts], len(same.samples), same.classes)
        if self._found is None or key != self._key:
            self._key, self._found = key, _baselines(same, reference)
        return self._found


def _digest(images: Images) -> str:
    """Of pixels and labels."""
    labels = b"" if images.labels_N is None else images.labels_N.numpy().tobytes()
    return storage.sha256(images.pixels_NCHW.contiguous().numpy().tobytes() + labels)


def _baselines(
    same: Compared, reference: Reference
) -> tuple[Meter, dict[str, MetricValue], dict[str, MetricValue]]:
    """Meter, floors and ceilings."""
    noise = uniform_noise(len(same.samples), reference.extractor.config.spec, reference.seed)
    if same.classes:
        noise = Images(noise.pixels_NCHW, same.samples.labels_N)
    meter = Meter(reference, same.real, same.classes)
    floors = meter.measure(same.train) | meter.repeats(same.train)
    if "label_accuracy" in floors:
        floors["label_accuracy"] = meter.label_accuracy(same.real, meter.real)
    return meter, floors, meter.measure(noise)


def evaluate_samples(
    samples: Images,
    reference: Reference,
    others: Sequence[MetricValue] = (),
    baselines: Baselines | None = None,
) -> Evaluation:
    """All metrics of samples, and others that were measured elsewhere: of copies and of likelihoods.

    Samples and reference are compared in equal class shares, see :func:`equal_shares`. The floor is
    measured on as many real training images as there are samples, the ceiling on uniform noise, both by the
    protocol of the samples. Only the floor of ``label_accuracy`` is measured on the reference, because the
    classifier was fitted to the training images. Repeats have no ceiling: noise does not repeat either.

    Args:
        samples: with the labels that were asked for.
        reference: the real images, and the feature space.
        others: metrics that were measured elsewhere.
        baselines: shared by the evaluations of several sets of samples by one reference, to save time.

    Raises:
        ConfigError: samples or real images are too few for the metrics.
    """
    config, spec = reference.config, reference.extractor.config.spec
    real_images = reference.images.first(config.images)
    same = equal_shares(samples, reference.train, real_images, spec.classes, config.images)
    same.check_rows(config)
    meter, shared_floors, ceilings = (baselines or Baselines()).of(same, reference)
    floors = dict(shared_floors)
    values = meter.measure(same.samples) | meter.repeats(same.samples)
    if config.utility_images is not None and (found := utility(same, reference)) is not None:
        values["utility"], floors["utility"] = found
    values |= {value.protocol.metric: value for value in others}
    metrics = tuple(
        MetricResult(
            value=values[name], floor=floors.get(name), ceiling=ceilings.get(name), better=better
        )
        for name, better in BETTER.items()
        if name in values
    )
    counts = meter.class_counts(same.samples)
    return Evaluation(metrics, counts, same.metadata())
