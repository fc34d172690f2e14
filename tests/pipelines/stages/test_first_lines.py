"""The first lines of the stages and of the dry run: what is trained on, sampled, scored."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from cluster import reach
from genmod.config import as_json
from genmod.errors import ConfigError
from genmod.generation.config import SampleConfig
from genmod.generation.request import resolve_request
from genmod.interface.registry import family
from genmod.manifest import DatasetManifest, ImageSpec, load_manifest
from genmod.training.publish import publish_model
from genmod.training.state import TrainState
from pipelines.cli import main
from pipelines.recipe import recipe as config
from pipelines.recipe.checks import Data
from pipelines.recipe.context import Context, model_config
from pipelines.stages.first_lines import sample_line, score_line, train_lines
from pipelines.stages.table import STAGE_FUNCTIONS
from tests.builders import write_noise
from tests.processes import free_ports

SPEC = ImageSpec(channels=3, height=8, width=8, classes=3)
NAMES = ("ant", "bee", "cow")
NAMED = "0 ('ant'), 1 ('bee'), 2 ('cow')"


def test_training_says_classes_and_rows(tmp_path):
    data = Data.of(write_noise(str(tmp_path), SPEC, {"train": 6, "val": 3}, NAMES))
    assert train_lines(data) == [f"train: images {SPEC}: {NAMED}; rows: train 6, val 3, test 0"]


def test_training_says_which_classes_have_no_rows(tmp_path):
    data = Data.of(write_noise(str(tmp_path), SPEC, {"train": 2, "val": 3}, NAMES))
    first, second = train_lines(data)
    assert first.endswith("rows: train 2, val 3, test 0")
    assert second.startswith("train: the dataset has no training rows of class 2 ('cow');")


@pytest.mark.parametrize(
    ("sample", "empty", "labels"),
    [
        ({"count": 1200}, (), "all 3 classes in turn"),
        ({"labels": "4"}, (), "class 2 ('4')"),
        (
            {},
            (0,),
            "2 of 3 classes in turn, without those that have no training rows: 0 ('1')",
        ),
        ({"request": {"4": 1500, "number:0": 5}}, (), "5 of class 0 ('1'), 1,500 of class 2 ('4')"),
        (
            {"count": 7, "filters": {"min_contrast": 1.0}},
            (),
            "3 of class 0 ('1'), 2 of class 1 ('2'), 2 of class 2 ('4')",
        ),
    ],
)
def test_samples_say_their_labels(sample, empty, labels):
    names = ("1", "2", "4")
    request = resolve_request(SampleConfig(**sample), SPEC, names, empty)
    assert sample_line("vae", request, SPEC, names) == (
        f"sample vae: {request.rows:,} images {SPEC}: 0 ('1'), 1 ('2'), 2 ('4'); labels: {labels}"
    )


def test_samples_of_many_classes_say_the_first_ones():
    spec = SPEC.model_copy(update={"classes": 100})
    request = resolve_request(SampleConfig(request={k: k + 1 for k in range(100)}), spec)
    assert request.label_text((), most=2) == "1 of class 0, 2 of class 1 and 98 classes more"


def test_scores_say_their_rows_and_labels():
    def line(spec, label_map):
        return score_line("vae", 1300, spec, "test", "/data", label_map=label_map)

    no_labels = SPEC.model_copy(update={"classes": 0})
    assert line(no_labels, ()) == (
        f"score vae: 1,300 rows of split test of /data, images {no_labels}"
    )
    assert line(SPEC, ()).endswith(f", images {SPEC}; labels: as they are")
    assert line(SPEC, (1, 0, 2)).endswith("; labels: matched to the model's by class name")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with images in class folders, a recipe of a model on a cluster that does not answer, and the
    dataset ``other`` with the same classes in another order."""
    monkeypatch.setattr(reach, "_ATTEMPTS_S", 0.0)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)
    for number in range(60):
        folder = tmp_path / "images" / NAMES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(folder / f"{number}.png")
    write_noise(str(tmp_path / "other"), SPEC, {"test": 6}, ("cow", "ant", "bee"))
    recipe = {
        "root": str(tmp_path / "root"),
        "data": {"source": f"folder:{tmp_path}/images"},
        "model": {"vae": {"family": "vae", "net": as_json(family("vae").Config.tiny())}},
        "train": {"nimg": 64, "batch": 8},
        "sample": {"request": {"cow": 9, "ant": 5}},
        "score": {"data": str(tmp_path / "other"), "split": "test", "calibration": None},
        "cluster": {"address": f"127.0.0.1:{free_ports(1)[0]}"},
        "tracking": {"enabled": False},
    }
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def publish(place):
    """The recipe's dataset, of noise, and its model with new weights."""
    root = place / "root"
    write_noise(str(root / "data"), SPEC, {"train": 40, "val": 9, "test": 9}, NAMES)
    data = load_manifest(DatasetManifest, str(root / "data"), "dataset")
    made = model_config(config.load_recipe(str(place / "my.yaml")), "vae", data)
    state = TrainState(0, made.build(1), made.build(2), ())
    metadata = {"class_names": list(NAMES)}
    publish_model(
        str(root / "models" / "vae"), made, state, fingerprint="m", parents={}, metadata=metadata
    )


SAMPLE_LINE = (
    f"sample vae: 14 images {SPEC}: {NAMED}; labels: 5 of class 0 ('ant'), 9 of class 2 ('cow')"
)
SCORE_LINE = "score vae: 6 rows of split test of {}, images {}; labels: matched to the model's by "


def lines_of(stage, place):
    """What a stage says until it connects to the cluster."""
    loaded = config.load_recipe(str(place / "my.yaml"))
    context = Context(loaded, ("vae",))
    with pytest.raises(ConfigError, match="no Ray cluster answers"):
        STAGE_FUNCTIONS[stage](context)


@pytest.mark.parametrize("stage", ["shard", "train", "sample", "score"])
def test_a_stage_says_its_data_before_it_connects(place, capsys, stage):
    if stage != "shard":
        publish(place)
    if stage == "train":
        (place / "root" / "models" / "vae" / "model.json").unlink()
    lines_of(stage, place)
    err = capsys.readouterr().err
    said, _, _ = err.partition("connecting to Ray")
    assert said != err
    expected = {
        "shard": [f"images    {SPEC}", "class     2 (cow): 20 (train "],
        "train": [f"train: images {SPEC}: {NAMED}; rows: train 40, val 9, test 9"],
        "sample": [SAMPLE_LINE],
        "score": [SCORE_LINE.format(place / "other", SPEC)],
    }
    for line in expected[stage]:
        assert line in said


def dry_run(place, capsys, stage, *changes):
    words = [word for change in changes for word in ("--set", change)]
    recipe = str(place / "my.yaml")
    for change in ("cluster.address=local", "cluster.gpus_per_worker=1"):  # measures no times
        words += ["--set", change]
    code = main([stage, "--recipe", recipe, "--dry-run", "--json", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_dry_run_shows_the_census(place, capsys):
    code, out, _ = dry_run(place, capsys, "shard")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith(f"source    folder:{place}/images: 60 inputs, 60 taken (train ")
    assert lines[1].startswith(f"images    {SPEC}; sampled 60: 60 RGB")
    classes = [line for line in lines if line.startswith("class ")]
    assert [line.partition(":")[0] for line in classes] == [
        "class     0 (ant)",
        "class     1 (bee)",
        "class     2 (cow)",
    ]
    assert all(": 20 (train " in line for line in classes)
    assert not (place / "root").exists()


def test_a_dry_run_shows_classes_labels_and_how_classes_are_matched(place, capsys):
    for stage, expected in (
        ("train", f"train: images {SPEC}: {NAMED}; rows: train "),
        ("sample", SAMPLE_LINE),
        ("score", SCORE_LINE.format(place / "other", SPEC)),
    ):
        code, out, err = dry_run(place, capsys, stage)
        assert code == 0, err
        (line,) = [line for line in out.splitlines() if line.startswith(expected)]
        (step,) = json.loads(out.splitlines()[-1])["plan"]
        assert step["data"] == [line]


def test_a_dry_run_refuses_classes_that_the_model_will_not_know(place, capsys):
    write_noise(str(place / "dogs"), SPEC, {"test": 6}, ("ant", "bee", "dog"))
    code, _, err = dry_run(place, capsys, "score", f"score.data={place}/dogs")
    assert code == 2
    assert "it lacks class 'dog'" in err
