"""Every code block of the pages works: Python runs, commands run or are parsed, YAML loads as a recipe."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from PIL import Image

from genmod.storage.settings import FORWARDED_VARIABLES
from pipelines.cli import main
from pipelines.cli.app import Invocation, app
from pipelines.recipe.recipe import load_recipe
from pipelines.recipe.tree import RECIPES
from tests.pages import PAGES, ROOT, Block, blocks

BLOCKS = blocks()

TEXTS = {
    "raw data --shard--> dataset": "a drawing of the stages",
    "dataset.json              manifest": "the files of a dataset",
    "ROOT/data/                  the dataset": "the files of a run",
}
"""Start of a block that is no code -> what it is. Those that list files are compared with a run below."""

NOT_RUN = {
    "genmod top --once": "needs a running Ray; tests/pipelines/commands/test_top.py",
    "prometheus --config.file": "runs until it is stopped; tests/infra/test_metrics.py",
    "promtool ": "needs Debian's package prometheus; tests/infra/test_metrics.py",
    "genmod bundle genmod-train-0123456789ab": "needs a cluster's head; tests/cluster/test_jobs.py",
    "genmod submit run --recipe my.yaml --address http://head:8265": "needs a cluster's head",
    "genmod doctor --recipe my.yaml": "needs a cluster's head; tests/pipelines/commands/test_doctor.py",
    "genmod submit run --recipe my.yaml --kubernetes": "tests/kubernetes/test_submit.py",
    "infra/local/": "starts and stops servers; tests/infra/test_local_stack.py",
    "infra/images/base": "takes minutes; tests/infra/test_images.py",
    "BASE=localhost/genmod-base:bookworm infra/images/build": "takes minutes; the same test",
    "genmod submit shard --recipe quickstart": "needs that cluster; tests/infra/test_local_stack.py",
    "genmod submit run --recipe quickstart": "needs that cluster; tests/infra/test_compose.py",
    "genmod run --recipe my.yaml --set root=s3://bucket/run": "needs a store and an MLflow server",
    "genmod schedule --recipe my.yaml": "runs until it is stopped; tests/pipelines/commands/test_schedule.py",
    "genmod schedule --once": "retrains as a process; tests/pipelines/commands/test_schedule.py",
    "genmod promote --rollback --recipe my.yaml": "needs two champions",
    "mlflow models serve": "runs until it is stopped; tests/pipelines/tracking/test_serving.py",
    "curl localhost:5001/invocations": "needs that server; the same test",
    "genmod sample --recipe quickstart --model vae --set sample.output=filtered": "needs a trained model; "
    "tests/soak/test_use.py",
    "genmod selftest gate": "takes minutes; tests/genmod/selftest/test_gate.py",
    "genmod compare 2 3 --recipe my.yaml": "needs two versions",
    "import torch\nfrom pytorch_fid": "needs weights from the internet; it is compiled",
    "make ": "builds the environment that runs this test, or runs all tests; make --dry-run reads it",
    "pip install": "changes the environment; its extras are looked up",
    "export ": "settings for a cluster or a store; their names are looked up",
}
"""Start of a command -> why no test runs it. Each is parsed by the program that it is for."""

BY_GAMEDAY = "infra/RUNBOOK.md"
"""A page whose blocks are run as they stand by ``make gameday``; its commands are parsed here."""

VARIABLES = {
    *FORWARDED_VARIABLES,
    "MLFLOW_TRACKING_URI",
    "RAY_API_SERVER_ADDRESS",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN_PATH",
}
"""Variables that pages set: those that stores read, MLflow's and Ray's."""

_FEW = {"nimg": 64, "batch": 16}
SMALL = {
    "data.shard_rows": 32,
    "data.splits": {"val": 0.2, "test": 0.2},
    "model.vae.train": _FEW,
    "model.gan.train": _FEW,
    "model.diffusion.train": _FEW,
    "model.vae.score.k": 2,
    "model.diffusion.sample.steps": 2,
    "model.diffusion.score.steps": 3,
    "train.workers": 1,
    "train.log_every_nimg": 32,
    "train.checkpoint_every_nimg": 32,
    "train.validate_every_nimg": None,
    "train.grid_every_nimg": None,
    "sample.count": 24,
    "sample.shard_rows": 12,
    "sample.workers": 1,
    "score.workers": 1,
    "score.calibration.rows": 20,
    "evaluate.images": 20,
    "evaluate.memorisation_calibration": 20,
    "evaluate.features": {"kind": "pca"},
}
"""What makes the quickstart small enough for a test; a later ``--set`` wins over an earlier one."""


def shell_lines() -> list[tuple[Block, str]]:
    return [
        (block, line.partition("  #")[0].strip())
        for block in BLOCKS
        if block.kind == "shell"
        for line in block.text.splitlines()
        if line.strip() and not line.strip().startswith("#")
    ]


SHELL = shell_lines()
PYTHON = [block for block in BLOCKS if block.kind == "python"]
RUN = [
    command
    for block, command in SHELL
    if block.page != BY_GAMEDAY and not command.startswith(tuple(NOT_RUN))
]


def test_every_block_is_known():
    assert {str(path.relative_to(ROOT)) for path in PAGES} >= {
        "README.md", "CONTRIBUTING.md", "genmod/README.md", "cluster/README.md",
        "pipelines/README.md", "pipelines/recipes/README.md", "tests/README.md", "infra/README.md",
    }  # fmt: skip
    unknown = [b for b in BLOCKS if b.kind == "text" and not b.text.startswith(tuple(TEXTS))]
    assert not unknown, f"{unknown[0]}: what is this block? Say it in TEXTS"
    for start in (*TEXTS, *NOT_RUN):
        texts = [block.text for block in BLOCKS] + [command for _, command in SHELL]
        assert any(text.startswith(start) for text in texts), f"{start!r} is in no page any more"
    assert {block.kind for block in BLOCKS} == {"python", "shell", "yaml", "text"}
    assert RUN


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind == "shell"], ids=str)
def test_shell_blocks_are_shell(block):
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


@pytest.mark.parametrize(
    "command", sorted({c for _, c in SHELL if c.startswith("genmod ")}), ids=str
)
def test_commands_are_parsed_by_the_command_line(command, tmp_path):
    """Its options exist, and its recipe has the keys that it sets."""
    words = shlex.split(command)[1:]
    parsed = typer.main.get_command(app).main(words, prog_name="genmod", standalone_mode=False)
    assert isinstance(parsed, Invocation) or command == "genmod --version"
    given = [b for a, b in pairwise(words) if a == "--recipe"]
    changes = [b for a, b in pairwise(words) if a == "--set"]
    for name in given:
        recipe = tmp_path / "my.yaml"
        recipe.write_text((RECIPES / "quickstart.yaml").read_text())
        load_recipe(str(recipe) if name in ("my.yaml", "$RECIPE") else name, changes)


@pytest.mark.parametrize("command", sorted({c for _, c in SHELL if c.startswith("make ")}), ids=str)
def test_make_has_the_targets(command, tmp_path):
    words = shlex.split(command)[1:]
    subprocess.run(["make", "--dry-run", *words], cwd=ROOT, capture_output=True, check=True)
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(["make", "-n", "no-target"], cwd=ROOT, capture_output=True, check=True)


def test_extras_and_variables_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for block, command in SHELL:
        if block.page == BY_GAMEDAY:
            continue
        if command.startswith("pip install"):
            (extra,) = [word for word in shlex.split(command) if word.startswith(".[")]
            assert set(extra[2:-1].split(",")) <= set(project["optional-dependencies"]), command
        if command.startswith("export "):
            names = {word.partition("=")[0] for word in shlex.split(command)[1:]}
            assert names <= VARIABLES, command


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind == "yaml"], ids=str)
def test_yaml_blocks_are_sections_of_a_recipe(block, tmp_path):
    tree = yaml.safe_load((RECIPES / "quickstart.yaml").read_text()) | yaml.safe_load(block.text)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    load_recipe(str(tmp_path / "recipe.yaml"))
    tree["no_such_section"] = 1
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(Exception, match="no_such_section"):
        load_recipe(str(tmp_path / "recipe.yaml"))


@pytest.fixture(scope="module")
def place(ray_session, tmp_path_factory):
    """A folder in which the quickstart has run, with small settings; the current folder."""
    folder = tmp_path_factory.mktemp("place")
    pixels = np.random.default_rng(0).integers(0, 256, (150, 28, 28), np.uint8)
    for number, image in enumerate(pixels):
        path = folder / "images" / str(number % 10) / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert genmod(folder, "genmod run --recipe quickstart") == 0
        yield folder
    finally:
        os.chdir(before)


def genmod(folder: Path, command: str) -> int:
    """Run a command of a page with the settings that make it small."""
    words = shlex.split(command.replace("/path/to/images", str(folder / "images")))[1:]
    if "--recipe" in words:
        small = SMALL | {"data.source": f"folder:{folder}/images"}
        words += [word for key in small for word in ("--set", f"{key}={json.dumps(small[key])}")]
    return main(words)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("command", list(dict.fromkeys(RUN)))
def test_commands_run(place, command):
    assert command.startswith("genmod "), f"{command}: say in NOT_RUN why no test runs it"
    assert genmod(place, command) == 0


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_blocks_are_python(block):
    compile(block.text, str(block), "exec")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "block", [b for b in PYTHON if not b.text.startswith(tuple(NOT_RUN))], ids=str
)
def test_python_blocks_run(place, block):
    names: dict[str, object] = {}
    exec(compile(block.text, str(block), "exec"), names)
    if "load_model" in names:
        assert type(names["model"]).__module__ == "genmod.models.diffusion.model"
    if "webdataset" in names:
        assert names["image"].shape == (28, 28, 1)
        assert names["image"].dtype == np.uint8
        assert names["label"] in range(10)


@pytest.mark.ray
@pytest.mark.slow
def test_files_of_a_run_are_those_that_the_pages_list(place):
    root = place / "runs" / "quickstart"
    for block in BLOCKS:
        for line in block.text.splitlines() if block.text.startswith("ROOT/data/") else ():
            path = line.split()[0].removeprefix("ROOT/")
            # Of promotion and retraining, and of a second request: tests/pipelines/stages/test_retrain.py,
            # commands/test_schedule.py, jobs/test_sample_requests.py.
            later = (
                *("promotions/NAME/", "retrain/vNNNN/", "leases/", "schedule/ID/"),
                "samples/NAME-ROWS-.../",
            )
            if path not in (*later, "spool/"):  # the spool is there until MLflow has it
                assert (root / path.replace("NAME", "diffusion")).exists(), line
        if block.text.startswith("dataset.json"):
            listed = [line.split()[0] for line in block.text.splitlines()]
            # The others are of synthetic datasets: tests/pipelines/jobs/test_sample_formats.py.
            names = [name for name in listed if not name.startswith(("(", "train-*"))]
            assert len(names) == 4
            assert all((root / "data" / name).is_file() for name in names)
