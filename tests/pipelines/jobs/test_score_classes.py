"""Rows of another dataset are scored under the class of their name, without Ray."""

import numpy as np
import pytest

from genmod.config import as_json
from genmod.data.format.shards import Row, write_shard
from genmod.data.reading.reader import RowReader
from genmod.errors import ConfigError
from genmod.interface.model import DataStats
from genmod.interface.model_store import load_model
from genmod.interface.registry import ModelConfig, family
from genmod.manifest import DatasetManifest, ImageSpec, dataset_metadata, publish
from genmod.scoring.config import ScoreConfig
from genmod.scoring.row_scores import score_rows
from genmod.training.publish import publish_model
from genmod.training.state import TrainState
from pipelines.jobs.score_plan import ScoreJob, plan_score

SCORE = ScoreConfig(split="val", calibration=None)
NAME = "diffusion"


def write(root, names, labels, count=None):
    """A dataset of one shade a class, whatever the number of the class."""
    shades = {"ant": 30, "bee": 220, "cow": 120}
    spec = ImageSpec(channels=1, height=8, width=8, classes=count or len(names))
    rows = [
        Row(f"{number}-{label}", number, np.full((8, 8, 1), shades[label], np.uint8), place)
        for number, label in enumerate(labels)
        for place in [names.index(label)]
    ]
    shard, stats = write_shard(root, "val-000000", "val", spec, rows)
    manifest = DatasetManifest(
        fingerprint=root,
        spec=spec,
        shards=(shard,),
        metadata=dataset_metadata({"val": stats}),
        class_names=() if count else tuple(names),
    )
    return publish(root, manifest)


@pytest.fixture
def model(tmp_path):
    net = as_json(family(NAME).Config.tiny())
    spec = ImageSpec(channels=1, height=8, width=8, classes=2)
    config = ModelConfig(family=NAME, net=net, spec=spec, stats=DataStats(mean=(0.0,), std=(0.5,)))
    root = str(tmp_path / "model")
    state = TrainState(0, config.build(1), config.build(2), ())
    metadata = {"class_names": ["ant", "bee"]}
    publish_model(root, config, state, fingerprint="m", parents={}, metadata=metadata)
    return root


def job(model, data, tmp_path):
    options = as_json(family(NAME).Score.tiny())
    return ScoreJob(NAME, model, data, str(tmp_path / "scores"), options)


def test_the_same_row_has_the_same_score_under_another_number(model, tmp_path):
    bees = {}
    for name, names in (("one", ["ant", "bee"]), ("two", ["bee", "cow"])):
        root = str(tmp_path / name)
        data = write(root, names, ["bee", "bee"])
        plan = plan_score(job(model, root, tmp_path), SCORE, seed=1)
        reader = RowReader(plan.spec, data.stored(root, "val"), label_maps=[plan.label_map])
        options = family(NAME).Score.tiny()
        bees[name] = score_rows(load_model(model), options, reader, [0, 1], 2, seed=1).scores
        assert plan.label_map == ({"one": (), "two": (1, -1)}[name])
        assert bees[name].rows.labels_B.tolist() == [names.index("bee")] * 2, "of the dataset"
    assert bees["one"].nats_B.tolist() == bees["two"].nats_B.tolist()


def test_a_class_that_the_model_lacks_is_refused(model, tmp_path):
    root = str(tmp_path / "two")
    write(root, ["bee", "cow"], ["bee", "cow"])
    with pytest.raises(
        ConfigError, match="bee, cow, model diffusion has the classes ant, bee"
    ) as error:
        plan_score(job(model, root, tmp_path), SCORE, seed=1)
    assert "\n" not in str(error.value)


def test_numbers_and_names_do_not_match(model, tmp_path):
    root = str(tmp_path / "numbers")
    write(root, ["ant", "bee"], ["bee", "ant"], count=2)
    with pytest.raises(
        ConfigError, match="2 classes without names, model diffusion has the classes"
    ):
        plan_score(job(model, root, tmp_path), SCORE, seed=1)
