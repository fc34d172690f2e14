"""Formats of a dataset's images: each is written, verified, and read by our readers and by webdataset."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from PIL import Image

from genmod.data import webdataset
from genmod.data.format.codecs import Codec
from genmod.data.format.encodings import Encoding, ImageEncoder
from genmod.data.format.image_table import ImageTable
from genmod.data.format.shards import Row, ShardFormat, write_shard
from genmod.data.format.verify_dataset import dataset_problems
from genmod.data.format.webp_npy import npy_head
from genmod.data.reading.reader import split_reader
from genmod.data.reading.summary import contact_sheet
from genmod.errors import ConfigError, DataError
from genmod.manifest import DatasetManifest, ImageSpec, dataset_metadata, publish
from tests.genmod.data.builders import encode

FORMATS = ("png", "jpeg", "webp", "npy")
LOSSLESS = ("png", "webp", "npy")
TABLE = ImageTable(3, ("cat", "dog", "cow"))


def spec_of(channels, height=12, width=9):
    return ImageSpec(channels=channels, height=height, width=width, classes=3)


def smooth(spec, rows=7):
    """Images that JPEG keeps nearly."""
    h, w, c, n = np.ogrid[: spec.height, : spec.width, : spec.channels, :rows]
    return (9 * h + 5 * w + 30 * c + 7 * n).astype(np.uint8).transpose(3, 0, 1, 2)


def write(root, spec, stored_as, images):
    rows = [Row(f"k{i}", i, image, label=i % 3) for i, image in enumerate(images)]
    shard, stats = write_shard(
        root, "train-000000", "train", spec, rows, by_content=True, stored_as=stored_as
    )
    manifest = DatasetManifest(
        fingerprint="f",
        spec=spec,
        shards=(shard,),
        metadata=dataset_metadata({"train": stats}),
        class_names=TABLE.class_names,
    )
    return publish(root, manifest)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FORMATS)
def test_a_dataset_of_each_format_is_verified_and_read(tmp_path, name, channels):
    root, spec, encoding = str(tmp_path), spec_of(channels), Encoding(name, 90)
    images = smooth(spec)
    manifest = write(root, spec, ShardFormat(encoding), images)
    assert list(dataset_problems(root, manifest)) == []
    reader = split_reader(root, manifest, "train")
    pixels_NHWC = reader.pixels(np.arange(7)).transpose(0, 2, 3, 1)
    reader.close()
    assert contact_sheet(root, manifest).png.startswith(b"\x89PNG")
    if name in LOSSLESS:
        assert np.array_equal(pixels_NHWC, images)
    else:
        assert 0 < np.abs(pixels_NHWC.astype(int) - images).max() <= 12
    # Our pipeline, and the package itself with its own decoders.
    extension = encoding.suffix.removeprefix(".")
    for sample, pixels_HWC in zip(webdataset(root), pixels_NHWC, strict=True):
        assert np.array_equal(sample[extension], pixels_HWC)
    tar = f"{root}/{manifest.shards[0].tar.path}"
    foreign = list(wds.WebDataset([tar], shardshuffle=False).decode("rgb8"))
    for sample, pixels_HWC in zip(foreign, pixels_NHWC, strict=True):
        difference = sample[extension].astype(int) - pixels_HWC
        assert np.abs(difference).max() <= (2 if name == "jpeg" else 0)
    assert [sample["cls"] for sample in foreign] == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_rows_give_the_same_bytes(tmp_path, name):
    spec, stored_as = spec_of(3), ShardFormat(Encoding(name), TABLE)
    one, other = (
        write(str(tmp_path / folder), spec, stored_as, smooth(spec)) for folder in ("a", "b")
    )
    assert one.shards == other.shards


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (33, 2)])
def test_images_of_odd_sizes(name, height, width):
    for channels in (1, 3):
        spec = spec_of(channels, height, width)
        encoder = ImageEncoder(spec, Encoding(name, 100))
        image_HWC = smooth(spec)[3]
        blob, stored_HWC = encoder.stored(image_HWC)
        assert np.array_equal(Codec(spec).decode([blob])[0].transpose(1, 2, 0), stored_HWC)
        assert np.abs(stored_HWC.astype(int) - image_HWC).max() <= (8 if name == "jpeg" else 0)


def test_images_of_all_formats_are_decoded_together():
    spec = spec_of(1)
    images, codec = smooth(spec, len(LOSSLESS)), Codec(spec)
    encoders = [ImageEncoder(spec, Encoding(name)) for name in LOSSLESS]
    blobs = [each.encode(image) for each, image in zip(encoders, images, strict=True)]
    assert np.array_equal(codec.decode(blobs).transpose(0, 2, 3, 1), images)


def test_quality_changes_the_size_of_a_jpeg():
    spec = spec_of(3, 64, 64)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    sizes = [len(ImageEncoder(spec, Encoding("jpeg", q)).encode(image)) for q in (1, 50, 95, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] * 10 < sizes[-1]


def test_an_npy_is_what_numpy_writes_and_reads():
    image_HWC = smooth(spec_of(3))[0]
    blob = ImageEncoder(spec_of(3), Encoding("npy")).encode(image_HWC)
    assert np.array_equal(np.load(io.BytesIO(blob)), image_HWC)
    stream = io.BytesIO()
    np.save(stream, image_HWC)
    assert np.array_equal(
        Codec(spec_of(3)).decode([stream.getvalue()])[0].transpose(1, 2, 0), image_HWC
    )


def _npy(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


GREY, ANY = spec_of(1), np.zeros((12, 9, 1), np.uint8)
HEAD = npy_head((12, 9, 1))
BOMB = npy_head((999_999, 999_999, 3))


@pytest.mark.parametrize(
    "blob",
    [
        _npy(ANY.astype(np.int64)),
        _npy(ANY.astype(object), allow_pickle=True),
        _npy(np.asfortranarray(np.zeros((12, 9, 3), np.uint8))),
        _npy(ANY[..., 0]),
        _npy(np.zeros((9, 12, 1), np.uint8)),
        HEAD,
        HEAD + bytes(107),
        HEAD + bytes(109),
        HEAD.replace(b"\x01\x00", b"\x02\x00", 1) + bytes(108),
        HEAD.replace(b"|u1", b"|O1") + bytes(108),
        HEAD.replace(b"(12, ", b"(-1, ") + bytes(108),
        HEAD[:8] + b"\xff\xff" + HEAD[10:] + bytes(108),
        BOMB + bytes(100),
    ],
)
def test_other_npy_files_are_refused(blob):
    with pytest.raises(DataError, match="npy file"):
        Codec(GREY).decode([blob])


def _webp(size, mode="RGB", **options):
    return encode(Image.new(mode, size), "WEBP", **options)


SMALL_WEBP = _webp((9, 12), lossless=True)
BOMB_WEBP = SMALL_WEBP[:21] + (15_999 | 15_999 << 14).to_bytes(4, "little") + SMALL_WEBP[25:]


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        (_webp((12, 9)), r"\(12, 9\), expected \(9, 12\)"),
        (BOMB_WEBP, r"\(16000, 16000\), expected"),
        (SMALL_WEBP[:-8], "not a readable WebP"),
        (_webp((9, 12), "RGBA", lossless=True), "expected one opaque picture"),
        (
            _webp((9, 12), save_all=True, append_images=[Image.new("RGB", (9, 12), (9, 9, 9))]),
            "expected one opaque picture",
        ),
        (encode(Image.new("RGB", (9, 12), (1, 2, 3)), "WEBP", lossless=True), "expected grey"),
        (b"RIFF\x00\x00\x00\x00WEBP", "expected"),
    ],
)
def test_other_webps_are_refused(blob, reason):
    with pytest.raises(DataError, match=reason):
        Codec(GREY).decode([blob])


def test_binary_images_are_not_stored_with_loss():
    binary = spec_of(1).model_copy(update={"levels": 2})
    for name in LOSSLESS:
        Encoding(name).check(binary)
    with pytest.raises(ConfigError, match="the images are binary"):
        Encoding("jpeg").check(binary)
    with pytest.raises(ConfigError, match="at most 16,383 pixels a side"):
        Encoding("webp").check(spec_of(1, 1, 20_000))


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_a_table_has_the_images_of_its_tar(tmp_path, name):
    root, spec = str(tmp_path), spec_of(3)
    manifest = write(root, spec, ShardFormat(Encoding(name), TABLE), smooth(spec))
    (shard,) = manifest.shards
    assert shard.table.path == shard.tar.path.replace(".tar", ".images.parquet")
    table = pq.read_table(tmp_path / shard.table.path)
    tar = list(wds.WebDataset([f"{root}/{shard.tar.path}"], shardshuffle=False))
    suffix = Encoding(name).suffix
    for row, sample in zip(table.to_pylist(), tar, strict=True):
        assert row["image"] == {
            "bytes": sample[suffix[1:]],
            "path": f"{sample['__key__']}{suffix}",
        }
        assert (row["key"], str(row["label"]).encode()) == (sample["__key__"], sample["cls"])
    assert table["index"].to_pylist() == list(range(7))
    info = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert info["label"] == {"names": ["cat", "dog", "cow"], "_type": "ClassLabel"}
    # It is one of the dataset's files.
    path = tmp_path / shard.table.path
    assert list(dataset_problems(root, manifest)) == []
    data = bytearray(path.read_bytes())
    data[9] ^= 1
    path.write_bytes(data)
    assert [str(path) in line for line in dataset_problems(root, manifest)] == [True]
    path.unlink()
    assert [line.endswith("missing") for line in dataset_problems(root, manifest)] == [True]


def test_a_table_is_a_source_of_rows(tmp_path, build):
    root, spec = str(tmp_path / "made"), spec_of(1)
    images = smooth(spec, 40)
    made = write(root, spec, ShardFormat(Encoding("webp"), TABLE), images)
    source = f"parquet:{root}/{made.shards[0].table.path}"
    again = build(str(tmp_path / "again"), source=source, splits={"val": 0, "test": 0})
    assert again.class_names == TABLE.class_names
    assert again.rows("train") == 40


def test_large_tables_have_several_groups():
    table = ImageTable(0)
    images = [bytes([n % 256]) for n in range(2_001)]
    keys = [f"{n}" for n in range(2_001)]
    data = table.encoded(keys, range(2_001), images, None, ".png")
    file = pq.ParquetFile(io.BytesIO(data))
    assert [file.metadata.row_group(g).num_rows for g in range(3)] == [1000, 1000, 1]
    assert file.schema_arrow.names == ["image", "index", "key"]
    large = [bytes(40 << 20)] * 3
    data = table.encoded(keys[:3], range(3), large, None, ".png")
    assert pq.ParquetFile(io.BytesIO(data)).num_row_groups == 3
