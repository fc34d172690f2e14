"""Image bytes to pixels and back. Foreign images are hostile until checked; our own PNGs are read fast.

Our PNG is the plainest there is: 8-bit grey or RGB, one IDAT chunk, filter 0 on every row. Its bytes are a
function of the pixels (and of the libdeflate that is installed). Letters: B batch, K some of them, C
channels, H height, W width.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyspng
import simplejpeg
from deflate import DeflateError, crc32, zlib_compress, zlib_decompress
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from genmod.data.format.corruption import declared_bits, find_corruption
from genmod.errors import DataError
from genmod.manifest import ImageSpec

Resize = Literal["none", "fit", "crop", "pad"]

MAX_PIXELS = 1 << 26
"""A foreign image that declares more is not decoded."""

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""What Pillow may be asked to read of foreign images."""

EXTENSIONS = ("png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff", "pgm", "ppm", "pbm")
"""File names that are taken for images."""

PNG_LEVEL = 3
"""libdeflate's effort: as large as zlib's 3 in half its time."""

GROUP_BYTES = 1 << 18
"""Pixels that are decoded together, before their axes change: they should stay in a core's cache."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_IDAT_AT, _BODY_AT, _AFTER_BODY = 33, 41, 4 + len(_END)


class Rejected(Exception):
    """An input that cannot be used, with the reason. It goes to quarantine, the others go on."""


def decode_foreign(data: bytes) -> NDArray[np.uint8]:
    """Pixels of an image from outside, (H, W) or (H, W, 3), turned as its EXIF says.

    Raises:
        Rejected: not an image, broken, too large, animated, or pixels that 8-bit grey or RGB cannot hold.
    """
    if not data:
        raise Rejected("an empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters is refused below
            return _decode(data)
    except Rejected:
        raise
    except Image.DecompressionBombError as error:
        raise Rejected(f"declares too many pixels: {error}") from None
    except UnidentifiedImageError:
        raise Rejected("not an image that can be read") from None
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise Rejected(f"broken image: {reason}") from None


def _decode(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_declared(image)
        bits_C: Any = image.tag_v2.get(258, ()) if isinstance(image, TiffImageFile) else ()
        bits = max((declared_bits(data), *bits_C))
        if bits > 8:
            raise Rejected(f"{bits} bits a channel; convert it to 8")
        if fault := find_corruption(data):
            raise Rejected(f"broken image: {fault}")
        image.load()
        return np.asarray(_grey_or_rgb(ImageOps.exif_transpose(image)), dtype=np.uint8)


def _check_declared(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Rejected(f"declares {width}x{height} pixels, more than {MAX_PIXELS}")
    if getattr(image, "is_animated", False):
        raise Rejected("has more than one frame")


def _grey_or_rgb(image: Image.Image) -> Image.Image:
    """As mode L or RGB without loss; transparency must be opaque throughout."""
    mode = image.mode
    if mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if mode == "1":
        return image.convert("L")
    if mode in ("P", "L", "RGB", "LA", "PA", "RGBA"):
        rgba = image.convert("RGBA")
        if np.asarray(rgba)[..., 3].min() < 255:
            raise Rejected("is transparent in places; put it on a background")
        return rgba.convert("L" if mode in ("L", "LA") else "RGB")
    raise Rejected(f"has pixels of mode {mode}; convert it to 8-bit grey or RGB")


def to_spec(pixels: NDArray[np.uint8], spec: ImageSpec, resize: Resize) -> NDArray[np.uint8]:
    """Pixels (H, W) or (H, W, 1 or 3) as the dataset wants them, (H, W, C).

    Grey from RGB is ITU-R 601 luma; scaling is Lanczos with antialiasing, before binarisation. Binary data
    that is drawn stays grey.

    Raises:
        Rejected: of another size, and ``resize`` is none.
    """
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    wanted = (spec.height, spec.width)
    channels = 1 if pixels.ndim == 2 else 3
    if pixels.shape[:2] != wanted or channels > spec.channels:
        image = Image.fromarray(np.ascontiguousarray(pixels))
        if channels > spec.channels:
            image = image.convert("L")
        if pixels.shape[:2] != wanted:
            image = _scale(image, wanted, resize)
        pixels = np.asarray(image, dtype=np.uint8)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], spec.channels, axis=2)
    if spec.levels == 2 and spec.draw_seed is None:
        pixels = np.where(pixels >= 128, 255, 0).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def _scale(image: Image.Image, wanted: tuple[int, int], resize: Resize) -> Image.Image:
    height, width = wanted
    size, lanczos = (width, height), Image.Resampling.LANCZOS
    if resize == "none":
        raise Rejected(
            f"is {image.height}x{image.width}, wanted {height}x{width}; "
            "set data.resize to fit, crop or pad"
        )
    if resize == "fit":
        return image.resize(size, lanczos)
    if resize == "crop":
        return ImageOps.fit(image, size, lanczos)
    return ImageOps.pad(image, size, lanczos, color=0)


def _chunk(kind: bytes, body: bytes | bytearray) -> bytes:
    check = crc32(body, crc32(kind))
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)


def _png_head(height: int, width: int, channels: int) -> bytes:
    """Signature and IHDR of our PNGs (W3C PNG, sec. 11.2.1): 33 bytes."""
    colour = 0 if channels == 1 else 2
    return _SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))


def _read_at_once(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An array for a JPEG decoder's pixels that are read again at once, not at a multiple of 32 bytes.

    libjpeg-turbo writes rows that begin at such a multiple past the cache (jdcolext-avx2.asm, ``vmovntdq``):
    decoding 32x32 images takes a fifth longer then.
    """
    bytes_B = np.empty(64 + math.prod(shape), dtype=np.uint8)
    begin = 16 - bytes_B.ctypes.data % 32
    return bytes_B[begin % 32 :][: math.prod(shape)].reshape(shape)


class Codec:
    """Writes and reads the images of one dataset, all of one shape. Not to be shared by threads."""

    def __init__(self, spec: ImageSpec) -> None:
        self.spec = spec
        self._head = _png_head(spec.height, spec.width, spec.channels)
        self._colours = "GRAY" if spec.channels == 1 else "RGB"
        self._row = 1 + spec.width * spec.channels
        self._raw = spec.height * self._row
        self._rows_HR = np.zeros((spec.height, self._row), dtype=np.uint8)
        self._group = max(1, GROUP_BYTES // spec.dims)
        shape = (self._group, spec.height, spec.width, spec.channels)
        self._group_KHWC = _read_at_once(shape)

    def encode(self, image_HWC: NDArray[np.uint8]) -> bytes:
        """PNG bytes of an image."""
        self._rows_HR[:, 1:] = image_HWC.reshape(self.spec.height, -1)
        body = zlib_compress(self._rows_HR.data, PNG_LEVEL)
        return b"".join((self._head, _chunk(b"IDAT", body), _END))

    def decode(self, blobs: Sequence[bytes]) -> NDArray[np.uint8]:
        """Pixels (B, C, H, W) of encoded images. Ours go a fast way, other PNGs and JPEGs a general one.

        Raises:
            DataError: a blob is not an image of this dataset's shape.
        """
        image_BCHW = np.empty((len(blobs), *self.spec.shape), dtype=np.uint8)
        for first in range(0, len(blobs), self._group):
            some = slice(first, first + self._group)
            image_BCHW[some] = self._decode_some(blobs[some]).transpose(0, 3, 1, 2)
        return image_BCHW

    def _decode_some(self, blobs: Sequence[bytes]) -> NDArray[np.uint8]:
        """A group of images, (K, H, W, C); its memory is used again by the next group."""
        spec, ours = self.spec, self._ours(blobs)
        group_KHWC, others = self._group_KHWC[: len(blobs)], range(len(blobs))
        if ours:
            rows_KHR, which = self._inflate(blobs, ours)
            image_KHWC = rows_KHR[:, :, 1:].reshape(-1, spec.height, spec.width, spec.channels)
            if len(which) == len(blobs):
                return image_KHWC
            group_KHWC[which] = image_KHWC
            others = sorted(set(others).difference(which))
        self._decode_others([blobs[k] for k in others], [group_KHWC[k] for k in others])
        return group_KHWC

    def _inflate(
        self, blobs: Sequence[bytes], ours: Sequence[int]
    ) -> tuple[NDArray[np.uint8], list[int]]:
        """Rows, each after a filter byte of 0, of those PNGs of ours that are whole, and which they are."""
        which, raws = list[int](), list[bytearray]()
        for b in ours:
            try:
                raw = zlib_decompress(memoryview(blobs[b])[_BODY_AT:-_AFTER_BODY], self._raw)
            except DeflateError:  # broken, or longer than its image; the general way says which
                continue
            if len(raw) == self._raw:
                which.append(b)
                raws.append(raw)
        rows_KHR = np.frombuffer(b"".join(raws), dtype=np.uint8)
        rows_KHR = rows_KHR.reshape(len(raws), self.spec.height, self._row)
        is_plain_K = ~rows_KHR[:, :, 0].any(axis=1)
        if is_plain_K.all():
            return rows_KHR, which
        return rows_KHR[is_plain_K], [which[k] for k in np.flatnonzero(is_plain_K).tolist()]

    def _ours(self, blobs: Sequence[bytes]) -> list[int]:
        """Those that begin and end as our PNGs do, with one chunk in between."""
        head, least = self._head, _BODY_AT + _AFTER_BODY
        return [
            b
            for b, blob in enumerate(blobs)
            if blob.startswith(head)
            and blob.startswith(b"IDAT", _BODY_AT - 4)
            and blob.endswith(_END)
            and int.from_bytes(blob[_IDAT_AT : _IDAT_AT + 4]) == len(blob) - least
        ]

    def _decode_others(
        self, blobs: Sequence[bytes], images_HWC: Sequence[NDArray[np.uint8]]
    ) -> None:
        """JPEGs and other PNGs, each into its array."""
        jpeg, colours = simplejpeg.decode_jpeg, self._colours
        shape = (self.spec.height, self.spec.width, self.spec.channels)
        try:
            for blob, image_HWC in zip(blobs, images_HWC, strict=True):
                if blob.startswith(_SIGNATURE):
                    self._decode_png(blob, image_HWC)
                elif (got := jpeg(blob, colours, False, False, 0, 0, 1, image_HWC).shape) != shape:
                    raise DataError(f"image of {got}, wanted {self.spec}")
        except (ValueError, RuntimeError, struct.error) as error:
            raise DataError(f"neither a PNG nor a JPEG that can be read ({error})") from None

    def _decode_png(self, blob: bytes, image_HWC: NDArray[np.uint8]) -> None:
        width, height = struct.unpack(">II", blob[16:24])
        if (height, width) != image_HWC.shape[:2]:
            raise DataError(f"image of {height}x{width}, wanted {self.spec}")
        found = np.atleast_3d(pyspng.load(blob))
        if found.dtype != np.uint8 or found.shape != image_HWC.shape:
            raise DataError(f"image of {found.dtype} {found.shape}, wanted {self.spec}")
        image_HWC[:] = found
