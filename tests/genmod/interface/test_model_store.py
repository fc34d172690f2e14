"""Published models that are not what they say: refused with the file, before they are allocated."""

import json

import pytest
import torch
from safetensors import torch as safetensors

from genmod import storage
from genmod.errors import DataError
from genmod.interface.model import DataStats
from genmod.interface.model_store import (
    WEIGHTS,
    PublishedModel,
    classes_of,
    load_model,
    weights_bytes,
)
from genmod.interface.registry import ModelConfig, family
from genmod.manifest import FileEntry, ImageSpec, Manifest, publish, write_file

FAMILIES = ("diffusion", "flow", "gan", "vae")


def config_of(name):
    spec = ImageSpec(channels=1, height=8, width=8, classes=3)
    net = family(name).Config.tiny().model_dump(mode="json")
    return ModelConfig(family=name, net=net, spec=spec, stats=DataStats(mean=(0.0,), std=(0.5,)))


def published(root, name, config=lambda values: None, weights=lambda tensors: None):
    """Publish a tiny model with other files, and right digests."""
    model = config_of(name).build(1)
    values = config_of(name).model_dump(mode="json")
    changed = config(values)
    tensors = safetensors.load(weights_bytes(model))
    forged = weights(tensors)
    data = json.dumps(values).encode() if changed is None else changed
    files = [write_file(root, "config.json", data)]
    for file in WEIGHTS.values():
        data = safetensors.save(tensors) if forged is None else forged
        files.append(write_file(root, file, data))
    publish(root, Manifest(kind="model", fingerprint="f", files=tuple(files)))
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_is_loaded_as_it_was_written(name, tmp_path):
    model = published(str(tmp_path), name)
    loaded = load_model(str(tmp_path)).state_dict()
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())


def test_weights_of_another_size_are_not_read(tmp_path):
    data = json.dumps(config_of("vae").model_dump(mode="json")).encode()
    files = [write_file(str(tmp_path), "config.json", data)]
    with (tmp_path / "ema.safetensors").open("wb") as stream:
        stream.truncate(1 << 35)  # takes no space, and more memory than there is
    files.append(FileEntry(path="ema.safetensors", size_bytes=1 << 35, sha256="a" * 64))
    publish(str(tmp_path), Manifest(kind="model", fingerprint="f", files=tuple(files)))
    with pytest.raises(DataError, match=r"ema\.safetensors has 34,359,738,368 bytes, but its net"):
        load_model(str(tmp_path))


def first(tensors):
    return min(key for key, value in tensors.items() if value.is_floating_point() and value.numel())


def set_first(change):
    return lambda tensors: tensors.update({first(tensors): change(tensors[first(tensors)])})


WEIGHTS_BAD = {
    "NaN": (set_first(lambda t: t * float("nan")), "has NaN or infinite values"),
    "infinity": (set_first(lambda t: t + float("inf")), "has NaN or infinite values"),
    "float16": (set_first(lambda t: t.half()), "of F16"),
    "float64": (set_first(lambda t: t.double()), "of F64"),
    "shape": (set_first(lambda t: torch.zeros(5, 5, 5, 5, 5)), "5x5x5x5x5"),
    "missing": (lambda tensors: tensors.pop(first(tensors)) is None or None, "has no tensor"),
    "extra": (lambda tensors: tensors.update(other=torch.zeros(1)), "has tensor other"),
    "nothing": (lambda tensors: b"", "not a safetensors file"),
    "pickle": (lambda tensors: b"PK\x03\x04" + bytes(100), "not a safetensors file"),
}


@pytest.mark.parametrize("bad", WEIGHTS_BAD)
@pytest.mark.parametrize("name", FAMILIES)
def test_other_weights_are_refused(name, bad, tmp_path):
    weights, message = WEIGHTS_BAD[bad]
    published(str(tmp_path), name, weights=weights)
    with pytest.raises(DataError, match=message) as error:
        load_model(str(tmp_path))
    assert str(error.value).startswith(storage.join(str(tmp_path), "ema.safetensors"))
    assert str(error.value).endswith("remove the folder and train the model again")
    assert len(str(error.value).splitlines()) == 1


def net(**changes):
    return lambda values: values["net"].update(changes)


def spec(**changes):
    return lambda values: values["spec"].update(changes)


CONFIGS_BAD = {
    "not json": lambda values: b"{",
    "a list": lambda values: b"[]",
    "deep": lambda values: b"[" * 100_000,
    "no family": lambda values: values.pop("family") and None,
    "family is a number": lambda values: values.update(family=3),
    "other family": lambda values: values.update(family="os"),
    "unknown key": lambda values: values.update(other=1),
    "unknown option": net(other=1),
    "net is a list": lambda values: values.update(net=[1]),
    "wider": net(widths=[65536]),
    "many levels": net(widths=[8] * 1000),
    "10^9 blocks": net(blocks=10**9),
    "10^12 channels": net(widths=[10**12]),
    "channels are text": net(widths="all"),
    "10^6 pixels a side": spec(height=10**6, width=10**6),
    "32768 pixels a side": spec(height=1 << 15, width=1 << 15),
    "no height": spec(height=0),
    "10^12 classes": spec(classes=10**12),
    "no statistics": lambda values: values["stats"].update(mean=[], std=[]),
    "statistics are not finite": lambda values: json.dumps(values).replace("0.5", "NaN").encode(),
    "statistics overflow": lambda values: json.dumps(values).replace("0.5", "1e999").encode(),
}


@pytest.mark.parametrize("bad", CONFIGS_BAD)
@pytest.mark.parametrize("name", FAMILIES)
def test_another_configuration_is_refused(name, bad, tmp_path):
    """With the weights of the right one, so a net of other sizes is never allocated."""
    published(str(tmp_path), name, config=CONFIGS_BAD[bad])
    with pytest.raises(DataError) as error:
        load_model(str(tmp_path))
    assert str(error.value).startswith(str(tmp_path))
    assert str(error.value).endswith("remove the folder and train the model again")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("names", [3, [1, 2], ["a" * 2000], "abc", None, {"a": 1}])
def test_class_names_of_another_type_are_an_error(names, tmp_path):
    manifest = Manifest(kind="model", fingerprint="f", metadata={"class_names": names})
    with pytest.raises(DataError, match="class_names"):
        classes_of(PublishedModel(str(tmp_path), manifest, config_of("vae")))


def test_class_names_are_read():
    manifest = Manifest(kind="model", fingerprint="f", metadata={"class_names": ["a", "b"], "x": 1})
    assert classes_of(PublishedModel("m", manifest, config_of("vae"))).class_names == ("a", "b")
    without = Manifest(kind="model", fingerprint="f")
    assert classes_of(PublishedModel("m", without, config_of("vae"))).class_names == ()
