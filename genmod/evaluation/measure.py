"""Judge samples against real images: all metrics, each beside its floor and its ceiling.

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
"""The metrics in the order in which they are shown, and which way each is better."""


@dataclass(frozen=True)
class Evaluation:
    """What evaluation.json says of the samples, and what their pictures need."""

    metrics: tuple[MetricResult, ...]
    class_counts: dict[str, list[int]] | None
    """How many images the classifier takes for each class: ``samples`` and ``reference``."""
    memorisation: Memorisation

    def metadata(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "metrics": [
                {**reading.model_dump(mode="json"), "relative_position": reading.relative_position}
                for reading in self.metrics
            ],
            "class_counts": self.class_counts,
        }


def metrics_from(metadata: Mapping[str, Any]) -> tuple[MetricResult, ...]:
    """The readings of an evaluation.json's facts."""
    told: list[dict[str, Any]] = metadata["metrics"]
    fields = set(MetricResult.model_fields)
    return tuple(
        MetricResult.model_validate({key: value for key, value in entry.items() if key in fields})
        for entry in told
    )


@dataclass(frozen=True)
class Truth:
    """The real side of every comparison."""

    train: Images
    reference: Images
    reference_digest: str
    extractor: Extractor
    config: EvaluateConfig
    seed: int


def evaluate_samples(samples: Images, truth: Truth) -> Evaluation:
    """All metrics of some samples.

    The floor puts real training images in the samples' place, as many as there are samples; the ceiling
    uniform noise. All three are measured by one protocol. The floor of ``label_accuracy`` alone is taken
    from the reference: the classifier knows its own training images by heart.

    Raises:
        ConfigError: too few rows on one side for the metrics asked for.
    """
    config, spec = truth.config, truth.extractor.config.spec
    rows = min(config.images, len(samples), len(truth.train))
    reference = truth.reference.first(config.images)
    least = config.neighbours + 2
    if min(rows, len(reference)) < least:
        raise ConfigError(
            f"evaluate needs at least {least} samples, training images and reference images for "
            f"evaluate.neighbours={config.neighbours}; there are {len(samples)}, {len(truth.train)} "
            f"and {len(reference)} (split {config.reference})"
        )
    meter = _Meter(truth, reference)
    values = meter.measure(samples.first(rows))
    floors = meter.measure(truth.train.first(rows))
    ceilings = meter.measure(uniform_noise(rows, spec, truth.seed))
    if "label_accuracy" in floors:
        floors["label_accuracy"] = meter.label_accuracy(reference, meter.real)
    found = _memorised(samples.first(rows), truth, reference)
    values["memorisation"] = found[0]
    metrics = tuple(
        MetricResult(
            value=values[name], floor=floors.get(name), ceiling=ceilings.get(name), better=better
        )
        for name, better in BETTER.items()
        if name in values
    )
    return Evaluation(metrics, meter.class_counts(samples.first(rows)), found[1])


@dataclass
class _Meter:
    """Measures anything that stands in the samples' place against one reference."""

    truth: Truth
    reference: Images

    def __post_init__(self) -> None:
        self.real = self.truth.extractor.extract(self.reference.pixels_NCHW)

    def measure(self, images: Images) -> dict[str, MetricValue]:
        """Every metric that the features allow."""
        config, seed = self.truth.config, self.truth.seed
        fake = self.truth.extractor.extract(images.pixels_NCHW)
        fakes_ND, reals_ND = fake.features_ND, self.real.features_ND
        n, m = len(fakes_ND), len(reals_ND)
        found = {
            "fd": self._value(
                "fd", frechet_distance(fakes_ND, reals_ND, config.bootstrap, seed), n, m
            ),
            "kid": self._value(
                "kid", kernel_distance(fakes_ND, reals_ND), n, m, kernel="(x.y/D + 1)^3", unbiased=1
            ),
        }
        both = min(n, m)
        near = neighbourhoods(
            fakes_ND[:both], reals_ND[:both], config.neighbours, config.bootstrap, seed
        )
        found |= self._neighbour_values(near, both)
        if fake.classes_N is not None:
            found["class_balance"] = self._class_balance(fake)
            if images.labels_N is not None:
                found["label_accuracy"] = self.label_accuracy(images, fake)
        return found

    def label_accuracy(self, images: Images, fake: Features) -> MetricValue:
        """How often the classifier sees the class that was asked for."""
        assert images.labels_N is not None
        assert fake.classes_N is not None
        hits_N = (fake.classes_N == images.labels_N).to(torch.float64)
        share = float(hits_N.mean())
        counts_RN = bootstrap_counts(len(hits_N), self.truth.config.bootstrap, self.truth.seed)
        interval = spread_interval(share, counts_RN @ hits_N / len(hits_N), 0.0, 1.0)
        return self._value("label_accuracy", (share, interval), len(hits_N), len(self.reference))

    def class_counts(self, images: Images) -> dict[str, list[int]] | None:
        """How many images the classifier takes for each class, on both sides."""
        fake_N = self.truth.extractor.extract(images.pixels_NCHW).classes_N
        if fake_N is None or self.real.classes_N is None:
            return None
        classes = self.truth.extractor.config.spec.classes
        sides = {"samples": fake_N, "reference": self.real.classes_N}
        return {name: side_N.bincount(minlength=classes).tolist() for name, side_N in sides.items()}

    def _class_balance(self, fake: Features) -> MetricValue:
        """Total variation distance between the classes that the classifier sees on either side."""
        assert fake.classes_N is not None
        assert self.real.classes_N is not None
        classes = self.truth.extractor.config.spec.classes
        real_K = self.real.classes_N.bincount(minlength=classes) / len(self.reference)
        one_hot_NK = torch.nn.functional.one_hot(fake.classes_N, classes).to(torch.float64)
        counts_RN = bootstrap_counts(len(one_hot_NK), self.truth.config.bootstrap, self.truth.seed)
        value = float((one_hot_NK.mean(0) - real_K).abs().sum()) / 2
        again_R = (counts_RN @ one_hot_NK / len(one_hot_NK) - real_K).abs().sum(1) / 2
        interval = spread_interval(value, again_R, 0.0, 1.0)
        return self._value("class_balance", (value, interval), len(one_hot_NK), len(self.reference))

    def _neighbour_values(self, near: Neighbourhoods, rows: int) -> dict[str, MetricValue]:
        pairs = {
            "precision": near.precision,
            "recall": near.recall,
            "density": near.density,
            "coverage": near.coverage,
        }
        k = self.truth.config.neighbours
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
            features=self.truth.extractor.label,
            features_digest=self.truth.extractor.digest,
            reference_digest=self.truth.reference_digest,
            reference_split=self.truth.config.reference,
            n_real=n_real,
            n_fake=n_fake,
            settings=dict(settings),
        )
        return MetricValue.of(protocol, *measured)


def _memorised(
    samples: Images, truth: Truth, reference: Images
) -> tuple[MetricValue, Memorisation]:
    """Memorisation is searched for in pixels: features forget what tells two images apart."""
    config, spec = truth.config, truth.extractor.config.spec
    train = truth.train.first(config.memorisation_train_images)
    fakes = samples.first(config.memorisation_images)
    held = reference.first(config.memorisation_images)
    found = memorisation(
        fakes.pixels_NCHW.flatten(1),
        train.pixels_NCHW.flatten(1),
        held.pixels_NCHW.flatten(1),
        config.bootstrap,
        truth.seed,
    )
    protocol = Protocol(
        metric="memorisation",
        features="pixels",
        features_digest=fingerprint("pixels", spec),
        reference_digest=truth.reference_digest,
        reference_split=config.reference,
        n_real=len(held),
        n_fake=len(fakes),
        settings={"n_train": len(train), "control_share": CONTROL_SHARE},
    )
    return MetricValue.of(protocol, found.share, found.interval), found
