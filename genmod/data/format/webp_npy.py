"""WebP without loss and NumPy's npy: one image each, of a shape that is known before anything is allocated.

Letters: H height, W width, C channels.
"""

from __future__ import annotations

import io
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from genmod.data.format.corruption import declared_size
from genmod.errors import DataError

MAX_WEBP_SIDE = 16_383
"""Height and width of a WebP (RFC 9649, section 3.4)."""

NPY_SIGNATURE = b"\x93NUMPY"

_LONGEST_HEADER = 30
"""Bytes of a WebP that contain its declared size."""

_WEBP_METHOD, _WEBP_EFFORT = 4, 50
"""Settings of libwebp's lossless encoder, which change size and time only."""

_NPY_ALIGNMENT = 64
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '\|u1', 'fortran_order': False, "
    rb"'shape': \(([0-9]{1,6}), ([0-9]{1,6}), ([0-9]{1,6})\), \} {0,200}\n",
    re.DOTALL,
)
"""The header of version 1.0 (numpy.lib.format) of an array (H, W, C) of uint8, as NumPy writes it."""


def is_webp(blob: bytes) -> bool:
    """Whether the first bytes are those of a WebP."""
    return blob[:4] == b"RIFF" and blob[8:12] == b"WEBP"


def encode_webp(image_HWC: NDArray[np.uint8]) -> bytes:
    """Encode a uint8 image (H, W, 1 or 3) as WebP without loss; grey becomes three equal channels."""
    if image_HWC.shape[2] == 1:
        image_HWC = np.repeat(image_HWC, 3, axis=2)
    stream = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(image_HWC))
    image.save(stream, "WEBP", lossless=True, quality=_WEBP_EFFORT, method=_WEBP_METHOD)
    return stream.getvalue()


def decode_webp(blob: bytes, image_HWC: NDArray[np.uint8]) -> None:
    """Decode a WebP into an array.

    Raises:
        DataError: not a WebP of one opaque picture of the array's shape; into one channel, not grey.
    """
    height, width, channels = image_HWC.shape
    # Pillow allocates pixels when it opens a WebP, so the size is read before.
    declared = declared_size(blob.ljust(_LONGEST_HEADER, b"\x00"))
    if declared != (width, height):
        raise DataError(f"a WebP of (width, height) {declared}, expected {(width, height)}")
    try:
        with Image.open(io.BytesIO(blob), formats=("WEBP",)) as image:
            size, mode, is_animated = image.size, image.mode, getattr(image, "is_animated", False)
            if size == declared and mode == "RGB" and not is_animated:
                pixels_HWC = np.asarray(image, dtype=np.uint8)
            else:
                pixels_HWC = None
    except Exception as error:  # decoders raise nearly any exception on hostile bytes
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise DataError(f"not a readable WebP ({reason})") from None
    if pixels_HWC is None:
        raise DataError(f"a WebP of mode {mode}, {size}; expected one opaque picture of {declared}")
    if channels == 1:
        if (pixels_HWC != pixels_HWC[:, :, :1]).any():
            raise DataError("a WebP with colours, expected grey")
        pixels_HWC = pixels_HWC[:, :, :1]
    image_HWC[:] = pixels_HWC


def npy_head(shape: tuple[int, ...]) -> bytes:
    r"""The header of an npy file of a uint8 array, padded so that the pixels are aligned.

    >>> len(npy_head((28, 28, 1)))
    128
    """
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    start = len(NPY_SIGNATURE) + 4
    padding = -(start + len(text) + 1) % _NPY_ALIGNMENT
    text += " " * padding + "\n"
    return NPY_SIGNATURE + b"\x01\x00" + len(text).to_bytes(2, "little") + text.encode("ascii")


def decode_npy(blob: bytes, image_HWC: NDArray[np.uint8]) -> None:
    """Decode an npy file of a uint8 array into an array of the same shape. Nothing is unpickled.

    Raises:
        DataError: another header than NumPy writes for such an array, or another number of bytes.
    """
    head = _NPY.match(blob)
    if head is None or int.from_bytes(head[1], "little") != head.end() - len(NPY_SIGNATURE) - 4:
        raise DataError("not an npy file of uint8 (height, width, channels)")
    shape = tuple(int(side) for side in head.groups()[1:])
    if shape != image_HWC.shape:
        raise DataError(f"an npy file of shape {shape}, expected {image_HWC.shape}")
    if len(blob) - head.end() != image_HWC.size:
        raise DataError(
            f"an npy file of {len(blob) - head.end()} bytes of pixels, expected {image_HWC.size}"
        )
    image_HWC[:] = np.frombuffer(blob, np.uint8, offset=head.end()).reshape(image_HWC.shape)
