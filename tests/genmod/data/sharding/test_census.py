"""The census of a source: what was taken, passed over, rejected and decided, before work begins."""

import numpy as np
import pytest

from genmod.data.sharding.census_text import census_lines
from genmod.data.sharding.plan import make_plan
from genmod.data.sharding.preview import preview
from genmod.data.sources.config import DataConfig
from tests.genmod.data.builders import encode


@pytest.fixture
def folder(tmp_path):
    """Returns a function that writes images of classes: name -> number of images."""

    def write(**counts):
        for name, count in counts.items():
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
            for row in range(count):
                pixels = np.random.default_rng(row).integers(0, 256, (4, 4), dtype=np.uint8)
                (tmp_path / name / f"{row}.png").write_bytes(encode(pixels))
        return f"folder:{tmp_path}"

    return write


def test_the_facts_of_a_source(folder, tmp_path):
    source = folder(cat=30, dog=20)
    (tmp_path / "notes.txt").write_text("hello")
    plan = make_plan(DataConfig(source=source), 0)
    census, rows = plan.census, plan.rows_by_split
    assert census.inputs == 50
    assert census.rows == rows
    assert [(part.name, sum(part.rows.values())) for part in census.classes] == [
        ("cat", 30),
        ("dog", 20),
    ]
    assert {split: sum(part.rows[split] for part in census.classes) for split in rows} == rows
    assert (census.sample.images, census.sample.grey, census.sample.is_whole) == (50, 50, True)
    assert sum(part.count for part in census.passed_over) == 1
    text = "\n".join(census_lines(census))
    for words in (
        "50 inputs, 50 taken",
        "sampled 50: 0 RGB, 50 grey; 50 of 4x4",
        "by a hash of the name: val 0.1, test 0.1",
        "0 (cat): 30 (train ",
        "1 (dog): 20 (train ",
        "the first is notes.txt",
    ):
        assert words in text


def test_labels_that_do_not_start_at_0_and_classes_without_training_rows(tmp_path):
    images = np.zeros((60, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(60) % 3 + 1)
    plan = make_plan(DataConfig(source=f"npz:{tmp_path}/a.npz", classes=5), 0)
    assert plan.summary().empty_classes == (0, 4)
    assert (
        "warning   no rows of class 0, class 4: not dealt out to balanced samples"
        in census_lines(plan.census)
    )


def test_many_classes_are_summarised(tmp_path):
    images = np.zeros((300, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(300) % 100)
    census = make_plan(DataConfig(source=f"npz:{tmp_path}/a.npz"), 0).census
    assert len(census.classes) == 20
    assert "class     ... and 80 more; of all classes 3 to 3 rows each" in census_lines(census)


def test_one_folder_of_images_is_data_without_labels(folder):
    source = folder(photos=20)
    plan = make_plan(DataConfig(source=source), 0)
    assert (plan.spec.classes, plan.class_names) == (0, ())
    assert any(
        "'photos' is the only class; data.labels=true" in text for text in plan.census.decisions
    )
    plan = make_plan(DataConfig(source=source, labels=True), 0)
    assert (plan.spec.classes, plan.class_names) == (1, ("photos",))


def test_the_manifest_keeps_the_census_and_counts_reasons(folder, build, tmp_path):
    source = folder(cat=30, dog=20)
    (tmp_path / "cat" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    manifest = build(tmp_path.with_name("out"), source=source, max_quarantined=0.5)
    assert manifest.metadata["census"]["sample"]["unreadable"] == 1
    assert sum(manifest.metadata["rejected"].values()) == manifest.quarantined == 1


def test_a_preview_has_the_census_of_the_plan(folder, tmp_path):
    source = folder(cat=12, dog=9, **{"dog/old": 3, "école": 2})
    (tmp_path / "cat" / "PHOTO.PNG").write_bytes(encode(np.zeros((4, 4), np.uint8)))
    (tmp_path / "cat" / "bare").write_bytes(encode(np.ones((4, 4), np.uint8)))
    (tmp_path / "cat" / "lost.png").symlink_to("nowhere")
    (tmp_path / "cat" / ".png").write_bytes(b"")
    (tmp_path / "dog" / "empty").write_bytes(b"")
    (tmp_path / "bird").symlink_to("cat")
    (tmp_path / "bird.png").symlink_to("cat/0.png")
    (tmp_path / "notes.txt").write_text("hello")
    data = DataConfig(source=source, max_quarantined=1)
    census = make_plan(data, 0).census
    assert (census.inputs, sum(census.rows.values())) == (45, 42)
    # A preview does not read the files, so it cannot find copies.
    copies, in_several, *others = census.decisions
    assert copies == "28 files are copies of others, byte for byte, and are kept"
    assert "8 images of val and test are in another split too" in in_several
    assert preview(data).census == census.model_copy(update={"decisions": tuple(others)})
