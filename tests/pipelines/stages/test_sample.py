"""The sample stage: a version in MLflow's registry instead of the recipe's own model, and the card."""

from __future__ import annotations

import pytest
import yaml

from genmod.errors import ConfigError
from genmod.generation.card import CARD
from genmod.manifest import DatasetManifest, load_manifest
from pipelines.recipe import recipe as config
from pipelines.recipe.context import Context
from pipelines.stages.sample import sample_plan, stage
from pipelines.tracking import registry
from pipelines.tracking.tracker import Tracker, TrackingConfig
from tests.pipelines.jobs.test_sample_formats import made
from tests.processes import TIMEOUT_S
from tests.served import write_model

SAMPLE = {"count": 20, "shard_rows": 12, "micro_batch": 4}


@pytest.fixture
def place(tmp_path):
    """Recipe, its root with a model that is the champion in the registry, and the version's name."""
    root = tmp_path / "root"
    manifest = write_model(root / "models" / "vae", "vae")
    tracker = Tracker(TrackingConfig(), str(root))
    entry = registry.ModelEntry("vae", manifest.digest, str(root / "models" / "vae"), "r")
    version = registry.register(tracker, tracker.run("train", "vae", "f1", {}, {}), entry)
    registry.set_aliases(tracker, version, None, "1 mark")
    assert tracker.close(TIMEOUT_S)
    recipe = tmp_path / "recipe.yaml"
    document = {
        "root": str(root),
        "seed": 5,
        "data": {"source": "builtin:digits"},
        "model": {"vae": {"family": "vae"}, "other": {"family": "vae"}},
        "sample": SAMPLE,
    }
    recipe.write_text(yaml.safe_dump(document))
    return recipe, root, version.name


def context_of(recipe, *changes, models=("vae",)):
    return Context(config.load_recipe(str(recipe), list(changes)), models)


@pytest.mark.ray
@pytest.mark.slow
def test_a_registered_version_gives_the_samples_of_its_folder(ray_session, place, tmp_path):
    recipe, root, name = place
    _, own, _ = made(root / "models" / "vae", tmp_path / "own", **SAMPLE)
    changes = f"sample.model=models:/{name}@champion", "sample.licence=cc-by-4.0"
    context = context_of(recipe, *changes, "sample.output=champions")
    result = stage(context)
    context.close()
    out = root / "champions" / "vae"
    manifest = load_manifest(DatasetManifest, str(out), "dataset")
    assert manifest.digest == own.digest
    assert (result["output"], result["status"]) == (str(out), "done")
    assert 'license: "cc-by-4.0"' in (out / CARD).read_text().splitlines()


@pytest.mark.parametrize(
    ("uri", "models", "reason"),
    [
        ("models:/{}/9", ("vae",), "has no models:/.*/9 that genmod registered"),
        ("models:/{}@candidate", ("vae",), "has no models:/.*@candidate that genmod registered"),
        ("models:/{}@champion", ("vae", "other"), "one model, but 2 are selected"),
    ],
)
def test_a_version_that_does_not_exist_or_is_one_for_several_models(place, uri, models, reason):
    recipe, _, name = place
    context = context_of(recipe, f"sample.model={uri.format(name)}", models=models)
    with pytest.raises(ConfigError, match=reason):
        sample_plan(context, "vae")
    context.close()
