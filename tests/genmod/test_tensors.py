"""Tensors from files: only the expected ones, with finite values, checked before they are allocated."""

import json

import pytest
import torch

from genmod.errors import DataError
from genmod.tensors import is_finite, parse_tensors, tensor_bytes

EXPECTED = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "scale": torch.tensor(2.0),
    "empty": torch.zeros(0, 4),
    "count": torch.tensor([1, 2]),
}
DATA = tensor_bytes(EXPECTED)


def parse(data, expected=EXPECTED):
    return parse_tensors(data, expected, "a/model.safetensors", "train the model again")


def header(change, data=DATA):
    """The file with another header."""
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    change(entries)
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def with_tensor(name, tensor):
    return tensor_bytes({**EXPECTED, name: tensor})


def test_expected_tensors_are_read_as_they_were_written():
    tensors = parse(DATA, {name: tensor.to("meta") for name, tensor in EXPECTED.items()})
    assert tensors.keys() == EXPECTED.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, EXPECTED[name])
        assert tensor.dtype == EXPECTED[name].dtype


HUGE = [1 << 40, 1 << 40]
BAD = {
    "empty file": (b"", "not a safetensors file"),
    "short": (DATA[:40], "not a safetensors file"),
    "cut": (DATA[:-4], "not a safetensors file"),
    "more bytes": (DATA + b"more", "not a safetensors file"),
    "header of 2^60": ((1 << 60).to_bytes(8, "little") + DATA[8:], "its header declares 1,152,921"),
    "header of 0": (bytes(8) + DATA[8:], "not a safetensors file"),
    "no json": ((9).to_bytes(8, "little") + b"{{{{{{{{{", "not valid JSON"),
    "a list": ((2).to_bytes(8, "little") + b"[]", "no JSON object"),
    "no entry": (header(lambda h: h.update(weight=1)), "no type and shape of weight"),
    "shape is text": (
        header(lambda h: h["weight"].update(shape="2x3")),
        "no type and shape of weight",
    ),
    "negative": (header(lambda h: h["weight"].update(shape=[-2, -3])), "no type and shape"),
    "huge": (
        header(lambda h: h["weight"].update(shape=HUGE)),
        "tensor weight of F32 1099511627776x",
    ),
    "huge and empty": (
        header(lambda h: h["empty"].update(shape=[0, 1 << 63, 1 << 63])),
        "tensor empty of F32 0x",
    ),
    "overlap": (
        header(lambda h: h["weight"].update(data_offsets=[0, 24])),
        "not a safetensors file",
    ),
    "beyond the end": (
        header(lambda h: h["weight"].update(data_offsets=[1 << 50, (1 << 50) + 24])),
        "not a safetensors file",
    ),
    "no offsets": (header(lambda h: h["weight"].pop("data_offsets")), "not a safetensors file"),
    "unknown type": (header(lambda h: h["weight"].update(dtype="F4")), "of F4 2x3"),
    "float16": (
        with_tensor("weight", EXPECTED["weight"].half()),
        "of F16 2x3 .*, expected F32 2x3",
    ),
    "float64": (with_tensor("weight", EXPECTED["weight"].double()), "of F64 2x3"),
    "shape": (with_tensor("weight", torch.zeros(3, 2)), "of F32 3x2 .*, expected F32 2x3"),
    "missing": (tensor_bytes({"weight": EXPECTED["weight"]}), "has no tensor scale"),
    "extra": (
        with_tensor("other", torch.zeros(1)),
        "has tensor other, which its net does not have",
    ),
    "NaN": (with_tensor("scale", torch.tensor(float("nan"))), "tensor scale has NaN"),
    "infinity": (
        with_tensor("weight", torch.full((2, 3), float("-inf"))),
        "tensor weight has NaN or infinite",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_other_tensors_are_refused_with_file_and_name(bad):
    data, message = BAD[bad]
    with pytest.raises(DataError, match=message) as error:
        parse(data)
    assert str(error.value).startswith("a/model.safetensors")
    assert str(error.value).endswith("train the model again")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_one_value_that_is_not_finite_is_seen(value, dtype):
    for place in (0, 517, 999):
        tensor = torch.randn(1000).to(dtype)
        assert is_finite(tensor)
        tensor[place] = value
        assert not is_finite(tensor)
