"""Tars as people bring them: hidden files, several members, labels of several kinds, equal names, splits."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from genmod.data.sharding.plan import make_plan
from genmod.data.sources.config import DataConfig, SourceOptions
from genmod.data.sources.names import HIDDEN
from genmod.data.sources.registry import open_source
from genmod.data.sources.source import BAD_LABEL, NO_LABEL, Scan, pixels_of
from genmod.errors import ConfigError, DataError
from tests.genmod.data.builders import encode, write_tar


def shade(value, kind="PNG"):
    return encode(Image.fromarray(np.full((4, 4), value, np.uint8)), kind)


FORK = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(139)


def scanned(pattern, **options):
    """Entries and census of a source."""
    scan = Scan()
    source = open_source(f"webdataset:{pattern}", SourceOptions(**options))
    return list(source.entries(scan)), scan


def means(pattern, entries, **options):
    """Mean grey of the image of each entry, by name."""
    source = open_source(f"webdataset:{pattern}", SourceOptions(**options))
    images = source.fetch([entry.ref for entry in entries], "")
    return {e.name: round(pixels_of(i).mean()) for e, i in zip(entries, images, strict=True)}


def counts(scan):
    return {kind: passed.count for kind, passed in scan.census.passed_over.items()}


def test_names_that_systems_hide_are_passed_over(tmp_path):
    members = [("./.DS_Store", bytes(6148)), ("__MACOSX/._x.png", FORK), ("a/Thumbs.db", b"x"),
               ("desktop.ini", b"x"),
               ("@eaDir/0.png/SYNOPHOTO.jpg", shade(1, "JPEG")), (".hidden/b.png", shade(1))]  # fmt: skip
    for number in range(3):
        for name, data in (
            (f"{number}.png", shade(50 + number)),
            (f"{number}.cls", b"%d" % number),
        ):
            members += [(f"./._{name}", FORK), (f"./{name}", data)]
    write_tar(tmp_path / "t.tar", members)
    entries, scan = scanned(tmp_path / "t.tar")
    assert [(e.name, e.label, e.reason) for e in entries] == [
        (f"t/./{number}", number, None) for number in range(3)
    ]
    assert counts(scan) == {HIDDEN: 12}


def test_hidden_tars_that_a_wildcard_matches_are_passed_over(tmp_path):
    write_tar(tmp_path / "a.tar", [("0.png", shade(9))])
    (tmp_path / "._a.tar").write_bytes(FORK)
    entries, scan = scanned(f"{tmp_path}/*.tar")
    assert [entry.name for entry in entries] == ["a/0"]
    assert counts(scan) == {HIDDEN: 1}


def test_an_image_counts_by_its_content(tmp_path):
    members = [("a", shade(10)), ("b.bin", shade(20, "JPEG")), ("c.image", shade(30, "WEBP")),
               ("d.png", shade(40)), ("d.txt", b"a caption"), ("e.png", shade(50)),
               ("e.heic", b"\x00\x00\x00\x24ftypheic" + bytes(99))]  # fmt: skip
    write_tar(tmp_path / "t.tar", members)
    entries, scan = scanned(tmp_path / "t.tar")
    shades = means(tmp_path / "t.tar", entries)
    assert shades == {"t/a": 10, "t/b": 20, "t/c": 30, "t/d": 40, "t/e": 50}
    assert scan.census.decisions[0] == "3 images without an image extension are taken"
    assert counts(scan) == {
        "text files (.txt)": 1,
        "HEIC images, which are not read; convert them to PNG or JPEG": 1,
    }


@pytest.fixture
def masks(tmp_path):
    """A tar of photos (shade 200) and masks (shade 0), in any order."""
    members = []
    for number in range(8):
        parts = [(f"{number}.jpg", shade(200, "JPEG")), (f"{number}.mask.png", shade(0))]
        members += parts[:: -1 if number % 2 else 1]
    write_tar(tmp_path / "t.tar", members)
    return tmp_path / "t.tar"


def test_several_images_per_sample_are_refused_or_chosen(masks):
    with pytest.raises(
        DataError, match=r"several images per sample: jpg, mask\.png; set data\.image to one"
    ):
        scanned(masks)
    for image, value in (("jpg", 200), (".JPG", 200), ("mask.png", 0), ("jpeg;jpg", 200)):
        entries, scan = scanned(masks, image=image)
        assert set(means(masks, entries, image=image).values()) == {value}
        other = "mask.png" if value else "jpg"
        assert counts(scan) == {f"images that data.image does not choose (.{other})": 8}


def test_a_choice_that_no_sample_has_names_the_images(masks):
    with pytest.raises(
        DataError, match=r"no members \.png, as data\.image requires; images: \.jpg, \.mask\.png"
    ):
        scanned(masks, image="png")


def test_labels_are_numbers_or_names_never_both(tmp_path):
    def tar(*texts):
        members = [
            (f"{n}.{e}", d)
            for n, text in enumerate(texts)
            for e, d in (("png", shade(n)), ("cls", text))
        ]
        write_tar(tmp_path / "t.tar", members)
        return tmp_path / "t.tar"

    labels = [
        entry.label for entry in scanned(tar(b"tabby cat\n", "böse".encode(), b"a-2", b""))[0]
    ]
    assert labels == ["tabby cat", "böse", "a-2", BAD_LABEL]
    labels = [entry.label for entry in scanned(tar(b"7\r\n", b"007", b"3.0", b"-4", b"9" * 400))[0]]
    assert labels == [7, 7, 3, BAD_LABEL, BAD_LABEL]
    with pytest.raises(
        DataError, match=r"labels are numbers \('3' of t/1\) and names \('cat' of t/0\)"
    ):
        scanned(tar(b"cat", b"3"))


def test_the_recipe_chooses_the_label(tmp_path):
    members = []
    for number in range(3):
        document = {"label": f"c{number}", "meta": {"n": number}, "one": [number], "w": 1.5}
        members += [(f"{number}.png", shade(number)), (f"{number}.json", json.dumps(document).encode()),
                    (f"{number}.txt", b"%d" % (number + 5)), (f"{number}.fine.cls", b"x")]  # fmt: skip
    write_tar(tmp_path / "t.tar", members)

    def labels(label):
        return [entry.label for entry in scanned(tmp_path / "t.tar", label=label)[0]]

    assert labels("json:label") == ["c0", "c1", "c2"]
    assert labels("json:meta.n") == labels("json:one") == [0, 1, 2]
    assert labels("json:none") == [NO_LABEL] * 3
    assert labels("json:w") == [BAD_LABEL] * 3
    assert labels("txt") == [5, 6, 7]
    assert labels("fine.cls") == ["x"] * 3
    entries, scan = scanned(tmp_path / "t.tar")
    assert {entry.label for entry in entries} == {NO_LABEL}
    assert scan.census.decisions == [
        "the key label of members .json is not read; data.label=json:label reads labels from there",
        "members .txt are not read; data.label=txt reads labels from there",
    ]
    for wrong in ("json", "txt:label", "json:"):
        with pytest.raises(ConfigError, match=r"data\.label"):
            labels(wrong)


def test_a_document_that_is_no_json_rejects_its_sample(tmp_path):
    members = [("a.png", shade(1)), ("a.json", b"{"), ("b.png", shade(2)), ("b.json", b'{"l": 1}')]
    write_tar(tmp_path / "t.tar", members)
    entries, _ = scanned(tmp_path / "t.tar", label="json:l")
    assert [(e.label, e.reason) for e in entries] == [
        (NO_LABEL, "its member .json is not valid JSON"),
        (1, None),
    ]


def test_equal_names_in_two_folders_are_two_samples(tmp_path):
    for number, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "00000.tar", [("000.png", shade(100 * number))])
    for pattern in (
        f"{tmp_path}/{{a,b}}/00000.tar",
        f"{tmp_path}/*/00000.tar",
        f"{tmp_path}/?/*.tar",
    ):
        entries, _ = scanned(pattern)
        assert means(pattern, entries) == {"a/00000/000": 0, "b/00000/000": 100}
    assert (
        make_plan(DataConfig(source=f"webdataset:{pattern}", splits={"val": 0, "test": 0}), 0).rows
        == 2
    )


def test_names_do_not_change_when_tars_are_added_to_a_folder(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"a-{number}.tar", [("0.png", shade(number))])
    names = ["a-0/0", "a-1/0", "a-2/0"]
    for pattern, count in (
        ("a-0.tar", 1),
        ("a-{0..1}.tar", 2),
        ("a-*.tar", 3),
        ("{a-0,a-1}.tar", 2),
    ):
        assert [entry.name for entry in scanned(f"{tmp_path}/{pattern}")[0]] == names[:count]


def test_files_declare_splits_and_labels_stay(tmp_path):
    for folder in ("train", "x"):
        (tmp_path / folder).mkdir()
    for name in ("imagenet-train-000", "imagenet-val-000", "testing_1", "x/other", "train/0"):
        write_tar(tmp_path / f"{name}.tar", [("0.png", shade(1)), ("0.cls", b"4")])
    names = "{imagenet-train-000,imagenet-val-000,testing_1,x/other,train/0}"
    entries, scan = scanned(f"{tmp_path}/{names}.tar")
    assert [entry.split for entry in entries] == ["train", "val", "test", None, "train"]
    assert {entry.label for entry in entries} == {4}
    assert scan.census.decisions == [
        "the names of tars or of folders in them declare the splits train, val, test: "
        "data.splits=source keeps them, shares ignore them"
    ]


def test_the_folder_above_a_pattern_declares_nothing(tmp_path):
    (tmp_path / "test").mkdir()
    write_tar(tmp_path / "test" / "0.tar", [("0.png", shade(1)), ("train/1.png", shade(1))])
    assert [entry.split for entry in scanned(f"{tmp_path}/test/*.tar")[0]] == [None, "train"]


def test_a_tar_that_was_replaced_is_another_source(tmp_path):
    path = tmp_path / "t.tar"

    def write(value, time_ns=5):
        write_tar(path, [("0.bmp", shade(value, "BMP"))])
        os.utime(path, ns=(time_ns, time_ns))

    write(1)
    (entry,), first = scanned(path)
    write(2)
    _, second = scanned(path)
    assert first.fingerprint != second.fingerprint
    assert (
        scanned(path, identity="time")[1].fingerprint
        == scanned(path, identity="time")[1].fingerprint
    )
    # A copy with another time is the same source; between listing and fetching, other bytes are seen.
    write(1, time_ns=6)
    assert scanned(path)[1].fingerprint == first.fingerprint
    assert means(path, [entry]) == {"t/0": 1}
    write(2, time_ns=7)
    with pytest.raises(DataError, match=r"t\.tar changed while it was sharded"):
        means(path, [entry])


def test_a_listing_without_identity_reads_no_image(tmp_path):
    write_tar(tmp_path / "t.tar", [("0.png", shade(3)), ("0.cls", b"1")])
    scan = Scan(identify=False)
    entries = list(open_source(f"webdataset:{tmp_path}/t.tar").entries(scan))
    assert scan.fingerprint == ""
    assert means(tmp_path / "t.tar", entries) == {"t/0": 3}
