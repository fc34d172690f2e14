"""Every change to a dataset or a model folder is found and named."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genmod.data.format.shards import Row, quarantine_file, write_shard
from genmod.manifest import (
    DatasetManifest,
    ImageSpec,
    Manifest,
    claim,
    dataset_metadata,
    publish,
    write_file,
)
from pipelines.commands.verify import verify
from tests.pipelines.manifest_reads import few_reads


@pytest.fixture
def root(tmp_path):
    """A dataset of two shards below data/, and a model."""
    spec = ImageSpec(channels=1, height=4, width=4, classes=2)
    data = str(tmp_path / "data")
    shards, metadata = [], []
    for number in range(2):
        rows = (
            Row(f"{number}-{i:03d}", 20 * number + i, np.full((4, 4, 1), 9 * i, np.uint8), i % 2)
            for i in range(20)
        )
        entry, fact = write_shard(data, f"train-{number:06d}", "train", spec, rows)
        shards.append(entry)
        metadata.append(fact)
    manifest = DatasetManifest(
        fingerprint="f",
        spec=spec,
        shards=tuple(shards),
        files=(quarantine_file(data, []),),
        metadata=dataset_metadata({"train": metadata[0] + metadata[1]}),
    )
    publish(data, manifest)
    model = str(tmp_path / "models" / "m")
    publish(model, Manifest(kind="model", fingerprint="f", files=(write_file(model, "w", b"abc"),)))
    return tmp_path


def change(path, offset, value=None):
    data = bytearray(path.read_bytes())
    data[offset] = (data[offset] ^ 1) if value is None else value
    path.write_bytes(bytes(data))


def test_whole_folders_have_no_problems(root):
    assert verify(str(root)) == []
    assert verify(str(root / "data")) == []
    assert verify(str(root / "models" / "m")) == []


def test_each_manifest_is_read_once(root):
    with few_reads(root) as reads:
        verify(str(root))
    assert len(reads) == 2


def test_a_changed_image_is_named_with_tar_and_key(root):
    tar = root / "data" / "train-000001.tar"
    line = pq.read_table(root / "data" / "train-000001.idx.parquet").to_pylist()[7]
    change(tar, line["offset"] + 45)
    first, second = verify(str(root))
    assert "train-000001.tar" in first
    assert "sha256" in first
    assert second == f"{tar}: key 1-007: member 1-007.png does not match its checksum in the index"


def test_a_changed_label_is_named(root):
    tar = root / "data" / "train-000000.tar"
    line = pq.read_table(root / "data" / "train-000000.idx.parquet").to_pylist()[4]
    label_at = line["offset"] + -(-line["bytes"] // 512) * 512 + 512
    change(tar, label_at, ord("1"))
    expected = f"{tar}: key 0-004: member 0-004.cls is b'1', the label in the index is 0"
    assert expected in verify(str(root / "data"))


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("data/train-000000.idx.parquet", "missing"),
        ("data/train-000001.tar", "missing"),
        ("data/quarantine.parquet", "missing"),
        ("models/m/w", "missing"),
    ],
)
def test_a_missing_file_is_named(root, file, words):
    (root / file).unlink()
    (problem,) = verify(str(root))
    assert problem == f"{root / file}: {words}"


def test_a_tar_that_was_cut_off_or_grew(root):
    tar = root / "data" / "train-000000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2])
    assert any("bytes, expected" in problem for problem in verify(str(root)))
    assert any("truncated" in problem for problem in verify(str(root)))
    tar.write_bytes(whole + bytes(512))
    (problem,) = verify(str(root))
    assert "bytes, expected" in problem


def line_of(root, number):
    """The tar, the index file, and the index of a shard."""
    stem = root / "data" / f"train-{number:06d}"
    index = stem.with_suffix(".idx.parquet")
    return stem.with_suffix(".tar"), index, pq.read_table(index)


@pytest.mark.parametrize("row", [0, 7, 19])
@pytest.mark.parametrize("member", ["png", "cls"])
@pytest.mark.parametrize("broken", ["flipped", "zeroed"])
def test_a_damaged_header_is_named_and_the_samples_behind_it_are_still_looked_at(
    root, row, member, broken
):
    tar, _, index = line_of(root, 1)
    line = index.to_pylist()[row]
    body_blocks = -(-line["bytes"] // 512)
    header = line["offset"] - 512 if member == "png" else line["offset"] + 512 * body_blocks
    data = bytearray(tar.read_bytes())
    if broken == "flipped":
        data[header + 3] ^= 1
    else:
        data[header : header + 512] = bytes(512)
    tar.write_bytes(bytes(data))
    key = line["key"]
    problems = [problem for problem in verify(str(root)) if "sha256" not in problem]
    if (row, member, broken) != (19, "cls", "zeroed"):  # that looks like the tar's end
        assert any(problem.startswith(f"{tar}: key {key}, byte {header}: ") for problem in problems)
    assert any(f"{tar}: key {key}: member {key}.{member}" in problem for problem in problems)
    assert all(f"key {key}" in problem for problem in problems)


def test_every_sample_that_a_cut_tar_lost_is_named(root):
    tar, _, index = line_of(root, 0)
    line = index.to_pylist()[12]
    tar.write_bytes(tar.read_bytes()[: line["offset"] + 10])
    problems = verify(str(root))
    assert f"{tar}: {line['offset'] + 10} bytes, expected" in problems[0]
    assert f"{tar}: key 0-012, byte {line['offset'] - 512}: truncated in the member" in problems[1]
    lost = [problem for problem in problems if "is missing, it ends at byte" in problem]
    assert [problem.split(": ")[1] for problem in lost] == [f"key 0-{i:03d}" for i in range(12, 20)]


def test_index_rows_that_were_swapped_are_named(root):
    """Whole rows, and the places of two samples."""
    tar, file, index = line_of(root, 1)
    order = [*range(4), 5, 4, *range(6, 20)]
    pq.write_table(index.take(order), file)
    problems = verify(str(root))
    assert any(
        str(file) in problem and ("sha256" in problem or "bytes" in problem) for problem in problems
    )
    expected = f"{file}: row 5, key 1-004: its member precedes the member of row 4, key 1-005"
    assert any(problem.startswith(expected) for problem in problems)

    rows = index.to_pylist()
    for name in ("offset", "bytes", "checksum"):
        rows[4][name], rows[5][name] = rows[5][name], rows[4][name]
    pq.write_table(pa.Table.from_pylist(rows, index.schema), file)
    problems = verify(str(root))
    for key in ("1-004", "1-005"):
        assert any(
            problem.startswith(f"{tar}: key {key}: member {key}.png is at byte")
            for problem in problems
        )


def test_an_index_that_is_none(root):
    _, file, index = line_of(root, 0)
    pq.write_table(index.drop_columns(["offset"]), file)
    assert (
        f"{file}: no single column offset; its columns: key, index, bytes, label, checksum, name"
        in verify(str(root))
    )
    file.write_bytes(b"PAR1")
    assert any(f"{file} is not a readable Parquet file" in problem for problem in verify(str(root)))


def test_many_problems_of_one_shard_are_counted(root):
    tar, file, index = line_of(root, 0)
    names = [f"x{i}" for i in range(20)]
    pq.write_table(index.set_column(0, index.schema.field("key"), pa.array(names)), file)
    problems = verify(str(root))
    assert len(problems) < 30
    assert problems[-1].startswith(f"{tar}: ")
    assert "more problems, the last: " in problems[-1]


def test_a_member_that_is_there_twice(root):
    tar, _, index = line_of(root, 0)
    data = tar.read_bytes()
    first = data[: index.to_pylist()[1]["offset"] - 512]
    tar.write_bytes(data[:-1024] + first + bytes(1024))
    assert f"{tar}: key 0-000: member 0-000.png occurs twice" in verify(str(root))


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_any_flipped_bit_names_the_tar_and_the_sample_it_is_in(root, data):
    """Padding belongs to no sample: there only the tar is named."""
    tar, _, index = line_of(root, data.draw(st.integers(0, 1)))
    whole = tar.read_bytes()
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    tar.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
    problems = verify(str(root))
    tar.write_bytes(whole)
    assert problems[0].startswith(f"{tar}: its sha256 is not")
    for line in index.to_pylist():
        label = line["offset"] + -(-line["bytes"] // 512) * 512
        header = line["offset"] - 512
        inside = header <= at < line["offset"] + line["bytes"] or label <= at < label + 513
        if inside:
            assert len(problems) > 1
            assert any(f"{tar}: key {line['key']}" in problem for problem in problems[1:])


def test_an_edited_manifest_and_one_that_is_none(root):
    file = root / "data" / "dataset.json"
    content = json.loads(file.read_text())
    content["metadata"]["stats"]["mean"] = [0.5]
    file.write_text(json.dumps(content))
    assert verify(str(root / "data")) == [
        f"{file}: does not match its own digest; it was changed after it was written"
    ]
    for text in ("[]", "{}", "not json", ""):
        file.write_text(text)
        (problem,) = verify(str(root / "data"))
        assert "not a manifest" in problem


DIGEST = "d" * 64
HOSTILE = [
    '{"digest": {}}',
    '{"digest": "x", "kind": "model"}',
    f'{{"digest": "{DIGEST}"}}',
    f'{{"digest": "{DIGEST}", "kind": 3}}',
    f'{{"digest": "{DIGEST}", "kind": "evaluation", "parents": []}}',
    f'{{"digest": "{DIGEST}", "kind": "evaluation", "parents": {{"features": {{}}}}}}',
    f'{{"digest": "{DIGEST}", "kind": "evaluation", "metadata": 3}}',
    f'{{"digest": "{DIGEST}", "kind": "model", "metadata": {{"x": NaN}}}}',
    f'{{"digest": "{DIGEST}", "kind": "model", "metadata": {{"x": 1e999}}}}',
    f'{{"digest": "{DIGEST}", "kind": "model", "metadata": ' + "[" * 5000 + "]" * 5000 + "}",
    f'{{"digest": "{DIGEST}", "kind": "\\ud800", "metadata": {{}}}}',
    "[" * 100_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_manifest_is_one_problem(root, text):
    file = root / "models" / "m" / "model.json"
    file.write_text(text)
    (problem,) = verify(str(file.parent))
    assert "not a manifest" in problem
    assert problem.isprintable()
    assert len(problem) < 1000
    assert verify(str(root)) == [problem]


def test_an_entry_that_is_not_valid_is_a_problem(root):
    file = root / "models" / "m" / "model.json"
    content = json.loads(file.read_text())
    for entry in ({"path": 3}, {"size_bytes": "x"}, {"sha256": None}):
        content["files"][0] |= entry
        file.write_text(json.dumps(content))
        problems = verify(str(file.parent))
        assert any("is not valid" in problem for problem in problems), problems


def test_a_folder_without_its_manifest_is_unfinished(root):
    claim(str(root / "scores" / "m"), "f")
    (problem,) = verify(str(root))
    assert "scores/m: unfinished" in problem
    (root / "scores" / "m" / "claim.json").unlink()
    assert verify(str(root / "data" / "dataset.json")) == []
    assert verify(str(root)) == []


def test_what_an_evaluation_was_made_from_must_be_there(root):
    features = publish(str(root / "features"), Manifest(kind="features", fingerprint="f"))
    parents = {"features": features.digest, "scores": "ab" * 32}
    made = Manifest(kind="evaluation", fingerprint="f", parents=parents, metadata={"model": "m"})
    publish(str(root / "evaluation" / "m"), made)
    (problem,) = verify(str(root))
    assert problem.startswith("m: the scores abababababab")


def test_nothing_to_verify(tmp_path):
    (problem,) = verify(str(tmp_path))
    assert "no manifest (" in problem


def test_copies_that_mlflow_keeps_are_not_results(root):
    copies = root / "mlartifacts" / "run" / "artifacts"
    copies.mkdir(parents=True)
    (copies / "dataset.json").write_bytes((root / "data" / "dataset.json").read_bytes())
    assert verify(str(root)) == []
    assert verify(str(copies))
