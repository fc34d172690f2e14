"""Titles and explanations of the metrics on pages."""

from __future__ import annotations

from dataclasses import dataclass, replace

from genmod.metrics.extractors import CALLED
from genmod.metrics.protocol import Protocol


@dataclass(frozen=True)
class MetricText:
    """Title and explanation of a metric on the page."""

    title: str
    meaning: str
    percent: bool = False
    real: str = ""
    """What the report shows in the column of real images, where that is not plain."""


METRIC_TEXTS: dict[str, MetricText] = {
    "fd": MetricText(
        "Fréchet distance",
        "Distance between the distributions of samples and real images in feature space, from "
        "their means and covariances.",
        real="The first column shows what real images reach with as many rows.",
    ),
    "fd_infinity": MetricText(
        "Fréchet distance, infinitely many samples",
        "The Fréchet distance without the bias that few samples have, from the distances of parts of "
        "them. It may be slightly negative.",
    ),
    "kid": MetricText(
        "Kernel distance",
        "Maximum mean discrepancy between samples and real images. Unbiased with few rows: for "
        "samples as good as real images it is 0 on average, and may be slightly negative.",
    ),
    "precision": MetricText(
        "Precision",
        "Share of samples within the neighbourhood of a real image: do samples look real? Read it"
        " together with coverage, since even noise can have a high precision.",
        True,
    ),
    "recall": MetricText(
        "Recall",
        "Share of real images within the neighbourhood of a sample: could the model generate them?",
        True,
    ),
    "density": MetricText(
        "Density",
        "Mean number of real neighbourhoods that contain a sample, relative to k: about 1 for "
        "real images, more if the model prefers typical images, or if images repeat.",
    ),
    "coverage": MetricText(
        "Coverage",
        "Share of real images with a sample in their neighbourhood. It falls when the model drops modes.",
        True,
    ),
    "clipped_density": MetricText(
        "Clipped density",
        "Share of samples as good as real images: about 100 % for a perfect model, more or less by "
        "chance, and linear in the share of bad samples.",
        True,
    ),
    "clipped_coverage": MetricText(
        "Clipped coverage",
        "Number of real images that would cover the real data as well, relative to the number of "
        "samples: about 100 % for a perfect model, and linear in the share of bad samples.",
        True,
    ),
    "c2st": MetricText(
        "Two-sample test",
        "Accuracy of a classifier that tells samples from real images, on rows that it was not trained "
        "on: 50 % if it sees no difference, 100 % if it sees every sample. The interval is for new rows "
        "and this classifier.",
        True,
    ),
    "class_balance": MetricText(
        "Class balance",
        "Total variation distance between the class distributions of samples and real images, by "
        "the classifier: 0 % for equal distributions, 100 % for no class in common.",
        True,
    ),
    "class_coverage": MetricText(
        "Class coverage",
        "The smallest ratio, over all classes, of the share among samples to the share among real "
        "images, by the classifier: 0 % if a class is absent. Below 100 % by chance for few images.",
        True,
    ),
    "label_accuracy": MetricText(
        "Label accuracy",
        "Share of samples in which the classifier sees the requested class.",
        True,
        real="The first column is its accuracy on held-out real images.",
    ),
    "utility": MetricText(
        "Utility",
        "Accuracy on real images of a classifier that was trained on the samples with their labels. The "
        "interval is for new real images and this classifier.",
        True,
        real="The first column is that of one trained on as many real images in as many steps.",
    ),
    "bits_per_dim": MetricText(
        "Bits per dimension",
        "Mean negative log-likelihood of the reference images, in bits per dimension. Its name has its "
        "kind, e.g. an exact value or a bound, and only likelihoods of one kind can be compared. The "
        "interval is over new images.",
    ),
    "duplicates": MetricText(
        "Duplicates",
        "Share of samples of which another sample is an exact copy.",
        True,
    ),
    "support_size": MetricText(
        "Support size, log10",
        "Decimal logarithm of the number of different images that the model draws from, by the number of "
        "equal pairs. Without a pair it is at least the lower end of its interval.",
    ),
    "memorisation": MetricText(
        "Memorisation",
        "Share of samples that are copies of a training image, also if shifted by a pixel, flipped, "
        "noisy, or of another contrast: 0 % for new images. The pairs are shown below.",
        True,
    ),
    "leakage": MetricText(
        "Leakage",
        "Share of samples that are copies of a reference image, which no model should have seen: 0 % "
        "unless test images are among the training data.",
        True,
    ),
}
"""Name of a metric -> its text."""


def metric_text(protocol: Protocol) -> MetricText:
    """Title and explanation of a metric; a Fréchet distance is FID only where its protocol says so.

    The title then has the feature space with the start of its digest, e.g. ``FID (onnx-v1@1a2b3c4d)``.
    """
    text = METRIC_TEXTS.get(protocol.metric, MetricText(protocol.metric, ""))
    if (called := protocol.settings.get(CALLED)) is None:
        return text
    title = text.title.replace("Fréchet distance", str(called))
    return replace(text, title=f"{title} ({protocol.features})")
