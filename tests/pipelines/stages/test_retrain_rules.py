"""A retrain that decides by likelihoods and by features of a net in an ONNX file, from shards to the page."""

from __future__ import annotations

import json

import pytest

from genmod import storage
from genmod.evaluation.measure import metrics_from
from genmod.manifest import Manifest, load_manifest
from genmod.rng import rng_for
from pipelines.cli import main
from pipelines.recipe.context import ALREADY_DONE, DONE, Context
from pipelines.recipe.recipe import load_recipe
from pipelines.stages import promote, retrain, run
from tests.onnx_files import pooled_conv
from tests.pipelines.stages.test_retrain import RECIPE, add_images
from tests.processes import TIMEOUT_S

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]

NET = pooled_conv(rng_for(0, "net", range(6)).normal(3, 3, 3))
RULES = """
    fd: {{max_regression: 0.9, relative: true}}
    bits_per_dim: {{max_regression: 5}}
tracking: {{enabled: false}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Recipe and root; the run and a retrain of more images are done."""
    folder = tmp_path_factory.mktemp("rules")
    add_images(folder / "images", 0, 500)
    (folder / "net.onnx").write_bytes(NET)
    text = RECIPE.replace("    fd: {{max_regression: 0.9, relative: true}}\n", RULES.lstrip("\n"))
    text = text.replace("{{max_rows: 50}}", "{{split: test}}")
    text = text.replace("    net: {{", "    score: {{k: 2}}\n    net: {{")
    net = f"{{{{file: {folder}/net.onnx, sha256: '{storage.sha256(NET)}', size: 8}}}}"
    text = text.replace("{{kind: pca}}", f"{{{{kind: onnx, onnx: {net}}}}}")
    recipe = folder / "recipe.yaml"
    recipe.write_text(text.format(root=folder / "root", source=folder / "images"))
    return recipe, folder / "root"


def do(recipe, stage, *changes):
    context = Context(load_recipe(str(recipe), changes), ("vae",))
    try:
        return stage(context)
    finally:
        assert context.tracker.close(TIMEOUT_S)


def evaluation(root):
    return load_manifest(Manifest, f"{root}/evaluation/vae", "evaluation")


def test_likelihoods_of_the_same_rows_decide(ray_session, place, capsys):
    recipe, root = place
    assert do(recipe, run.stage)["status"] == DONE
    assert do(recipe, retrain.stage)["version"] == 1
    add_images(root.parent / "images", 500, 800)
    done = do(recipe, retrain.stage)
    assert (done["status"], done["version"]) == (DONE, 2)
    version = root / "retrain" / "v0002"
    first, second = (
        {m.value.protocol.metric: m for m in metrics_from(evaluation(at).metadata)}
        for at in (root, version)
    )
    bits = first["bits_per_dim"].value, second["bits_per_dim"].value
    assert bits[0].protocol == bits[1].protocol  # the test rows of version 1
    rows = bits[0].protocol.n_real
    decision = load_manifest(Manifest, f"{version}/decision/vae", "decision")
    checks = {each["metric"].partition("[")[0]: each for each in decision.metadata["checks"]}
    check = checks["bits_per_dim"]
    assert check["gain"] == pytest.approx(bits[0].value - bits[1].value, abs=1e-9)
    alone = (bits[0].interval.high - bits[0].interval.low) / 4
    assert 0 < check["stderr"] < alone, "paired rows have less noise than two means"
    capsys.readouterr()
    assert main(["compare", f"{root}/models/vae", f"{version}/models/vae", "--json"]) == 0
    compared = json.loads(capsys.readouterr().out.splitlines()[-1])
    pairs = {each["metric"]: each["paired"] for each in compared["metrics"]}
    assert pairs["bits_per_dim"]["rows"] == rows
    assert pairs["bits_per_dim"]["difference"] == pytest.approx(-check["gain"])
    assert pairs["fd"]["rows"] == 100
    assert "memorisation" in compared["unlike"], "its training rows are more"


def test_the_features_are_those_of_the_net_without_its_file(ray_session, place):
    recipe, root = place
    (root.parent / "net.onnx").unlink()
    assert do(recipe, retrain.stage)["status"] == retrain.NOTHING_NEW
    assert do(recipe, promote.stage)["status"] in (DONE, ALREADY_DONE)
    versions = root, root / "retrain" / "v0002"
    labels = {
        metric.value.protocol.features
        for at in versions
        for metric in metrics_from(evaluation(at).metadata)
        if metric.value.protocol.metric == "fd"
    }
    (label,) = labels
    assert label.startswith("onnx-v1@")
    page = storage.read_bytes(f"{versions[1]}/decision/vae/decision.html").decode()
    assert label in page
