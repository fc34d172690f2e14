"""A new family is one new file: all code that names no family works with it."""

import ast
import re
import shutil
from pathlib import Path

import pytest
import torch

from genmod.errors import ConfigError, DataError
from genmod.interface.batch import Batch
from genmod.interface.external import FAMILIES_VARIABLE
from genmod.interface.model import DataStats
from genmod.interface.model_store import load_model
from genmod.interface.registry import ModelConfig, families, family
from genmod.manifest import ImageSpec
from genmod.rng import rng_for
from genmod.training.loop import Plan, train
from genmod.training.plan import OptimConfig, TrainConfig
from genmod.training.publish import publish_model
from genmod.training.state import TrainState
from genmod.world import SingleProcess

COINS = Path(__file__).parents[2] / "families" / "coins.py"
SPEC = ImageSpec(channels=1, height=2, width=2, levels=2)
CONFIG = ModelConfig(
    family="coins", net={"start": 0.1}, spec=SPEC, stats=DataStats(mean=(0.0,), std=(1.0,))
)


def test_a_family_from_outside_learns_samples_and_scores():
    model = CONFIG.build()

    def rows(first, count):
        rng = rng_for(0, "rows", range(first, first + count))
        pixels = (rng.uniform(*SPEC.shape) < 0.9).to(torch.uint8) * 255
        return Batch(pixels, None, rng.index_B)

    def stream(start):
        return (rows(nimg, 16) for nimg in range(start, 10**9, 16))

    def score(model):
        return model.log_prob(rows(5000, 200), rng_for(0, "s", range(200)), model.Score()).nats_B

    before = score(model).mean().item()
    optim = OptimConfig(lr=0.1, warmup_nimg=0)
    config = TrainConfig(nimg=1600, batch=16, optim=optim, ema_halflife_nimg=100)
    trained = train(model, stream, SingleProcess(), Plan(config, 0)).ema
    entropy = 4 * -(0.9 * torch.tensor(0.9).log() + 0.1 * torch.tensor(0.1).log()).item()
    assert before < -entropy - 0.4 < score(trained).mean().item() < -entropy + 0.4
    x = trained.sample(None, rng_for(0, "x", range(500)), trained.Sample())
    assert abs((x > 0).float().mean().item() - 0.9) < 0.05


def test_only_the_environment_adds_families(tmp_path, monkeypatch):
    monkeypatch.delenv(FAMILIES_VARIABLE)
    assert "coins" not in families()
    with pytest.raises(ConfigError, match="no family is called 'coins'"):
        CONFIG.build()
    shutil.copy(COINS, tmp_path / "dice.py")
    monkeypatch.setenv(FAMILIES_VARIABLE, f"{COINS.parent}:{tmp_path}")
    assert {"coins", "dice"} < set(families())
    assert family("dice") is not family("coins")


@pytest.mark.parametrize("name", ["os", "tests.families.coins", "../coins", "coins.Model", ""])
def test_a_stored_model_imports_no_other_module(name, tmp_path):
    model = CONFIG.build()
    state = TrainState(0, model, model, {})
    config = CONFIG.model_copy(update={"family": name})
    publish_model(str(tmp_path), config, state, fingerprint="f", parents={}, metadata={})
    with pytest.raises((ConfigError, DataError), match="no family is called"):
        load_model(str(tmp_path))


def test_folders_and_files_of_families_are_checked(tmp_path, monkeypatch):
    for folder in ("families", str(tmp_path / "missing")):
        monkeypatch.setenv(FAMILIES_VARIABLE, folder)
        with pytest.raises(
            ConfigError, match=f"expected absolute paths of folders, got '{folder}'"
        ):
            families()
    monkeypatch.setenv(FAMILIES_VARIABLE, str(tmp_path))
    (tmp_path / "no_model_here.py").write_text("Model = 1\n")
    with pytest.raises(ConfigError, match=r"no_model_here\.py\) has no class Model"):
        family("no_model_here")
    (tmp_path / "flow.py").write_text("")
    with pytest.raises(ConfigError, match="two families 'flow'"):
        families()


ROOT = Path(__file__).parents[3]
NAMES_FAMILY_SETTINGS = {
    "genmod/models": "the families",
    "genmod/distributions": "likelihoods of pixels, whose errors name the key that selects them",
    "genmod/samplers": "code of families that solve an equation",
    "genmod/likelihood": "estimators, whose errors name the settings of the families that use them",
    "genmod/selftest/gate.py": "its champion is a small model of one family",
    "pipelines/recipe/renamed.py": "old names of recipe keys",
}


def strings(tree):
    """String constants of a file that are no docstrings."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    docstrings = {id(node.value) for node in nodes}
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in docstrings:
            yield node.value


@pytest.mark.parametrize("text", ["def Model(:", "import no_such_module_of_anyone"])
def test_a_broken_family_is_a_config_error(text, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(text)
    monkeypatch.setenv(FAMILIES_VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match="family 'broken' cannot be imported"):
        family("broken")


def test_no_other_code_names_a_family_or_its_settings(monkeypatch):
    monkeypatch.delenv(FAMILIES_VARIABLE)
    names = re.compile(rf"({'|'.join(families())})|.*\bnet\.[a-z_]+.*", re.DOTALL)
    found = {}
    for path in (
        path for room in ("genmod", "cluster", "pipelines") for path in (ROOT / room).rglob("*.py")
    ):
        name = str(path.relative_to(ROOT))
        if not name.startswith(tuple(NAMES_FAMILY_SETTINGS)):
            texts = [text for text in strings(ast.parse(path.read_text())) if names.fullmatch(text)]
            found |= {name: texts} if texts else {}
    assert found == {}
    assert [text for text in strings(ast.parse("x = 'raise net.gamma'")) if names.fullmatch(text)]
