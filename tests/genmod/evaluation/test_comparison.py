"""The paired comparison: gains of samples over others of the same noise, on scikit-learn's digits."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from genmod.data.format.shards import Row, write_shard
from genmod.errors import ConfigError, DataError
from genmod.evaluation.comparison import ComparisonJob, compare_samples, differences_from
from genmod.evaluation.features_job import FeaturesJob
from genmod.evaluation.gate import decide
from genmod.evaluation.images import Images
from genmod.evaluation.measure import BETTER, evaluate_samples
from genmod.evaluation.meter import Reference
from genmod.evaluation.policy import PromoteConfig, Rule
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import DatasetManifest, ImageSpec, dataset_metadata, publish
from genmod.metrics.features import FeaturesConfig, fit_extractor
from genmod.metrics.protocol import EvaluateConfig
from genmod.rng import rng_for

SPEC = ImageSpec(channels=1, height=8, width=8, classes=10)
CONFIG = EvaluateConfig(images=300, features=FeaturesConfig(train_images=6_000))
RULES = {"fd": Rule(improve_by=0.05, max_regression=0.05, relative=True)}


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    pixels_NCHW = torch.tensor(found.images).mul(255 / 16).to(torch.uint8)[:, None]
    images = Images(pixels_NCHW, torch.tensor(found.target, dtype=torch.int64))
    return images.part(0, 1000), images.part(1000, 1300), images.part(1300, 1797)


@pytest.fixture(scope="module")
def reference(digits):
    train, _, real = digits
    extractor = fit_extractor(CONFIG.features, SPEC, train.pixels_NCHW, train.labels_N, seed=0)
    return Reference(train, real, "ab" * 32, extractor, CONFIG, seed=0)


def noisy(images, sigma):
    """The images with Gaussian noise, the same for every sigma."""
    noise_NCHW = rng_for(0, "test/noise", range(len(images))).normal(*SPEC.shape)
    pixels_NCHW = images.pixels_NCHW + sigma * noise_NCHW
    return Images(pixels_NCHW.round().clamp(0, 255).to(torch.uint8), images.labels_N)


def by_name(differences):
    return {difference.metric.split("[")[0]: difference for difference in differences}


def test_a_small_gain_is_found_in_pairs_and_hidden_without(digits, reference):
    champion, candidate = noisy(digits[1], 60), noisy(digits[1], 56)
    gains = compare_samples(candidate, champion, reference)
    assert [name.metric.split("[")[0] for name in gains] == [
        name for name in BETTER if name in by_name(gains)
    ]
    fd = by_name(gains)["fd"]
    assert fd.gain > 4 * fd.stderr > 0
    measured = [evaluate_samples(side, reference).metrics for side in (candidate, champion)]
    values = [by_metric(metrics)["fd"] for metrics in measured]
    assert fd.gain == pytest.approx(values[1] - values[0])
    config = PromoteConfig(rules=RULES)
    assert decide(*measured, config, gains).promote
    assert not decide(*measured, config).promote
    back = compare_samples(champion, candidate, reference)
    assert by_name(back)["fd"].gain == pytest.approx(-fd.gain)
    assert not decide(*reversed(measured), config, back).promote


def by_metric(metrics):
    return {metric.value.protocol.metric: metric.value.value for metric in metrics}


def test_a_model_against_itself_gains_nothing_without_noise(digits, reference):
    gains = compare_samples(digits[1], digits[1], reference)
    assert {(each.gain, each.stderr) for each in gains} == {(0.0, 0.0)}


def test_samples_of_other_labels_are_no_pairs(digits, reference):
    other = Images(digits[1].pixels_NCHW, digits[1].labels_N.roll(1))
    with pytest.raises(ConfigError, match="different labels"):
        compare_samples(digits[1], other, reference)


def write(root, splits, class_names=(), spec=SPEC, parents=None, **metadata):
    shards, statistics = [], {}
    for split, images in splits.items():
        hwc = images.pixels_NCHW.permute(0, 2, 3, 1).numpy()
        rows = [
            Row(f"{split}{i}", i, hwc[i], label=int(label))
            for i, label in enumerate(images.labels_N.tolist())
        ]
        shard, statistics[split] = write_shard(root, f"{split}-000000", split, spec, rows)
        shards.append(shard)
    facts = dataset_metadata(statistics) | metadata
    manifest = DatasetManifest(
        fingerprint=root,
        spec=spec,
        shards=tuple(shards),
        metadata=facts,
        class_names=class_names,
        parents=parents or {},
    )
    return publish(root, manifest)


@pytest.fixture
def job(digits, tmp_path):
    train, fresh, real = digits
    root = str(tmp_path)
    write(f"{root}/data", {"train": train, "val": fresh, "test": real})
    request = {"seed": 0, "labels": "index % 10"}
    write(f"{root}/champion", {"train": noisy(fresh, 60)}, sample=request)
    write(f"{root}/candidate", {"train": noisy(fresh, 50)}, sample=request)
    write(f"{root}/other", {"train": noisy(fresh, 50)}, sample=request | {"seed": 1})
    FeaturesJob(data_root=f"{root}/data", out_root=f"{root}/features", config=CONFIG).do()
    return ComparisonJob(
        name="vae",
        data_root=f"{root}/data",
        features_root=f"{root}/features",
        candidate_root=f"{root}/candidate",
        champion_root=f"{root}/champion",
        out_root=f"{root}/comparison",
        config=CONFIG,
    )


def test_the_job_publishes_the_differences_once(job):
    manifest = job.do()
    assert by_name(differences_from(manifest, job.out_root))["fd"].gain > 0
    assert set(manifest.parents) == {"data", "candidate", "champion", "features"}
    assert job.done() == manifest
    assert job.do() == manifest


def test_samples_of_another_seed_are_refused(job):
    other = job.model_copy(update={"champion_root": job.champion_root.replace("champion", "other")})
    with pytest.raises(ConfigError, match=r"not paired: sample.seed 0 against 1"):
        other.inputs(ManifestSnapshot())


@pytest.mark.parametrize("wrong", [None, 3, [{"metric": "fd"}], [{"gain": "nan"}]])
def test_a_manifest_without_differences_is_an_error(job, wrong):
    manifest = job.do()
    broken = manifest.model_copy(update={"metadata": {"differences": wrong}})
    with pytest.raises(DataError, match="promote again"):
        differences_from(broken, job.out_root)
