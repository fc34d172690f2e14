"""Paths of sources: ``*``, ``?`` and braces are patterns, unless they are in names that exist."""

import os

import numpy as np
import pytest

from genmod import storage
from genmod.data.sources.names import HIDDEN
from genmod.data.sources.patterns import expand_files
from genmod.errors import DataError
from tests.genmod.data.builders import encode, write_tar
from tests.genmod.data.sources.tables import Listed, write
from tests.genmod.data.sources.test_idx_files import write_set

FOLDERS = ("a [1]", "a 1", "a [!1]", "a 2", "a ]")


def shade(number):
    return encode(np.full((4, 4), number, np.uint8))


def write_source(folder, kind, number):
    """Write one image, whose shade is a number, as a source of a kind."""
    folder.mkdir(parents=True)
    if kind == "webdataset":
        write_tar(folder / "0.tar", [("0.png", shade(number))])
    elif kind == "parquet":
        write(folder / "0.parquet", image=[shade(number)])
    elif kind == "npz":
        np.savez(folder / "x.npz", images=np.full((1, 4, 4), number, np.uint8))
    elif kind == "idx":
        write_set(folder, "train", np.full((1, 4, 4), number, np.uint8), np.zeros(1, np.uint8))
    else:
        (folder / "0.png").write_bytes(shade(number))


def shades(text):
    """Shade of each image of a source."""
    images = Listed(text).images
    return sorted(
        int(one.flat[0]) if isinstance(one, np.ndarray) else SHADES[one] for one in images
    )


SHADES = {shade(number): number for number in range(20)}
ENDS = {
    "webdataset": ("", "/*.tar", "/?.tar", "/0.tar", "/{0..0}.tar", "/**/*.tar", "/**"),
    "parquet": ("", "/*.parquet", "/0.parquet", "/{0,0}.parquet", "/**/?.parquet"),
    "npz": ("/x.npz",),
    "idx": ("",),
    "folder": ("",),
}
SOURCES = [(kind, end) for kind, ends in ENDS.items() for end in ends]


@pytest.mark.parametrize(("kind", "end"), SOURCES)
def test_brackets_are_letters(tmp_path, kind, end):
    for number, name in enumerate(FOLDERS):
        write_source(tmp_path / name, kind, number)
    for number, name in enumerate(FOLDERS):
        found = shades(f"{kind}:{tmp_path}/{name}{end}")
        assert set(found) == {number}
        assert len(found) == (2 if end == "/{0,0}.parquet" else 1)


@pytest.mark.parametrize("name", ["a ?", "a *", "a {1,2}", "{a..c}", "a?{x,y}*"])
@pytest.mark.parametrize(("kind", "end"), SOURCES)
def test_a_name_that_exists_is_meant(tmp_path, kind, end, name):
    write_source(tmp_path / name, kind, 1)
    write_source(tmp_path / "other", kind, 2)
    assert set(shades(f"{kind}:{tmp_path}/{name}{end}")) == {1}


@pytest.mark.parametrize("name", ["x?.tar", "x*.tar", "x{1,2}.tar", "x[1].tar"])
def test_a_file_that_exists_is_meant(tmp_path, name):
    write_tar(tmp_path / name, [("0.png", shade(1))])
    write_tar(tmp_path / "y1.tar", [("0.png", shade(2))])
    assert shades(f"webdataset:{tmp_path}/{name}") == [1]


def test_wildcards_match_within_a_name(tmp_path):
    for number, name in enumerate(("a1", "a2", "a12", "b1")):
        write_source(tmp_path / name / "in", "webdataset", number)
    found = {
        "a?/in/*.tar": [0, 1],
        "a*/in/0.tar": [0, 1, 2],
        "?1/*/0.tar": [0, 3],
        "*/*/*.tar": [0, 1, 2, 3],
        "**/0.tar": [0, 1, 2, 3],
        "a1/**": [0],
        "{b,a}1/in/*.tar": [0, 3],
        "a**/in/0.tar": [0, 1, 2],
    }
    assert {end: shades(f"webdataset:{tmp_path}/{end}") for end in found} == found
    for pattern in ("a[12]/in/0.tar", "a?/0.tar", "*.tar", "a1/*/in/*.tar"):
        with pytest.raises(DataError, match="no such file: "):
            Listed(f"webdataset:{tmp_path}/{pattern}")


@pytest.mark.parametrize(
    ("name", "other", "end", "character"),
    [("a ?", "a 1", "/*.tar", r"\?"), ("a*", "ab", "/0.tar", r"\*"), ("?*", "x", "/*", r"\?")],
)
def test_a_folder_that_is_also_a_pattern_of_others_is_refused(
    tmp_path, name, other, end, character
):
    for number, folder in enumerate((name, other)):
        write_source(tmp_path / folder, "webdataset", number)
    with pytest.raises(DataError) as error:
        Listed(f"webdataset:{tmp_path}/{name}{end}")
    assert str(error.value) == (
        f"webdataset:{tmp_path}/{name}{end}: {tmp_path} contains {name!r}, and as a wildcard its "
        f"{character[1:]} also matches {other!r}; rename it, or name it alone, without a pattern below it"
    )
    assert shades(f"webdataset:{tmp_path}/{name}") == [0]


def test_a_file_that_is_also_a_pattern_of_others_is_refused(tmp_path):
    for name in ("*.tar", "1.tar", "{1,2}.tar"):
        write_tar(tmp_path / name, [("0.png", shade(1))])
    with pytest.raises(DataError, match=r"its \* also matches '1\.tar'; rename it$"):
        Listed(f"webdataset:{tmp_path}/*.tar")
    with pytest.raises(
        DataError, match=r"its braces also mean .*/1\.tar, which exists too; rename"
    ):
        Listed(f"webdataset:{tmp_path}/{{1,2}}.tar")


def test_hidden_names_are_passed_over_and_links_are_followed(tmp_path):
    for number, name in enumerate((".git", "__MACOSX", "a")):
        write_source(tmp_path / "in" / name, "webdataset", number)
    (tmp_path / "in" / "a" / "._0.tar").write_bytes(b"\0\x05\x16\x07")
    os.symlink(tmp_path / "in" / "a", tmp_path / "in" / "b")
    listed = Listed(f"webdataset:{tmp_path}/in/*/*.tar")
    assert listed.names == ["a/0/0", "b/0/0"]
    assert listed.census.passed_over[HIDDEN].count == 4
    assert shades(f"webdataset:{tmp_path}/in/.g*/0.tar") == [0]
    os.symlink(tmp_path / "nothing", tmp_path / "in" / "a" / "1.tar")
    with pytest.raises(DataError, match=r"1\.tar is not a regular file"):
        Listed(f"webdataset:{tmp_path}/in/*/*.tar")


def test_patterns_of_a_store(s3_root):
    # Keys of a store may contain every character.
    for number, name in enumerate((*FOLDERS, "deep/a [1]")):
        storage.write_bytes(f"{s3_root}/{name}/0.parquet", bytes([number]))
    for pattern in ("a [1]/*.parquet", "a [1]/?.parquet", "a [1]/{0..0}.parquet"):
        assert expand_files("s", f"{s3_root}/{pattern}") == [f"{s3_root}/a [1]/0.parquet"]
    assert expand_files("s", f"{s3_root}/a ?/*") == [f"{s3_root}/a {n}/0.parquet" for n in "12]"]
    assert len(expand_files("s", f"{s3_root}/**/*.parquet")) == 6
    with pytest.raises(DataError, match="no such file"):
        expand_files("s", f"{s3_root}/a [12]/*.parquet")
    with pytest.raises(DataError, match="a wildcard in the name of a bucket; name the bucket"):
        expand_files("s", "s3://*/a.parquet")


def test_patterns_in_memory():
    for name in ("x [1]/0", "x 1/0"):
        storage.write_bytes(f"memory://wild/{name}", b"x")
    assert expand_files("s", "memory://wild/x [1]/*") == ["memory:///wild/x [1]/0"]
    assert expand_files("s", "memory://wild/x*/0") == [
        "memory:///wild/x 1/0",
        "memory:///wild/x [1]/0",
    ]
