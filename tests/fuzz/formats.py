"""Encoded images of every format of a dataset's tars, and their reader."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np

from genmod import storage
from genmod.data.format.codecs import Codec
from genmod.data.format.encodings import Encoding, ImageEncoder, ImageFormat
from genmod.manifest import ImageSpec

SPECS = {
    "grey": ImageSpec(channels=1, height=8, width=8),
    "colour": ImageSpec(channels=3, height=8, width=11),
}
"""Start of a file's name -> the spec of its image."""


def write_formats(folder: Path) -> None:
    """Write one image of each format, grey and in colours."""
    for name, spec in SPECS.items():
        shape = (spec.height, spec.width, spec.channels)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        for kind in get_args(ImageFormat):
            encoding = Encoding(kind)
            image = ImageEncoder(spec, encoding).encode(pixels)
            storage.write_bytes(str(folder / f"{name}{encoding.suffix}"), image)


def read_format(folder: Path, name: str) -> None:
    """Decode the image of each format whose file starts with a name."""
    codec = Codec(SPECS[name])
    for kind in get_args(ImageFormat):
        data = storage.read_bytes(str(folder / f"{name}{Encoding(kind).suffix}"))
        pixels = codec.decode([data, data])
        assert pixels.shape == (2, *SPECS[name].shape)
