import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genmod import storage
from genmod.data.format.keys import sample_key
from genmod.data.reading.reader import open_dataset, split_reader
from genmod.data.sharding.hashed_splits import split_of
from genmod.data.sharding.ingest import make_shard
from genmod.data.sharding.plan import make_plan
from genmod.data.sharding.previous_version import load_previous_version
from genmod.data.sharding.quarantine import check_quarantine
from genmod.data.sources.config import DataConfig, Splits
from genmod.errors import ConfigError, DataError
from genmod.manifest import SPLITS
from tests.genmod.data.builders import encode


@pytest.fixture
def npz(tmp_path, images):
    def write(count, name="a", seed=0, **more):
        pixels, labels = images(count, seed=seed)
        np.savez(tmp_path / f"{name}.npz", x=pixels, **({"y": labels} | more))
        return f"npz:{tmp_path}/{name}.npz"

    return write


def keys_by_split(root, manifest):
    return {split: split_reader(root, manifest, split).keys() for split in SPLITS}


def test_shares_of_splits_and_every_row_once(npz):
    plan = make_plan(DataConfig(source=npz(3000), splits=Splits(val=0.2, test=0.1)), 0)
    rows = plan.summary().rows_by_split
    assert sum(rows.values()) == 3000
    assert abs(rows["val"] - 600) < 4 * 22  # four standard deviations of a binomial
    assert abs(rows["test"] - 300) < 4 * 17
    every = [line.ref for shard in plan.shards for line in plan.lines(shard)]
    assert sorted(every) == list(range(3000))


@given(st.text("abc019-_", min_size=1, max_size=20), st.floats(0, 0.4), st.floats(0, 0.4))
def test_a_larger_val_share_takes_rows_from_train_alone(key, val, more):
    before = split_of(key, Splits(val=val, test=0.1))
    after = split_of(key, Splits(val=val + more, test=0.1))
    assert (before, after) in {(s, s) for s in SPLITS} | {("train", "val")}


def test_the_seed_moves_rows_between_shards_not_between_splits(npz):
    data = DataConfig(source=npz(200), shard_rows=20)
    first, again, other = make_plan(data, 1), make_plan(data, 1), make_plan(data, 2)
    rows = [
        {
            split: [line.ref for s in p.shards if s.split == split for line in p.lines(s)]
            for split in SPLITS
        }
        for p in (first, other)
    ]
    for split in SPLITS:
        assert sorted(rows[0][split]) == sorted(rows[1][split])
    assert rows[0]["train"] != rows[1]["train"]
    assert rows[0]["train"] != sorted(rows[0]["train"])
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_the_fingerprint_depends_on_settings_that_change_the_bytes(npz):
    source = npz(50)
    same = DataConfig(source=source, max_quarantined=0.5, workers=7)
    base = make_plan(DataConfig(source=source), 0).fingerprint
    assert make_plan(same, 0).fingerprint == base
    assert make_plan(DataConfig(source=npz(50, "copy")), 0).fingerprint == base
    assert make_plan(DataConfig(source=npz(50, "other", seed=1)), 0).fingerprint != base
    assert make_plan(DataConfig(source=source, levels=2), 0).fingerprint != base


def test_a_job_is_json(npz):
    plan = make_plan(DataConfig(source=npz(30)), 0)
    job = plan.job(plan.shards[0], "memory://x")
    assert json.loads(json.dumps(job)) == job


def test_the_estimate_of_bytes(npz, build, tmp_path):
    source = npz(300)
    estimate = make_plan(DataConfig(source=source), 0).summary().size_bytes
    manifest = build(tmp_path / "d", source=source)
    assert estimate == pytest.approx(sum(s.tar.size_bytes for s in manifest.shards), rel=0.05)


@pytest.mark.parametrize(
    ("data", "labelled", "words"),
    [
        ({"classes": 3}, False, "no labels, but the recipe sets data.classes=3"),
        ({"labels": True}, False, "no labels, but the recipe sets data.labels=true"),
        ({"labels": False, "classes": 3}, True, "remove one"),
        ({"classes": 2}, True, "label 2, the dataset has 2 classes"),
        (
            {"image_size": 9},
            True,
            r"60 of 60 .* not 9x9 \(60 of 6x6\).*data.resize to fit, crop or pad",
        ),
    ],
)
def test_settings_that_contradict_the_source(npz, tmp_path, data, labelled, words):
    np.savez(tmp_path / "unlabelled.npz", x=np.zeros((60, 6, 6), np.uint8))
    source = npz(60) if labelled else f"npz:{tmp_path}/unlabelled.npz"

    def shard_one():
        config = DataConfig(source=source, **data)
        plan = make_plan(config, 0)
        receipt = make_shard(plan.job(plan.shards[0], str(tmp_path / "d")))
        check_quarantine(config, receipt.rejected, len(receipt.rejected), 60)

    with pytest.raises((ConfigError, DataError), match=words) as error:
        shard_one()
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_classes_may_be_more_than_in_the_labels_and_labels_may_be_ignored(npz):
    source = npz(30)
    assert make_plan(DataConfig(source=source), 0).spec.classes == 3
    assert make_plan(DataConfig(source=source, classes=5), 0).spec.classes == 5
    plan = make_plan(DataConfig(source=source, labels=False), 0)
    assert plan.spec.classes == 0
    assert plan.job(plan.shards[0], "r")["labels"] is None


def test_keys():
    assert sample_key("train-00000007") == "train-00000007"
    assert (
        sample_key("cat/img.001.png")
        != sample_key("cat/img-001.png")
        != sample_key("cat/img.001.jpg")
    )
    assert sample_key("cat/img.001.png").startswith("cat-img-001-")


@given(st.text(min_size=1, max_size=300))
def test_every_name_gets_a_key_that_is_valid_in_tars(name):
    key = sample_key(name)
    assert 1 <= len(key) <= 80
    assert all(c.isascii() and (c.isalnum() or c in "-_") for c in key)


@pytest.fixture
def messy(tmp_path, images):
    """A folder of 40 images, with seven that cannot be used."""
    pixels, labels = images(40)

    folder = tmp_path / "messy"
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        (folder / f"c{label}").mkdir(parents=True, exist_ok=True)
        (folder / f"c{label}" / f"ok.{number} é.png").write_bytes(encode(image))
    good = encode(pixels[0])
    (folder / "c0" / "cut.png").write_bytes(good[: len(good) // 2])
    (folder / "c0" / "empty.png").write_bytes(b"")
    (folder / "c1" / "text.jpg").write_text("hello")
    (folder / "c1" / "large.png").write_bytes(encode(np.zeros((7, 6), np.uint8)))
    (folder / "c2" / "colour.png").write_bytes(encode(np.zeros((6, 6, 4), np.uint8)))
    (folder / "c2" / "bomb.png").write_bytes(
        good[:16] + (30_000).to_bytes(4) + (30_000).to_bytes(4) + good[24:]
    )
    (folder / "no class.png").write_bytes(good)
    return f"folder:{folder}", pixels


def test_hostile_files_are_quarantined_and_the_others_are_kept(messy, build, tmp_path):
    source, pixels = messy
    root = str(tmp_path / "d")
    manifest = build(root, source=source, max_quarantined=0.2, shard_rows=10)
    table = pq.read_table(f"{root}/quarantine.parquet").to_pydict()
    reasons = dict(zip(table["name"], table["reason"], strict=True))
    assert set(reasons) == {
        "c0/cut.png", "c0/empty.png", "c1/text.jpg", "c1/large.png", "c2/colour.png",
        "c2/bomb.png", "no class.png",
    }  # fmt: skip
    assert manifest.quarantined == 7
    assert reasons["no class.png"] == "has no label"
    assert "7x6" in reasons["c1/large.png"]
    assert "transparent" in reasons["c2/colour.png"]
    assert sum(manifest.rows(split) for split in SPLITS) == 40
    stored = [
        image.tobytes()
        for split in SPLITS
        for image in split_reader(root, manifest, split).pixels(np.arange(manifest.rows(split)))
    ]
    assert sorted(stored) == sorted(image.tobytes() for image in pixels)


def test_the_index_contains_the_names_of_the_source(messy, build, tmp_path):
    source, _ = messy
    manifest = build(tmp_path / "d", source=source, max_quarantined=0.2)
    rows = [
        row
        for shard in manifest.shards
        for row in pq.read_table(tmp_path / "d" / shard.index.path).to_pylist()
    ]
    assert all(row["key"] == sample_key(row["name"]) for row in rows)
    assert any("ok.3 é.png" in row["name"] for row in rows)


def test_too_many_rejected_inputs_are_a_data_error_with_counts(messy):
    source, _ = messy
    with pytest.raises(DataError, match=r"1 of 47 inputs are rejected.*no class.png: has no label"):
        make_plan(DataConfig(source=source, max_quarantined=0.0), 0)


def test_a_new_version_keeps_the_splits_and_shares_the_shards(npz, build, tmp_path, images):
    old = build(tmp_path / "v1", source=npz(100), shard_rows=16)
    everything, labels = images(160)
    everything[:100], labels[:100] = images(100)
    np.savez(tmp_path / "a.npz", x=everything, y=labels)
    new = build(
        tmp_path / "v2", source=f"npz:{tmp_path}/a.npz", shard_rows=16,
        previous=old, previous_root=tmp_path / "v1",
    )  # fmt: skip
    before = keys_by_split(str(tmp_path / "v1"), old)
    after = keys_by_split(str(tmp_path / "v2"), new)
    fresh = keys_by_split(
        str(tmp_path / "f"), build(tmp_path / "f", source=f"npz:{tmp_path}/a.npz")
    )
    for split in SPLITS:
        assert after[split][: len(before[split])] == before[split]
        assert sorted(after[split]) == sorted(fresh[split])
        reader = split_reader(str(tmp_path / "v2"), new, split)
        assert sorted(reader.find(np.arange(len(reader))).index_N.tolist()) == list(
            range(len(reader))
        )
    assert new.parents["dataset"] == old.digest
    assert [s.tar.sha256 for s in new.shards[: len(old.shards)]] == [
        s.tar.sha256 for s in old.shards
    ]
    written = {name for name in storage.list_names(str(tmp_path / "v2")) if name.endswith(".tar")}
    assert written == {s.tar.path for s in new.shards[len(old.shards) :]}
    whole = open_dataset(str(tmp_path / "f"))
    assert new.metadata["splits"] == whole.metadata["splits"]
    assert new.metadata["stats"] == whole.metadata["stats"]


def test_a_third_version_and_a_version_without_new_rows(npz, build, tmp_path):
    source = npz(60)
    v1 = build(tmp_path / "v1", source=source)
    npz(80)
    v2 = build(tmp_path / "v2", source=source, previous=v1, previous_root=tmp_path / "v1")
    npz(90)
    v3 = build(tmp_path / "v3", source=source, previous=v2, previous_root=tmp_path / "v2")
    assert [v.metadata["version"] for v in (v1, v2, v3)] == [1, 2, 3]
    assert sum(v3.rows(split) for split in SPLITS) == 90
    keys = keys_by_split(str(tmp_path / "v3"), v3)
    assert len({key for split in SPLITS for key in keys[split]}) == 90
    same = make_plan(DataConfig(source=source), 0, load_previous_version(str(tmp_path / "v3"), v3))
    assert same.shards == ()


def test_a_new_version_skips_rejected_inputs_and_keeps_class_numbers(messy, build, tmp_path):
    source, _ = messy
    allowed = {"source": source, "max_quarantined": 0.2}
    v1 = build(tmp_path / "v1", **allowed)
    folder = tmp_path / "messy"
    for file in list((folder / "c0").iterdir()) + list((folder / "c1").iterdir()):
        file.unlink()
    (folder / "c2" / "new.png").write_bytes((next((folder / "c2").glob("ok*"))).read_bytes())
    (folder / "c0").rmdir()
    v2 = build(tmp_path / "v2", previous=v1, previous_root=tmp_path / "v1", **allowed)
    assert v2.class_names == v1.class_names == ("c0", "c1", "c2")
    (added,) = v2.shards[len(v1.shards) :]
    assert pq.read_table(tmp_path / "v2" / added.index.path)["label"].to_pylist() == [2]
    assert v2.quarantined == 7
    (folder / "c9").mkdir()
    (folder / "c2" / "new.png").rename(folder / "c9" / "new.png")
    with pytest.raises(DataError, match="class 'c9'"):
        build(tmp_path / "v3", previous=v2, previous_root=tmp_path / "v2", **allowed)


def test_a_new_version_of_another_shape_is_an_error(npz, build, tmp_path):
    source = npz(60)
    v1 = build(tmp_path / "v1", source=source)
    with pytest.raises(ConfigError, match=r"1x8x8.*1x6x6"):
        build(
            tmp_path / "v2", source=source, image_size=8, resize="fit",
            previous=v1, previous_root=tmp_path / "v1",
        )  # fmt: skip


def test_images_of_a_new_class_are_refused_or_left_out(build, tmp_path, images):
    pixels, _ = images(12)

    def put(name, count):
        for number in range(count):
            path = tmp_path / "in" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(pixels[number]))

    source = f"folder:{tmp_path / 'in'}"
    put("cow", 8)
    put("ant", 8)
    v1 = build(tmp_path / "v1", source=source)
    put("cow", 12)
    put("bee", 5)
    previous = load_previous_version(str(tmp_path / "v1"), v1)
    with pytest.raises(
        DataError, match=r"has no class 'bee'; set data\.new_classes=ignore to leave"
    ):
        make_plan(DataConfig(source=source), 0, previous)
    for policy in ("ignore", "rebuild"):
        plan = make_plan(DataConfig(source=source, new_classes=policy), 0, previous)
        assert (plan.rows, plan.class_names, plan.rejected) == (4, ("ant", "cow"), ())
        labels = [label for shard in plan.shards for label in plan.job(shard, "x")["labels"]]
        assert labels == [1] * 4
        (kind,) = [part for part in plan.census.passed_over if "new classes" in part.kind]
        assert (kind.count, kind.first) == (5, "bee/0.png")
        assert (plan.new_classes.rows, str(plan.new_classes)) == (5, "class 'bee' is new")
    only_new = f"folder:{tmp_path / 'new'}"
    (tmp_path / "new").mkdir()
    (tmp_path / "in" / "bee").rename(tmp_path / "new" / "bee")
    plan = make_plan(DataConfig(source=only_new, new_classes="ignore"), 0, previous)
    assert (plan.rows, plan.class_names, plan.new_classes.rows) == (0, ("ant", "cow"), 5)


def test_images_of_a_new_class_number_are_refused_or_left_out(npz, build, tmp_path):
    v1 = build(tmp_path / "v1", source=npz(60, y=np.arange(60) % 3))
    previous = load_previous_version(str(tmp_path / "v1"), v1)
    source = npz(80, y=np.append(np.arange(60) % 3, np.arange(20) % 5))
    with pytest.raises(DataError, match=r"has no class '4'; set data\.new_classes=ignore to leave"):
        make_plan(DataConfig(source=source), 0, previous)
    plan = make_plan(DataConfig(source=source, new_classes="ignore"), 0, previous)
    assert (plan.rows, plan.spec.classes, plan.new_classes.rows) == (12, 3, 8)
    assert str(plan.new_classes) == "classes '3', '4' are new"
