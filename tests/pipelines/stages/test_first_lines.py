"""The first lines of the stages: what is trained on, sampled, scored."""

from types import SimpleNamespace

from genmod.generation.labels import LabelRequest
from genmod.manifest import ImageSpec
from pipelines.stages.first_lines import sample_line, score_line, train_lines
from tests.builders import write_noise

SPEC = ImageSpec(channels=3, height=4, width=4, classes=3)


def test_training_says_classes_and_rows(tmp_path):
    data = write_noise(str(tmp_path), SPEC, {"train": 6, "val": 3}, ("ant", "bee", "cow"))
    assert train_lines(data) == [
        f"train: images {SPEC}: 0 ('ant'), 1 ('bee'), 2 ('cow'); rows: train 6, val 3, test 0"
    ]


def test_training_says_which_classes_have_no_rows(tmp_path):
    data = write_noise(str(tmp_path), SPEC, {"train": 2, "val": 3}, ("ant", "bee", "cow"))
    first, second = train_lines(data)
    assert first.endswith("rows: train 2, val 3, test 0")
    assert second.startswith("train: the dataset has no training rows of class 2 ('cow');")


def test_samples_say_their_labels():
    plan = {"name": "vae", "rows": 1200, "spec": SPEC, "class_names": ("1", "2", "4")}

    def line(labels):
        return sample_line(SimpleNamespace(**plan, labels=labels))

    start = f"sample vae: 1,200 images {SPEC}; labels: "
    assert line(LabelRequest(3)) == f"{start}all 3 classes in turn"
    assert line(LabelRequest(3, only=2)) == f"{start}class 2 ('4')"
    assert line(LabelRequest(3, empty=(0,))).endswith("no training rows: 0 ('1')")


def test_scores_say_their_rows_and_labels():
    plan = {
        "name": "vae",
        "rows": 30,
        "data_root": "/data",
        "config": SimpleNamespace(split="test"),
    }
    no_labels = SPEC.model_copy(update={"classes": 0})
    assert score_line(SimpleNamespace(**plan, spec=no_labels, label_map=())) == (
        "score vae: 30 rows of split test of /data"
    )
    same = score_line(SimpleNamespace(**plan, spec=SPEC, label_map=()))
    assert same.endswith("; labels: as they are")
    matched = score_line(SimpleNamespace(**plan, spec=SPEC, label_map=(1, 0, 2)))
    assert matched.endswith("; labels: matched to the model's by class name")
