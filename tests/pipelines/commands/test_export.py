"""``genmod export`` through the command line: exit codes, one line, and a result that verify accepts."""

import json

import pytest

from genmod.manifest import Manifest, load_manifest
from pipelines.cli import main
from pipelines.tracking import registry
from pipelines.tracking.tracker import Tracker, TrackingConfig
from tests.processes import TIMEOUT_S
from tests.served import write_model


@pytest.fixture
def root(tmp_path):
    for name in ("gan", "diffusion", "flow"):
        write_model(tmp_path / "models" / name, name)
    return tmp_path


def run(capsys, *words):
    code = main([*words, "--json"])
    output = capsys.readouterr()
    return code, json.loads(output.out.strip().splitlines()[-1]), output.err


def test_a_model_is_exported_once_and_verified(root, capsys):
    words = ("export", "--recipe", "quickstart", "--set", f"root={root}", "--model", "gan")
    out = str(root / "export" / "gan")
    code, result, _ = run(capsys, *words, "--format", "onnx", "--out", out)
    assert (code, result["status"], result["output"]) == (0, "done", out)
    assert result["largest_difference"] <= 1e-5
    code, again, _ = run(capsys, *words, "--format", "onnx", "--out", out)
    assert (code, again["status"]) == (0, "already done")
    assert again["digest"] == result["digest"]
    assert run(capsys, "verify", out)[0] == 0
    with open(f"{out}/model.onnx", "ab") as file:
        file.write(b"?")
    code, _, text = run(capsys, "verify", out)
    assert code == 1
    assert "model.onnx" in text


def test_a_folder_of_a_model_needs_no_recipe(root, capsys):
    words = ("export", "--model", str(root / "models" / "diffusion"), "--format", "onnx")
    code, result, text = run(capsys, *words, "--out", str(root / "out"))
    assert (code, result["status"]) == (0, "done")
    assert "README.md there says how to use it" in text


def test_a_registered_version_is_exported(root, capsys):
    manifest = load_manifest(Manifest, str(root / "models" / "gan"), "model")
    tracker = Tracker(TrackingConfig(), str(root))
    entry = registry.ModelEntry("gan", manifest.digest, str(root / "models" / "gan"), "r")
    version = registry.register(tracker, tracker.run("train", "gan", "f1", {}, {}), entry)
    registry.set_aliases(tracker, version, None, "1 mark")
    assert tracker.close(TIMEOUT_S)
    words = ("export", "--recipe", "quickstart", "--set", f"root={root}", "--format", "onnx")
    for uri, code in (("@champion", 0), ("/9", 2), ("/a'b", 2)):
        out = ("--out", str(root / f"out{code}"))
        got, result, _ = run(capsys, *words, "--model", f"models:/{version.name}{uri}", *out)
        assert got == code
    assert result["status"] == "refused"
    assert run(capsys, "export", "--model", "models:/a/1", *words[-2:], *out)[0] == 2


WRONG = {
    "another format": (("gan", "torchscript"), "did you mean"),
    "a model that ONNX cannot express": (("flow", "onnx"), "searches the bins of its splines"),
    "a U-Net for diffusers": (("diffusion", "diffusers"), "no weights make it the same function"),
    "a GAN for diffusers": (("gan", "diffusers"), "no class for the generator of a GAN"),
    "a folder without a model": (("vae", "onnx"), "no model at"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_exits_with_2_and_one_line(root, capsys, case):
    (model, kind), reason = case
    words = ("--model", str(root / "models" / model), "--format", kind, "--out", str(root / "out"))
    code, result, text = run(capsys, "export", *words)
    assert (code, result["status"]) == (2, "refused")
    assert len([line for line in text.splitlines() if line.startswith("genmod: error:")]) == 1
    if kind != "torchscript":
        assert reason in text
    assert not (root / "out").exists()


def test_a_model_that_the_recipe_does_not_have(root, capsys):
    words = ("--recipe", "quickstart", "--set", f"root={root}", "--model", "gam")
    code, _, text = run(capsys, "export", *words, "--format", "onnx", "--out", str(root / "out"))
    assert code == 2
    assert "did you mean 'gan'" in text
    words = ("--set", "seed=1", "--model", str(root / "models" / "gan"), "--format", "onnx")
    code, _, text = run(capsys, "export", *words, "--out", str(root / "out"))
    assert code == 2
    assert "need a recipe; give one" in text
