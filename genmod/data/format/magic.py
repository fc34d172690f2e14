"""What a file is by its first bytes: a format of images that is read, one that is not, or something else."""

from __future__ import annotations

import re

HEAD_BYTES = 132
"""First bytes of a file that tell its format."""

_READ = (
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("WebP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    # Reserved bytes are zero; the next header has one of the known lengths.
    (
        "BMP",
        re.compile(rb"BM....\x00{4}....[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\x00{3}", re.DOTALL),
    ),
    (
        "TIFF",
        re.compile(
            rb"II\x2a\x00(?!.{4}CR)|MM\x00\x2a|II\x2b\x00\x08\x00|MM\x00\x2b\x00\x08", re.DOTALL
        ),
    ),
    ("PNM", re.compile(rb"P[1-6](?:[ \t\r\n]+|\s*#[^\n]*\n)+\d")),
)
"""Formats of images that are read."""

_NOT_READ = (
    ("HEIC", re.compile(rb".{4}ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL)),
    ("AVIF", re.compile(rb".{4}ftypavi[fs]", re.DOTALL)),
    ("JPEG XL", re.compile(rb"\xff\x0a|\x00\x00\x00\x0cJXL \r\n")),
    ("JPEG 2000", re.compile(rb"\x00\x00\x00\x0cjP  \r\n|\xff\x4f\xff\x51")),
    (
        "SVG",
        re.compile(
            rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.{0,80}-->\s*)?<(?:!DOCTYPE svg|svg[\s>])",
            re.DOTALL,
        ),
    ),
    ("Photoshop", re.compile(rb"8BPS\x00[\x01\x02]")),
    ("OpenEXR", re.compile(rb"\x76\x2f\x31\x01")),
    ("Radiance HDR", re.compile(rb"#\?RADIANCE|#\?RGBE")),
    ("DICOM", re.compile(rb".{128}DICM", re.DOTALL)),
    ("ICO", re.compile(rb"\x00\x00\x01\x00[\x01-\xff]\x00")),
    ("DDS", re.compile(rb"DDS \x7c\x00\x00\x00")),
    ("FITS", re.compile(rb"SIMPLE  =")),
    (
        "camera raw",
        re.compile(rb"II\x2a\x00.{4}CR|FUJIFILMCCD-RAW|II(?:RO|RS|U\x00)|MMOR", re.DOTALL),
    ),
    ("QOI", re.compile(rb"qoif")),
)
"""Formats of images that are not read."""

_RAW = (
    *("arw", "cr2", "cr3", "dng", "nef", "nrw", "orf", "pef", "raf", "rw2", "sr2", "srw"),
    *("3fr", "erf", "kdc", "mos", "mrw"),
)
"""Extensions of camera raw images. Several are TIFFs whose first picture is a thumbnail."""


def image_format(head: bytes, extension: str = "") -> str | None:
    r"""Format of an image that is read, from the file's first ``HEAD_BYTES``; None of anything else.

    Args:
        head: the first bytes.
        extension: of the file's name, in lower case.

    >>> image_format(b"\xff\xd8\xff\xe0")
    'JPEG'
    """
    if extension in _RAW:
        return None
    return next((name for name, pattern in _READ if pattern.match(head)), None)


def unread_format(head: bytes, extension: str = "") -> str | None:
    r"""Format of an image that is not read; None of anything else.

    >>> unread_format(b"\x00\x00\x00\x18ftypheic")
    'HEIC'
    """
    if extension in _RAW:
        return "camera raw"
    return next((name for name, pattern in _NOT_READ if pattern.match(head)), None)
