"""Utility: how well does a classifier see real classes that has learned from samples alone?

Ravuri and Vinyals 2019, Classification accuracy score for conditional generative models, sec. 2.
Letters: N rows.
"""

from __future__ import annotations

from genmod.evaluation.images import Images
from genmod.evaluation.meter import Reference, classes_setting, pixel_value
from genmod.evaluation.shares import Compared
from genmod.metrics.features import fit_extractor
from genmod.metrics.intervals import share
from genmod.metrics.protocol import MetricValue


def utility(compared: Compared, reference: Reference) -> tuple[MetricValue, MetricValue] | None:
    """Accuracy on real images of a classifier trained on samples, and of one trained on real images.

    Both are trained from the same weights on equally many images in equally many steps. The intervals are
    exact, and for new real images and these very classifiers.

    Args:
        compared: samples, training images and reference images in comparable class shares.
        reference: the settings; ``config.utility_images`` must be given.

    Returns:
        value and floor; None for images without labels, or of one class only.

    Raises:
        TrainingDiverged: the loss of a classifier is not finite.
    """
    classes = reference.extractor.config.spec.classes
    sides = [_labelled(side, classes) for side in (compared.samples, compared.train, compared.real)]
    if any(side.labels_N is None or len(side.labels_N.unique()) < 2 for side in sides):
        return None
    samples, train, real = sides
    rows = min(len(samples), len(train))
    value, floor = (
        _accuracy(side.first(rows), real, reference, compared.classes) for side in (samples, train)
    )
    return value, floor


def _labelled(images: Images, classes: int) -> Images:
    """The images whose class the data has."""
    if images.labels_N is None:
        return images
    return images.rows(((images.labels_N >= 0) & (images.labels_N < classes)).nonzero()[:, 0])


def _accuracy(images: Images, real: Images, reference: Reference, classes: str) -> MetricValue:
    config = reference.config
    assert config.utility_images is not None
    training = config.features.model_copy(
        update={"kind": "classifier", "train_images": config.utility_images}
    )
    spec, seed = reference.extractor.config.spec, reference.seed
    classifier = fit_extractor(training, spec, images.pixels_NCHW, images.labels_N, seed)
    seen_N = classifier.extract(real.pixels_NCHW).classes_N
    assert seen_N is not None
    assert real.labels_N is not None
    settings: dict[str, int | float | str] = {
        "classifier": classifier.config.name,
        "train_images": training.train_images,
        "batch_images": training.batch_images,
        "learning_rate": training.learning_rate,
        **classes_setting(classes),
    }
    hits = share(seen_N == real.labels_N)
    return pixel_value(reference, "utility", hits, (len(images), len(real)), settings)
