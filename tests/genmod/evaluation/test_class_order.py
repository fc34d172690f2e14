"""Samples whose classes are in another order than the data's: all that is measured goes by their names."""

from __future__ import annotations

import pytest
import torch

from genmod.config import as_json
from genmod.evaluation.comparison import ComparisonJob, compare_samples, differences_from
from genmod.evaluation.features_job import FeaturesJob
from genmod.evaluation.images import Images
from genmod.evaluation.jobs import EvaluationJob
from genmod.evaluation.measure import evaluate_samples, metrics_from
from genmod.evaluation.shares import equal_shares
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig, family
from genmod.metrics.features import FeaturesConfig
from genmod.metrics.protocol import EvaluateConfig
from genmod.training.publish import publish_model
from genmod.training.state import TrainState
from tests.genmod.evaluation.test_comparison import (
    by_metric,
    by_name,
    digits,
    noisy,
    write,
)
from tests.genmod.evaluation.test_shares import SPEC as TWO
from tests.genmod.evaluation.test_shares import evenly, nine_to_one, reference, shades

__all__ = ("digits", "reference")

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ORDER = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
"""The other order: its class k is class ORDER[k] of the data."""
CONFIG = EvaluateConfig(images=250, features=FeaturesConfig(train_images=6_000))
REQUEST = {"sampler": "ancestral", "draws_from_p": True, "seed": 0, "labels": "balanced"}


def renumbered(images, order):
    """The same images with the numbers that their classes have in another order."""
    return Images(images.pixels_NCHW, order.argsort()[images.labels_N])


def names_in(order, names):
    return tuple(names[k] for k in order.tolist())


@pytest.fixture(scope="module")
def root(digits, tmp_path_factory):
    """Data, features, and the same samples with classes in both orders, and with wrong names."""
    root = str(tmp_path_factory.mktemp("orders"))
    train, fresh, real = digits
    write(f"{root}/data", {"train": train, "val": fresh, "test": real}, NAMES)
    FeaturesJob(data_root=f"{root}/data", out_root=f"{root}/features", config=CONFIG).do()
    parts = {"sample": REQUEST}
    for side, images in (("good", noisy(fresh, 40)), ("bad", noisy(fresh, 60))):
        write(f"{root}/{side}", {"train": images}, NAMES, **parts)
        other = renumbered(images, ORDER)
        write(f"{root}/{side}-permuted", {"train": other}, names_in(ORDER, NAMES), **parts)
        write(f"{root}/{side}-wrong", {"train": other}, NAMES, **parts)
    return root


def evaluated(root, samples):
    job = EvaluationJob(
        name="vae",
        data_root=f"{root}/data",
        samples_root=f"{root}/{samples}",
        features_root=f"{root}/features",
        out_root=f"{root}/evaluation/{samples}",
        unscored="not asked",
        config=CONFIG,
    )
    return job.do().metadata


def test_an_evaluation_is_the_same_in_any_order_of_classes(root):
    same, permuted, wrong = (evaluated(root, f"good{end}") for end in ("", "-permuted", "-wrong"))
    values = by_metric(metrics_from(permuted))
    assert values == by_metric(metrics_from(same))
    assert permuted["class_counts"] == same["class_counts"]
    assert values["label_accuracy"] > 0.8 > 0.4 > by_metric(metrics_from(wrong))["label_accuracy"]


def compared(root, candidate, champion):
    job = ComparisonJob(
        name="vae",
        data_root=f"{root}/data",
        features_root=f"{root}/features",
        candidate_root=f"{root}/{candidate}",
        champion_root=f"{root}/{champion}",
        out_root=f"{root}/comparison/{candidate}-{champion}",
        config=CONFIG,
    )
    return by_name(differences_from(job.do(), job.out_root))


def test_a_comparison_is_the_same_in_any_order_of_classes(root):
    expected = compared(root, "good", "bad")
    assert expected["label_accuracy"].gain > 0
    for pair in (
        ("good-permuted", "bad"),
        ("good", "bad-permuted"),
        ("good-permuted", "bad-permuted"),
    ):
        assert compared(root, *pair) == expected
    itself = compared(root, "good-permuted", "good")
    assert {(each.gain, each.stderr) for each in itself.values()} == {(0.0, 0.0)}
    assert "label_accuracy" in itself


def test_samples_of_nine_to_one_data_are_compared_in_equal_shares(reference):
    """Samples are drawn evenly over classes; one side has a wrong rare class."""
    good = shades("samples", evenly(200))
    dark = good.pixels_NCHW.clone()
    dark[good.labels_N == 1] += 60
    bad = Images(dark, good.labels_N)
    for other, rows in ((bad, 111), (good, 111)):
        gains = by_name(compare_samples(good, other, reference))
        shared = [equal_shares(s, reference.train, reference.images, 2, 200) for s in (good, other)]
        assert [side.samples.labels_N.bincount().tolist() for side in shared] == [[100, 11]] * 2
        assert shared[0].real.labels_N.bincount().tolist() == [162, 18]
        assert gains["fd"].rows == rows
        # The gain is the difference of the values of both evaluations, which are in equal shares.
        values = [by_metric(evaluate_samples(side, reference).metrics) for side in (good, other)]
        for name in ("fd", "kid", "precision", "recall", "coverage"):
            difference = values[0][name] - values[1][name]
            sign = -1 if gains[name].better == "lower" else 1
            assert gains[name].gain == pytest.approx(sign * difference, abs=1e-9), name
    # All of the evenly drawn samples are far from data of other shares.
    without = Images(good.pixels_NCHW, None)
    assert by_metric(evaluate_samples(without, reference).metrics)["fd"] > 5 * values[0]["fd"] + 1


def test_a_comparison_job_takes_equal_shares_in_any_order_of_classes(tmp_path):
    root, names = str(tmp_path), ("usual", "rare")
    parts = {"train": 400, "val": 60, "test": 180}
    data = {split: shades(split, nine_to_one(rows)) for split, rows in parts.items()}
    write(f"{root}/data", data, names, TWO)
    FeaturesJob(data_root=f"{root}/data", out_root=f"{root}/features", config=CONFIG).do()
    for side, shift in (("good", 0), ("bad", 20)):
        images = shades("samples", evenly(200))
        images = Images(images.pixels_NCHW + shift, images.labels_N)
        write(f"{root}/{side}", {"train": images}, names, TWO, sample=REQUEST)
        other = renumbered(images, torch.tensor([1, 0]))
        write(f"{root}/{side}-permuted", {"train": other}, names[::-1], TWO, sample=REQUEST)
    expected = compared(root, "good", "bad")
    assert {each.rows for each in expected.values()} == {111}
    assert expected["fd"].gain > 0
    assert compared(root, "good-permuted", "bad") == expected
    assert compared(root, "good-permuted", "bad-permuted") == expected


def test_the_curve_asks_the_model_for_classes_by_name(tmp_path, monkeypatch):
    """Data of 9:1, and a model whose classes are in the other order."""
    asked = []
    model_class = family("diffusion")
    plain = model_class.sample

    def recorded(self, labels_B, rng, options):
        asked.append(labels_B)
        return plain(self, labels_B, rng, options)

    monkeypatch.setattr(model_class, "sample", recorded)
    root, names = str(tmp_path), ("usual", "rare")
    data = {s: shades(s, nine_to_one(n)) for s, n in (("train", 300), ("val", 60), ("test", 180))}
    write(f"{root}/data", data, names, TWO)
    config = CONFIG.model_copy(update={"curve_images": 100})
    FeaturesJob(data_root=f"{root}/data", out_root=f"{root}/features", config=config).do()
    net = as_json(model_class.Config.tiny())
    stats = DataStats(mean=(0.0,), std=(0.5,))
    built = ModelConfig(family="diffusion", net=net, spec=TWO, stats=stats)
    state = TrainState(0, built.build(), built.build(), [])
    model = publish_model(f"{root}/model", built, state, fingerprint="f", parents={}, metadata={})
    images = renumbered(shades("samples", evenly(100)), torch.tensor([1, 0]))
    write(
        f"{root}/samples",
        {"train": images},
        names[::-1],
        TWO,
        {"model": model.digest},
        sample=REQUEST,
    )
    EvaluationJob(
        name="diffusion",
        data_root=f"{root}/data",
        samples_root=f"{root}/samples",
        features_root=f"{root}/features",
        out_root=f"{root}/evaluation",
        model_root=f"{root}/model",
        unscored="not asked",
        config=config,
    ).do()
    assert asked
    for labels_B in asked:
        # "usual" is class 1 of the model; the first 100 of the shuffled reference are not exactly 90.
        assert 80 <= int((labels_B == 1).sum()) <= 98
        assert len(labels_B) == 100
