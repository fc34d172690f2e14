"""Features of a net in an ONNX file: those that torch computes, of the named file alone."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import conv2d

from genmod import storage
from genmod.budget import ReadBudget
from genmod.errors import ConfigError, DataError, GenmodError
from genmod.evaluation.images import Images
from genmod.evaluation.meter import Meter, Reference
from genmod.manifest import ImageSpec, Manifest, publish
from genmod.metrics.features import FeaturesConfig, fit_extractor, load_extractor, save_extractor
from genmod.metrics.onnx_file import OnnxConfig, check_onnx, read_onnx
from genmod.metrics.protocol import EvaluateConfig
from genmod.report.metric_texts import metric_text
from genmod.rng import rng_for
from tests.onnx_files import field, model, node, pooled_conv, value

GREY = ImageSpec(channels=1, height=8, width=8)
COLOR = ImageSpec(channels=3, height=8, width=8)
WEIGHT = rng_for(0, "onnx/weight", range(6)).normal(3, 3, 3)
NET = pooled_conv(WEIGHT)


def pixels(spec, rows=70):
    draws = rng_for(0, "onnx/pixels", range(rows)).uniform(*spec.shape)
    return (draws * 256).to(torch.uint8)


def named(tmp_path, data=NET, **settings):
    """The recipe's ``evaluate.features`` with a net in a file."""
    (tmp_path / "net.onnx").write_bytes(data)
    settings = {
        "file": f"{tmp_path}/net.onnx",
        "sha256": storage.sha256(data),
        "size": 8,
    } | settings
    return FeaturesConfig(kind="onnx", onnx=OnnxConfig(**settings))


def extractor(config, spec=COLOR):
    return fit_extractor(config, spec, pixels(spec, 2), None, seed=0)


def by_torch(input_B3HW):
    return conv2d(input_B3HW, WEIGHT, stride=2).relu().mean((2, 3)).double()


@pytest.mark.parametrize("batch", ["N", 1])
@pytest.mark.parametrize("spec", [GREY, COLOR], ids=["grey", "color"])
def test_features_are_those_of_torch(tmp_path, spec, batch):
    found = extractor(named(tmp_path, pooled_conv(WEIGHT, batch)), spec)
    images = pixels(spec)
    features = found.extract(images)
    wanted_ND = by_torch(images.float().expand(-1, 3, -1, -1) / 255)
    assert (features.features_ND - wanted_ND).abs().max() < 1e-5
    assert features.classes_N is None
    assert found.label == f"onnx-v1@{found.digest[:8]}"


@pytest.mark.parametrize(
    ("scaling", "black", "white"),
    [
        ("0..255", [0, 0, 0], [255, 255, 255]),
        ("0..1", [0, 0, 0], [1, 1, 1]),
        ("-1..1", [-1, -1, -1], [1, 1, 1]),
        ("imagenet", [-2.1179, -2.0357, -1.8044], [2.2489, 2.4286, 2.64]),
    ],
)
def test_each_scaling_has_its_range(tmp_path, scaling, black, white):
    found = extractor(named(tmp_path, scaling=scaling))
    for pixel, expected in ((0, black), (255, white)):
        images = torch.full((1, 3, 8, 8), pixel, dtype=torch.uint8)
        wanted_13 = torch.tensor(expected, dtype=torch.float32)[None, :, None, None]
        wanted = by_torch(wanted_13.expand(1, 3, 8, 8))
        assert torch.allclose(found.extract(images).features_ND, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [5, 20])
@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
def test_images_are_resized_as_by_pillow(tmp_path, resize, size):
    images = pixels(GREY, 3)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    resized = [
        np.array(Image.fromarray(one.float().numpy()).resize((size, size), filters[resize]))
        for one in images[:, 0]
    ]
    wanted = torch.from_numpy(np.stack(resized))[:, None].clamp(0, 255).expand(-1, 3, -1, -1) / 255
    found = extractor(named(tmp_path, resize=resize, size=size), GREY)
    assert (found.extract(images).features_ND - by_torch(wanted)).abs().max() < 1e-4


def test_another_digest_is_refused_before_the_file_is_read(tmp_path):
    """Random bytes, which every parser refuses in other words."""
    config = named(tmp_path, np.random.default_rng(0).bytes(1000), sha256="0" * 64)
    with pytest.raises(ConfigError, match="weights of another digest: sha256 ") as caught:
        extractor(config)
    assert caught.value.exit_code == 2
    assert str(caught.value).isprintable()


def test_a_missing_and_a_large_file_are_errors(tmp_path):
    config = named(tmp_path)
    with pytest.raises(DataError, match="longer than 868 bytes"):
        read_onnx(config.onnx, ReadBudget(onnx_bytes=len(NET) - 1))
    (tmp_path / "net.onnx").unlink()
    with pytest.raises(ConfigError, match=r"there is no .*net\.onnx; correct the URL"):
        extractor(config)


def _nested(levels):
    """A graph in an attribute of a graph, and so on."""
    graph = b""
    for _ in range(levels):
        graph = field(1, field(5, field(6, graph)))
    return model(graph)


HOSTILE = {
    "random": (np.random.default_rng(1).bytes(1000), "not a whole ONNX model"),
    "cut off": (NET[:-7], "not a whole ONNX model"),
    "empty": (b"", "has no graph"),
    "length beyond the end": (field(7, b"x" * 20)[:-1], "not a whole ONNX model"),
    "endless number": (b"\xff" * 11, "not a whole ONNX model"),
    "group": (b"\x0b\x0c", "not a whole ONNX model"),
    "nested": (_nested(100), "levels of nesting"),
    "external": (pooled_conv(WEIGHT, more=field(14, 1)), "external data"),
    "external file": (
        pooled_conv(WEIGHT, more=field(13, field(1, "location") + field(2, "/etc/passwd"))),
        "external data",
    ),
    "custom op": (pooled_conv(WEIGHT, domain="mine"), "onnxruntime refuses the net"),
    "graph of nothing": (model(field(2, "x\x1b[2J")), "error|refuses|expected"),
    "text as weights": (pooled_conv(WEIGHT, more=field(9, "short")), "onnxruntime refuses the net"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_with_the_named_digest_is_one_line(tmp_path, name, capfd):
    data, reason = HOSTILE[name]
    with pytest.raises(GenmodError, match=reason) as caught:
        extractor(named(tmp_path, data))
    assert caught.value.exit_code == 2
    assert str(caught.value).isprintable()
    assert "net.onnx: " in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_every_cut_is_refused():
    graph_end = len(NET) - len(field(8, field(2, 17)))
    for end in range(graph_end):
        with pytest.raises(DataError):
            check_onnx(NET[:end], "net", "stop")


def test_fields_are_counted():
    with pytest.raises(DataError, match="fields, more than the limit of 9"):
        check_onnx(NET, "net", "stop", ReadBudget(onnx_fields=9))


@pytest.mark.parametrize(
    ("data", "settings", "reason"),
    [
        (NET, {"output": "pool3"}, "output is pool3, expected one of features"),
        (NET, {"size": 1}, "the net refuses images of"),
        (NET, {"called": "FID"}, "6 features, so its distance is not called FID, which has 2,048"),
        (pooled_conv(WEIGHT, 4), {}, "fixed batch of 4"),
        (
            model(
                field(1, node("Relu", ("image",), "features"))
                + field(2, "net")
                + field(11, value("image", "N", 3, "S", "S"))
                + field(12, value("features", "N", 3, "S", "S"))
            ),
            {},
            "expected a row of features for each",
        ),
    ],
)
def test_settings_that_do_not_fit_the_net(tmp_path, data, settings, reason):
    with pytest.raises(ConfigError, match=reason):
        extractor(named(tmp_path, data, **settings))


def test_the_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"needs the package onnxruntime; .* extra 'onnx'"):
        extractor(named(tmp_path))


def test_kind_and_section_belong_together(tmp_path):
    with pytest.raises(ValueError, match="needs the section onnx"):
        FeaturesConfig(kind="onnx")
    with pytest.raises(ValueError, match="other kinds have no such section"):
        FeaturesConfig(kind="pca", onnx=named(tmp_path).onnx)
    assert "onnx" not in FeaturesConfig().result()


def test_a_saved_space_needs_no_file_and_is_the_one_that_the_recipe_names(tmp_path):
    config, root = named(tmp_path), f"{tmp_path}/features"
    found = extractor(config)
    publish(root, Manifest(kind="features", fingerprint="f", files=save_extractor(found, root)))
    moved = config.onnx.model_copy(update={"file": "s3://elsewhere/net.onnx"})
    (tmp_path / "net.onnx").unlink()
    again = load_extractor(root, moved)
    assert again.label == found.label
    images = pixels(COLOR, 5)
    assert torch.equal(again.extract(images).features_ND, found.extract(images).features_ND)
    assert FeaturesConfig(kind="onnx", onnx=moved).result() == config.result()
    for other in (None, moved.model_copy(update={"size": 9})):
        with pytest.raises(DataError, match=r"not the net of evaluate\.features\.onnx"):
            load_extractor(root, other)


def test_only_a_net_that_the_recipe_calls_so_gives_a_fid(tmp_path):
    plain = extractor(named(tmp_path))
    space = plain.config.onnx.model_copy(update={"called": "FID"})
    called = replace(plain, config=plain.config.model_copy(update={"onnx": space}))
    images = Images(pixels(COLOR, 40), None)

    def titles(space):
        reference = Reference(images, images, "r", space, EvaluateConfig(), seed=0)
        values = Meter(reference, images.first(20)).measure(images.part(20, 40))
        return [metric_text(values[name].protocol).title for name in ("fd", "fd_infinity", "kid")]

    infinite = ", infinitely many samples"
    assert titles(plain) == ["Fréchet distance", f"Fréchet distance{infinite}", "Kernel distance"]
    assert titles(called) == [
        f"FID ({called.label})", f"FID{infinite} ({called.label})", "Kernel distance",
    ]  # fmt: skip
