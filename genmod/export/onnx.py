"""A network as an ONNX file, and the check that onnxruntime computes the same with it.

torch's newer exporter (``dynamo=True``) fixes the batch size of our nets, so the older one is used, which
follows one forward pass. What it makes is compared at several batch sizes.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genmod.errors import ConfigError, GenmodError, sanitize
from genmod.interface.portable import PortableNet
from genmod.rng import rng_for

OPSET = 17
"""Version of ONNX's operators, which onnxruntime knows since 1.13 (2022)."""

TOLERANCE = 1e-5
"""Largest difference from our result, relative to the largest value of it, or absolute if that is below 1."""

OUTPUT = "image"

_BATCHES = (1, 2, 7)
"""Sizes of the batches that are compared; none is the one that the exporter follows."""

_TRACED = 3
_MAX_BYTES = (1 << 31) - (1 << 20)
"""An ONNX file is a protobuf message, which has at most 2 GiB."""

_PURPOSE = "export"
_REASON_CHARS = 200


def require_packages() -> None:
    """Raise ConfigError unless the packages that an export needs are installed."""
    for name in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"export needs the package {name}; install genmod with its extra 'export'"
            )


def onnx_bytes(portable: PortableNet) -> bytes:
    """The network as an ONNX file, float32 on the CPU, with a batch axis of any size.

    Raises:
        ConfigError: the network is too large for the format.
        GenmodError: torch cannot express it.
    """
    parameters = portable.net.state_dict().values()
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in parameters)
    if size_bytes > _MAX_BYTES:
        raise ConfigError(
            f"the net has {size_bytes:,} bytes, but an ONNX file has at most {_MAX_BYTES:,}; "
            "use genmod sample"
        )
    names = [each.name for each in portable.inputs]
    with _plain_operators(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "network.onnx")
        try:
            torch.onnx.export(
                portable.net.eval(),
                _inputs(portable, _TRACED),
                file,
                dynamo=False,
                opset_version=OPSET,
                input_names=names,
                output_names=[OUTPUT],
                dynamic_axes={name: {0: "batch"} for name in (*names, OUTPUT)},
            )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            raise GenmodError(f"torch cannot express the net in ONNX: {_reason(error)}") from None
        return file.read_bytes()


def largest_difference(data: bytes, portable: PortableNet) -> float:
    """Largest difference between onnxruntime's images and ours, relative as :data:`TOLERANCE` says.

    Raises:
        GenmodError: onnxruntime refuses the file, or its images have another shape.
    """
    session = _session(data)
    worst = 0.0
    for size in _BATCHES:
        inputs = _inputs(portable, size)
        with torch.no_grad():
            expected_BCHW = portable.net(*inputs).numpy()
        named = {
            each.name: values.numpy() for each, values in zip(portable.inputs, inputs, strict=True)
        }
        try:
            (got_BCHW,) = session.run([OUTPUT], named)
        except Exception as error:  # onnxruntime's errors have no common base
            raise GenmodError(
                f"onnxruntime cannot run the net on {size} images: {_reason(error)}"
            ) from None
        if got_BCHW.shape != expected_BCHW.shape or got_BCHW.dtype != np.float32:
            raise GenmodError(
                f"onnxruntime's result is {got_BCHW.dtype} {got_BCHW.shape}, expected float32 "
                f"{expected_BCHW.shape}"
            )
        scale = max(1.0, float(np.abs(expected_BCHW).max()))
        difference = float(np.abs(got_BCHW.astype(np.float64) - expected_BCHW).max()) / scale
        worst = max(worst, difference) if np.isfinite(difference) else float("inf")
    return worst


@contextmanager
def _plain_operators() -> Generator[None]:
    """Makes networks use operators that ONNX has, and torch keep quiet about its older exporter."""
    exporter: Any = torch.onnx  # public, but not listed as such
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exporter.register_custom_op_symbolic("aten::softplus", _softplus, OPSET)
        try:
            # Our layers call the CPU's library where that is faster, unless it is off.
            with torch.backends.mkldnn.flags(enabled=False), torch.no_grad():
                yield
        finally:
            exporter.unregister_custom_op_symbolic("aten::softplus", OPSET)


def _inputs(portable: PortableNet, rows: int) -> tuple[Tensor, ...]:
    """Values of the inputs, other ones for each number of rows."""
    rng = rng_for(rows, _PURPOSE, range(rows))
    return tuple(each.draw(rng).contiguous() for each in portable.inputs)


def _session(data: bytes) -> Any:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 4
    try:
        return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base
        raise GenmodError(f"onnxruntime refuses the net: {_reason(error)}") from None


def _softplus(graph: Any, x: Any, beta: Any, threshold: Any) -> Any:
    """max(x, 0) + log(1 + exp(-|x|)): onnxruntime's own operator has no float64."""
    del beta, threshold  # 1 and 20 in all of our nets; the check finds others
    small = graph.op("Exp", graph.op("Neg", graph.op("Abs", x)))
    one = graph.op("Exp", graph.op("Sub", x, x))
    return graph.op("Add", graph.op("Relu", x), graph.op("Log", graph.op("Add", one, small)))


def _reason(error: Exception) -> str:
    return sanitize(" ".join(str(error).split())[:_REASON_CHARS])


def package_versions() -> dict[str, str]:
    """Versions of the packages that made and checked a file."""
    names = "torch", "onnx", "onnxruntime"
    return {name: str(importlib.import_module(name).__version__) for name in names}
