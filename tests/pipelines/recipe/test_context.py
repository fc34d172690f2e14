"""A command's context: narrowing it shares what was opened, and creating it changes nothing."""

import os

import pytest

from genmod import storage
from genmod.errors import ConfigError
from genmod.manifest import Manifest, publish
from genmod.storage import StorageConfig
from pipelines.recipe.context import Context, configure_storage
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.selection import check_selected, models_for


@pytest.fixture
def recipe(tmp_path):
    return Recipe.model_validate(
        {
            "root": str(tmp_path / "root"),
            "data": {"source": "builtin:digits"},
            "model": {
                "edm": {"family": "diffusion"},
                "fast": {"family": "diffusion", "distills": "edm"},
            },
            "storage": {"retry_timeout_s": 7},
        }
    )


def test_creating_a_context_changes_no_settings(recipe):
    environment, settings = dict(os.environ), storage.settings()
    Context(recipe, ("edm",))
    assert storage.settings() == settings
    try:
        configure_storage(recipe)
        assert storage.settings() == StorageConfig(retry_timeout_s=7)
    finally:
        storage.configure(None)
    assert dict(os.environ) == environment


def test_an_unknown_model_is_refused(recipe):
    with pytest.raises(ConfigError, match="the recipe has no model 'edn'; did you mean 'edm'"):
        Context(recipe, ("edn",))


def test_other_models_or_another_root_share_the_rest(recipe, tmp_path):
    context = Context(recipe, ("edm", "fast"))
    cycle = context.with_root(str(tmp_path / "root" / "retrain" / "v0002")).with_models(("edm",))
    assert (cycle.models, context.models) == (("edm",), ("edm", "fast"))
    assert cycle.at("data") == str(tmp_path / "root" / "retrain" / "v0002" / "data")
    assert cycle.tracker is context.tracker
    assert str(tmp_path / "root" / "mlflow.db") in cycle.tracker.uri
    assert cycle.progress is context.progress
    assert cycle.snapshot is context.snapshot
    published = publish(context.at("report"), Manifest(kind="report", fingerprint="work"))
    assert cycle.snapshot.load(Manifest, context.at("report"), "report") == published
    context.close()


def test_the_stages_share_out_the_models(recipe):
    assert models_for(recipe, ("edm", "fast"), "train") == ("edm",)
    assert models_for(recipe, ("edm", "fast"), "distill") == ("fast",)
    assert models_for(recipe, ("edm", "fast"), "sample") == ("edm", "fast")
    with pytest.raises(ConfigError, match="no selected model supports this stage; select one"):
        check_selected(Context(recipe, ()))


@pytest.mark.ray
def test_a_command_leaves_the_ray_of_its_process_running(ray_session, recipe):
    import ray

    context = Context(recipe, ("edm",))
    context.connect()
    context.close()
    assert ray.is_initialized()
