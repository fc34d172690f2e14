"""Small sources of every kind, as a user may download them from elsewhere."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.genmod.data.builders import encode, write_tar

SOURCES = {
    "npz": "npz:{0}/arrays.npz",
    "idx": "idx:{0}/idx",
    "parquet": "parquet:{0}/rows.parquet",
    "webdataset": "webdataset:{0}/part-{{0..1}}.tar",
    "folder": "folder:{0}/small",
}
"""Kind -> its text in a recipe; ``{0}`` is the folder."""


def write_sources(folder: Path) -> None:
    """Write one source of each kind, of 12 images of 8 x 8 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8)
    labels = np.arange(12) % 3
    np.savez(folder / "arrays.npz", images=pixels, labels=labels)
    (folder / "idx").mkdir()
    for name, values in (("train-images-idx3-ubyte", pixels), ("train-labels-idx1-ubyte", labels)):
        head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
        (folder / "idx" / name).write_bytes(head + values.astype(np.uint8).tobytes())
    images = [encode(image) for image in pixels]
    table = pa.table({"image": [{"bytes": i, "path": None} for i in images], "label": labels})
    pq.write_table(table, folder / "rows.parquet")
    for number in range(2):
        members = [(f"s{number}{i:02d}.png", images[6 * number + i]) for i in range(6)]
        write_tar(folder / f"part-{number}.tar", members)
    small = folder / "small" / "x"
    small.mkdir(parents=True)
    kinds = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
    for kind in kinds:
        stream = io.BytesIO()
        Image.fromarray(pixels[0]).save(stream, kind)
        (small / f"image.{kind.lower()}").write_bytes(stream.getvalue())
