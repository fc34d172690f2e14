"""A run and two retrains by the real stages: the lineage has everything below the root."""

from __future__ import annotations

import json

import pytest

from genmod.data.format.index import read_keys
from genmod.lineage.rows import RowQuery
from genmod.manifest import MANIFEST_NAMES, DatasetManifest, load_manifest
from pipelines.cli import main
from pipelines.commands.lineage import lineage_of
from pipelines.recipe import recipe as config
from pipelines.recipe.context import Context
from pipelines.stages import retrain, run
from tests.pipelines.manifest_reads import few_reads
from tests.pipelines.stages.test_retrain import RECIPE, add_images

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def root(tmp_path_factory, ray_session):
    """The root of a run and of two retrains with new images; the last one starts warm."""
    folder = tmp_path_factory.mktemp("lineage")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(root=folder / "root", source=folder / "images"))
    steps = [
        (run.stage, 600, ()),
        (retrain.stage, 600, ()),
        (retrain.stage, 800, ("retrain.synthetic_count=60",)),
        (retrain.stage, 1000, ("retrain.start=warm",)),
    ]
    first = 0
    for stage, end, changes in steps:
        add_images(folder / "images", first, end)
        first = end
        loaded = config.load_recipe(str(recipe), ("tracking.enabled=false", *changes))
        context = Context(loaded, ("vae",))
        stage(context)
        context.close()
    return folder / "root"


def published(root):
    """Folder and name of every manifest below a root."""
    names = set(MANIFEST_NAMES.values())
    return {path for path in root.rglob("*.json") if path.name in names}


def reached(steps):
    """Digests of the nodes of a walk."""
    return {step["digest"] for step in steps if "digest" in step}


def digests(root):
    return {json.loads(path.read_text())["digest"] for path in published(root)}


def first_key(root, split):
    data = load_manifest(DatasetManifest, str(root / "data"), "dataset")
    return read_keys(data.stored(str(root / "data"), split)[0])[0]


def test_the_first_dataset_leads_to_everything(root):
    values, _ = lineage_of(str(root / "data"))
    assert reached(values["used_for"]) == digests(root)
    assert len([path for path in published(root) if path.name == "dataset.json"]) >= 7
    assert values["exit_code"] == 0


def test_everything_leads_to_sources(root):
    """No input of anything is missing, and each manifest is read once."""
    for path in sorted(published(root)):
        with few_reads(root) as reads:
            values, _ = lineage_of(str(path))
        assert values["missing"] == values["problems"] == [], path
        sources = [step for step in values["made_from"] if step["edge"] == "source"]
        assert sources, path
        assert len(reads) == len(published(root))


def test_a_training_row_leads_to_all_versions_of_the_model(root):
    query = RowQuery(key=first_key(root, "train"))
    values, _ = lineage_of(str(root / "data"), query)
    models = {path.parent for path in published(root) if path.name == "model.json"}
    urls = {step["url"]: step for step in values["used_for"] if not step.get("repeated")}
    assert {str(model) for model in models} <= set(urls)
    assert all(urls[str(model)]["note"] == "trained on the row" for model in models)
    data = {str(path.parent) for path in published(root) if path.name == "dataset.json"}
    assert data <= set(urls)
    assert values["row"]["name"].endswith(".png")


def test_a_test_row_trained_nothing(root):
    values, _ = lineage_of(str(root / "data"), RowQuery(key=first_key(root, "test")))
    kinds = {step["kind"] for step in values["used_for"]}
    assert "evaluation" in kinds
    assert "model" not in kinds


def test_a_decision_and_an_image_by_the_command(root, capsys):
    assert main(["lineage", str(root / "retrain" / "v0003" / "decision" / "vae")]) == 0
    text = capsys.readouterr().out
    assert "source: fingerprint" in text
    assert "champion: model" in text
    samples = str(root / "samples" / "vae")
    assert main(["lineage", samples, "--index", "7", "--root", str(root), "--json"]) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["row"]["key"] == "000000007"
    assert [step["edge"] for step in values["made_from"]] == ["", "model", "data", "source"]
