"""The command line: exit codes, one-line errors, JSON, dry runs. Nothing here starts Ray."""

import json
import os
import resource
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch
import typer

from cluster.code_version import code_digest
from genmod import storage
from genmod.manifest import SPLITS, DatasetManifest, ImageSpec, publish
from pipelines.cli import STAGES, main
from pipelines.cli.app import app
from pipelines.commands.champion_actions import CHAMPION_ACTIONS
from pipelines.commands.selftest import SUBJECTS
from pipelines.stages.table import STAGE_FUNCTIONS
from tests.onnx_files import pooled_conv


@pytest.fixture
def folder(tmp_path):
    """A folder with a small unlabelled source and a recipe of two models, whose root is ``out``."""
    images = np.zeros((200, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    (tmp_path / "my.yaml").write_text(
        f"""
root: {tmp_path}/out
data: {{source: "npz:{tmp_path}/images.npz"}}
model:
  small: {{family: vae, net: {{widths: [4]}}}}
  game: {{family: gan}}
tracking: {{enabled: false}}
"""
    )
    return tmp_path


def command(folder, *words):
    return main([words[0], "--recipe", str(folder / "my.yaml"), *words[1:]])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("shard", "--set", "data.sorce=x"), "did you mean 'source'?"),
        (("shard", "--set", "data.source=idx:/no/such"), "/no/such"),
        (("shard", "--set", "data.source=nosuch:thing"), "nosuch"),
        (("shard", "--set", "data.classes=3"), "3"),
        (("train",), "genmod shard"),
        (("sample",), "genmod train"),
        (("train", "--model", "smal"), "did you mean 'small'?"),
        (("score", "--model", "game"), "density"),
        (("shard", "--set", "root=/proc/none"), "/proc/none"),
        (
            ("promote", "--set", "promote.rules.fd.improve_by=-0.05"),
            "promote.rules.fd.improve_by is -0.05: input should be greater",
        ),
        (
            ("retrain", "--set", "promote.rules.fd={max_regression: -0.05}"),
            "promote.rules.fd.max_regression is -0.05: input should be greater",
        ),
    ],
)
def test_errors_of_the_user_are_one_line_and_exit_2(folder, capsys, words, expected):
    assert command(folder, *words, "--json") == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("genmod: error: ")]
    assert len(lines) == 1
    assert expected in lines[0]
    assert "Traceback" not in err
    answer = json.loads(out.splitlines()[-1])
    assert (answer["stage"], answer["status"]) == (words[0], "refused")
    assert {"output", "fingerprint", "seconds", "error"} <= set(answer)
    assert not (folder / "out").exists() or not any((folder / "out").iterdir())


def test_output_of_another_recipe_is_refused_and_kept(folder, capsys):
    spec = ImageSpec(channels=1, height=8, width=8, classes=0)
    other = DatasetManifest(fingerprint="0" * 64, spec=spec, shards=())
    publish(str(folder / "out" / "data"), other)
    before = storage.read_bytes(str(folder / "out" / "data" / "dataset.json"))
    assert command(folder, "shard") == 2
    assert "made from other inputs" in capsys.readouterr().err
    assert storage.read_bytes(str(folder / "out" / "data" / "dataset.json")) == before
    assert sorted(p.name for p in (folder / "out" / "data").iterdir()) == ["dataset.json"]


def test_dry_run_prints_the_plan_and_writes_nothing(folder, capsys):
    assert command(folder, "run", "--dry-run", "--json") == 0
    out = capsys.readouterr().out.splitlines()
    answer = json.loads(out[-1])
    assert answer["status"] == "planned"
    planned = [(step["stage"], step["name"]) for step in answer["plan"]]
    assert planned[0] == ("shard", "data")
    assert {("train", "small"), ("sample", "game"), ("score", "small")} <= set(planned)
    assert answer["plan"][0]["work"]["images"] == 200
    lines = [line.removeprefix("# ") for line in out]
    header, *rows = [line.split() for line in lines if line.startswith(("stage ", "train "))]
    assert header[:5] == ["stage", "model", "images", "parameters", "bytes"]
    assert any(row[:2] == ["train", "small"] and row[-2:] == ["to", "do"] for row in rows)
    skipped = next(s for s in answer["plan"] if (s["stage"], s["name"]) == ("score", "game"))
    assert skipped["state"] == ("skipped: no density (set model.game.score.sigma: fit to score it)")
    trained = next(s for s in answer["plan"] if (s["stage"], s["name"]) == ("train", "small"))
    assert trained["expected_s"] > 0
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("sample.labels=7", "sample.labels"),
        ("data.splits={val: 0.2, test: 0}", "split test"),
        ("data.splits={val: 0, test: 0.2}", "the val split has no rows"),
        ("sample.count=3", "sample.count"),
        ("model.game.net={generator: {widths: [8, 8, 8, 8, 8]}}", "gan"),
        ("root=memory://here", "only one process can read"),
        ("train.optim.lr=.inf", "finite"),
        ("model.a/b={family: vae}", "model.a/b"),
        ("model.../out={family: vae}", "model"),
    ],
)
@pytest.mark.parametrize("words", [("run",), ("run", "--dry-run")])
def test_run_refuses_errors_of_later_stages_first(folder, capsys, words, change, expected):
    assert command(folder, *words, "--set", change) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("genmod: error: ")]
    assert expected in line
    assert not (folder / "out").exists()


@pytest.mark.parametrize("words", [("run",), ("run", "--dry-run"), ("evaluate", "--dry-run")])
def test_weights_of_another_digest_are_one_line_and_exit_2(folder, capsys, words):
    weights = pooled_conv(torch.ones(6, 3, 3, 3))
    (folder / "net.onnx").write_bytes(weights)
    net = f"{{file: {folder}/net.onnx, sha256: '{'0' * 64}', size: 8}}"
    change = f"evaluate.features={{kind: onnx, onnx: {net}}}"
    assert command(folder, *words, "--set", change) == 2
    err = capsys.readouterr().err
    (line,) = [each for each in err.splitlines() if each.startswith("genmod: error: ")]
    assert f"weights of another digest: sha256 {storage.sha256(weights)}" in line
    assert "Traceback" not in err
    assert not (folder / "out").exists()


def test_a_dry_run_names_the_candidates_that_a_loose_policy_promotes(folder, capsys):
    assert command(folder, "promote", "--dry-run") == 0
    assert "looser" not in capsys.readouterr().err
    assert command(folder, "promote", "--dry-run", "--set", "promote.false_promotion=0.5") == 0
    warning = "warning: looser than the default rules: promote.false_promotion=0.5 (default 0.01)"
    assert warning in capsys.readouterr().err
    loose = "promote.rules={fd: {improve_by: 0.05}}"
    assert command(folder, "promote", "--dry-run", "--set", loose) == 2
    error = capsys.readouterr().err
    assert "promote.rules: this policy would promote training images, " in error
    assert "add rules for memorisation, leakage, or leave" in error


def test_duplicate_key_in_a_recipe(folder, capsys):
    with (folder / "my.yaml").open("a") as recipe:
        recipe.write("root: elsewhere\n")
    assert command(folder, "shard", "--dry-run") == 2
    assert "'root' occurs twice" in capsys.readouterr().err


def test_unknown_recipe(capsys):
    assert main(["run", "--recipe", "quickstrat"]) == 2
    assert "did you mean 'quickstart'?" in capsys.readouterr().err


def test_verify_names_the_broken_file(folder, capsys):
    spec = ImageSpec(channels=1, height=8, width=8, classes=0)
    root = folder / "data"
    publish(str(root), DatasetManifest(fingerprint="0" * 64, spec=spec, shards=()))
    assert main(["verify", str(root), "--json"]) == 0
    text = (root / "dataset.json").read_text()
    (root / "dataset.json").write_text(text.replace('"classes": 0', '"classes": 9'))
    assert main(["verify", str(root), "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["status"] == "broken"
    assert "dataset.json" in err


def test_resolved_recipe_is_printed_only_on_request(folder, capsys):
    assert command(folder, "shard", "--dry-run") == 0
    assert "shard_rows:" not in capsys.readouterr().out
    assert command(folder, "shard", "--dry-run", "--show-recipe") == 0
    assert "shard_rows:" in capsys.readouterr().out
    assert command(folder, "shard", "--show-recipe") == 2
    assert "--show-recipe needs --dry-run" in capsys.readouterr().err


def options_of(name):
    parameters = typer.main.get_group(app).commands[name].params
    return {flag for parameter in parameters for flag in parameter.opts if flag.startswith("--")}


RECIPE_OPTIONS = {
    "--recipe", "--set", "--address", "--model", "--dry-run", "--show-recipe", "--json", "--debug",
}  # fmt: skip


def test_options_are_few_and_the_same_for_all_stages():
    """The list of options is part of the contract: adding one is a decision, not an accident."""
    actions = {f"--{kind}" for kind in CHAMPION_ACTIONS} | {"--reason"}
    expected = dict.fromkeys(STAGES, RECIPE_OPTIONS)
    expected |= {
        "promote": RECIPE_OPTIONS | actions,
        "sample": RECIPE_OPTIONS | {"--index", "--out"},
    }
    assert {stage: options_of(stage) for stage in STAGES} == expected
    about = {"--recipe", "--set", "--model", "--json", "--debug"}
    assert {name: options_of(name) for name in ("models", "compare", "why")} == dict.fromkeys(
        ("models", "compare", "why"), about
    )
    assert options_of("doctor") == about | {"--address"}
    jobs = {"--no-wait", "--status", "--logs", "--stop"}
    kubernetes = {"--kubernetes", "--print", "--namespace", "--cluster", "--image", "--attempt"}
    assert options_of("submit") == RECIPE_OPTIONS | jobs | kubernetes
    assert options_of("bundle") == (about - {"--model"}) | {"--address", "--out"}
    assert options_of("top") == {"--address", "--once", "--every", "--json", "--debug"}
    assert options_of("verify") == options_of("selftest") == {"--json", "--debug"}
    assert options_of("inspect") == {
        "--out", "--split", "--recipe", "--set", "--json", "--debug",
    }  # fmt: skip


def test_names_on_the_command_line_are_those_of_the_code():
    assert set(STAGES) == set(STAGE_FUNCTIONS)
    commands = typer.main.get_group(app).commands
    (split,) = [p for p in commands["inspect"].params if p.name == "split"]
    assert split.metavar == "|".join(SPLITS)
    (subject,) = [p for p in commands["selftest"].params if p.name == "subject"]
    assert all(name in subject.help for name in SUBJECTS)


@pytest.mark.parametrize("name", sorted(typer.main.get_group(app).commands))
def test_help_has_an_example(name, capsys):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Example: genmod {name}" in text
    assert all(option in text for option in options_of(name))


def test_help_lists_the_commands_in_groups(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    groups = ["Pipeline stages", "Cluster jobs", "Inspect and check", "Datasets"]
    assert sorted(groups, key=text.index) == groups
    assert "Example: genmod run --recipe quickstart" in text


def test_version(capsys, monkeypatch):
    monkeypatch.delenv("GENMOD_COMMIT", raising=False)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"genmod {version('genmod')} (code sha256:{code_digest()})\n"
    monkeypatch.setenv("GENMOD_COMMIT", "0" * 40)
    assert main(["--version"]) == 0
    assert f" (commit {'0' * 40}, code sha256:{code_digest()})\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "stage", "expected"),
    [
        (("trian",), None, "no command 'trian'; did you mean 'train'?"),
        ((), None, "missing command (see genmod --help)"),
        (("shard", "--recpie", "x"), "shard", "no option --recpie; did you mean '--recipe'?"),
        (("shard",), "shard", "missing option '--recipe' (see genmod shard --help)"),
        (("shard", "--recipe"), "shard", "option '--recipe' requires an argument"),
        (("submit", "shrad"), "submit", "got 'shrad'; did you mean 'shard'?"),
        (("submit", "shard"), "submit", "genmod submit run --recipe quickstart"),
        (("submit", "--status", "x", "--addres", "y"), "submit", "did you mean '--address'?"),
        (("verify",), "verify", "missing argument 'URL'"),
        (("verify", "a", "b"), "verify", "unexpected extra argument"),
        (("inspect", "a", "--split", "trian"), "inspect", "did you mean 'train'?"),
        (("selftest", "densty"), "selftest", "did you mean 'density'?"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(capsys, words, stage, expected):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert err.startswith("genmod: error: ")
    assert expected in err
    if words:
        assert main([words[0], "--json", *words[1:]]) == 2
        result = json.loads(capsys.readouterr().out)
        assert (result["stage"], result["status"]) == (stage, "refused")


def genmod(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "pipelines", *words],
        env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("genmod ru", ["run"]),
        ("genmod run --recipe quick", ["quickstart"]),
        ("genmod submit ret", ["retrain"]),
        ("genmod inspect x --split t", ["train", "test"]),
    ],
)
def test_shell_completion(words, expected):
    environment = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = genmod(_GENMOD_COMPLETE="complete_bash", **environment)
    assert done.stdout.split() == expected


def test_completion_script_names_the_program():
    done = genmod("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0
    assert "_GENMOD_COMPLETE=complete_bash" in done.stdout


HEAVY = {"torch", "ray", "mlflow", "pandas", "numpy", "pyarrow", "fsspec", "yaml", "jinja2"}


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"], ["trian"]])
def test_help_and_usage_errors_import_no_heavy_module(words):
    script = "import sys; from pipelines.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    modules = set(done.stdout.splitlines()[-1].split())
    assert "typer" in modules
    assert modules & HEAVY == set()
    if words[0].startswith("--"):
        assert "pydantic" not in modules  # typer needs it to parse the options of a command


def test_help_is_fast():
    """CPU time, which other processes do not change much; the best of some runs."""
    times_s = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert genmod("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times_s) < 0.5


def test_a_current_folder_that_was_removed_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["verify", "data"]) == 2
    assert capsys.readouterr().err.startswith("genmod: error: the current folder was removed;")
