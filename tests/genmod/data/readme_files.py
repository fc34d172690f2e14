"""Cases of the README's table of data: folders of image files."""

import hashlib
import json
import os
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from genmod.data.format.keys import sample_key
from genmod.data.sharding.ingest import make_shard
from genmod.data.sources.names import HIDDEN
from genmod.errors import ConfigError, DataError
from tests.genmod.data.builders import encode, write_tar
from tests.genmod.data.readme_cases import (
    brings,
    class_rows,
    decisions,
    image,
    passed_over,
    pixels,
    plan_of,
    rows_of,
    stored,
    write,
    write_images,
)


def key_digest(name):
    """What the sample of a source orders its rows by."""
    digest = hashlib.blake2b(sample_key(name).encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little")


@brings("class folders, also with numbers as names: `1`, `2`, ... `12`")
def numeric_names(root):
    for number in range(1, 13):
        write_images(root / str(number), 3)
    plan = plan_of(f"folder:{root}")
    assert plan.class_names == tuple(map(str, range(1, 13)))
    assert plan.spec.classes == 12
    assert {label for label, _ in rows_of(plan).values()} == set(plan.class_names)
    assert all(name.startswith(f"{label}/") for name, (label, _) in rows_of(plan).items())


@brings("names of classes that look alike: `Dog` and `dog`, `01` and `1`, two Unicode forms")
def similar_names(root):
    for names in (("Dog", "dog"), ("01", "1"), ("k\u00e4se", "ka\u0308se")):
        for name in names:
            write_images(root / names[0] / name, 3)
        plan = plan_of(f"folder:{root}/{names[0]}")
        assert class_rows(plan) == dict.fromkeys(names, 3)
        first, second = map(ascii, plan.class_names)
        assert f"classes {first} and {second} differ only in case" in decisions(plan)


@brings("one folder of images")
def one_folder(root):
    write_images(root / "photos", 20)
    for where in (root, root / "photos"):
        plan = plan_of(f"folder:{where}")
        assert (plan.spec.classes, plan.class_names, plan.rows) == (0, (), 20)
    assert "'photos' is the only class; data.labels=true makes it one" in decisions(
        plan_of(f"folder:{root}")
    )
    assert plan_of(f"folder:{root}", labels=True).class_names == ("photos",)


@brings("folders `train`, `val`, `test` at the top")
def split_folders(root):
    for split, count in (("train", 30), ("Validation", 10), ("test", 20)):
        for name in ("cat", "dog"):
            write_images(root / split / name, count)
    kept = plan_of(f"folder:{root}", splits="source")
    assert kept.class_names == ("cat", "dog")
    assert kept.rows_by_split == {"train": 60, "val": 20, "test": 40}
    assert all(name.lower().startswith(split) for name, (_, split) in rows_of(kept).items())
    dealt = plan_of(f"folder:{root}", splits={"val": 0.0, "test": 0.0})
    assert dealt.rows_by_split == {"train": 120, "val": 0, "test": 0}
    assert "data.splits=source keeps them" in decisions(dealt)


@brings("a class in several folders: `site1/cat`, `site2/cat`")
def merged_folders(root):
    for split in ("train", "test"):
        for site in ("site1", "site2"):
            write_images(root / split / site / "cat", 5)
            write_images(root / split / f"{site}-dog", 5)
    plan = plan_of(f"folder:{root}")
    assert class_rows(plan) == {"cat": 20, "site1-dog": 10, "site2-dog": 10}
    text = (
        "class cat is in several folders (site1/cat, site2/cat), which are one class; other names"
    )
    assert decisions(plan).count("several folders") == 1
    assert text in decisions(plan)


@brings("folders of class folders: `animals/cat`, `plants/oak`; class folders in class folders")
def nested_folders(root):
    write_images(root / "groups" / "animals" / "cat", 10)
    write_images(root / "groups" / "plants" / "oak", 10)
    plan = plan_of(f"folder:{root}/groups")
    assert class_rows(plan) == {"cat": 10, "oak": 10}
    assert "right above an image is its class: animals/cat is class cat" in decisions(plan)
    write_images(root / "within" / "cat", 10)
    write_images(root / "within" / "cat" / "persian", 10)
    plan = plan_of(f"folder:{root}/within")
    assert class_rows(plan) == {"cat": 10, "persian": 10}
    assert "cat/persian is a class of its own, persian, although cat is one too" in decisions(plan)
    write_images(root / "alone" / "images" / "cat", 10)
    write_images(root / "alone" / "images" / "oak", 10)
    assert "class" not in decisions(plan_of(f"folder:{root}/alone"))


@brings("an empty folder among class folders")
def empty_folders(root):
    write_images(root / "cat", 10)
    write_images(root / "dog", 10)
    (root / "eel").mkdir()
    plan = plan_of(f"folder:{root}")
    assert class_rows(plan) == {"cat": 10, "dog": 10}
    assert passed_over(plan) == {"folders without files": 1}


@brings("links to folders")
def links(root):
    write_images(root / "elsewhere", 10)
    write_images(root / "data" / "cat", 10, first=10)
    (root / "data" / "dog").symlink_to(root / "elsewhere")
    plan = plan_of(f"folder:{root}/data")
    assert class_rows(plan) == {"cat": 10, "dog": 10}
    assert "1 links to folders are followed" in decisions(plan)
    (root / "data" / "dog" / "back").symlink_to(root / "data")
    plan = plan_of(f"folder:{root}/data", max_quarantined=0.5)
    assert class_rows(plan) == {"cat": 10, "dog": 10}
    assert [reason for _, _, reason in plan.rejected] == ["is a link to a folder that contains it"]


@brings("`metadata.csv`, `metadata.jsonl`, `dataset.json` next to the images")
def label_files(root):
    names = [f"{number}.png" for number in range(20)]
    labels = [number % 3 + 1 for number in range(20)]
    rows = list(zip(names, labels, strict=True))
    texts = {
        "metadata.csv": "file_name,label\n" + "".join(f"{n},{v}\n" for n, v in rows),
        "metadata.jsonl": "".join(json.dumps({"file_name": n, "label": v}) + "\n" for n, v in rows),
        "dataset.json": json.dumps({"labels": rows}),
    }
    for name, text in texts.items():
        write_images(root / name, 20)
        write(root / name / name, text.encode())
        plan = plan_of(f"folder:{root}/{name}")
        assert {n: label for n, (label, _) in rows_of(plan).items()} == dict(rows)
        assert f"labels are read from {name}" in decisions(plan)
    write_images(root / "both" / "cat", 2)
    write_images(root / "both" / "dog", 2)
    text = "cat/0.png,dog\ncat/1.png,cat\ndog/0.png,dog\ndog/1.png,dog\n"
    write(root / "both" / "metadata.csv", f"file_name,label\n{text}".encode())
    with pytest.raises(DataError, match=r"set data\.label=metadata\.csv or data\.label=folder"):
        plan_of(f"folder:{root}/both")
    chosen = plan_of(f"folder:{root}/both", label="metadata.csv")
    assert rows_of(chosen)["cat/0.png"][0] == "dog"


@brings("a column `split` in that file")
def split_column(root):
    write_images(root, 20)
    splits = ["train" if number < 12 else "test" for number in range(20)]
    rows = "".join(f"{n}.png,{'ab'[n % 2]},{split}\n" for n, split in enumerate(splits))
    write(root / "metadata.csv", f"file_name,label,split\n{rows}".encode())
    plan = plan_of(f"folder:{root}", splits="source")
    assert {name: split for name, (_, split) in rows_of(plan).items()} == {
        f"{n}.png": split for n, split in enumerate(splits)
    }
    dealt = decisions(plan_of(f"folder:{root}"))
    assert "the rows of metadata.csv declare the splits train, test: data.splits=source" in dealt


@brings("image files without an extension, or with another one")
def extensions(root):
    names = ["a", "b.jfif", "c.jpg_large", "d.dat", "e.JPG", "f.png"]
    for number, name in enumerate(names):
        write(root / name, image(number, "JPEG" if number % 2 else "PNG"))
    write(root / "notes.txt", b"hello")
    write(root / "x.heic", b"\0\0\0\x18ftypheic" + bytes(50))
    plan = plan_of(f"folder:{root}", splits={"val": 0.0, "test": 0.0})
    assert sorted(rows_of(plan)) == names
    assert "4 images without an image extension are taken" in decisions(plan)
    assert passed_over(plan) == {
        "text files (.txt)": 1,
        "HEIC images, which are not read; convert them to PNG or JPEG": 1,
    }


@brings(
    "`.DS_Store`, `._name`, `__MACOSX`, `Thumbs.db`, `desktop.ini` in folders, tars and npz files"
)
def hidden(root):
    junk = [".DS_Store", "cat/._0.png", "__MACOSX/0.png", "Thumbs.db", "cat/desktop.ini"]
    for name in junk:
        write(root / "folder" / name, image(99))
    write_images(root / "folder" / "cat", 20)
    write_tar(
        root / "a.tar",
        [(name, image(99)) for name in junk] + [(f"{n}.png", image(n)) for n in range(20)],
    )
    (root / "tars").mkdir()
    pixels_N = np.stack([pixels(n) for n in range(20)])
    np.savez(root / "a.npz", images=pixels_N)
    with zipfile.ZipFile(root / "a.npz", "a") as archive:
        for name in (*junk, "__MACOSX/._images.npy", "._labels.npy"):
            archive.writestr(name, image(99))
    (root / "idx").mkdir()
    header = struct.pack(">4B3I", 0, 0, 8, 3, *pixels_N.shape)
    write(root / "idx" / "train-images-idx3-ubyte", header + pixels_N.tobytes())
    for name in (".DS_Store", "._train-images-idx3-ubyte", "._train-labels-idx1-ubyte"):
        write(root / "idx" / name, image(99))
    write_tar(root / "tars" / "a.tar", [(f"{n}.png", image(n)) for n in range(20)])
    for name in ("._a.tar", ".DS_Store", "__MACOSX/a.tar"):
        write(root / "tars" / name, image(99))
    sources = ("folder:folder", "webdataset:a.tar", "npz:a.npz", "idx:idx", "webdataset:tars/*.tar")
    for kind, where in (source.split(":") for source in (*sources, "webdataset:tars")):
        plan = plan_of(f"{kind}:{root}/{where}")
        assert plan.rows == 20
        assert not plan.rejected
        assert list(passed_over(plan)) == [HIDDEN]


@brings("a file replaced by another of the same name and size")
def replaced(root):
    data = [encode(np.full((4, 4), shade, np.uint8), "BMP") for shade in (1, 2)]
    assert len(data[0]) == len(data[1])
    write_images(root, 5)
    for name in ("a.bmp", "b.bmp"):
        write(root / name, data[0])
    splits = {"val": 0.0, "test": 0.0}
    before, state = plan_of(f"folder:{root}", splits=splits), os.stat(root / "a.bmp")
    (root / "a.bmp").write_bytes(data[1])
    os.utime(root / "a.bmp", ns=(state.st_atime_ns, state.st_mtime_ns))
    after = plan_of(f"folder:{root}", splits=splits)
    assert after.fingerprint != before.fingerprint
    assert stored(before)["a.bmp"] == "has changed since it was listed"
    assert stored(after)["a.bmp"][0, 0, 0] == 2
    write(root / "a.bmp", data[0])
    assert plan_of(f"folder:{root}", splits=splits).fingerprint == before.fingerprint


@brings("grey and colour images together")
def mixed_channels(root):
    for number in range(20):
        write(root / f"{number:02}.png", image(number, channels=1 if number < 3 else 3))
    plan = plan_of(f"folder:{root}")
    assert plan.spec.channels == 3
    assert "17 of 20 sampled images are RGB, 3 are grey and repeated" in decisions(plan)
    grey = stored(plan)["00.png"]
    assert (grey == pixels(0)[:, :, None]).all()
    assert (stored(plan)["05.png"] == pixels(5, channels=3)).all()
    assert plan_of(f"folder:{root}", channels=1).spec.channels == 1


@brings("a colour image among many grey ones that no sampled image announced")
def rare_colour(root):
    names = [f"{number}.png" for number in range(300)]
    for number, name in enumerate(names):
        write(root / name, image(number))
    # The sample has the 256 names with the smallest digests.
    rare = max(names, key=key_digest)
    write(root / rare, image(0, channels=3))
    splits = {"val": 0.0, "test": 0.0}
    jobs = [
        [plan.job(shard, str(root / name)) for shard in plan.shards]
        for name, plan in (
            ("by-sample", plan_of(f"folder:{root}", splits=splits)),
            ("chosen", plan_of(f"folder:{root}", splits=splits, channels=1)),
        )
    ]
    ((job,), (chosen,)) = jobs
    assert job["spec"]["channels"] == chosen["spec"]["channels"] == 1
    ((_, name, reason),) = make_shard(job).rejected
    assert (name, reason) == (
        rare,
        "is in colour, sampled images are grey; set data.channels to 3 or 1",
    )
    assert make_shard(chosen).rejected == ()


@brings("images of several sizes")
def mixed_sizes(root):
    for number in range(30):
        write(root / f"{number:02}.png", image(number, side=6 if number < 10 else 8))
    with pytest.raises(
        ConfigError, match=r"10 of 30 .* not 8x8 .*set data\.resize to fit, crop or pad"
    ):
        plan_of(f"folder:{root}")
    plan = plan_of(f"folder:{root}", resize="fit")
    assert plan.spec.shape == (1, 8, 8)
    assert {one.shape for one in stored(plan).values()} == {(8, 8, 1)}
    assert "20 of 30 sampled images have this size" in decisions(plan)


@brings("phone photos with a second picture behind the first (MPO)")
def second_picture(root):
    bright, dark = (Image.new("L", (16, 16), shade) for shade in (200, 10))
    for number in range(5):
        write(root / f"{number}.jpg", encode(bright, "MPO", save_all=True, append_images=[dark]))
    images = stored(plan_of(f"folder:{root}"))
    assert [round(one.mean()) for one in images.values()] == [200] * 5


@brings("the same name twice, or the same image under two names")
def duplicates(root):
    same = image(1)
    members = [(f"{number}.png", image(number)) for number in range(19)]
    write_tar(root / "a.tar", [*members, ("0.png", same), ("copy.png", same)])
    plan = plan_of(f"webdataset:{root}/a.tar", max_quarantined=0.1)
    assert [(name, reason) for _, name, reason in plan.rejected] == [
        ("a/0", "has two members .png")
    ]
    assert plan.rows == 19
    rows = stored(plan)
    assert (rows["a/copy"] == rows["a/1"]).all()


@brings("the same image file in two splits")
def copies_in_two_splits(root):
    write_images(root / "train" / "cat", 10)
    write_images(root / "train" / "dog", 10, first=10)
    write_images(root / "test" / "cat", 5, first=7)
    plan = plan_of(f"folder:{root}", splits="source")
    assert plan.rows == 25
    assert "5 files are copies of others, byte for byte, and are kept" in decisions(plan)
    assert (
        "5 images of val and test are in another split too, the first is test/cat/0.png"
        in decisions(plan)
    )


@brings("transparent, 16-bit, CMYK and animated images")
def not_converted(root):
    half = np.full((4, 4, 4), 128, np.uint8)
    frames = [Image.fromarray(pixels(number)) for number in (1, 2)]
    write(root / "alpha.png", encode(Image.fromarray(half)))
    write(root / "deep.png", encode(Image.fromarray(np.full((4, 4), 40_000, np.uint16))))
    write(root / "cmyk.jpg", encode(Image.new("CMYK", (4, 4)), "JPEG"))
    write(root / "film.gif", encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    write_images(root, 16)
    plan = plan_of(f"folder:{root}", max_quarantined=0.5, splits={"val": 0.0, "test": 0.0})
    assert {name: one for name, one in stored(plan).items() if isinstance(one, str)} == {
        "alpha.png": "has transparent pixels; put it on a background",
        "deep.png": "16 bits per channel; convert it to 8",
        "cmyk.jpg": "has pixels of mode CMYK; convert it to 8-bit grey or RGB",
        "film.gif": "has more than one frame",
    }
