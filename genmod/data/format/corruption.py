"""What the headers of untrusted images declare, and corruption in them that decoders silently accept."""

from __future__ import annotations

import re
import zlib

import simplejpeg

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_COLOURS = ("Gray", "YCbCr", "RGB")
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_SCAN, _END, _STANDALONE = 0xDA, 0xD9, {1, 0xD8, *range(0xD0, 0xD8)}
_FEW_SCANS = 16
"""More are counted exactly; progressive JPEGs have 10, and thumbnails in the metadata have some."""
_NETPBM = re.compile(rb"P[2356]\s")


def find_corruption(data: bytes) -> str | None:
    r"""Describe the corruption of an encoded image; None if none is detected.

    PNG: every chunk up to IEND has a CRC-32, so any flipped bit is found. JPEG has no checksum: warnings of
    libjpeg-turbo count as corruption, but a bit flip that yields another valid image is not found. Other
    formats are left to the decoder.

    >>> find_corruption(b"\x89PNG\r\n\x1a\n")
    'truncated'
    """
    if data.startswith(_PNG):
        return _png_corruption(data)
    if data.startswith(_JPEG):
        return _jpeg_corruption(data)
    return None


def _png_corruption(data: bytes) -> str | None:
    """Check the chunks (W3C PNG, sec. 5.3): length, type, data, CRC over type and data."""
    at = len(_PNG)
    view = memoryview(data)
    while True:
        kind, body_at = data[at + 4 : at + 8], at + 8
        end = body_at + int.from_bytes(view[at : at + 4])
        if len(kind) < 4 or end + 4 > len(data):
            return "truncated"
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4]):
            return f"the checksum of its {kind.decode('latin-1')!r} chunk does not match"
        if kind == b"IEND":
            return None
        at = end + 4


def _jpeg_corruption(data: bytes) -> str | None:
    """Decode at an eighth of the size, which is cheap, with warnings as errors."""
    try:
        *_, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours in _COLOURS:
            simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        return str(error).splitlines()[0][:160]
    return None


def declared_bits(data: bytes) -> int:
    """Bits per channel where the header says so, else 8. Decoders would silently reduce 16 bits to 8."""
    if data.startswith(_PNG) and data[24:25] == b"\x10":
        return 16
    # Netpbm (ppm(5)): magic, width, height, largest value; # starts a comment.
    if _NETPBM.match(data):
        words = re.sub(rb"#[^\n]*\n", b" ", data[:4096]).split(None, 4)
        if len(words) > 3 and words[3].isdigit() and int(words[3][:9]) > 255:
            return 16
    return 8


def count_scans(data: bytes) -> int:
    """Number of scans of a JPEG (ITU-T T.81, annex B); each is a pass over the pixels.

    Of other data, e.g. a TIFF with JPEG in it, the number of markers that start a scan.
    """
    scans = data.count(b"\xff\xda")
    if scans <= _FEW_SCANS or not data.startswith(_JPEG):
        return scans
    # Walk the segments, because those of metadata may contain anything.
    scans, at = 0, 2
    while marker := _JPEG_MARKER.search(data, at):
        at, kind = marker.end(), data[marker.end() - 1]
        if kind == _END:
            break
        if kind not in _STANDALONE:
            scans += kind == _SCAN
            at += max(2, int.from_bytes(data[at : at + 2]))
    return scans


def declared_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP (RFC 9649), from its first chunk; None of other formats."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    sides = int.from_bytes(data[26:28], "little"), int.from_bytes(data[28:30], "little")
    return sides[0] & 0x3FFF, sides[1] & 0x3FFF
