"""Feature spaces: fitted the same every time, known by their digest, saved and loaded whole."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors import torch as safetensors
from sklearn.datasets import load_digits
from torch.nn.functional import avg_pool2d

from genmod import storage
from genmod.errors import ConfigError, DataError
from genmod.manifest import ImageSpec, Manifest, publish, write_file
from genmod.metrics.extractors import POOLED
from genmod.metrics.features import (
    FeaturesConfig,
    fit_extractor,
    load_extractor,
    save_extractor,
    shifted,
)
from genmod.metrics.frechet import frechet_distance
from genmod.rng import rng_for

SPEC = ImageSpec(channels=1, height=8, width=8, classes=10)
QUICK = FeaturesConfig(train_images=8_000)


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    pixels_NCHW = torch.tensor(found.images).mul(255 / 16).to(torch.uint8)[:, None]
    return pixels_NCHW, torch.tensor(found.target, dtype=torch.int64)


@pytest.fixture(scope="module")
def classifier(digits):
    pixels_NCHW, labels_N = digits
    return fit_extractor(QUICK, SPEC, pixels_NCHW[:1400], labels_N[:1400], seed=3)


def test_the_classifier_knows_held_out_digits(digits, classifier):
    pixels_NCHW, labels_N = digits
    found = classifier.extract(pixels_NCHW[1400:])
    assert found.features_ND.dtype == torch.float64
    assert (found.classes_N == labels_N[1400:]).double().mean() > 0.85
    assert (found.features_ND.std(0) > 1e-3).all()  # no feature is dead


def test_the_same_data_and_seed_give_the_same_digest_and_another_seed_another(digits):
    pixels_NCHW, labels_N = digits
    short = FeaturesConfig(train_images=500)

    def digest(seed):
        torch.rand(seed + 1)  # torch's own generator is somewhere else each time
        return fit_extractor(short, SPEC, pixels_NCHW[:300], labels_N[:300], seed).digest

    assert digest(0) == digest(0) != digest(1)


def test_fitting_consumes_nothing_from_the_global_generator(digits):
    pixels_NCHW, labels_N = digits
    before = torch.get_rng_state()
    fit_extractor(FeaturesConfig(train_images=100), SPEC, pixels_NCHW[:100], labels_N[:100], seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_features_are_on_a_common_scale(digits, classifier):
    pixels_NCHW, _ = digits
    mean_square = classifier.extract(pixels_NCHW[:1400]).features_ND.square().mean()
    assert float(mean_square) == pytest.approx(1, rel=1e-3)


def publish_at(root, extractor):
    publish(root, Manifest(kind="features", fingerprint="f", files=save_extractor(extractor, root)))


def test_saved_and_loaded_it_is_the_same_space(tmp_path, digits, classifier):
    pixels_NCHW, _ = digits
    publish_at(str(tmp_path), classifier)
    again = load_extractor(str(tmp_path))
    assert again.label == classifier.label
    assert again.label.startswith("classifier-v1@")
    assert again.digest == classifier.digest
    a, b = classifier.extract(pixels_NCHW[:700]), again.extract(pixels_NCHW[:700])
    assert torch.equal(a.features_ND, b.features_ND)
    assert torch.equal(a.classes_N, b.classes_N)


def test_changed_weights_are_refused(tmp_path, classifier):
    root = str(tmp_path)
    publish_at(root, classifier)
    (weights,) = tmp_path.glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    storage.write_bytes(str(weights), bytes(data))
    with pytest.raises(DataError, match="digest"):
        load_extractor(root)


def test_weights_of_another_size_are_not_read(tmp_path, classifier):
    root, size_bytes = str(tmp_path), 1 << 35
    config, weights = save_extractor(classifier, root)
    os.truncate(
        tmp_path / weights.path, size_bytes
    )  # takes no space, and more memory than there is
    files = (config, weights.model_copy(update={"size_bytes": size_bytes}))
    publish(root, Manifest(kind="features", fingerprint="f", files=files))
    with pytest.raises(DataError, match=r"has 34,359,738,368 bytes, but its net"):
        load_extractor(root)


def forge(root, extractor, change):
    """Publish a feature space with other files, and right digests."""
    files = {
        e.path: storage.read_bytes(f"{root}/{e.path}") for e in save_extractor(extractor, root)
    }
    files = change(files)
    entries = tuple(write_file(root, name, data) for name, data in files.items())
    publish(root, Manifest(kind="features", fingerprint="f", files=entries))


def config_with(**changes):
    def change(files):
        config = json.loads(files["config.json"])
        spec = config["spec"] | changes.pop("spec", {})
        return files | {"config.json": json.dumps(config | {"spec": spec} | changes).encode()}

    return change


def weights_with(change):
    def changed(files):
        (name,) = [name for name in files if name.startswith("weights")]
        tensors = safetensors.load(files[name])
        change(tensors)
        return files | {name: safetensors.save(tensors)}

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: {}, "lists no config.json"),
        (lambda files: {"config.json": files["config.json"]}, "0 files of weights"),
        (lambda files: files | {f"weights-{'a' * 12}.safetensors": b""}, "2 files of weights"),
        (lambda files: files | {"config.json": b"[]"}, "is not a feature space"),
        (config_with(kind="inception"), "is not a feature space"),
        (config_with(version=2), "is not a feature space"),
        (config_with(spec={"classes": 0}), "is not a feature space"),
        (config_with(spec={"height": 1 << 12, "width": 1 << 12}), "has tensor|has no tensor"),
        (config_with(spec={"classes": 1 << 20}), "head.bias of F32 10 .*, expected F32 1048576"),
        (config_with(kind="pca"), "bytes, but its net has"),
        (weights_with(lambda t: t.pop("scale")), "has no tensor scale"),
        (weights_with(lambda t: t["scale"].fill_(float("nan"))), "tensor scale has NaN"),
        (weights_with(lambda t: t.update(scale=t["scale"].half())), "tensor scale of F16"),
        (weights_with(lambda t: t.update(other=torch.zeros(1))), "has tensor other"),
    ],
)
def test_a_forged_feature_space_is_one_error(change, message, tmp_path, classifier):
    root = str(tmp_path)
    forge(root, classifier, change)
    with pytest.raises(DataError, match=message) as error:
        load_extractor(root)
    assert str(error.value).endswith("remove the folder and run genmod evaluate again")
    assert len(str(error.value).splitlines()) == 1


def test_without_labels_features_are_principal_components():
    spec = ImageSpec(channels=3, height=4, width=6)
    pixels_NCHW = rng_for(0, "pixels", range(200)).integers(256, *spec.shape).to(torch.uint8)
    extractor = fit_extractor(FeaturesConfig(), spec, pixels_NCHW, None, seed=0)
    found = extractor.extract(pixels_NCHW)
    assert extractor.label.startswith("pca-v1@")
    assert found.classes_N is None
    assert found.features_ND.shape == (200, 64)
    cov_DD = found.features_ND.T.cov()
    assert (cov_DD - cov_DD.diag().diag()).abs().max() < 1e-4 * cov_DD.max()  # uncorrelated
    assert (cov_DD.diag().diff() <= 1e-6).all()  # the leading one first
    kept = cov_DD.diag().sum() / float(extractor.network.scale) ** 2
    total = (pixels_NCHW.double().add(0.5).div(128) - 1).flatten(1).T.cov().diag()
    assert float(kept) < float(total.sum())


def test_random_convolutions_depend_on_the_seed_and_tell_images_apart(tmp_path, digits):
    pixels_NCHW, labels_N = digits
    config = FeaturesConfig(kind="random_conv")
    train, fresh = pixels_NCHW[:1400], pixels_NCHW[1400:]
    first, same, other = (
        fit_extractor(config, SPEC, train, labels, seed)
        for labels, seed in ((labels_N[:1400], 0), (None, 0), (None, 1))
    )
    assert first.label.startswith("random_conv-v1@")
    assert first.digest == same.digest != other.digest
    real = first.extract(train)
    assert real.classes_N is None
    assert real.features_ND.mean(0).abs().max() < 1e-3
    assert float(real.features_ND.square().mean()) == pytest.approx(1, rel=1e-3)
    blurred_NCHW = avg_pool2d(fresh.float(), 3, 1, 1).to(torch.uint8)
    near, *far = (
        frechet_distance(first.extract(images).features_ND, real.features_ND)[1]
        for images in (fresh, blurred_NCHW, fresh[labels_N[1400:] == 3], fresh.flip(2))
    )
    assert all(distance.low > 2 * near.high for distance in far)
    publish_at(str(tmp_path), first)
    again = load_extractor(str(tmp_path))
    assert again.digest == first.digest
    assert torch.equal(again.extract(fresh).features_ND, first.extract(fresh).features_ND)


def test_few_pixels_keep_all_distances_under_pca():
    spec = ImageSpec(channels=1, height=5, width=5)
    pixels_NCHW = rng_for(1, "pixels", range(50)).integers(256, *spec.shape).to(torch.uint8)
    extractor = fit_extractor(FeaturesConfig(), spec, pixels_NCHW, None, seed=0)
    features_ND = extractor.extract(pixels_NCHW).features_ND
    wanted = torch.pdist(pixels_NCHW.double().flatten(1) / 128) * float(extractor.network.scale)
    torch.testing.assert_close(torch.pdist(features_ND), wanted, rtol=1e-4, atol=1e-4)


def test_large_images_are_pooled_for_pca():
    spec = ImageSpec(channels=1, height=2 * POOLED, width=2 * POOLED)
    pixels_NCHW = rng_for(2, "pixels", range(20)).integers(256, *spec.shape).to(torch.uint8)
    extractor = fit_extractor(FeaturesConfig(), spec, pixels_NCHW, None, seed=0)
    assert extractor.network.components_PD.shape == (POOLED * POOLED, 64)


def test_a_shift_moves_and_repeats_the_edge():
    image_11HW = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
    still = shifted(image_11HW, torch.tensor([[1, 1]]), margin=1)
    assert torch.equal(still, image_11HW)
    moved = shifted(image_11HW, torch.tensor([[2, 0]]), margin=1)
    assert moved[0, 0].tolist() == [[3, 3, 4], [6, 6, 7], [6, 6, 7]]


def test_a_classifier_without_labels_is_refused():
    spec = ImageSpec(channels=1, height=8, width=8)
    with pytest.raises(ConfigError, match="no labels"):
        FeaturesConfig(kind="classifier").extractor(spec)


def test_images_of_another_shape_are_refused(classifier):
    with pytest.raises(DataError, match="got"):
        classifier.extract(torch.zeros(1, 1, 9, 9, dtype=torch.uint8))
    with pytest.raises(DataError, match="float32"):
        classifier.extract(torch.zeros(1, 1, 8, 8))
