import io
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genmod.data.format.foreign import Rejected
from genmod.data.sources.registry import open_source
from genmod.data.sources.source import BAD_LABEL, Entry, Source, pixels_of
from genmod.errors import ConfigError, DataError, StorageError
from tests.genmod.data.builders import encode, write_tar


def fetched(source, rows=None):
    listing = source.listing()
    refs = [listing.refs[row] for row in (range(len(listing)) if rows is None else rows)]
    reopened = open_source(source.text)  # as a task does
    return [pixels_of(image) for image in reopened.fetch(refs, listing.fingerprint)]


@pytest.mark.parametrize(
    ("name", "rows", "shape"), [("digits", 1797, (1, 8, 8)), ("mnist5k", 5000, (1, 28, 28))]
)
def test_builtin(name, rows, shape):
    source = open_source(f"builtin:{name}")
    listing = source.listing()
    assert (len(listing), listing.shape, listing.classes) == (rows, shape, 10)
    first, last = fetched(source, [0, rows - 1])
    assert first.dtype == np.uint8
    assert first.shape == last.shape == shape[1:]
    assert 200 < first.max() <= 255


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    expected = load_digits()
    ours = fetched(open_source("builtin:digits"), range(50))
    assert np.abs(np.array(ours) / 255 - expected.images[:50] / 16).max() < 0.5 / 255 + 1e-9
    assert open_source("builtin:digits").listing().labels_N.tolist() == expected.target.tolist()


@pytest.mark.parametrize("packed", [True, False])
def test_idx(tmp_path, images, write_idx, packed):
    pixels, labels = images(30, classes=4)
    end = ".gz" if packed else ""
    parts = {"t10k": slice(20, 30), "train": slice(0, 20)}
    for prefix, part in parts.items():
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte{end}", pixels[part], packed)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte{end}", labels[part], packed)
    source = open_source(f"idx:{tmp_path}")
    listing = source.listing()
    assert listing.names[:2] == ["t10k-00000000", "t10k-00000001"]
    assert listing.names[-1] == "train-00000019"
    order = np.r_[20:30, 0:20]
    assert listing.labels_N.tolist() == labels[order].tolist()
    assert listing.classes == labels.max() + 1
    assert np.array_equal(fetched(source), pixels[order])


def test_corrupt_idx_files(tmp_path, images, write_idx):
    pixels, labels = images(5)
    file = tmp_path / "train-images-idx3-ubyte"
    write_idx(file, pixels, packed=False)
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels[:4], packed=False)
    with pytest.raises(DataError, match="4 labels for 5 images"):
        open_source(f"idx:{tmp_path}").listing()
    whole = file.read_bytes()
    for broken in (whole[:-1], whole + b"x", b"\0\0\x08\x01" + whole[4:], b""):
        file.write_bytes(broken)
        with pytest.raises(DataError):
            open_source(f"idx:{tmp_path}").listing()


def test_npz(tmp_path, images):
    pixels, labels = images(12, channels=3)
    np.savez(tmp_path / "a.npz", x=pixels, y=labels)
    source = open_source(f"npz:{tmp_path}/a.npz")
    listing = source.listing()
    assert (listing.shape, listing.labels_N.tolist()) == ((3, 6, 6), labels.tolist())
    assert np.array_equal(fetched(source, [7, 2]), pixels[[7, 2]])


def test_npz_that_changes_between_plan_and_task(tmp_path, images):
    np.savez(tmp_path / "a.npz", x=images(4, seed=1)[0])
    first = open_source(f"npz:{tmp_path}/a.npz").listing().fingerprint
    np.savez(tmp_path / "a.npz", x=images(4, seed=2)[0])
    source = open_source(f"npz:{tmp_path}/a.npz")
    assert source.listing().fingerprint != first
    with pytest.raises(DataError, match="changed"):
        next(source.fetch([0], first))


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.zeros((3, 4, 4), np.float32)},
        {"x": np.zeros((3, 4, 4, 2), np.uint8)},
        {"pictures": np.zeros((3, 4, 4), np.float32)},
        {"x": np.zeros((3, 4, 4), np.uint8), "y": np.zeros(3)},
        {"x": np.zeros((3, 4, 4), np.uint8), "y": np.zeros(2, int)},
        {"x": np.array([{"an": "object"}], dtype=object)},
        {"x": np.zeros((0, 4, 4), np.uint8)},
        {"x": np.zeros((3, 0, 4), np.uint8)},
    ],
)
def test_npz_with_wrong_arrays_is_a_data_error(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError):
        open_source(f"npz:{tmp_path}/a.npz").listing()


def test_folder(tmp_path, images):
    pixels, labels = images(9, classes=2)
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        folder = tmp_path / "deep" / f"class {label}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"im.age[{number}].PNG").write_bytes(encode(image))
    (tmp_path / "README.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    source = open_source(f"folder:{tmp_path}")
    listing = source.listing()
    assert listing.class_names == ("class 0", "class 1")
    numbers = [int(name[-6]) for name in listing.names]
    assert listing.labels_N.tolist() == labels[numbers].tolist()
    assert np.array_equal(fetched(source), pixels[numbers])


def test_folder_without_classes_and_with_a_file_that_vanishes(tmp_path, images):
    pixels, _ = images(3)
    for number, image in enumerate(pixels):
        (tmp_path / f"{number}.png").write_bytes(encode(image))
    source = open_source(f"folder:{tmp_path}")
    listing = source.listing()
    assert (listing.labels_N, listing.classes) == (None, 0)
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").write_bytes(b"short")
    first, gone, short = source.fetch(listing.refs, listing.fingerprint)
    assert np.array_equal(pixels_of(first), pixels[0])
    assert isinstance(gone, Rejected)
    assert isinstance(short, Rejected)


def test_webdataset_as_others_write_it(tmp_path, images):
    import webdataset as wds

    pixels, labels = images(10)
    with wds.ShardWriter(str(tmp_path / "a-%02d.tar"), maxcount=6, verbose=0) as writer:
        for number in range(10):
            writer.write(
                {"__key__": f"s/{number:03d}", "png": encode(pixels[number]), "cls": labels[number]}
            )
    source = open_source(f"webdataset:{tmp_path}/a-{{00..01}}.tar")
    listing = source.listing()
    assert listing.names[:2] == ["a-00/s/000", "a-00/s/001"]
    assert listing.names[-1] == "a-01/s/009"
    assert listing.labels_N.tolist() == labels.tolist()
    assert np.array_equal(fetched(source), pixels)
    assert listing.names == open_source(f"webdataset:{tmp_path}/a-*.tar").listing().names


def test_incomplete_webdataset_samples(tmp_path, images):
    pixels, _ = images(2)
    members = {
        "a.png": encode(pixels[0]),
        "a.cls": b"1",
        "b.cls": b"0",
        "c.png": encode(pixels[1]),
        "c.cls": b"\xff",
    }
    write_tar(tmp_path / "t.tar", members.items())
    listing = open_source(f"webdataset:{tmp_path}/t.tar").listing()
    assert listing.names == ["t/a", "t/c"]
    assert listing.labels_N.tolist() == [1, BAD_LABEL]
    assert listing.rejected == (("t/b", "has no image member"),)


@pytest.mark.parametrize("nested", [True, False])
def test_parquet(tmp_path, images, nested):
    pixels, labels = images(10, channels=3)
    for part, rows in {"p0": range(0, 7), "p1": range(7, 10)}.items():
        blobs = [encode(pixels[row]) for row in rows]
        table = {
            "image": [{"bytes": b, "path": None} for b in blobs] if nested else blobs,
            "label": [f"class {labels[row]}" for row in rows] if nested else labels[list(rows)],
        }
        pq.write_table(pa.table(table), tmp_path / f"{part}.parquet", row_group_size=3)
    source = open_source(f"parquet:{tmp_path}")
    listing = source.listing()
    assert listing.names[6:8] == ["p0-00000006", "p1-00000000"]
    assert listing.labels_N.tolist() == labels.tolist()
    assert listing.class_names == (("class 0", "class 1", "class 2") if nested else ())
    assert np.array_equal(fetched(source), pixels)
    assert np.array_equal(fetched(source, [2, 8, 9]), pixels[[2, 8, 9]])


def test_an_npz_that_declares_more_than_memory_holds_is_a_data_error(tmp_path):
    stream = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (1 << 50, 4, 4)}
    np.lib.format.write_array_header_1_0(stream, header)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", stream.getvalue())
    with pytest.raises(DataError, match=r"a\.npz is not a readable npz file \(x.npy declares"):
        open_source(f"npz:{tmp_path}/a.npz").listing()


@pytest.mark.parametrize("part", ["image", "label", "footer"])
def test_a_corrupt_parquet_file_is_named(tmp_path, part):
    table = pa.table({"image": [bytes([n]) * 100 for n in range(9)], "label": [0, 1, 2] * 3})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    metadata = pq.read_metadata(path)
    at = metadata.row_group(0).column(part == "label").dictionary_page_offset
    if part == "footer":
        at = path.stat().st_size - 8 - metadata.serialized_size
    data = bytearray(path.read_bytes())
    data[at : at + 12] = b"\xff" * 12
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet is not a readable Parquet file"):
        fetched(open_source(f"parquet:{path}"), range(9))


def test_parquet_without_images(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"columns text; expected a column of image bytes"):
        open_source(f"parquet:{tmp_path}/a.parquet").listing()


@pytest.mark.parametrize("kind", ["idx", "folder", "npz", "webdataset", "parquet"])
def test_a_missing_source(tmp_path, kind):
    with pytest.raises(DataError) as error:
        open_source(f"{kind}:{tmp_path}/nothing").listing()
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("fodler:/x", "did you mean 'folder'"),
        ("/data/images", "folder:/data/images"),
        ("s3://bucket/images", "expected KIND:WHERE"),
        ("idx:", "expected KIND:WHERE"),
    ],
)
def test_a_source_with_a_wrong_name(text, hint):
    with pytest.raises(ConfigError, match=hint):
        open_source(text)


def test_a_builtin_with_a_wrong_name():
    with pytest.raises(ConfigError, match="did you mean 'mnist5k'"):
        open_source("builtin:mnist").listing()


@pytest.mark.parametrize(
    "pattern", ["pipe:touch {0}", "s3://b/a.tar::pipe:touch {0}", "{{a,pipe:touch {0}}}"]
)
def test_shell_commands_are_not_run(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, DataError, StorageError)):
        open_source(f"webdataset:{pattern.format(tmp_path / 'ran')}").listing()
    assert list(tmp_path.iterdir()) == []


def test_classes_are_in_the_order_that_a_source_declares():
    class Declares(Source):
        def entries(self, scan):
            yield from (Entry("0", 0, "dog"), Entry("1", 1, "ant"), Entry("2", 2))
            scan.class_names = ("zebra", "dog", "ant")

        def fetch(self, refs, fingerprint):
            raise NotImplementedError

    listing = Declares("x").listing()
    assert listing.class_names == ("zebra", "dog", "ant")
    assert (listing.classes, listing.labels_N.tolist()) == (3, [1, 2, -1])
