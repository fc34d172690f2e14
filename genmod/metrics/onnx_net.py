"""Features of a net in an ONNX file, by onnxruntime on the CPU.

The net sees RGB images; grey ones are repeated. They are resized by torch's antialiased interpolation, in
float32 on values 0..255, and then scaled. Features are not scaled, as a published Fréchet distance demands.
Letters: B batch, C channels, H height, W width, D features.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genmod import units
from genmod.errors import ConfigError, DataError, sanitize
from genmod.metrics.extractors import Network
from genmod.metrics.onnx_file import INCEPTION_FEATURES, OnnxSpace, check_onnx

_ROWS = 32
"""Images that go through the net together."""

_MOST_FEATURES = 8192
"""Most features D; metrics need matrices of D x D."""

_REASON_CHARS = 200
"""Characters of a reason by onnxruntime that an error shows."""

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's channels, of values 0..1."""


class OnnxNetwork(Network):
    """A net of fixed weights.

    Args:
        data: the ONNX file.
        space: output, size and scaling.
        where: name of the file, for errors.
        remedy: what the user can do, the end of an error.

    Raises:
        ConfigError: onnxruntime is not installed, or the settings do not fit the net.
        DataError: the file is no ONNX model, or one that onnxruntime refuses.
    """

    def __init__(self, data: bytes, space: OnnxSpace, where: str, remedy: str) -> None:
        super().__init__()
        self.data, self.space, self.where = data, space, where
        check_onnx(data, where, remedy)
        self._session = _session(data, where, remedy)
        self._input = self._only_input()
        self._output = self._output_name()
        first = self._input.shape[0] if self._input.shape else None
        if first != 1 and isinstance(first, int):
            raise ConfigError(
                f"{where}: its input has a fixed batch of {first}; export it with a dynamic first axis"
            )
        self._rows = 1 if first == 1 else _ROWS
        features = self._run(torch.zeros(1, 3, space.size, space.size)).shape[1]
        if not 1 <= features <= _MOST_FEATURES:
            raise ConfigError(
                f"{where}: output {self._output} has {features:,} features, expected at most "
                f"{_MOST_FEATURES:,}; name another in evaluate.features.onnx.output"
            )
        if space.called and features != INCEPTION_FEATURES:
            raise ConfigError(
                f"{where}: output {self._output} has {features:,} features, so its distance is not called "
                f"{space.called}, which has {INCEPTION_FEATURES:,}; remove evaluate.features.onnx.called"
            )

    def raw_BD(self, x_BCHW: Tensor) -> Tensor:
        """The net's output for each image. DataError if a feature is not finite."""
        parts = [self._run(self.input_of(part_BCHW)) for part_BCHW in x_BCHW.split(self._rows)]
        raw_BD = torch.cat(parts)
        if not raw_BD.isfinite().all():
            raise DataError(f"{self.where}: features that are not finite; check the scaling")
        return raw_BD

    def classes_B(self, raw_BD: Tensor) -> None:
        """None: the net's classes are not those of the data."""
        return

    def input_of(self, x_BCHW: Tensor) -> Tensor:
        """(B, 3, size, size) resized and scaled RGB images, of images in [-1, 1]."""
        x_BCHW = units.to_pixels(x_BCHW).to(torch.float32).expand(-1, 3, -1, -1)
        size = (self.space.size, self.space.size)
        if x_BCHW.shape[2:] != size:
            x_BCHW = F.interpolate(x_BCHW, size, mode=self.space.resize, antialias=True).clamp(
                0, 255
            )
        if self.space.scaling == "0..255":
            return x_BCHW
        if self.space.scaling == "-1..1":
            return x_BCHW / 127.5 - 1
        x_BCHW = x_BCHW / 255
        if self.space.scaling == "0..1":
            return x_BCHW
        mean_C11, std_C11 = (torch.tensor(values)[:, None, None] for values in _IMAGENET)
        return (x_BCHW - mean_C11) / std_C11

    def _only_input(self) -> Any:
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)":
            kinds = sanitize(", ".join(f"{one.name}: {one.type}" for one in inputs))
            raise ConfigError(
                f"{self.where}: expected one input of float32 images, got {kinds or 'none'}; export the net "
                "without the others"
            )
        return inputs[0]

    def _output_name(self) -> str:
        names = [str(one.name) for one in self._session.get_outputs()]
        name = self.space.output or names[0]
        if name not in names or (self.space.output is None and len(names) > 1):
            raise ConfigError(
                f"{self.where}: evaluate.features.onnx.output is {self.space.output}, expected one of "
                f"{sanitize(', '.join(names))}"
            )
        return name

    def _run(self, x_BCHW: Tensor) -> Tensor:
        """(B, D) outputs, of (B, D) or (B, D, 1, 1). ConfigError if the net refuses the input."""
        try:
            outputs = self._session.run([self._output], {self._input.name: x_BCHW.numpy()})
        except Exception as error:  # onnxruntime's errors have no common base
            raise ConfigError(
                f"{self.where}: the net refuses images of {tuple(x_BCHW.shape)}: {_reason(error)}; check "
                "evaluate.features.onnx.size"
            ) from None
        values = np.asarray(outputs[0], dtype=np.float32)
        if values.ndim < 2 or values.shape[0] != len(x_BCHW) or set(values.shape[2:]) - {1}:
            raise ConfigError(
                f"{self.where}: output {self._output} has the shape {values.shape} for {len(x_BCHW)} images, "
                "expected a row of features for each; name another in evaluate.features.onnx.output"
            )
        return torch.from_numpy(values.reshape(len(values), -1).copy())


def require_runtime() -> Any:
    """The module onnxruntime. ConfigError if it is not installed."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError:
        raise ConfigError(
            "evaluate.features.kind is 'onnx', which needs the package onnxruntime; install genmod with its "
            "extra 'onnx'"
        ) from None


def _session(data: bytes, where: str, remedy: str) -> Any:
    """The file as a session of onnxruntime: CPU, as many threads as torch has, errors as exceptions alone."""
    runtime = require_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base
        raise DataError(
            f"{where}: onnxruntime refuses the net: {_reason(error)}; {remedy}"
        ) from None


def _reason(error: Exception) -> str:
    return sanitize(" ".join(str(error).split())[:_REASON_CHARS])
