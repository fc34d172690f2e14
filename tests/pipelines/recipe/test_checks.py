"""Checks before any work: metrics of rules, rows for stated gains, nets of feature spaces."""

from __future__ import annotations

import sys

import pytest
import torch

from genmod import storage
from genmod.errors import ConfigError, DataError
from genmod.manifest import ImageSpec, Manifest, publish
from pipelines.recipe.checks import Data, check_evaluation, check_rules
from pipelines.recipe.context import Context
from pipelines.recipe.recipe import load_recipe
from tests.onnx_files import pooled_conv
from tests.processes import TIMEOUT_S

RECIPE = """
root: {root}
data: {{source: "builtin:digits"}}
model: {{vae: {{family: vae}}, gan: {{family: gan}}}}
tracking: {{enabled: false}}
"""


@pytest.fixture
def check(tmp_path):
    """Runs a check of a recipe with changes, on data with some test rows and classes."""
    recipe = tmp_path / "my.yaml"
    recipe.write_text(RECIPE.format(root=tmp_path / "root"))

    def run(function, *changes, rows=400, classes=10, models=("vae",)):
        context = Context(load_recipe(str(recipe), changes), models)
        spec = ImageSpec(channels=1, height=8, width=8, classes=classes)
        counts = {"train": 5_000, "val": 400, "test": rows}
        function(context, Data(spec, counts, (), None))
        assert context.tracker.close(TIMEOUT_S)

    return run


def rules(text):
    return f"promote.rules={{memorisation: {{limit: 0}}, {text}}}"


@pytest.mark.parametrize(
    ("text", "more", "problem"),
    [
        ("fdd: {improve_by: 1}", {}, "rules.fdd: the metric is not measured: did you mean 'fd'"),
        ("utility: {improve_by: 0.1}", {}, "set evaluate.utility_images"),
        ("label_accuracy: {improve_by: 0.1}", {"classes": 0}, "the data has no labels"),
        ("bits_per_dim: {improve_by: 0.1}", {}, r"set score\.split=test"),
        ("bits_per_dim: {improve_by: 0.1}", {"models": ("gan",)}, "gan has no density"),
    ],
)
def test_a_rule_for_a_metric_that_will_not_be_measured_is_refused(check, text, more, problem):
    changes = [rules(text)]
    if "models" in more:
        changes.append("score.split=test")
    with pytest.raises(ConfigError, match=problem):
        check(check_rules, *changes, **more)


def test_rules_for_measured_metrics_pass(check):
    check(check_rules, rules("fd: {improve_by: 1}"))
    check(check_rules, rules('"fd[pca@1a2b3c4d]": {improve_by: 1}'))
    check(check_rules, rules("utility: {improve_by: 0.1}"), "evaluate.utility_images=100")
    check(check_rules, rules("utility: {improve_by: 0.1, optional: true}"))
    check(check_rules, rules("bits_per_dim: {improve_by: 0.1}"), "score.split=test")


def test_too_few_test_rows_for_the_stated_gain_name_the_number(check):
    gain = rules("coverage: {improve_by: 0.02, max_regression: 0.05}")
    problem = (
        r"promote\.rules\.coverage\.improve_by=0\.02 needs at least 681 rows of split test, got 680: .*"
        r"raise data\.splits\.test or evaluate\.images, or set improve_by to 0\.021"
    )
    with pytest.raises(ConfigError, match=problem):
        check(check_rules, gain, rows=680)
    check(check_rules, gain, rows=681)
    with pytest.raises(ConfigError, match=r"needs at least 681 rows of split test, got 500"):
        check(check_rules, gain, "evaluate.images=500", rows=681)
    with pytest.raises(ConfigError, match=r"needs at least 12 .*, or remove improve_by"):
        check(check_rules, rules("coverage: {improve_by: 1}, fd: {improve_by: 1}"), rows=5)
    likelihood = rules("bits_per_dim: {improve_by: 0.01}")
    with pytest.raises(ConfigError, match=r"needs at least 11 rows of split test, got 10"):
        check(check_rules, likelihood, "score.split=test", rows=10)


def test_default_rules_on_few_rows_are_only_noted(check, capfd):
    check(check_rules, rows=100)
    assert (
        "improve_by=0.03 needs at least 491 rows of split test, got 100" in capfd.readouterr().err
    )


@pytest.fixture
def net(tmp_path):
    """Changes of a recipe that name a net in an ONNX file."""
    data = pooled_conv(torch.ones(6, 3, 3, 3))
    (tmp_path / "net.onnx").write_bytes(data)
    settings = f"file: {tmp_path}/net.onnx, sha256: '{storage.sha256(data)}', size: 8"
    return f"evaluate.features={{kind: onnx, onnx: {{{settings}}}}}", tmp_path / "net.onnx"


def test_a_net_is_checked_before_any_work(check, net, tmp_path):
    change, file = net
    check(check_evaluation, change)
    data = file.read_bytes()
    file.write_bytes(data + b"\0")
    with pytest.raises(ConfigError, match="weights of another digest: sha256 "):
        check(check_evaluation, change)
    file.unlink()
    with pytest.raises(ConfigError, match=r"features\.onnx\.file: there is no "):
        check(check_evaluation, change)
    publish(f"{tmp_path}/root/features", Manifest(kind="features", fingerprint="ab"))
    check(check_evaluation, change)  # the features' folder has the net


def test_a_file_that_is_no_net_is_refused_before_any_work(check, net):
    change, file = net
    broken = file.read_bytes()[:-1]
    file.write_bytes(broken)
    change = change.replace(change.split("'")[1], storage.sha256(broken))
    with pytest.raises(DataError, match="not a whole ONNX model; export the net again"):
        check(check_evaluation, change)


def test_without_onnxruntime_the_check_says_what_to_install(check, net, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="install genmod with its extra 'onnx'"):
        check(check_evaluation, net[0])


def test_too_few_reference_rows_for_the_neighbours_are_refused(check):
    with pytest.raises(ConfigError, match=r"needs at least 7 reference images \(split test\)"):
        check(check_evaluation, rows=6)
