"""The images of shards: write our PNGs, and read them fast; read JPEG, WebP and npy too.

Our PNGs have the simplest layout: 8-bit grey or RGB, one IDAT chunk, filter 0 on every row. Their bytes are a
function of the pixels (and of the installed libdeflate). Letters: B batch, K group of a batch, C channels,
H height, W width, R bytes of a row.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np
import pyspng
import simplejpeg
from deflate import DeflateError, crc32, zlib_compress, zlib_decompress
from numpy.typing import NDArray

from genmod.data.format.webp_npy import NPY_SIGNATURE, decode_npy, decode_webp, is_webp
from genmod.errors import DataError
from genmod.manifest import ImageSpec

PNG_LEVEL = 3
"""Compression level of libdeflate: files as small as zlib's level 3, in half the time."""

_GROUP_BYTES = 1 << 18
"""Bytes of pixels decoded before their axes are permuted: small enough for the cache of one core."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_IDAT_AT, _BODY_AT, _AFTER_BODY = 33, 41, 4 + len(_END)


def _chunk(kind: bytes, body: bytes | bytearray) -> bytes:
    check = crc32(body, crc32(kind))
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)


def _png_head(height: int, width: int, channels: int) -> bytes:
    """Signature and IHDR chunk of our PNGs (W3C PNG, sec. 11.2.1): 33 bytes."""
    colour = 0 if channels == 1 else 2
    return _SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))


def _unaligned_array(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Allocate an array whose address is not a multiple of 32 bytes, for pixels that are read right away.

    libjpeg-turbo writes aligned rows past the cache (jdcolext-avx2.asm, ``vmovntdq``), which makes decoding
    32x32 images a fifth slower.
    """
    bytes_B = np.empty(64 + math.prod(shape), dtype=np.uint8)
    begin = 16 - bytes_B.ctypes.data % 32
    return bytes_B[begin % 32 :][: math.prod(shape)].reshape(shape)


class Codec:
    """Encodes and decodes the images of one dataset, all of one shape. Not thread-safe."""

    def __init__(self, spec: ImageSpec) -> None:
        self.spec = spec
        self._head = _png_head(spec.height, spec.width, spec.channels)
        self._colours = "GRAY" if spec.channels == 1 else "RGB"
        self._row_bytes = 1 + spec.width * spec.channels
        self._raw_bytes = spec.height * self._row_bytes
        self._rows_HR = np.zeros((spec.height, self._row_bytes), dtype=np.uint8)
        self._group = max(1, _GROUP_BYTES // spec.dims)
        shape = (self._group, spec.height, spec.width, spec.channels)
        self._group_KHWC = _unaligned_array(shape)

    def encode(self, image_HWC: NDArray[np.uint8]) -> bytes:
        """Encode a uint8 image (H, W, C) as PNG bytes."""
        self._rows_HR[:, 1:] = image_HWC.reshape(self.spec.height, -1)
        body = zlib_compress(self._rows_HR.data, PNG_LEVEL)
        return b"".join((self._head, _chunk(b"IDAT", body), _END))

    def decode(self, blobs: Sequence[bytes]) -> NDArray[np.uint8]:
        """Decode images to uint8 (B, C, H, W): our PNGs on a fast path, other images one by one.

        Raises:
            DataError: a blob is not an image of this dataset's shape.
        """
        image_BCHW = np.empty((len(blobs), *self.spec.shape), dtype=np.uint8)
        for first in range(0, len(blobs), self._group):
            group = slice(first, first + self._group)
            image_BCHW[group] = self._decode_group(blobs[group]).transpose(0, 3, 1, 2)
        return image_BCHW

    def _decode_group(self, blobs: Sequence[bytes]) -> NDArray[np.uint8]:
        """Decode up to one group of images, (K, H, W, C); the next group reuses the memory."""
        spec, ours = self.spec, self._ours(blobs)
        group_KHWC, others = self._group_KHWC[: len(blobs)], range(len(blobs))
        # Inflate our PNGs together; usually these are all of the group.
        if ours:
            rows_KHR, positions = self._inflate(blobs, ours)
            image_KHWC = rows_KHR[:, :, 1:].reshape(-1, spec.height, spec.width, spec.channels)
            if len(positions) == len(blobs):
                return image_KHWC
            group_KHWC[positions] = image_KHWC
            others = sorted(set(others).difference(positions))
        # Decode the remaining images one by one.
        self._decode_others([blobs[k] for k in others], [group_KHWC[k] for k in others])
        return group_KHWC

    def _inflate(
        self, blobs: Sequence[bytes], ours: Sequence[int]
    ) -> tuple[NDArray[np.uint8], list[int]]:
        """Rows (a filter byte, then pixels) of the intact PNGs among ``ours``, and their positions."""
        positions, raws = list[int](), list[bytearray]()
        # Inflate each body. The general path reports the reason where that fails.
        for b in ours:
            try:
                raw = zlib_decompress(memoryview(blobs[b])[_BODY_AT:-_AFTER_BODY], self._raw_bytes)
            except DeflateError:
                continue
            if len(raw) == self._raw_bytes:
                positions.append(b)
                raws.append(raw)
        # Keep images whose rows all have filter 0.
        rows_KHR = np.frombuffer(b"".join(raws), dtype=np.uint8)
        rows_KHR = rows_KHR.reshape(len(raws), self.spec.height, self._row_bytes)
        is_plain_K = ~rows_KHR[:, :, 0].any(axis=1)
        if is_plain_K.all():
            return rows_KHR, positions
        return rows_KHR[is_plain_K], [positions[k] for k in np.flatnonzero(is_plain_K).tolist()]

    def _ours(self, blobs: Sequence[bytes]) -> list[int]:
        """Positions of the blobs with the head, the single IDAT chunk and the end of our PNGs."""
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
        """Decode JPEG, WebP, npy and other PNGs, each into its array."""
        jpeg, colours = simplejpeg.decode_jpeg, self._colours
        shape = (self.spec.height, self.spec.width, self.spec.channels)
        try:
            for blob, image_HWC in zip(blobs, images_HWC, strict=True):
                if blob.startswith(_SIGNATURE):
                    self._decode_png(blob, image_HWC)
                elif blob.startswith(NPY_SIGNATURE):
                    decode_npy(blob, image_HWC)
                elif is_webp(blob):
                    decode_webp(blob, image_HWC)
                elif (got := jpeg(blob, colours, False, False, 0, 0, 1, image_HWC).shape) != shape:
                    raise DataError(f"image of {got}, expected {self.spec}")
        except (ValueError, RuntimeError, struct.error) as error:
            raise DataError(f"not a readable PNG, JPEG, WebP or npy ({error})") from None

    def _decode_png(self, blob: bytes, image_HWC: NDArray[np.uint8]) -> None:
        width, height = struct.unpack(">II", blob[16:24])
        if (height, width) != image_HWC.shape[:2]:
            raise DataError(f"image of {height}x{width}, expected {self.spec}")
        pixels = np.atleast_3d(pyspng.load(blob))
        if pixels.dtype != np.uint8 or pixels.shape != image_HWC.shape:
            raise DataError(f"image of {pixels.dtype} {pixels.shape}, expected {self.spec}")
        image_HWC[:] = pixels
