"""Reasons for the next version of a dataset: new, removed and changed rows, and time. Without Ray."""

import os
import time

import numpy as np
import pytest
from PIL import Image

from genmod.data.format.shards import quarantine_file
from genmod.data.reading.reader import read_rows
from genmod.data.sharding.finish import make_manifest
from genmod.data.sharding.ingest import make_shard
from genmod.errors import ConfigError, DataError
from genmod.manifest import Manifest, claim, publish, write_file
from genmod.promotion import LedgerChange, LedgerModel
from pipelines.commands.inspect import inspect
from pipelines.recipe.context import Context
from pipelines.recipe.recipe import load_recipe
from pipelines.stages.champions import Champions, author
from pipelines.stages.dataset_versions import next_root, versions
from pipelines.stages.replaced import list_replaced, load_replaced, replaced_by
from pipelines.stages.retrain import base_of
from pipelines.stages.train import job_of
from pipelines.stages.version_plan import plan_version
from pipelines.stages.warm_start import StartChoice, choose_start, chosen_start

RECIPE = """
root: {folder}/root
data: {{source: "folder:{folder}/images", splits: {{val: 0.2, test: 0.2}}}}
model: {{vae: {{family: vae, net: {{latents: 2, widths: [4], embedding: 4}}}}}}
train: {{nimg: 8, batch: 4}}
tracking: {{enabled: false}}
"""


def write_images(folder, first, end):
    for number in range(first, end):
        path = folder / "images" / "ab"[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(path)


class Place:
    """A folder of images, and the versions of a dataset of it."""

    def __init__(self, folder):
        self.folder = folder
        write_images(folder, 0, 40)
        (folder / "my.yaml").write_text(RECIPE.format(folder=folder))
        self.publish(self.context().dataset_plan, str(folder / "root" / "data"))

    def context(self, *changes):
        return Context(load_recipe(str(self.folder / "my.yaml"), changes), ("vae",))

    def publish(self, plan, root):
        claim(root, plan.fingerprint)
        receipts = [make_shard(plan.job(shard, root)) for shard in plan.shards]
        return publish(
            root, make_manifest(plan, root, receipts, quarantine_file(root, plan.rejected))
        )

    def next(self, *changes):
        """Write the next version if there is a reason; its manifest or None, and what was logged."""
        context, lines = self.context(*changes), []
        context.progress.log = lines.append
        newest = versions(context)[-1]
        plan, is_needed = plan_version(context, newest)
        if not is_needed:
            return None, lines
        _, root = next_root(context, newest.number + 1, plan.fingerprint)
        return self.publish(plan, f"{root}/data"), lines


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


REBUILD = "retrain.source_changes=rebuild"


def test_nothing_happened(place):
    assert place.next() == (None, [])
    assert place.next(REBUILD) == (None, [])


def test_new_rows(place):
    write_images(place.folder, 40, 60)
    manifest, lines = place.next(REBUILD)
    assert (sum(s.rows for s in manifest.shards), manifest.reason, lines) == (60, "", [])
    assert place.next(REBUILD) == (None, [])


def test_removed_rows_stay_unless_the_recipe_says_so(place):
    write_images(place.folder, 40, 60)
    place.next()
    for number in (0, 1, 41):
        (place.folder / "images" / "ab"[number % 2] / f"{number:03d}.png").unlink()
    manifest, (line,) = place.next()
    assert manifest is None
    assert "3 rows of version 2 were removed" in line
    assert "they stay" in line
    write_images(place.folder, 60, 64)
    manifest, _ = place.next(REBUILD)
    assert sum(shard.rows for shard in manifest.shards) == 61
    assert manifest.reason.endswith(", 4 rows are new")
    known = versions(place.context())
    assert [version.number for version in known] == [1, 2, 3]
    assert known[2].data.replaces == known[1].data.digest
    assert not known[2].data.folders, "it shares nothing"
    assert known[2].is_news(known[1])
    assert place.next(REBUILD) == (None, [])
    assert base_of(place.context()).recipe.root == known[2].root
    write_images(place.folder, 64, 70)
    manifest, _ = place.next(REBUILD)
    assert sum(shard.rows for shard in manifest.shards) == 67
    assert base_of(place.context()).recipe.root == known[2].root


def test_rows_of_a_version_keep_their_splits_when_it_is_rebuilt(place):
    from genmod.data.format.index import read_keys

    def splits(version):
        shards = version.data.stored(f"{version.root}/data")
        return {key: shard.entry.split for shard in shards for key in read_keys(shard)}

    (place.folder / "images" / "a" / "000.png").unlink()
    place.next(REBUILD)
    before, after = map(splits, versions(place.context()))
    assert len(before) == 40
    assert len(after) == 39
    assert after.items() < before.items()


def test_changed_content(place):
    path = place.folder / "images" / "a" / "000.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    manifest, (line,) = place.next()
    assert manifest is None
    assert line.strip().startswith("content of folder:")
    manifest, _ = place.next(REBUILD)
    assert manifest.reason.startswith("content of folder:")
    assert place.next(REBUILD) == (None, [])


@pytest.mark.parametrize("identity", ["content", "time"])
def test_content_that_changed_next_to_new_rows(place, identity):
    by = f"data.identity={identity}"
    if identity == "time":
        place.next(by, REBUILD)  # another way to know files: a version of its own
    path = place.folder / "images" / "a" / "000.png"
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(path)
    write_images(place.folder, 40, 44)
    manifest, lines = place.next(by)
    assert sum(shard.rows for shard in manifest.shards) == 44
    assert len(manifest.folders) == 1
    assert [line.strip()[:18] for line in lines] == ["content of folder:"]
    assert "they stay as they are" in lines[0]
    # It is not forgotten by the version that kept the old image.
    assert "content of folder:" in place.next(by)[1][0]
    write_images(place.folder, 44, 50)
    manifest, _ = place.next(by, REBUILD)
    assert manifest.reason.startswith("content of folder:")
    assert manifest.reason.endswith(", 6 rows are new")
    assert sum(shard.rows for shard in manifest.shards) == 50
    root = versions(place.context())[-1].root
    images = [
        read_rows(f"{root}/data", manifest, split, range(manifest.rows(split))).pixels_BCHW
        for split in ("train", "val", "test")
        if manifest.rows(split)
    ]
    assert sum(int((pixels == 77).all(dim=(1, 2, 3)).sum()) for pixels in images) >= 1
    assert place.next(by, REBUILD) == (None, [])
    write_images(place.folder, 50, 54)
    manifest, lines = place.next(by, REBUILD)
    assert (manifest.reason, lines, len(manifest.folders)) == ("", [], 1)


def test_a_label_that_was_corrected_next_to_new_rows(place):
    table, by = place.folder / "images" / "labels.csv", "data.label=labels.csv"

    def write_labels(**corrected):
        paths = sorted(table.parent.glob("*/*.png"))
        labels = {str(path.relative_to(table.parent)): path.parent.name for path in paths}
        rows = "".join(f"{name},{label}\n" for name, label in (labels | corrected).items())
        table.write_text(f"file,label\n{rows}")

    write_images(place.folder, 40, 44)
    write_labels()
    manifest, lines = place.next(by, REBUILD)
    assert (manifest.reason, lines) == ("", [])
    write_images(place.folder, 44, 50)
    write_labels(**{"a/000.png": "b"})
    manifest, _ = place.next(by, REBUILD)
    assert manifest.reason.startswith("content of folder:")
    root = f"{versions(place.context())[-1].root}/data"
    rows_K = sum(np.array(stats.rows_K) for stats in manifest.row_stats(root).values())
    assert rows_K.tolist() == [24, 26]


def test_a_source_that_lost_a_class_is_refused(place):
    for path in (place.folder / "images" / "b").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="classes are not those of the earlier versions"):
        place.next(REBUILD)


def put_class(folder, name, count):
    for number in range(count):
        path = folder / "images" / name / f"{number:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(path)


NEW = "data.new_classes=rebuild"


def test_a_new_class_is_refused_ignored_or_starts_a_rewritten_version(place):
    put_class(place.folder, "aa", 6)
    with pytest.raises(DataError, match="has no class 'aa'"):
        place.next()
    assert place.next("data.new_classes=ignore") == (None, [])
    assert place.next("data.new_classes=ignore", REBUILD) == (None, [])
    manifest, (line,) = place.next(NEW, "retrain.min_new_rows=7")
    assert manifest is None
    assert (
        line.strip() == "class 'aa' is new; its 6 rows wait until there are retrain.min_new_rows=7"
    )
    write_images(place.folder, 40, 44)
    manifest, lines = place.next(NEW, "retrain.min_new_rows=7")
    assert lines == []
    assert manifest.reason == "class 'aa' is new with 6 rows, 4 rows are new"
    assert (manifest.class_names, manifest.spec.classes) == (("a", "aa", "b"), 3)
    assert sum(shard.rows for shard in manifest.shards) == 50
    first, second = versions(place.context())
    assert second.data.replaces == first.data.digest
    assert not second.data.folders, "it shares nothing"
    assert base_of(place.context()).recipe.root == second.root
    # Labels are those of the folders, though the numbers of the classes have moved.
    rows = second.data.row_stats(f"{second.root}/data")
    assert sum(np.array(stats.rows_K) for stats in rows.values()).tolist() == [22, 6, 22]
    assert place.next(NEW) == (None, [])
    write_images(place.folder, 44, 50)
    manifest, _ = place.next(NEW)
    assert (manifest.class_names, len(manifest.folders)) == (("a", "aa", "b"), 1)


def test_a_version_with_a_new_class_does_not_lose_rows_that_are_kept(place):
    put_class(place.folder, "c", 6)
    (place.folder / "images" / "a" / "000.png").unlink()
    with pytest.raises(ConfigError, match=r"'c' is new.* would lack 1 rows of version 1"):
        place.next(NEW)
    context = place.context("data.new_classes=ignore", REBUILD)
    plan, is_needed = plan_version(context, versions(context)[-1])
    assert is_needed
    assert (plan.rows, plan.class_names) == (39, ("a", "b"))
    manifest, _ = place.next(NEW, REBUILD)
    assert manifest.reason.endswith(
        "1 rows of version 1 were removed from "
        f"folder:{place.folder}/images; class 'c' is new with 6 rows"
    )
    assert manifest.class_names == ("a", "b", "c")


def test_a_warm_start_needs_the_same_classes(place):
    context = place.context()
    root, data = f"{context.recipe.root}/models/vae", context.dataset()
    model = job_of(context, "vae", data).model.model_dump_json().encode()
    metadata = {"class_names": list(data.class_names)}
    files = (write_file(root, "config.json", model),)
    made = Manifest(kind="model", fingerprint="f", files=files, metadata=metadata)
    champion = LedgerModel(digest=publish(root, made).digest, root=root)
    ledger = Champions(context, "vae").ledger
    ledger.append(ledger.read(), LedgerChange("adopt", champion, "x", author()))
    write_images(place.folder, 40, 44)
    place.next()
    put_class(place.folder, "c", 6)
    place.next(NEW)
    for version, path in zip(versions(context)[1:], ("models/vae", None), strict=True):
        context, lines = place.context(), []
        context.progress.log = lines.append
        cycle = context.with_root(version.root)
        choose_start(context, cycle, "vae")
        start = chosen_start(cycle, "vae")
        assert (start and start.root) == (path and root)
        assert ("not those of the version" in lines[-1]) is (path is None)


def test_time(place):
    day = "retrain.max_age_days=1"
    assert place.next(day) == (None, [])
    dataset = place.folder / "root" / "data" / "dataset.json"
    old_s = time.time() - 2 * 86_400
    os.utime(dataset, (old_s, old_s))
    manifest, _ = place.next(day)
    assert (manifest.repeat, manifest.reason) == (1, "2.0 days have passed since version 1")
    first, second = versions(place.context())
    assert second.rows == first.rows
    assert second.is_news(first)
    assert place.next(day) == (None, [])
    third, _ = place.next("retrain.max_age_days=0")
    assert third.repeat == 2
    context = place.context()
    cycle = context.with_root(second.root)
    assert job_of(cycle, "vae", second.data).seed == job_of(context, "vae", first.data).seed + 1
    write_images(place.folder, 40, 50)
    manifest, _ = place.next()
    assert manifest.repeat == 0


def test_what_a_version_replaces_is_listed(place):
    context = place.context()
    root = str(place.folder / "root" / "models" / "vae")
    model = publish(root, Manifest(kind="model", fingerprint="f", parents={}))
    (place.folder / "images" / "a" / "000.png").unlink()
    place.next(REBUILD)
    version = versions(context := place.context())[-1]
    listed = list_replaced(context, version)
    assert [(item.kind, item.path, item.version) for item in listed.items] == [
        ("dataset", "data", 1),
        ("model", "models/vae", 1),
    ]
    assert listed == list_replaced(context, version) == load_replaced(version.root)
    assert replaced_by(context.recipe.root, model.digest) == listed
    assert replaced_by(context.recipe.root, version.data.digest) is None
    sheet = str(place.folder / "sheet.png")
    summary, text = inspect(f"{context.recipe.root}/data", sheet)
    assert summary["replaced"]["version"] == 2
    assert "replaced  by version 2: 1 rows of version 1 were removed" in text
    assert "replaced  " not in inspect(f"{version.root}/data", sheet)[1]


def test_a_forged_list_or_choice_is_one_error(place):
    context = place.context()
    folder = place.folder / "root" / "retrain" / "v0002"
    (folder / "start").mkdir(parents=True)
    cycle = context.with_root(str(folder))
    assert chosen_start(cycle, "vae") is None
    choice = StartChoice(path="models/vae", digest="a" * 64).model_dump_json()
    (folder / "start" / "vae.json").write_text(choice)
    start = chosen_start(cycle, "vae")
    assert (start.root, start.digest) == (f"{context.recipe.root}/models/vae", "a" * 64)
    for text in (
        "{}",
        choice.replace("models/vae", "../../../etc"),
        choice.replace("models", "/etc"),
    ):
        (folder / "start" / "vae.json").write_text(text)
        (folder / "replaced.json").write_text(text)
        with pytest.raises(DataError):
            chosen_start(cycle, "vae")
        with pytest.raises(DataError):
            load_replaced(str(folder))
