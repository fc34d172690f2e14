"""Recipes for GPUs: their size against the published one, their price against the published cost."""

import json

import pytest

from genmod.errors import ConfigError
from pipelines.cli import main
from pipelines.commands import price
from pipelines.recipe import recipe as config
from pipelines.recipe.tree import RECIPES, shipped_recipes

ABOUT = {name: config.load_recipe(name) for name in shipped_recipes()}
PRICED = [name for name, recipe in ABOUT.items() if recipe.about and name != "binary-digits"]


def the_price(name):
    recipe = config.load_recipe(name)
    (found,) = price.prices(recipe).values()
    return recipe, found


def test_the_promised_recipes_are_there():
    assert set(PRICED) >= {
        *(f"cifar10-{kind}" for kind in ("diffusion", "gan", "vae", "diffusion-likelihood")),
        *("celeba64-diffusion", "afhq64-diffusion", "imagenet64-diffusion"),
    }


@pytest.mark.parametrize("name", PRICED)
def test_nets_are_of_the_published_size(name):
    recipe, found = the_price(name)
    assert recipe.cluster.gpus_per_worker == 1
    assert found["parameters"] > 1e6
    assert found["training GFLOP/image"] > 1.5 * found["forward GFLOP/image"]
    if recipe.about.published_parameters:
        assert found["parameters"] == pytest.approx(recipe.about.published_parameters, rel=0.03)


@pytest.mark.parametrize(
    ("name", "gpu", "published_hours"),
    [("cifar10-diffusion", "v100", 8 * 48), ("imagenet64-diffusion", "a100", 32 * 13 * 24)],
)
def test_prices_are_near_what_the_authors_spent(name, gpu, published_hours):
    recipe = config.load_recipe(name, [f"about.gpu={gpu}"])
    (found,) = price.prices(recipe).values()
    assert found[f"{gpu} hours"] == pytest.approx(published_hours, rel=0.4)


def test_burdas_net_is_as_the_paper_says():
    _, found = the_price("binary-digits")
    layers = [(784, 200), (200, 200), (200, 2 * 50), (50, 200), (200, 200), (200, 784)]
    assert found["parameters"] == sum(a * b + b for a, b in layers)
    assert sum(3**i for i in range(8)) * 60_000 == 196_800_000
    assert "196800000" in (RECIPES / "binary-digits.yaml").read_text()


def test_dry_run_prices_without_data(capsys, tmp_path):
    code = main(
        ["run", "--recipe", "cifar10-diffusion", "--dry-run", "--json", "--set", f"root={tmp_path}",
         "--set", f"data.source=folder:{tmp_path}/none"]
    )  # fmt: skip
    out = capsys.readouterr().out
    assert code == 0
    cells = [line.removeprefix("# ").split() for line in out.splitlines()]
    assert ["price", "edm"] in cells
    assert any(row[0] == "parameters" and row[1].startswith("56,") for row in cells if row)
    assert "published: FID 1.97" in out
    assert "no plan: " in out
    assert json.loads(out.splitlines()[-1])["price"]["edm"]["images"] == 200_000_000


def test_a_recipe_without_about_is_planned_or_refused(capsys, tmp_path):
    assert main(["run", "--recipe", "fashion-two-steps", "--dry-run",
                 "--set", f"data.source=idx:{tmp_path}/none"]) == 2  # fmt: skip
    assert "price" not in capsys.readouterr().out


# Models that tune others


def test_a_model_that_tunes_another_has_its_net():
    recipe = config.load_recipe("fashion-two-steps")
    mine, theirs = recipe.entry("two-steps").net, recipe.entry("edm").net
    assert {key: mine[key] for key in ("widths", "unshuffle")} == {
        key: theirs[key] for key in ("widths", "unshuffle")
    }
    assert mine["objective"] == "consistency"
    assert "objective" not in theirs


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model.two-steps.distills=edn", "did you mean 'edm'"),
        ("model.two-steps.distills=two-steps", "distills no other"),
        ("model.two-steps.family=vae", "it distills edm of family 'diffusion'"),
    ],
)
def test_what_cannot_be_tuned(change, words):
    with pytest.raises(ConfigError, match=words):
        config.load_recipe("fashion-two-steps", [change])
