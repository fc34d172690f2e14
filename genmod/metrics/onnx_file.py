"""A net in an ONNX file that the user names: its settings, its digest, and what it may contain.

The file is run by onnxruntime, whose reader is native code, so before that its digest is compared with the
recipe's and its structure is walked here: a whole protobuf message of bounded length without references to
other files. The numbers of fields are those of onnx.proto3, IR version 3 to 13.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from genmod import storage
from genmod.budget import BUDGET, ReadBudget
from genmod.config import Config
from genmod.errors import ConfigError, DataError
from genmod.manifest import FileEntry, read_checked
from genmod.manifest.schema import Sha256

INCEPTION_FEATURES = 2048
"""Features D of Inception's last pooling layer, in which a Fréchet distance is called FID."""


class OnnxSpace(Config):
    """The net of a feature space, and what it is given; part of the feature space's digest."""

    sha256: Sha256
    """SHA-256 of the file, 64 hexadecimal digits (``sha256sum FILE``); another file is refused."""
    output: storage.Title | None = None
    """Name of the output with the features; null for the only one."""
    size: Annotated[int, Field(ge=1, le=2048)] = 299
    """Height and width of the net's input; Inception has 299, DINOv2 224."""
    scaling: Literal["0..255", "0..1", "-1..1", "imagenet"] = "0..1"
    """Range of the net's input; ``imagenet``: 0..1, then normalised by ImageNet's mean and std."""
    resize: Literal["bilinear", "bicubic"] = "bicubic"
    """Interpolation to that size, always antialiased; values are cut at 0 and 255, and not rounded."""
    called: Literal["FID"] | None = Field(default=None, exclude_if=lambda name: name is None)
    """``FID`` states that the file is the Inception of FID: the report then says FID and the file's digest,
    instead of Fréchet distance. The net must have 2,048 features."""


class OnnxConfig(OnnxSpace):
    """The recipe's ``evaluate.features.onnx``: a net in a file."""

    file: storage.Url
    """URL or path of the ONNX file, without external data."""

    @property
    def space(self) -> OnnxSpace:
        """The settings without the file's place."""
        return OnnxSpace.model_validate(self.model_dump(exclude={"file"}))


def read_onnx(config: OnnxConfig, budget: ReadBudget = BUDGET) -> bytes:
    """The bytes of the recipe's file, whose digest was compared.

    Raises:
        ConfigError: there is no such file, or it has another digest.
        DataError: it is larger than the budget.
    """
    try:
        data = storage.read_bytes(config.file, budget.onnx_bytes)
    except FileNotFoundError:
        raise ConfigError(
            f"recipe: evaluate.features.onnx.file: there is no {config.file}; correct the URL"
        ) from None
    if (digest := storage.sha256(data)) != config.sha256:
        raise ConfigError(
            f"{config.file}: weights of another digest: sha256 {digest}, but the recipe's "
            f"evaluate.features.onnx.sha256 is {config.sha256}; name the right file, or its digest"
        )
    return data


def read_named(
    root: str, entry: FileEntry, space: OnnxSpace, named: OnnxConfig | None, remedy: str
) -> bytes:
    """The bytes of a net in a features folder, if the recipe names this very net.

    Args:
        root: the folder.
        entry: the net in its manifest.
        space: its settings in the folder.
        named: the recipe's settings; None if it names no net.
        remedy: what the user can do, the end of an error.

    Raises:
        DataError: the recipe names another net or none, or the file is damaged.
    """
    where = f"{root}/{entry.path}"
    if named is None or named.space != space or entry.sha256 != space.sha256:
        raise DataError(f"{where}: not the net of evaluate.features.onnx; {remedy}")
    BUDGET.check(where, remedy, onnx_bytes=entry.size_bytes)
    return read_checked(root, entry, remedy)


_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""Message -> number of a field -> the message in it, of all messages that lead to tensors."""

_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
"""Fields of a tensor; the latter is 0 for data in the file."""

_VARINT, _BYTES = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}
"""Wire type -> bytes of a value."""


def check_onnx(data: bytes, where: str, remedy: str, budget: ReadBudget = BUDGET) -> None:
    """Check that a file is a whole ONNX model that refers to no other file.

    Args:
        data: the file.
        where: name of the file, for the error.
        remedy: what the user can do, the end of the error.
        budget: limits of fields and nesting.

    Raises:
        DataError: it is cut off, no ONNX model, nested too deep, or has external data.
    """
    fields, graphs = 0, 0
    parts = [("model", 0, len(data), 0)]
    while parts:
        message, begin, end, depth = parts.pop()
        budget.check(where, remedy, nesting=depth)
        for number, wire_type, start, value in _fields(data, begin, end, where, remedy):
            fields += 1
            budget.check(where, remedy, onnx_fields=fields)
            if message == "tensor" and (
                number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value)
            ):
                raise DataError(
                    f"{where}: its weights are in other files (external data), which are not read; export "
                    "it as one file"
                )
            inner = _PARTS[message].get(number)
            if inner and wire_type == _BYTES:
                graphs += inner == "graph"
                parts.append((inner, start, start + value, depth + 1))
    if not graphs:
        raise DataError(f"{where}: not an ONNX model: it has no graph; {remedy}")


def _fields(
    data: bytes, begin: int, end: int, where: str, remedy: str
) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, start and value (of bytes: length) of each field of a message."""
    at = begin
    while at < end:
        tag, at = _varint(data, at, end, where, remedy)
        number, wire_type = tag >> 3, tag & 7
        value, start = 0, at
        if wire_type in _FIXED_BYTES:
            at += _FIXED_BYTES[wire_type]
        elif wire_type in (_VARINT, _BYTES):
            value, start = _varint(data, at, end, where, remedy)
            at = start + value if wire_type == _BYTES else start
        if not number or wire_type not in (_VARINT, _BYTES, *_FIXED_BYTES) or at > end:
            raise _broken(where, remedy)
        yield number, wire_type, start, value


def _varint(data: bytes, at: int, end: int, where: str, remedy: str) -> tuple[int, int]:
    """A number of at most 64 bits, and where the next value starts."""
    value = 0
    for place in range(10):
        if at + place >= end:
            break
        byte = data[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise _broken(where, remedy)


def _broken(where: str, remedy: str) -> DataError:
    return DataError(f"{where}: not a whole ONNX model; {remedy}")
