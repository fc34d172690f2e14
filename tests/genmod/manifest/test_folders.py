"""A grown dataset names the folders of its earlier versions: relative, once, in the layout of versions."""

import shutil

import numpy as np
import pytest

from genmod.data.format.verify_dataset import dataset_problems
from genmod.data.reading.reader import open_dataset, split_reader
from genmod.errors import ConfigError, DataError
from genmod.manifest import publish, relative_folder
from genmod.manifest.folders import shared_folder
from tests.genmod.data.conftest import build  # noqa: F401, a fixture

V1, V2, V3 = "data", "retrain/v0002/data", "retrain/v0003/data"


@pytest.mark.parametrize("top", ["/run", "s3://bucket/run", "memory://run", "file:///run"])
def test_names_lead_back_to_the_folder(top):
    for new, old, name in (
        (V2, V1, "../../../data"),
        (V3, V2, "../../v0002/data"),
        ("b", "a", "../a"),
    ):
        assert relative_folder(f"{top}/{new}", f"{top}/{old}") == name
        assert shared_folder(f"{top}/{new}", name) == f"{top}/{old}"


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ("/run/retrain/v0002/data", "/other/data"),
        ("s3://bucket/run/retrain/v0002/data", "s3://other/run/data"),
        ("s3://bucket/run/retrain/v0002/data", "/run/data"),
        ("/run/b", "/run/a/deeper"),
        ("/run/b", "/run/b"),
        ("/run/b", "/"),
    ],
)
def test_folders_elsewhere_are_refused(new, old):
    with pytest.raises(ConfigError, match="layout ROOT/data") as error:
        relative_folder(new, old)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("root", "name"),
    [("/data", "../../../data"), ("s3://bucket/data", "../../v0002/data"), ("/run/a", "../a")],
)
def test_names_that_leave_the_store_or_return_are_refused(root, name):
    with pytest.raises(DataError, match="cannot exist"):
        shared_folder(root, name)


@pytest.fixture
def versions(tmp_path, build):  # noqa: F811
    """Three versions of a dataset below one root."""
    root, pixels = (
        tmp_path / "root",
        np.random.default_rng(0).integers(0, 256, (90, 4, 4), np.uint8),
    )
    previous, previous_root = None, None
    for folder, rows in ((V1, 60), (V2, 80), (V3, 90)):
        np.savez(tmp_path / "a.npz", images=pixels[:rows], labels=np.arange(rows) % 3)
        previous = build(
            root / folder, source=f"npz:{tmp_path}/a.npz", shard_rows=16,
            previous=previous, previous_root=previous_root,
        )  # fmt: skip
        previous_root = root / folder
    return root


def pixels_of(folder):
    manifest = open_dataset(str(folder))
    reader = split_reader(str(folder), manifest, "train")
    pixels = reader.pixels(np.arange(len(reader)))
    reader.close()
    return pixels


def test_a_root_with_all_versions_can_be_moved(versions, tmp_path):
    before = pixels_of(versions / V3)
    manifest = open_dataset(str(versions / V3))
    assert manifest.folders == ("../../../data", "../../v0002/data")
    assert str(tmp_path) not in (versions / V3 / "dataset.json").read_text().replace(
        f"npz:{tmp_path}/a.npz", ""
    )
    shutil.move(versions, tmp_path / "moved")
    assert np.array_equal(pixels_of(tmp_path / "moved" / V3), before)
    moved = str(tmp_path / "moved" / V3)
    assert list(dataset_problems(moved, open_dataset(moved))) == []


@pytest.mark.parametrize("damage", ["lost", "another", "not the parent"])
def test_the_claim_of_a_parent_is_checked(versions, damage):
    v3 = str(versions / V3)
    manifest = open_dataset(v3)
    if damage == "lost":
        (versions / V2 / "dataset.json").unlink()
        expected = "no dataset, but"
    elif damage == "another":
        other = open_dataset(str(versions / V2))
        (versions / V2 / "dataset.json").unlink()
        shards = tuple(
            shard if shard.folder else shard.model_copy(update={"rows": shard.rows + 1})
            for shard in other.shards
        )
        publish(str(versions / V2), other.model_copy(update={"shards": shards, "metadata": {}}))
        expected = "lists another shard"
    else:
        manifest = manifest.model_copy(update={"parents": {"dataset": "0" * 64}}).sealed()
        expected = "is its parent"
    assert any(expected in problem for problem in dataset_problems(v3, manifest))
