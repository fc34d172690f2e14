"""What a file is by its first bytes."""

import numpy as np
import pytest
from PIL import Image

from genmod.data.format.magic import HEAD_BYTES, image_format, unread_format
from tests.genmod.data.builders import encode

GREY = Image.fromarray(np.full((40, 30), 7, np.uint8))
PILLOW = {"PNG": "PNG", "JPEG": "JPEG", "GIF": "GIF", "WEBP": "WebP", "BMP": "BMP", "TIFF": "TIFF",
          "PPM": "PNM", "MPO": "JPEG"}  # fmt: skip


@pytest.mark.parametrize("kind", PILLOW)
def test_the_formats_that_are_read(kind):
    head = encode(GREY, kind)[:HEAD_BYTES]
    assert (image_format(head), unread_format(head)) == (PILLOW[kind], None)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "RGBA"])
def test_bitmaps_of_every_mode(mode):
    assert image_format(encode(GREY.convert(mode), "BMP")[:HEAD_BYTES]) == "BMP"


def test_portable_bitmaps_with_comments():
    for head in (b"P5\n# by a tool\n# that explains\n4 4\n255\n", b"P1 4 4 0 1", b"P3\t2\t2"):
        assert image_format(head) == "PNM"
    assert image_format(b"P5 is the name of a paper") is None


NOT_READ = {
    "HEIC": b"\x00\x00\x00\x24ftypheic\x00\x00\x00\x00mif1heic",
    "AVIF": b"\x00\x00\x00\x20ftypavif",
    "SVG": b"<?xml version='1.0' encoding='UTF-8'?>\n<!-- drawn -->\n<svg xmlns='x'>",
    "JPEG XL": b"\xff\x0a\xfa\x0b",
    "JPEG 2000": b"\x00\x00\x00\x0cjP  \r\n\x87\n",
    "Photoshop": b"8BPS\x00\x01",
    "DICOM": bytes(128) + b"DICM",
    "camera raw": b"II\x2a\x00\x10\x00\x00\x00CR\x02\x00",
}


@pytest.mark.parametrize("kind", NOT_READ)
def test_the_formats_that_are_not_read(kind):
    assert (image_format(NOT_READ[kind]), unread_format(NOT_READ[kind])) == (None, kind)


def test_a_camera_raw_image_is_not_the_thumbnail_at_its_start():
    tiff = encode(GREY, "TIFF")[:HEAD_BYTES]
    assert (image_format(tiff, "nef"), unread_format(tiff, "nef")) == (None, "camera raw")


@pytest.mark.parametrize(
    "head", [b"", b"GIF", b"BM is a text", b"hello", b"{}", b"\x7fELF", b"RIFF....WAVE", b"<html>"]
)
def test_other_files(head):
    assert (image_format(head), unread_format(head)) == (None, None)
