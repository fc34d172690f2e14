"""Evaluate samples against real images: all metrics, each with its floor and its ceiling.

Letters: N rows, K classes, R resamplings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from genmod.config import fingerprint
from genmod.errors import ConfigError
from genmod.evaluation.images import Images, uniform_noise
from genmod.metrics.features import Extractor, Features
from genmod.metrics.frechet import frechet_distance
from genmod.metrics.kernel import kernel_distance
from genmod.metrics.neighbours import (
    CONTROL_SHARE,
    Memorisation,
    Neighbourhoods,
    memorisation,
    neighbourhoods,
)
from genmod.metrics.protocol import (
    Better,
    EvaluateConfig,
    Interval,
    MetricResult,
    MetricValue,
    Protocol,
)
from genmod.metrics.resample import bootstrap_counts, spread_interval

BETTER: dict[str, Better] = {
    "fd": "lower",
    "kid": "lower",
    "precision": "higher",
    "recall": "higher",
    "density": "higher",
    "coverage": "higher",
    "class_balance": "lower",
    "label_accuracy": "higher",
    "memorisation": "lower",
}
"""Metrics in the order of the report, and the direction in which each is better."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of samples, and the neighbours that the pictures of the report show."""

    metrics: tuple[MetricResult, ...]
    class_counts: dict[str, list[int]] | None
    """Images that the classifier assigns to each class, for ``samples`` and ``reference``."""
    memorisation: Memorisation

    def metadata(self) -> dict[str, Any]:
        """The metrics and class counts as JSON values."""
        return {
            "metrics": [
                {**metric.model_dump(mode="json"), "relative_position": metric.relative_position}
                for metric in self.metrics
            ],
            "class_counts": self.class_counts,
        }


def metrics_from(metadata: Mapping[str, Any]) -> tuple[MetricResult, ...]:
    """The metrics in the metadata of an evaluation.json."""
    entries: list[dict[str, Any]] = metadata["metrics"]
    fields = set(MetricResult.model_fields)
    return tuple(
        MetricResult.model_validate({key: value for key, value in entry.items() if key in fields})
        for entry in entries
    )


@dataclass(frozen=True)
class Reference:
    """Real images, and the feature space in which samples are compared with them."""

    train: Images
    images: Images
    digest: str
    extractor: Extractor
    config: EvaluateConfig
    seed: int


def evaluate_samples(samples: Images, reference: Reference) -> Evaluation:
    """Measure all metrics of samples.

    The floor is measured on as many real training images as there are samples, the ceiling on uniform noise,
    both by the protocol of the samples. Only the floor of ``label_accuracy`` is measured on the reference,
    because the classifier was fitted to the training images.

    Raises:
        ConfigError: samples or real images are too few for the metrics.
    """
    config, spec = reference.config, reference.extractor.config.spec
    rows = min(config.images, len(samples), len(reference.train))
    real_images = reference.images.first(config.images)
    least = config.neighbours + 2
    if min(rows, len(real_images)) < least:
        raise ConfigError(
            f"evaluate needs at least {least} samples, training images and reference images for "
            f"evaluate.neighbours={config.neighbours}, got {len(samples)}, {len(reference.train)} "
            f"and {len(real_images)} (split {config.reference}); provide more images, or lower "
            "evaluate.neighbours"
        )
    meter = _Meter(reference, real_images)
    values = meter.measure(samples.first(rows))
    floors = meter.measure(reference.train.first(rows))
    ceilings = meter.measure(uniform_noise(rows, spec, reference.seed))
    if "label_accuracy" in floors:
        floors["label_accuracy"] = meter.label_accuracy(real_images, meter.real)
    values["memorisation"], memorised = _memorised(samples.first(rows), reference, real_images)
    metrics = tuple(
        MetricResult(
            value=values[name], floor=floors.get(name), ceiling=ceilings.get(name), better=better
        )
        for name, better in BETTER.items()
        if name in values
    )
    return Evaluation(metrics, meter.class_counts(samples.first(rows)), memorised)


@dataclass
class _Meter:
    """Measures images (samples, training images or noise) against one reference."""

    reference: Reference
    real_images: Images

    def __post_init__(self) -> None:
        self.real = self.reference.extractor.extract(self.real_images.pixels_NCHW)

    def measure(self, images: Images) -> dict[str, MetricValue]:
        """All metrics; those of classes only if the extractor has classes."""
        config, seed = self.reference.config, self.reference.seed
        fake = self.reference.extractor.extract(images.pixels_NCHW)
        fakes_ND, reals_ND = fake.features_ND, self.real.features_ND
        n, m = len(fakes_ND), len(reals_ND)
        values = {
            "fd": self._value(
                "fd", frechet_distance(fakes_ND, reals_ND, config.bootstrap, seed), n, m
            ),
            "kid": self._value(
                "kid", kernel_distance(fakes_ND, reals_ND), n, m, kernel="(x.y/D + 1)^3", unbiased=1
            ),
        }
        rows = min(n, m)
        near = neighbourhoods(
            fakes_ND[:rows], reals_ND[:rows], config.neighbours, config.bootstrap, seed
        )
        values |= self._neighbour_values(near, rows)
        if fake.classes_N is not None:
            values["class_balance"] = self._class_balance(fake)
            if images.labels_N is not None:
                values["label_accuracy"] = self.label_accuracy(images, fake)
        return values

    def label_accuracy(self, images: Images, fake: Features) -> MetricValue:
        """Share of images in which the classifier sees the requested class."""
        assert images.labels_N is not None
        assert fake.classes_N is not None
        hits_N = (fake.classes_N == images.labels_N).to(torch.float64)
        share = float(hits_N.mean())
        counts_RN = bootstrap_counts(
            len(hits_N), self.reference.config.bootstrap, self.reference.seed
        )
        interval = spread_interval(share, counts_RN @ hits_N / len(hits_N), 0.0, 1.0)
        return self._value("label_accuracy", (share, interval), len(hits_N), len(self.real_images))

    def class_counts(self, images: Images) -> dict[str, list[int]] | None:
        """Images that the classifier assigns to each class, for the samples and the reference."""
        fake_N = self.reference.extractor.extract(images.pixels_NCHW).classes_N
        if fake_N is None or self.real.classes_N is None:
            return None
        classes = self.reference.extractor.config.spec.classes
        sides = {"samples": fake_N, "reference": self.real.classes_N}
        return {name: side_N.bincount(minlength=classes).tolist() for name, side_N in sides.items()}

    def _class_balance(self, fake: Features) -> MetricValue:
        """Total variation distance between the class distributions of samples and reference."""
        assert fake.classes_N is not None
        assert self.real.classes_N is not None
        classes = self.reference.extractor.config.spec.classes
        real_K = self.real.classes_N.bincount(minlength=classes) / len(self.real_images)
        one_hot_NK = torch.nn.functional.one_hot(fake.classes_N, classes).to(torch.float64)
        counts_RN = bootstrap_counts(
            len(one_hot_NK), self.reference.config.bootstrap, self.reference.seed
        )
        value = float((one_hot_NK.mean(0) - real_K).abs().sum()) / 2
        resampled_R = (counts_RN @ one_hot_NK / len(one_hot_NK) - real_K).abs().sum(1) / 2
        interval = spread_interval(value, resampled_R, 0.0, 1.0)
        return self._value(
            "class_balance", (value, interval), len(one_hot_NK), len(self.real_images)
        )

    def _neighbour_values(self, near: Neighbourhoods, rows: int) -> dict[str, MetricValue]:
        pairs = {
            "precision": near.precision,
            "recall": near.recall,
            "density": near.density,
            "coverage": near.coverage,
        }
        k = self.reference.config.neighbours
        return {name: self._value(name, pair, rows, rows, k=k) for name, pair in pairs.items()}

    def _value(
        self,
        metric: str,
        measured: tuple[float, Interval],
        n_fake: int,
        n_real: int,
        **settings: int | str,
    ) -> MetricValue:
        protocol = Protocol(
            metric=metric,
            features=self.reference.extractor.label,
            features_digest=self.reference.extractor.digest,
            reference_digest=self.reference.digest,
            reference_split=self.reference.config.reference,
            n_real=n_real,
            n_fake=n_fake,
            settings=dict(settings),
        )
        return MetricValue.of(protocol, *measured)


def _memorised(
    samples: Images, reference: Reference, real_images: Images
) -> tuple[MetricValue, Memorisation]:
    """Memorisation, measured in pixels, because two different images may have the same features."""
    config, spec = reference.config, reference.extractor.config.spec
    train = reference.train.first(config.memorisation_train_images)
    fakes = samples.first(config.memorisation_images)
    held_out = real_images.first(config.memorisation_images)
    result = memorisation(
        fakes.pixels_NCHW.flatten(1),
        train.pixels_NCHW.flatten(1),
        held_out.pixels_NCHW.flatten(1),
        config.bootstrap,
        reference.seed,
    )
    protocol = Protocol(
        metric="memorisation",
        features="pixels",
        features_digest=fingerprint("pixels", spec),
        reference_digest=reference.digest,
        reference_split=config.reference,
        n_real=len(held_out),
        n_fake=len(fakes),
        settings={"n_train": len(train), "control_share": CONTROL_SHARE},
    )
    return MetricValue.of(protocol, result.share, result.interval), result
