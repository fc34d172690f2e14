import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from genmod.data.format.codecs import Codec
from genmod.data.format.foreign import Rejected, decode_foreign, to_spec
from genmod.errors import DataError
from genmod.manifest import ImageSpec
from tests.genmod.data.builders import encode


def spec(height=5, width=7, channels=1, **more):
    return ImageSpec(channels=channels, height=height, width=width, **more)


@given(st.data())
def test_our_png_comes_back_and_pillow_reads_it(data):
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    channels = data.draw(st.sampled_from([1, 3]))
    size = 2 * height * width * channels
    values = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8)
    images_BHWC = values.reshape(2, height, width, channels)
    codec = Codec(spec(height, width, channels))
    blobs = [codec.encode(image) for image in images_BHWC]
    assert np.array_equal(codec.decode(blobs), images_BHWC.transpose(0, 3, 1, 2))
    for blob, image in zip(blobs, images_BHWC, strict=True):
        assert np.array_equal(np.atleast_3d(np.asarray(Image.open(io.BytesIO(blob)))), image)
        assert np.array_equal(np.atleast_3d(decode_foreign(blob)), image)


def test_foreign_pngs_and_jpegs_are_read_along_with_ours():
    ramp = np.add.outer(np.arange(16) * 9, np.arange(16) * 5).astype(np.uint8)
    codec = Codec(spec(16, 16))
    filtered = encode(Image.fromarray(ramp), optimize=True)
    assert filtered != codec.encode(ramp[..., None])
    jpeg = encode(Image.fromarray(ramp), "JPEG", quality=95)
    pixels_BCHW = codec.decode([filtered, codec.encode(ramp[..., None]), jpeg])
    assert np.array_equal(pixels_BCHW[0, 0], ramp)
    assert np.array_equal(pixels_BCHW[1, 0], ramp)
    assert np.abs(pixels_BCHW[2, 0].astype(int) - ramp).max() <= 8


def test_a_row_filter_other_than_none_is_decoded():
    row = np.arange(4, dtype=np.uint8) * 3
    codec = Codec(spec(1, 4))
    plain = codec.encode(row.reshape(1, 4, 1))
    sub = bytes([1, 0, 3, 3, 3])  # filter 1: each value minus its left neighbour
    body = zlib.compress(sub)
    chunk = struct.pack(">I", len(body)) + b"IDAT" + body
    chunk += struct.pack(">I", zlib.crc32(body, zlib.crc32(b"IDAT")))
    blob = plain[:33] + chunk + plain[-12:]
    assert codec.decode([blob])[0, 0, 0].tolist() == row.tolist()


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"not an image",
        encode(Image.new("L", (7, 6))),
        encode(Image.new("RGB", (7, 5))),
        encode(Image.new("L", (7, 6)), "JPEG"),
        Codec(spec()).encode(np.zeros((5, 7, 1), np.uint8))[:-20],
    ],
)
def test_images_of_another_shape_are_an_error(blob):
    with pytest.raises(DataError):
        Codec(spec()).decode([blob])


def test_a_png_that_inflates_without_end_is_not_inflated():
    codec = Codec(spec())
    plain = codec.encode(np.zeros((5, 7, 1), np.uint8))
    body = zlib.compress(bytes(50_000_000))
    blob = plain[:33] + struct.pack(">I", len(body)) + b"IDAT" + body + plain[-16:]
    tracemalloc.start()
    assert not codec.decode([blob]).any()
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"GIF89a-but-not-really", "image"),
        (encode(Image.new("RGB", (9, 9), (1, 2, 3)))[:-30], "corrupt image"),
        (encode(Image.new("I;16", (3, 3))), "16 bits"),
        (encode(Image.new("CMYK", (3, 3)), "JPEG"), "mode CMYK"),
        (encode(Image.new("RGBA", (3, 3), (1, 2, 3, 9))), "transparent"),
        (encode(Image.new("F", (3, 3)), "TIFF"), "32 bits"),
        (
            encode(Image.new("L", (3, 3)), "GIF", save_all=True,
                    append_images=[Image.new("L", (3, 3), 9)]),
            "frame",
        ),
    ],
)  # fmt: skip
def test_hostile_images_are_rejected_with_a_reason(data, reason):
    with pytest.raises(Rejected, match=reason):
        decode_foreign(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_huge_declared_size_is_rejected_before_decoding():
    small = encode(Image.new("L", (3, 3)))
    body = struct.pack(">II", 12_000, 12_000) + small[24:29]
    head = small[:12] + b"IHDR" + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(b"IHDR")))
    with pytest.raises(Rejected, match="12000x12000"):
        decode_foreign(head + small[33:])


def test_palette_alpha_bilevel_and_exif_are_handled():
    opaque = Image.new("RGBA", (2, 2), (10, 20, 30, 255))
    assert decode_foreign(encode(opaque))[0, 0].tolist() == [10, 20, 30]
    assert decode_foreign(encode(Image.new("1", (2, 2), 1))).tolist() == [[255, 255]] * 2
    palette = Image.new("RGB", (2, 2), (7, 8, 9)).quantize(4)
    assert decode_foreign(encode(palette))[1, 1].tolist() == [7, 8, 9]
    wide = Image.new("L", (4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert decode_foreign(encode(wide, exif=exif)).shape == (4, 2)


def test_conversion_to_the_spec():
    grey = np.full((4, 8), 100, np.uint8)
    assert to_spec(grey, spec(4, 8, 3), "none").tolist() == [[[100] * 3] * 8] * 4
    red = np.zeros((4, 8, 3), np.uint8)
    red[..., 0] = 255
    assert set(to_spec(red, spec(4, 8), "none").ravel().tolist()) == {76}  # 0.299 * 255
    with pytest.raises(Rejected, match=r"4x8, expected 4x4"):
        to_spec(grey, spec(4, 4), "none")
    assert to_spec(grey, spec(2, 2), "fit").tolist() == [[[100]] * 2] * 2
    halves = np.repeat(np.array([[0, 0, 255, 255, 255, 255, 0, 0]], np.uint8), 4, axis=0)
    assert to_spec(halves, spec(4, 4), "crop").min() == 255
    padded = to_spec(grey, spec(8, 8), "pad")[..., 0]
    assert padded[:2].max() == padded[6:].max() == 0
    assert padded[2:6].min() == 100
    assert to_spec(
        np.array([[127, 128]], np.uint8), spec(1, 2, levels=2), "none"
    ).ravel().tolist() == [0, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_jpegs_are_decoded_as_pillow_decodes_them(channels):
    mode, ramp = ("L", "RGB")[channels == 3], np.add.outer(np.arange(32) * 4, np.arange(24) * 5)
    image = Image.fromarray(
        np.stack([ramp + 9 * c for c in range(channels)], -1).squeeze().astype(np.uint8)
    )
    blob = encode(image, "JPEG", quality=95)
    codec = Codec(spec(32, 24, channels))
    pixels_BCHW = codec.decode([blob] * 3)
    wanted_HWC = np.asarray(Image.open(io.BytesIO(blob)).convert(mode)).reshape(32, 24, channels)
    assert np.abs(pixels_BCHW.astype(int) - wanted_HWC.transpose(2, 0, 1)).max() <= 2
