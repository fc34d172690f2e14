"""What images from outside declare is checked before they are decoded."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from genmod.budget import BUDGET
from genmod.data.format.corruption import count_scans, declared_size
from genmod.data.format.foreign import Rejected, accepted_pixels, conversion_bytes, decode_foreign
from genmod.manifest import ImageSpec
from tests.genmod.data.builders import encode

RAMP = np.add.outer(np.arange(64) * 2, np.arange(48) * 2).astype(np.uint8)


LARGER = {
    kind: encode(Image.fromarray(np.pad(RAMP, ((0, 0), (0, 1)))), kind)
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM")
}
"""Images with one more column."""


def with_scans(data, count):
    """A progressive JPEG with its last scan repeated until it has ``count``."""
    starts = [match.start() for match in re.finditer(rb"\xff\xda", data)]
    return data[:-2] + data[starts[-1] : -2] * (count - len(starts)) + data[-2:]


def progressive(image, count):
    return with_scans(encode(image, "JPEG", progressive=True), count)


def segment(body):
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


@pytest.mark.parametrize("count", [200, 65])
def test_a_jpeg_of_many_scans_is_not_decoded(count):
    data = progressive(Image.fromarray(RAMP), count)
    assert count_scans(data) == count
    with pytest.raises(Rejected, match=f"has {count} scans, more than 64"):
        decode_foreign(data)


def test_scans_times_pixels_are_bounded():
    side = 8192
    assert side * side == BUDGET.pixels
    data = progressive(Image.new("L", (side, side)), 17)
    with pytest.raises(Rejected, match="has 17 scans of 8192x8192 pixels"):
        decode_foreign(data)


def test_markers_in_metadata_are_not_counted_as_scans():
    data = encode(Image.fromarray(RAMP), "JPEG", progressive=True, restart_marker_blocks=2)
    scans = data.count(b"\xff\xda")
    noisy = data[:2] + segment(b"\xff\xda" * 5000) * 3 + data[2:] + b"\xff\xda" * 100
    assert count_scans(noisy) == count_scans(data) == scans
    thumbnail = data[:2] + segment(b"Exif\0\0" + b"\xff\xda" * 5000) + data[2:]
    assert np.array_equal(decode_foreign(thumbnail), decode_foreign(data))
    assert count_scans(thumbnail[:-2] + data[data.index(b"\xff\xda") : -2] * 70) > 64


def tiff_of_scans(kind, count):
    """A TIFF of one strip, which contains a JPEG."""
    jpeg = progressive(Image.fromarray(RAMP), count)
    if kind == "sequential":
        plain = encode(Image.fromarray(RAMP), "JPEG")
        jpeg = plain[:-2] + plain[plain.index(b"\xff\xda") : -2] * (count - 1) + plain[-2:]
    height, width = RAMP.shape
    tags = {
        256: width,
        257: height,
        258: 8,
        259: 7,
        262: 1,
        273: 0,
        277: 1,
        278: height,
        279: len(jpeg),
    }
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + jpeg


@pytest.mark.parametrize("kind", ["progressive", "sequential"])
def test_a_tiff_of_many_scans_is_not_decoded(kind):
    with pytest.raises(Rejected, match="a TIFF with progressive JPEG"):
        decode_foreign(tiff_of_scans(kind, 200))
    strips = encode(Image.fromarray(np.tile(RAMP, (50, 1))), "TIFF", compression="jpeg")
    assert strips.count(b"\xff\xda") > 1
    assert decode_foreign(strips).shape == (3200, 48)


@pytest.mark.parametrize("options", [{"lossless": True}, {}, {"exif": segment(b"x")}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_size_of_a_webp_is_read_from_its_header(mode, options):
    image = Image.new(mode, (300, 17))
    data = encode(image, "WEBP", **options)
    assert declared_size(data) == (300, 17)
    assert declared_size(data[:29]) is None
    assert declared_size(encode(image)) is None


def test_a_webp_bomb_is_not_opened(monkeypatch):
    """Pillow allocates the pixels of a WebP when it opens it."""
    data = encode(Image.new("RGB", (9000, 9000)), "WEBP", lossless=True, quality=0, method=0)
    assert len(data) < 100
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(Rejected, match="declares 9000x9000 pixels"):
        decode_foreign(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
def test_an_image_that_is_larger_than_the_only_shape_is_not_decoded(kind, monkeypatch):
    spec = ImageSpec(channels=1, height=64, width=48)
    image = Image.fromarray(RAMP)
    assert decode_foreign(encode(image, kind), spec).shape[:2] == (64, 48)
    assert decode_foreign(encode(image.rotate(90, expand=True), kind), spec).shape[:2] == (48, 64)
    assert decode_foreign(encode(image.resize((4, 4)), kind), spec).shape[:2] == (4, 4)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(Rejected, match=r"is 64x49, expected 64x48; set data\.resize"):
        decode_foreign(LARGER[kind], spec)


def test_memory_follows_the_pixels_that_are_accepted():
    small = ImageSpec(channels=3, height=32, width=32)
    assert accepted_pixels(small, "none") == 32 * 32
    assert accepted_pixels(small, "fit") == BUDGET.pixels
    assert conversion_bytes(32 * 32, small) < 1 << 16
    assert conversion_bytes(BUDGET.pixels, small) > 20 * BUDGET.pixels


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP", b"eXIf"])
def test_chunks_that_unpack_to_more_are_rejected(kind):
    png = encode(Image.fromarray(RAMP))
    packed = zlib.compress(bytes(100 << 20))
    prefix = b"a\0\1\0\0\0" if kind == b"iTXt" else b"a\0\0"
    body = kind + prefix + packed
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    try:
        pixels = decode_foreign(png[:33] + chunk + png[33:])
    except Rejected:
        return
    assert np.array_equal(pixels, RAMP)


def test_a_file_that_is_not_an_image_of_a_known_format_is_not_opened():
    for kind in ("ICO", "PCX", "TGA", "JPEG2000", "ICNS", "EPS", "PDF"):
        stream = io.BytesIO()
        Image.fromarray(RAMP).save(stream, kind)
        with pytest.raises(Rejected, match="not a readable image"):
            decode_foreign(stream.getvalue())


BRIGHT, DARK = (
    np.full((16, 16, 3), 200, np.uint8),
    Image.fromarray(np.full((8, 8, 3), 10, np.uint8)),
)
BEHIND = {
    "phone photo with a preview": encode(BRIGHT, "MPO", save_all=True, append_images=[DARK]),
    "progressive phone photo": encode(
        BRIGHT, "MPO", save_all=True, progressive=True, append_images=[DARK] * 3
    ),
    "JPEG with a film": encode(BRIGHT, "JPEG") + b"\x00\x00\x00\x18ftypmp42" + bytes(999),
    "JPEG behind a JPEG": encode(BRIGHT, "JPEG") + encode(DARK, "JPEG"),
    "PNG behind a PNG": encode(BRIGHT) + encode(DARK),
    "PNG with other data": encode(BRIGHT) + b"screenshot" * 99,
    "GIF behind a GIF": encode(BRIGHT, "GIF") + encode(DARK, "GIF"),
    "WebP behind a WebP": encode(BRIGHT, "WEBP", lossless=True) + encode(DARK, "WEBP"),
}


@pytest.mark.parametrize("kind", BEHIND)
def test_a_file_with_a_second_picture_behind_the_first_gives_the_first(kind):
    pixels = decode_foreign(BEHIND[kind])
    assert np.abs(pixels.astype(int) - BRIGHT).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_are_still_rejected(kind):
    with pytest.raises(Rejected, match="more than one frame"):
        decode_foreign(encode(BRIGHT, kind, save_all=True, append_images=[DARK.resize((16, 16))]))


def test_a_format_that_is_not_read_is_named():
    with pytest.raises(Rejected, match=r"not a readable image: HEIC, convert it to PNG or JPEG"):
        decode_foreign(b"\x00\x00\x00\x24ftypheic" + bytes(99))
