"""The catalog compared with a plan in memory, and its memory use."""

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from itertools import count, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genmod import storage
from genmod.budget import BUDGET
from genmod.data.format.keys import sample_key
from genmod.data.sharding import label_numbers
from genmod.data.sharding.catalog import Catalog
from genmod.data.sharding.hashed_splits import split_of
from genmod.data.sources.config import Splits
from genmod.data.sources.listing import File, files_below
from genmod.data.sources.local_folder import ordered
from genmod.data.sources.source import BAD_LABEL, NO_LABEL, Entry, Source
from genmod.errors import DataError
from genmod.manifest import SPLITS

HALVES = Splits(val=0.3, test=0.3)


class Names(Source):
    """A source without images."""

    kind, scattered = "names", True

    def __init__(self, entries):
        super().__init__("nowhere")
        self.given = entries

    def entries(self, scan):
        yield from self.given
        scan.fingerprint = "f"

    def fetch(self, refs, fingerprint):
        raise AssertionError


def in_memory(entries, known, classes):
    """(rows by split, rejected): the expected result, computed with lists and sets."""
    rows, used = {split: [] for split in SPLITS}, {}
    rejected = [
        (sample_key(e.name), e.name, e.reason)
        for e in entries
        if e.reason and sample_key(e.name) not in known
    ]
    for entry in entries:
        key = sample_key(entry.name)
        if entry.reason or key in known:
            continue
        if key in used:
            rejected.append((key, entry.name, f"duplicate of an input before: {used[key]}"))
        elif classes and not 0 <= entry.label < classes:
            wrong = {NO_LABEL: "has no label", BAD_LABEL: "its label is not a class number"}
            reason = f"label {entry.label}, the dataset has {classes} classes"
            rejected.append((key, entry.name, wrong.get(entry.label, reason)))
        else:
            used[key] = entry.name
            rows[split_of(key, HALVES)].append((entry.name, entry.ref, entry.label))
    return rows, rejected


names = st.text("ab/.", min_size=1, max_size=3)


@settings(deadline=None)
@given(
    st.lists(st.tuples(names, st.integers(-2, 3), st.sampled_from([None, None, "broken"]))),
    st.sets(names, max_size=4),
    st.integers(0, 3),
    st.integers(1, 7),
)
def test_it_agrees_with_a_plan_in_memory(inputs, known, classes, chunk_rows):
    entries = [Entry(name, [at], label, reason) for at, (name, label, reason) in enumerate(inputs)]
    known = {sample_key(name) for name in known}
    rows, rejected = in_memory(entries, known, classes)
    catalog = Catalog(Names(entries), HALVES, [sorted(known)[:1], sorted(known)[1:]], chunk_rows)
    catalog.classify(classes)
    assert list(catalog.rejected(classes)) == rejected
    assert catalog.inputs == len(entries) - len(
        [e for e in entries if e.reason and sample_key(e.name) in known]
    )
    # A listing without refs decides the same.
    known_keys = [sorted(known)]
    quick = Catalog(Names(entries), HALVES, known_keys, chunk_rows, 3, identify=False)
    quick.classify(classes)
    assert list(quick.rejected(classes)) == rejected
    assert (quick.code_N == catalog.code_N).all()
    assert (quick.rows_SK == catalog.rows_SK).all()
    assert quick.sample.rows() == catalog.sample.rows()
    largest = max([entry.label for entry in entries if not entry.reason], default=-1)
    assert catalog.classes == max(0, largest + 1)

    def reversed_in_threes(split, first, count):
        slot_M = len(rows[split]) - 1 - np.arange(first, first + count)
        return slot_M, slot_M // 3 + 1000 * SPLITS.index(split)

    groups = catalog.assign(reversed_in_threes)
    for number, split in enumerate(SPLITS):
        assert catalog.rows_of(split) == len(rows[split])
        lines = [
            line
            for group in range(-(-len(rows[split]) // 3))
            for line in groups.rows(1000 * number + group, 0, 3)
        ]
        assert [(line.name, line.ref, line.label) for line in lines] == rows[split][::-1]


@settings(deadline=None)
@given(st.lists(st.sampled_from(["dog", "cat", "ant", NO_LABEL])))
def test_classes_with_names_are_numbered_in_order(labels):
    entries = [Entry(f"{at}", at, label) for at, label in enumerate(labels)]
    catalog = Catalog(Names(entries), HALVES)
    named = sorted({label for label in labels if label != NO_LABEL})
    assert catalog.class_names == tuple(named)
    assert catalog.classes == len(named)
    everything = (*named, "zebra")
    first = list(dict.fromkeys(label for label in labels if label != NO_LABEL))
    assert catalog.class_numbers(everything) == [everything.index(name) for name in first]


def test_class_names_are_counted_while_they_are_listed(monkeypatch):
    monkeypatch.setattr(label_numbers, "BUDGET", replace(BUDGET, classes=10))

    def endless():
        for number in count():
            yield Entry(f"{number}", number, f"class {number}")

    assert Catalog(Names(islice(endless(), 10)), HALVES).classes == 10
    with pytest.raises(
        DataError, match="names:nowhere: more than 10 class names; check the labels"
    ):
        Catalog(Names(endless()), HALVES)


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(max_size=3), st.integers(0, 9))), st.integers(1, 5))
def test_ordering_on_disk(values, run_names):
    assert list(ordered(iter(values), run_names)) == sorted(values)


def test_files_come_in_the_order_of_their_paths(tmp_path):
    for name in ("b/1", "b.png", "b-/2", "b0", "a/z/y", "a/z.x", "ä", ".hidden/x", "c/.x", "c/é"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12")
    visible = ["a/z.x", "a/z/y", "b-/2", "b.png", "b/1", "b0", "c/é", "ä"]
    assert [file[:3] for file in files_below(str(tmp_path))] == [
        (name, 2, None) for name in visible
    ]


def test_memory_stores_list_as_folders_do(tmp_path):
    import fsspec

    store = fsspec.filesystem("memory")
    for name in ("b/1", "b.png", "a/.x"):
        store.pipe_file(f"/catalog/{name}", b"123")
    files = files_below("memory://catalog")
    assert list(files) == [File("b.png", 3), File("b/1", 3)]


@pytest.mark.slow
def test_a_bucket_is_listed_page_by_page(s3_root):
    fs, path = storage.filesystem(s3_root)
    names = [*sorted(f"{row % 3}/{row:04d}.png" for row in range(1003)), "é.png"]
    fs.pipe({f"{path}/{name}": b"12" for name in [*names, ".hidden/x"]})
    fs.pipe({f"{path}-other/x": b"1"})
    files = list(files_below(s3_root))
    assert [file[:3] for file in files] == [(name, 2, None) for name in names]
    assert {file.state for file in files} == {'ETag 2 "c20ad4d76fe97759aa27a0c99bff6710"'}


def test_an_unreadable_folder_is_an_error(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (tmp_path / "shut").mkdir(mode=0)
    with pytest.raises((DataError, PermissionError)):
        list(files_below(str(tmp_path)))


PLAN = """
    import sys
    from genmod.data.sources import folder as sources_files
    from genmod.data.sources.listing import File
    from genmod.data.sharding.plan import make_plan
    from genmod.data.sources.config import DataConfig

    def names(url, census):  # a folder of so many files, without the files
        for row in range(int(sys.argv[1])):
            yield File(f"class {row % 9}/some/more/folders/image {row:09d}.png", 5000, None, "time 5000 1")

    def peak_mib():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if "VmHWM" in line) / 1024

    sources_files.files_below = names
    before = peak_mib()
    plan = make_plan(DataConfig(source=f"folder:{sys.argv[2]}", image_size=64, channels=3), 0)
    rows = sum(len(plan.job(shard, "x")["names"]) for shard in plan.shards[:40])
    print(plan.rows, len(plan.shards), rows, peak_mib() - before)
"""


PREVIEW = """
    import sys
    from genmod.data.sources import folder as sources_files
    from genmod.data.sources.listing import File
    from genmod.data.sharding.preview import preview
    from genmod.data.sources.config import DataConfig

    rows = int(sys.argv[1])

    def names(url, census, is_sizeless):  # a folder of so many files, without the files
        assert is_sizeless("a.png")
        for row in range(rows):
            yield File(f"class {row * 1000 // rows:04d}/image {row:09d}.png", -1)

    def peak_mib():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if "VmHWM" in line) / 1024

    sources_files.files_below = names
    before = peak_mib()
    census = preview(DataConfig(source=f"folder:{sys.argv[2]}", image_size=64, channels=3)).census
    counts = census.inputs, sum(census.rows.values()), census.spec.classes, *census.class_range
    print(*counts, peak_mib() - before)
"""


@pytest.mark.slow
@pytest.mark.long
def test_the_memory_of_a_preview_of_a_million_files_is_bounded(tmp_path):
    """Their names in a list would take 90 MB, with keys and references 250 MB."""
    command = [sys.executable, "-c", textwrap.dedent(PREVIEW), "1000000", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    *counts, mib = done.stdout.split()
    assert list(map(int, counts)) == [1_000_000, 1_000_000, 1000, 1000, 1000]
    assert float(mib) < 100


@pytest.mark.slow
@pytest.mark.long
def test_the_memory_of_a_plan_grows_with_shards_not_with_rows(tmp_path):
    """Names, keys and references in lists would take 180 MB, three million rows take as much as these."""
    command = [sys.executable, "-c", textwrap.dedent(PLAN), "300000", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows, shards, names, mib = done.stdout.split()
    assert (int(rows), int(shards)) == (300_000, 148)
    assert int(names) > 40 * 2000
    assert float(mib) < 100
