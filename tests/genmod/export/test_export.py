"""Exported networks compute what the models do, in onnxruntime, for every family that has one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from genmod.errors import ConfigError, DataError, GenmodError
from genmod.export import job
from genmod.export.job import NET_FILE, PRIOR_FILE, README, export_model
from genmod.export.onnx import TOLERANCE, largest_difference, onnx_bytes
from genmod.interface.model import DataStats
from genmod.interface.model_store import load_model
from genmod.interface.registry import ModelConfig, families, family
from genmod.manifest import ImageSpec, Manifest, find_problems, load_manifest
from genmod.rng import rng_for
from tests.served import SPEC, write_model

ONNX = ("diffusion", "gan", "vae")
"""The families of this package that have a network."""

PLAIN = ImageSpec(channels=3, height=8, width=8)
BINARY = ImageSpec(channels=1, height=8, width=8, levels=2)


def trained(name, net, spec=SPEC):
    """A model whose weights are no longer those of the start, where many layers are zero."""
    stats = DataStats(mean=(0.1,) * spec.channels, std=(0.5,) * spec.channels)
    model = ModelConfig(family=name, net=net.model_dump(), spec=spec, stats=stats).build(1)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            noise = rng_for(number, "weights", [0]).normal(*parameter.shape)[0]
            parameter.add_(0.05 * noise)
    return model.requires_grad_(False).eval()


def nets():
    for name in ONNX:
        config = family(name).Config
        for number, net in enumerate((config.tiny(), *config.variants())):
            yield pytest.param(name, net, id=f"{name}-{number}")


@pytest.mark.parametrize(("name", "net"), nets())
def test_every_architecture_computes_the_same(name, net):
    portable = trained(name, net).portable_net()
    data = onnx_bytes(portable)
    assert largest_difference(data, portable) <= TOLERANCE


@pytest.mark.parametrize("spec", [PLAIN, BINARY], ids=["RGB", "binary"])
@pytest.mark.parametrize("name", ONNX)
def test_images_of_other_kinds_too(name, spec):
    portable = trained(name, family(name).Config.tiny(), spec).portable_net()
    assert "label" not in [each.name for each in portable.inputs]
    assert largest_difference(onnx_bytes(portable), portable) <= TOLERANCE


def test_the_export_is_whole_and_says_what_it_is(tmp_path):
    parent = write_model(tmp_path / "model", "gan")
    out = str(tmp_path / "out")
    manifest, was_done = export_model(str(tmp_path / "model"), out, "onnx")
    assert not was_done
    assert manifest.parents == {"model": parent.digest}
    assert {entry.path for entry in manifest.files} == {NET_FILE, README}
    assert manifest.metadata["largest_difference"] <= TOLERANCE
    assert find_problems(out, manifest.files) == []
    page = (tmp_path / "out" / README).read_text()
    for text in (parent.digest, "`z`", "`label`", "N(0, 1)", "(B, 1, 8, 8) float32", "0 to 2"):
        assert text in page
    again, was_done = export_model(str(tmp_path / "model"), out, "onnx")
    assert (again, was_done) == (manifest, True)
    assert load_manifest(Manifest, out, "export") == manifest


def test_onnxruntime_makes_the_samples_of_the_model(tmp_path):
    """With the latents of the sampling job, the images of the sampling job."""
    import onnxruntime

    write_model(tmp_path / "model", "gan")
    export_model(str(tmp_path / "model"), str(tmp_path / "out"), "onnx")
    model = load_model(str(tmp_path / "model"))
    rng = rng_for(3, "sample", range(5))
    labels_B = torch.arange(5) % 3
    expected = model.sample(labels_B, rng, type(model).Sample()).numpy()
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / NET_FILE))
    z_BZ = rng.fold("z").normal(model.config.z_dim).numpy()
    (got,) = session.run(None, {"z": z_BZ, "label": labels_B.numpy()})
    np.testing.assert_allclose(got, expected, atol=TOLERANCE)
    assert [each.shape[0] for each in session.get_inputs()] == ["batch", "batch"]


def test_a_trained_prior_is_part_of_the_export(tmp_path, monkeypatch):
    net = family("vae").Config.tiny().model_copy(update={"prior_components": 3})
    model = trained("vae", net)
    monkeypatch.setattr(job, "load_model", lambda _: model)
    write_model(tmp_path / "model", "vae")
    export_model(str(tmp_path / "model"), str(tmp_path / "out"), "onnx")
    tensors = load_file(tmp_path / "out" / PRIOR_FILE)
    assert set(tensors) == {"weight_K", "mean_KZ", "std_KZ"}
    assert tensors["weight_K"].sum() == pytest.approx(1)
    assert tensors["mean_KZ"].shape == tensors["std_KZ"].shape == (3, net.latents)
    assert PRIOR_FILE in (tmp_path / "out" / README).read_text()


def test_a_result_that_differs_is_not_published(tmp_path, monkeypatch):
    write_model(tmp_path / "model", "gan")
    right = job.onnx_bytes

    def other(portable):
        with torch.no_grad():
            for parameter in portable.net.parameters():
                parameter.mul_(1.001)
        data = right(portable)
        with torch.no_grad():
            for parameter in portable.net.parameters():
                parameter.div_(1.001)
        return data

    monkeypatch.setattr(job, "onnx_bytes", other)
    with pytest.raises(GenmodError, match="expected at most 1e-05; nothing was written"):
        export_model(str(tmp_path / "model"), str(tmp_path / "out"), "onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", families())
def test_what_does_not_fit_is_one_line_with_the_reason(tmp_path, name):
    root = str(tmp_path / "model")
    write_model(Path(root), name)
    formats = ["diffusers"] if name in ONNX else ["diffusers", "onnx"]
    for kind in formats:
        with pytest.raises(
            ConfigError, match=f"does not fit the format {kind}: .+; use "
        ) as caught:
            export_model(root, str(tmp_path / "out"), kind)
        assert str(caught.value).isprintable()
    assert not (tmp_path / "out").exists()


def test_other_work_is_not_overwritten(tmp_path):
    for number, name in enumerate(("gan", "vae")):
        write_model(tmp_path / name, name)
        if number == 0:
            export_model(str(tmp_path / name), str(tmp_path / "out"), "onnx")
    with pytest.raises(ConfigError, match="contains an export made from other inputs"):
        export_model(str(tmp_path / "vae"), str(tmp_path / "out"), "onnx")


def test_a_damaged_model_is_not_exported(tmp_path):
    write_model(tmp_path / "model", "gan")
    weights = tmp_path / "model" / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=r"ema\.safetensors"):
        export_model(str(tmp_path / "model"), str(tmp_path / "out"), "onnx")


def test_a_missing_package_is_named_before_any_work(tmp_path, monkeypatch):
    import importlib.util

    write_model(tmp_path / "model", "gan")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnx" else found(name)
    )
    with pytest.raises(ConfigError, match="package onnx; install genmod with its extra 'export'"):
        export_model(str(tmp_path / "model"), str(tmp_path / "out"), "onnx")


def test_the_manifest_is_plain_json(tmp_path):
    write_model(tmp_path / "model", "diffusion")
    export_model(str(tmp_path / "model"), str(tmp_path / "out"), "onnx")
    manifest = json.loads((tmp_path / "out" / "export.json").read_text())
    assert manifest["metadata"]["inputs"] == ["x", "sigma", "label"]
    assert set(manifest["metadata"]["versions"]) == {"torch", "onnx", "onnxruntime"}
