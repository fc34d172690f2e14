"""The one reader of tensors that another process, another machine or another user may have written.

A file in the safetensors format contains no code: a header names each tensor with its type, shape and place.
The header is compared with the tensors that are expected before any memory is allocated for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from genmod.documents import parse_json
from genmod.errors import DataError, sanitize

_LENGTH_BYTES = 8
"""A file starts with the length of its header, little endian."""

_HEADER_BYTES = 1 << 12
"""More than the header of a file needs for a tensor: its name, type, shape and place."""

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of types in a header."""


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Encode tensors as a safetensors file."""
    on_cpu = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    return safetensors.save(on_cpu)


def parse_tensors(
    data: bytes, expected: Mapping[str, Tensor], where: str, remedy: str
) -> dict[str, Tensor]:
    """Decode a safetensors file to tensors on the CPU: exactly the expected ones, with finite values.

    Args:
        data: the file.
        expected: tensors with the same names, types and shapes; their values and device do not matter.
        where: name of the file, for the error.
        remedy: what the user can do, the end of the error.

    Raises:
        DataError: the file is none, or has other tensors; names the file and the first wrong tensor.
    """
    header = _header(data, where, remedy)
    for name in [*header, *expected]:
        if name not in expected:
            problem = f"tensor {sanitize(name)[:200]}, which its net does not have"
        elif name not in header:
            problem = f"no tensor {name}"
        else:
            got, wants = header[name], (_DTYPES[expected[name].dtype], list(expected[name].shape))
            if got == wants:
                continue
            problem = f"tensor {name} of {_text(*got)}, expected {_text(*wants)}"
        raise DataError(f"{where} has {problem}; {remedy}")
    try:
        tensors = safetensors.load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise _malformed(where, str(error), remedy) from None
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise DataError(f"{where}: tensor {name} has NaN or infinite values; {remedy}")
    return tensors


def check_file_size(
    size_bytes: int, expected: Mapping[str, Tensor], where: str, remedy: str
) -> None:
    """Check the declared size of a safetensors file before it is read. DataError if it has other tensors."""
    values_bytes = sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
    if size_bytes > values_bytes + _HEADER_BYTES * (1 + len(expected)):
        raise DataError(
            f"{where} has {size_bytes:,} bytes, but its net has {values_bytes:,}; {remedy}"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite. Reads the tensor once and allocates nothing."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    low, high = tensor.aminmax()  # NaN if any value is
    return bool(low.isfinite() & high.isfinite())


def _header(data: bytes, where: str, remedy: str) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of each tensor in a file."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if not 0 < length <= len(data) - _LENGTH_BYTES:
        problem = f"{len(data):,} bytes, but its header declares {length:,}"
        raise _malformed(where, problem, remedy)
    text = data[_LENGTH_BYTES : _LENGTH_BYTES + length].rstrip(b" ")
    header: Any = parse_json(text, f"{where} (header)", remedy)
    if not isinstance(header, dict):
        raise _malformed(where, "its header is no JSON object", remedy)
    entries = cast(dict[str, Any], header)
    entries.pop("__metadata__", None)
    found: dict[str, tuple[str, list[int]]] = {}
    for name, entry in entries.items():
        match entry:
            case {"dtype": str(dtype), "shape": list(shape)} if all(
                map(_is_size, cast(Any, shape))
            ):
                found[name] = dtype, cast(list[int], shape)
            case _:
                problem = f"its header has no type and shape of {sanitize(name)[:200]}"
                raise _malformed(where, problem, remedy)
    return found


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _text(dtype: str, shape: list[int]) -> str:
    sizes = "x".join(str(size) for size in shape[:8]) + ("..." if len(shape) > 8 else "")
    return f"{sanitize(dtype)[:20]} {sizes or 'scalar'} ({math.prod(shape[:8]):,} values)"


def _malformed(where: str, problem: str, remedy: str) -> DataError:
    return DataError(f"{where} is not a safetensors file ({sanitize(problem)[:200]}); {remedy}")
