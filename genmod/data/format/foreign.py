"""Images from outside: decode them with all checks, and convert them to the shape of a dataset.

What a header declares is checked before pixels are allocated. Letters: H height, W width, C channels.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from genmod.budget import BUDGET
from genmod.data.format.corruption import count_scans, declared_bits, declared_size, find_corruption
from genmod.data.format.magic import HEAD_BYTES, unread_format
from genmod.manifest import ImageSpec

Resize = Literal["none", "fit", "crop", "pad"]

_Read = TypeVar("_Read")

_ORIENTATION = 0x0112
"""EXIF tag of the orientation of an image."""

EXTENSIONS = ("png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff", "pgm", "ppm", "pbm")
"""File name extensions of images, in lower case."""

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""Formats that Pillow may use to read untrusted images."""

_DECODE_BYTES = 24
"""Memory per pixel of an image from outside: the decoder's buffers, and the copies of its conversion."""

_RESIZE_BYTES = 16
"""Memory per pixel of the dataset's shape: Pillow's image and the copies of its pixels."""


class Rejected(Exception):
    """Reason why an input cannot be used. The input is quarantined; the other inputs are not affected."""


def accepted_pixels(spec: ImageSpec, resize: Resize) -> int:
    """Pixels of the largest image that is decoded: without resizing, those of the dataset's shape."""
    return spec.height * spec.width if resize == "none" else BUDGET.pixels


def conversion_bytes(pixels: int, spec: ImageSpec) -> int:
    """Memory that :func:`decode_foreign` and :func:`to_spec` need for an image of this many pixels."""
    return _DECODE_BYTES * pixels + _RESIZE_BYTES * spec.height * spec.width


def decode_foreign(data: bytes, exactly: ImageSpec | None = None) -> NDArray[np.uint8]:
    """Decode an untrusted image to uint8 pixels (H, W) or (H, W, 3), rotated by its EXIF orientation.

    Args:
        data: the encoded image.
        exactly: spec of the only shape that is wanted; an image of more pixels is not decoded.

    Raises:
        Rejected: not an image, corrupt, too large, animated, or not representable as 8-bit grey or RGB.
    """
    return _guarded(data, lambda: _decode(data, exactly))


def probe_foreign(data: bytes) -> tuple[int, int, int]:
    """Read (H, W, C) of an untrusted image from its header, as :func:`decode_foreign` would return it.

    Raises:
        Rejected: not an image, too large, animated, or not representable as 8-bit grey or RGB.
    """
    return _guarded(data, lambda: _probe(data))


def _guarded(data: bytes, read: Callable[[], _Read]) -> _Read:
    """Run a decoder on untrusted bytes; whatever it raises becomes Rejected."""
    if not data:
        raise Rejected("an empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the checks in _decode reject what matters
            return read()
    except Rejected:
        raise
    except Image.DecompressionBombError as error:
        raise Rejected(f"declares too many pixels: {error}") from None
    except UnidentifiedImageError:
        unread = unread_format(data[:HEAD_BYTES])
        kind = f": {unread}, convert it to PNG or JPEG" if unread else ""
        raise Rejected(f"not a readable image{kind}") from None
    except Exception as error:  # decoders raise nearly any exception on hostile bytes
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise Rejected(f"corrupt image: {reason}") from None


def _probe(data: bytes) -> tuple[int, int, int]:
    if size := declared_size(data):
        _check_size(*size, None)
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        _check_size(*image.size, None)
        width, height = image.size
        if image.getexif().get(_ORIENTATION, 1) >= 5:  # turned by a quarter
            width, height = height, width
        return height, width, 1 if image.mode in ("1", "L", "LA") else 3


def _decode(data: bytes, exactly: ImageSpec | None) -> NDArray[np.uint8]:
    if size := declared_size(data):  # Pillow allocates pixels when it opens a WebP
        _check_size(*size, exactly)
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        _check_size(*image.size, exactly)
        # Phone cameras write a preview, depth or gain map behind the photo (CIPA DC-007); the first counts.
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise Rejected("has more than one frame")
        bits_C: Any = image.tag_v2.get(258, ()) if isinstance(image, TiffImageFile) else ()
        bits = max((declared_bits(data), *bits_C))
        if bits > 8:
            raise Rejected(f"{bits} bits per channel; convert it to 8")
        _check_scans(image, data)
        if problem := find_corruption(data):
            raise Rejected(f"corrupt image: {problem}")
        image.load()
        return np.asarray(_grey_or_rgb(ImageOps.exif_transpose(image)), dtype=np.uint8)


def _check_size(width: int, height: int, exactly: ImageSpec | None) -> None:
    if width * height > BUDGET.pixels:
        raise Rejected(f"declares {width}x{height} pixels, more than {BUDGET.pixels}")
    if exactly is not None and width * height > exactly.height * exactly.width:
        raise _other_size(height, width, exactly.height, exactly.width)


def _check_scans(image: Image.Image, data: bytes) -> None:
    """Check the passes over the pixels that decoding takes; a few bytes can declare another pass."""
    scans = count_scans(data)
    if isinstance(image, TiffImageFile):
        tags: Any = image.tag_v2
        strips = len(tags.get(273) or tags.get(324) or ())
        is_jpeg = tags.get(259) in (6, 7)
        if is_jpeg and (scans > 3 * strips or b"\xff\xc2" in data):
            raise Rejected("a TIFF with progressive JPEG; convert it to JPEG")
    elif data.startswith(b"\xff\xd8"):
        if scans > BUDGET.jpeg_scans:
            raise Rejected(f"has {scans} scans, more than {BUDGET.jpeg_scans}; save it again")
        if scans * image.width * image.height > BUDGET.scanned_pixels:
            raise Rejected(
                f"has {scans} scans of {image.width}x{image.height} pixels, more than "
                f"{BUDGET.scanned_pixels} in all; save it again, not progressive"
            )


def _other_size(height: int, width: int, expected_height: int, expected_width: int) -> Rejected:
    return Rejected(
        f"is {height}x{width}, expected {expected_height}x{expected_width}; "
        "set data.resize to fit, crop or pad"
    )


def _grey_or_rgb(image: Image.Image) -> Image.Image:
    """Convert to mode L or RGB without loss; an alpha channel must be fully opaque."""
    mode = image.mode
    if mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if mode == "1":
        return image.convert("L")
    if mode in ("P", "L", "RGB", "LA", "PA", "RGBA"):
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            raise Rejected("has transparent pixels; put it on a background")
        return rgba.convert("L" if mode in ("L", "LA") else "RGB")
    raise Rejected(f"has pixels of mode {mode}; convert it to 8-bit grey or RGB")


def to_spec(pixels: NDArray[np.uint8], spec: ImageSpec, resize: Resize) -> NDArray[np.uint8]:
    """Convert uint8 pixels (H, W) or (H, W, 1 or 3) to the shape and levels of a dataset, (H, W, C).

    Grey from RGB is ITU-R 601 luma. Scaling is Lanczos with antialiasing and precedes binarisation. Binary
    data with a draw seed stays grey.

    Raises:
        Rejected: the size differs and ``resize`` is none.
    """
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    size = (spec.height, spec.width)
    channels = 1 if pixels.ndim == 2 else 3
    if pixels.shape[:2] != size or channels > spec.channels:
        image = Image.fromarray(np.ascontiguousarray(pixels))
        if channels > spec.channels:
            image = image.convert("L")
        if pixels.shape[:2] != size:
            image = _scale(image, size, resize)
        pixels = np.asarray(image, dtype=np.uint8)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], spec.channels, axis=2)
    if spec.levels == 2 and spec.draw_seed is None:
        pixels = np.where(pixels >= 128, 255, 0).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def _scale(image: Image.Image, shape: tuple[int, int], resize: Resize) -> Image.Image:
    height, width = shape
    size, lanczos = (width, height), Image.Resampling.LANCZOS
    if resize == "none":
        raise _other_size(image.height, image.width, height, width)
    if resize == "fit":
        return image.resize(size, lanczos)
    if resize == "crop":
        return ImageOps.fit(image, size, lanczos)
    return ImageOps.pad(image, size, lanczos, color=0)
