"""Finds damage in images from outside that decoders pass over."""

from __future__ import annotations

import re
import zlib

import simplejpeg

PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_COLOURS = ("Gray", "YCbCr", "RGB")
_NETPBM = re.compile(rb"P[2356]\s")


def find_corruption(data: bytes) -> str | None:
    """What is wrong with the bytes of an image, None if nothing can be told.

    PNG: every chunk has its CRC-32, up to IEND, so any flipped bit is found. JPEG has no checksum: what
    libjpeg-turbo only warns of is told, but a flip that gives another valid image is not. Other formats
    are left to the decoder.
    """
    if data.startswith(PNG):
        return _png_damage(data)
    if data.startswith(_JPEG):
        return _jpeg_damage(data)
    return None


def _png_damage(data: bytes) -> str | None:
    """W3C PNG, sec. 5.3: length, type, data, CRC over type and data."""
    at = len(PNG)
    view = memoryview(data)
    while True:
        kind, body_at = data[at + 4 : at + 8], at + 8
        end = body_at + int.from_bytes(view[at : at + 4])
        if len(kind) < 4 or end + 4 > len(data):
            return "cut off"
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4]):
            return f"the checksum of its {kind.decode('latin-1')!r} chunk does not fit"
        if kind == b"IEND":
            return None
        at = end + 4


def _jpeg_damage(data: bytes) -> str | None:
    """Decodes at an eighth of the size, where that is cheap, with warnings taken for errors."""
    try:
        *_, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours in _COLOURS:
            simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        return str(error).splitlines()[0][:160]
    return None


def declared_bits(data: bytes) -> int:
    """Bits of a sample where the first bytes tell, else 8. Decoders would cut 16 down without a word."""
    if data.startswith(PNG) and data[24:25] == b"\x10":
        return 16
    if _NETPBM.match(
        data
    ):  # Netpbm's ppm(5): magic, width, height, largest value; # begins a comment
        words = re.sub(rb"#[^\n]*\n", b" ", data[:4096]).split(None, 4)
        if len(words) > 3 and words[3].isdigit() and int(words[3][:9]) > 255:
            return 16
    return 8
