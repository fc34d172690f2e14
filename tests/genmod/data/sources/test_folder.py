"""Folders of strange files: each is read, passed over, or rejected with its reason."""

import os
import socket
import subprocess

import fsspec
import numpy as np
import pytest
from PIL import Image

from genmod.data.format.foreign import Rejected
from genmod.data.sources.config import SourceOptions
from genmod.data.sources.listing import files_below
from genmod.data.sources.names import HIDDEN
from genmod.data.sources.registry import open_source
from genmod.data.sources.source import NO_LABEL, Scan, pixels_of
from genmod.errors import DataError
from tests.genmod.data.builders import encode

PNG = encode(Image.fromarray(np.zeros((4, 4), np.uint8)))


def fetched(source, listing):
    return dict(zip(listing.names, source.fetch(listing.refs, listing.fingerprint), strict=True))


def test_names_with_a_meaning_elsewhere_are_plain_names(tmp_path):
    names = ["a::b.png", "file:c.png", "s3:d.png", "~.png", "$HOME.png", "{0..9}.png", "*.png", "a%2fb.png",
             "?.png", "tab\t\n\x1b[2J.png", "x" * 251 + ".png", " .png", "\u202e.png"]  # fmt: skip
    for name in names:
        (tmp_path / name).write_bytes(PNG)
    source = open_source(f"folder:{tmp_path}")
    listing = source.listing()
    assert sorted(listing.names) == sorted(names)
    assert set(fetched(source, listing).values()) == {PNG}


def test_files_that_are_not_regular_are_never_opened(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    os.mkfifo(tmp_path / "fifo.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.png"))
        (tmp_path / "link.png").symlink_to("fifo.png")
        (tmp_path / "device.png").symlink_to("/dev/zero")
        (tmp_path / "good.png").symlink_to("a.png")
        source = open_source(f"folder:{tmp_path}")
        listing = source.listing()
    assert listing.names == ["a.png", "good.png"]
    reasons = dict(listing.rejected)
    assert set(reasons) == {"fifo.png", "socket.png", "link.png", "device.png"}
    assert set(reasons.values()) == {"is not a regular file"}


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "folder"])
def test_what_takes_the_place_of_a_file_is_not_waited_for(tmp_path, kind):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    source = open_source(f"folder:{tmp_path}")
    listing = source.listing()
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    (image,) = source.fetch(listing.refs, listing.fingerprint)
    assert isinstance(image, Rejected)


@pytest.fixture
def deep(tmp_path):
    """Makes a folder of many levels, with an image in the lowest one."""
    where = os.getcwd()

    def make(name, levels):
        os.chdir(tmp_path)
        for _ in range(levels):
            os.mkdir(name)
            os.chdir(name)
        with open("z.png", "wb") as file:
            file.write(PNG)

    yield make
    os.chdir(where)
    subprocess.run(["rm", "-r", str(tmp_path)], check=True)  # pytest would recurse


def test_a_folder_of_a_thousand_levels_is_listed(tmp_path, deep):
    (tmp_path / "a.png").write_bytes(PNG)
    deep("d", 1500)
    assert [len(file.name) for file in files_below(str(tmp_path))] == [5, 3005]


def test_a_folder_that_is_too_deep_is_one_error(tmp_path, deep):
    deep("d" * 200, 30)
    with pytest.raises(DataError, match=r"cannot be listed \(File name too long\)"):
        open_source(f"folder:{tmp_path}").listing()


def shade(value, kind="PNG"):
    return encode(Image.fromarray(np.full((4, 4), value, np.uint8)), kind)


def write(root, files):
    """Write files by path."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def scanned(root, identify=True, **options):
    """Entries by name, and the scan of a folder."""
    scan = Scan(identify=identify)
    entries = open_source(f"folder:{root}", SourceOptions(**options)).entries(scan)
    return {entry.name: entry for entry in entries}, scan


def shades(root, entries):
    images = open_source(f"folder:{root}").fetch([entry.ref for entry in entries.values()], "")
    return {name: round(pixels_of(i).mean()) for name, i in zip(entries, images, strict=True)}


def labels(entries):
    return {name: (entry.label, entry.split) for name, entry in entries.items()}


def counts(scan):
    return {kind: passed.count for kind, passed in scan.census.passed_over.items()}


STORES = ["local", "memory"]


@pytest.fixture(params=STORES)
def place(request, tmp_path):
    """Returns a function that writes files into a folder of a kind of store, and returns its URL."""

    def make(files):
        if request.param == "local":
            write(tmp_path / "in", files)
            return str(tmp_path / "in")
        store = fsspec.filesystem("memory")
        store.pipe({f"/in-{tmp_path.name}/{name}": data for name, data in files.items()})
        return f"memory://in-{tmp_path.name}"

    return make


def test_a_file_counts_by_its_content(place):
    url = place(
        {
            "a/1": shade(10),
            "a/2.jpeg_large": shade(20, "JPEG"),
            "a/3.dat": shade(30, "BMP"),
            "b/4.png": shade(40),
            "b/5.TIFF": shade(50, "TIFF"),
            "b/notes.txt": b"hello",
            "b/more.txt": b"hello",
            "b/x": b"no image",
            "b/empty": b"",
            "b/photo.heic": b"\x00\x00\x00\x24ftypheic" + bytes(99),
            "b/sign.svg": b"<svg xmlns='x'></svg>",
            "b/raw.nef": shade(60, "TIFF"),
            "b/x.xml": b"<annotation/>",
            "b/old.zip": b"PK\x03\x04",
            "b/x.weird ext": b"x",
        }
    )
    entries, scan = scanned(url)
    assert shades(url, entries) == {
        "a/1": 10,
        "a/2.jpeg_large": 20,
        "a/3.dat": 30,
        "b/4.png": 40,
        "b/5.TIFF": 50,
    }
    assert scan.census.decisions == ["3 images without an image extension are taken"]
    unread = "images, which are not read; convert them to PNG or JPEG"
    assert counts(scan) == {
        "text files (.txt)": 2,
        "files without an extension": 1,
        "empty files": 1,
        f"HEIC {unread}": 1,
        f"SVG {unread}": 1,
        f"camera raw {unread}": 1,
        "annotations that are not read (.xml)": 1,
        "archives that are not unpacked (.zip)": 1,
        "other files": 1,
    }


def test_names_that_systems_hide_are_passed_over(place):
    url = place(
        {
            name: shade(1)
            for name in (
                "a/1.png",
                "a/._1.png",
                ".git/2.png",
                "__MACOSX/a/1.png",
                "a/@eaDir/1.png/thumb.jpg",
                "a/.DS_Store",
                "a/Thumbs.db",
                "a/Desktop.ini",
            )
        }
    )
    entries, scan = scanned(url)
    assert list(entries) == ["a/1.png"]
    assert counts(scan) == {HIDDEN: 7}


def test_kinds_of_hostile_names_are_bounded(tmp_path):
    write(tmp_path, {"1.png": PNG, **{f"a.x{number}": b"x" for number in range(99)}})
    _, scan = scanned(tmp_path)
    assert len(counts(scan)) == 41
    assert sum(counts(scan).values()) == 99


def test_links_to_folders_are_followed(tmp_path):
    write(
        tmp_path,
        {"in/cat/1.png": shade(1), "store/d/2.png": shade(2), "store/d/sub/3.png": shade(3)},
    )
    (tmp_path / "in" / "dog").symlink_to(tmp_path / "store" / "d")
    (tmp_path / "in" / "eel").symlink_to("dog")
    entries, scan = scanned(tmp_path / "in")
    assert {name: label for name, (label, _) in labels(entries).items()} == {
        "cat/1.png": "cat",
        "dog/2.png": "dog",
        "dog/sub/3.png": "sub",
        "eel/2.png": "eel",
        "eel/sub/3.png": "sub",
    }
    assert shades(tmp_path / "in", entries)["dog/2.png"] == 2
    first, second, nested = scan.census.decisions
    assert "dog/sub is a class of its own" in nested
    assert first == "2 links to folders are followed"
    assert second.startswith(
        "class sub is in several folders (dog/sub, eel/sub), which are one class"
    )
    (tmp_path / "whole").symlink_to(tmp_path / "in")
    assert labels(scanned(tmp_path / "whole")[0]) == labels(entries)


def test_links_in_a_circle_are_reported_and_end(tmp_path):
    write(tmp_path, {"in/a/1.png": PNG, "out/2.png": PNG})
    (tmp_path / "in" / "a" / "self").symlink_to(".")
    (tmp_path / "in" / "a" / "root").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    (tmp_path / "in" / "out").symlink_to(tmp_path / "out")
    (tmp_path / "out" / "back").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "dead").symlink_to("nothing")
    (tmp_path / "in" / "x").symlink_to("y")
    (tmp_path / "in" / "y").symlink_to("x")
    entries, _ = scanned(tmp_path / "in")
    circle = "is a link to a folder that contains it"
    assert {name: entry.reason for name, entry in entries.items()} == {
        "a/1.png": None,
        "out/2.png": None,
        "a/self": circle,
        "a/root": circle,
        "up": circle,
        "out/back": circle,
        "dead": "is a link to nothing",
        "x": "is a link that leads back to itself",
        "y": "is a link that leads back to itself",
    }


def test_links_that_multiply_are_cut_off(tmp_path):
    for level in range(12):
        (tmp_path / f"{level}").mkdir()
        for name in "ab":
            (tmp_path / f"{level}" / name).symlink_to(tmp_path / f"{level + 1}")
    write(tmp_path, {"12/1.png": PNG, "in/1.png": PNG})
    (tmp_path / "in" / "a").symlink_to(tmp_path / "0")
    entries, _ = scanned(tmp_path / "in")
    assert sum(entry.reason is None for entry in entries.values()) == 65
    assert {e.reason for e in entries.values()} == {
        None,
        "links lead to this folder more than 64 times",
    }


def test_folders_at_the_top_declare_splits(place):
    url = place(
        {
            name: PNG
            for name in (
                "Train/cat/1.png",
                "Train/dog/2.png",
                "VALID/cat/3.png",
                "testing/dog/deep/4.png",
                "dev2017/cat/5.png",
                "dog/6.png",
            )
        }
    )
    entries, scan = scanned(url)
    assert labels(entries) == {
        "Train/cat/1.png": ("cat", "train"),
        "Train/dog/2.png": ("dog", "train"),
        "VALID/cat/3.png": ("cat", "val"),
        "testing/dog/deep/4.png": ("deep", "test"),
        "dev2017/cat/5.png": ("cat", "val"),
        "dog/6.png": ("dog", None),
    }
    nested, splits = scan.census.decisions
    assert nested.startswith("dog/deep is a class of its own, deep, although dog is one too")
    assert splits == (
        "the folders declare the splits train, val, test: data.splits=source keeps them, shares ignore them"
    )


def test_images_directly_in_a_split_have_no_label(place):
    url = place({"train/1.png": PNG, "test/2.png": PNG})
    entries, scan = scanned(url)
    assert labels(entries) == {"test/2.png": (NO_LABEL, "test"), "train/1.png": (NO_LABEL, "train")}
    assert "the images are in no class folders: no labels" in scan.census.decisions
    entries, _ = scanned(url, label="folder")
    assert labels(entries) == {"test/2.png": ("test", None), "train/1.png": ("train", None)}


@pytest.mark.parametrize(
    "names",
    [
        ("car/1.png", "train/2.png"),
        ("train/2.png", "zebra/1.png"),
        ("data/train/1.png",),
        ("cat/a/test/1.png",),
    ],
)
def test_a_folder_that_may_be_a_split_or_a_class_is_refused(tmp_path, names):
    write(tmp_path, dict.fromkeys(names, PNG))
    with pytest.raises(
        DataError, match=r"may be a split or a class; set data\.label=folder"
    ) as error:
        scanned(tmp_path)
    assert "\n" not in str(error.value)
    entries, _ = scanned(tmp_path, label="folder")
    assert {name: entry.label for name, entry in entries.items()} == {
        n: n.split("/")[-2] for n in names
    }


def test_the_splits_of_the_source_are_kept(tmp_path, build):
    files = {
        f"{split}/{label}/{n}.png": PNG
        for split in ("train", "test")
        for label in "ab"
        for n in range(4)
    }
    write(tmp_path / "in", files)
    manifest = build(tmp_path / "out", source=f"folder:{tmp_path}/in", splits="source")
    assert {shard.split: shard.rows for shard in manifest.shards} == {"train": 8, "test": 8}
    assert manifest.class_names == ("a", "b")


def replace(path, data):
    """Other bytes with the same size and times."""
    times = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_file_that_was_replaced_is_another_source(tmp_path):
    path = tmp_path / "1.bmp"
    path.write_bytes(shade(1, "BMP"))
    first, timed = scanned(tmp_path)[1], scanned(tmp_path, identity="time")[1]
    entries, _ = scanned(tmp_path)
    replace(path, shade(2, "BMP"))
    assert scanned(tmp_path)[1].fingerprint != first.fingerprint
    assert scanned(tmp_path, identity="time")[1].fingerprint == timed.fingerprint
    (image,) = open_source(f"folder:{tmp_path}").fetch([e.ref for e in entries.values()], "")
    assert str(image) == "has changed since it was listed"
    # A copy with another time is the same source by content, another one by time.
    replace(path, shade(1, "BMP"))
    os.utime(path, ns=(1, 1))
    assert scanned(tmp_path)[1].fingerprint == first.fingerprint
    entries, scan = scanned(tmp_path, identity="time")
    assert scan.fingerprint != timed.fingerprint
    assert shades(tmp_path, entries) == {"1.bmp": 1}
    os.utime(path, ns=(2, 2))
    (image,) = open_source(f"folder:{tmp_path}").fetch([e.ref for e in entries.values()], "")
    assert str(image) == "has changed since it was listed"


def test_a_folder_in_a_store_is_identified_by_content():
    store, fingerprints = fsspec.filesystem("memory"), []
    for value in (1, 2):
        store.pipe_file("/identified/1.bmp", shade(value, "BMP"))
        fingerprints.append(scanned("memory://identified")[1].fingerprint)
    assert fingerprints[0] != fingerprints[1]


def test_a_listing_without_identity_has_no_fingerprint(place):
    url = place({"a/1.png": shade(7), "a/2": shade(8)})
    entries, scan = scanned(url, identify=False)
    assert scan.fingerprint == ""
    assert shades(url, entries) == {"a/1.png": 7, "a/2": 8}


def test_a_folder_without_images_says_what_it_has(place):
    heic = b"\x00\x00\x00\x24ftypheic" + bytes(99)
    url = place({"1.heic": heic, "2.HEIC": heic, "notes.txt": b"x"})
    words = r"no images .*, but 2 HEIC images, which are not read; convert them to PNG or JPEG; 1 text files"
    with pytest.raises(DataError, match=words):
        scanned(url)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("a/0.tar", "; set data.source=webdataset:{} to read those"),
        ("0.parquet", "; set data.source=parquet:{} to read those"),
        ("notes.txt", " text files (.txt)"),
    ],
)
def test_a_folder_of_other_files_is_named_as_their_source(tmp_path, name, advice):
    write(tmp_path, {name: b"x"})
    with pytest.raises(DataError, match="contains no images") as error:
        scanned(tmp_path)
    assert str(error.value).endswith(advice.format(tmp_path))
