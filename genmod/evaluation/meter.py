"""The metrics of one set of images against the reference, each with its protocol.

Letters: N rows, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from genmod.config import fingerprint
from genmod.evaluation.images import Images
from genmod.metrics.chance import class_distance
from genmod.metrics.class_coverage import class_coverage
from genmod.metrics.features import Extractor, Features
from genmod.metrics.frechet import frechet_distances
from genmod.metrics.intervals import share
from genmod.metrics.kernel import kernel_distance
from genmod.metrics.neighbours import Neighbourhoods, neighbourhoods
from genmod.metrics.protocol import EvaluateConfig, Interval, MetricValue, Protocol
from genmod.metrics.repeats import repeats
from genmod.metrics.two_sample import CLASSIFIER, two_sample_accuracy


@dataclass(frozen=True)
class Reference:
    """Real images, and the feature space in which samples are compared with them."""

    train: Images
    images: Images
    digest: str
    extractor: Extractor
    config: EvaluateConfig
    seed: int


@dataclass
class Meter:
    """Measures images (samples, training images or noise) against one reference."""

    reference: Reference
    real_images: Images
    classes: str = ""
    """How the classes were made comparable, see :class:`genmod.evaluation.shares.Compared`."""

    def __post_init__(self) -> None:
        self.real = self.reference.extractor.extract(self.real_images.pixels_NCHW)

    def measure(self, images: Images) -> dict[str, MetricValue]:
        """All metrics; those of classes only if the extractor has classes."""
        config, seed = self.reference.config, self.reference.seed
        fake = self.reference.extractor.extract(images.pixels_NCHW)
        fakes_ND, reals_ND = fake.features_ND, self.real.features_ND
        n, m = len(fakes_ND), len(reals_ND)
        distances = frechet_distances(fakes_ND, reals_ND, seed)
        kid = kernel_distance(fakes_ND, reals_ND)
        called = self.reference.extractor.config.called
        values = {
            "fd": self._value("fd", distances.fd, n, m, **called),
            "fd_infinity": self._value("fd_infinity", distances.fd_infinity, n, m, **called),
            "kid": self._value("kid", kid, n, m, kernel="(x.y/D + 1)^3", unbiased=1),
        }
        rows = min(n, m)
        near = neighbourhoods(fakes_ND[:rows], reals_ND[:rows], config.neighbours, seed)
        values |= self._neighbour_values(near, rows)
        seen = two_sample_accuracy(fakes_ND, reals_ND, seed)
        values["c2st"] = self._value("c2st", seen, rows, rows, classifier=CLASSIFIER)
        if fake.classes_N is not None:
            values["class_balance"] = self._class_balance(fake)
            values["class_coverage"] = self._class_coverage(fake)
            if images.labels_N is not None:
                values["label_accuracy"] = self.label_accuracy(images, fake)
        return values

    def repeats(self, images: Images) -> dict[str, MetricValue]:
        """Exact duplicates among images, and the size of the support, by their pixels alone."""
        levels, n = self.reference.extractor.config.spec.levels, len(images)
        found = repeats(images.pixels_NCHW.flatten(1), levels)
        pairs = {"duplicates": found.duplicates, "support_size": found.log10_support}
        settings = {"equal": "all pixels", "levels": levels, **classes_setting(self.classes)}
        return {
            name: pixel_value(self.reference, name, pair, (n, 0), settings)
            for name, pair in pairs.items()
        }

    def label_accuracy(self, images: Images, fake: Features) -> MetricValue:
        """Share of images in which the classifier sees the requested class."""
        assert images.labels_N is not None
        assert fake.classes_N is not None
        hits_N = fake.classes_N == images.labels_N
        return self._value("label_accuracy", share(hits_N), len(hits_N), len(self.real_images))

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
        fake_K, real_K = self._class_counts(fake)
        found = class_distance(fake_K, real_K / real_K.sum(), self.reference.seed)
        return self._value("class_balance", found, int(fake_K.sum()), int(real_K.sum()))

    def _class_coverage(self, fake: Features) -> MetricValue:
        fake_K, real_K = self._class_counts(fake)
        found = class_coverage(fake_K, real_K)
        return self._value("class_coverage", found, int(fake_K.sum()), int(real_K.sum()))

    def _class_counts(self, fake: Features) -> tuple[Tensor, Tensor]:
        """Samples and reference images that the classifier assigns to each class."""
        assert fake.classes_N is not None
        assert self.real.classes_N is not None
        classes = self.reference.extractor.config.spec.classes
        return fake.classes_N.bincount(minlength=classes), self.real.classes_N.bincount(
            minlength=classes
        )

    def _neighbour_values(self, near: Neighbourhoods, rows: int) -> dict[str, MetricValue]:
        pairs = {
            "precision": near.precision,
            "recall": near.recall,
            "density": near.density,
            "coverage": near.coverage,
            "clipped_density": near.clipped_density,
            "clipped_coverage": near.clipped_coverage,
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
            settings={**settings, **classes_setting(self.classes)},
        )
        return MetricValue.of(protocol, *measured)


def pixel_value(
    reference: Reference,
    metric: str,
    measured: tuple[float, Interval],
    rows: tuple[int, int],
    settings: Mapping[str, int | float | str],
) -> MetricValue:
    """A value with its protocol that does not depend on the feature space.

    Args:
        reference: the real images.
        metric: name of the metric.
        measured: value and interval.
        rows: numbers of samples and of real images.
        settings: other conditions of the measurement.
    """
    protocol = Protocol(
        metric=metric,
        features="pixels",
        features_digest=fingerprint("pixels"),
        reference_digest=reference.digest,
        reference_split=reference.config.reference,
        n_real=rows[1],
        n_fake=rows[0],
        settings=dict(settings),
    )
    return MetricValue.of(protocol, *measured)


def classes_setting(classes: str) -> dict[str, str]:
    """The setting of a protocol that says how classes were made comparable; none if they were left."""
    return {"classes": classes} if classes else {}
