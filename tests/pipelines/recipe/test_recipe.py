"""Recipes are validated as a whole; an error is one line that says what to do."""

import os
from typing import get_args

import pytest
import yaml

from genmod.errors import ConfigError
from genmod.interface.registry import family
from pipelines.recipe import recipe as config
from pipelines.recipe.recipe import Recipe, RecipeModel
from pipelines.recipe.renamed import RENAMED_KEYS, RENAMED_VALUES
from pipelines.recipe.tree import shipped_recipes

MINIMAL = """
root: out
data: {source: "builtin:digits"}
model:
  small: {family: vae}
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(MINIMAL)
    return str(path)


def refusal(name, *assignments):
    with pytest.raises(ConfigError) as caught:
        config.load_recipe(name, assignments)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_round_trip(name, tmp_path):
    recipe = config.load_recipe(name)
    again = tmp_path / "again.yaml"
    again.write_text(recipe.to_yaml())
    assert config.load_recipe(str(again)) == recipe


def test_there_is_a_quickstart():
    assert "quickstart" in shipped_recipes()


def test_set_changes_a_key(recipe_file):
    recipe = config.load_recipe(recipe_file, ["train.workers=2", "data.source=idx:/x", "seed=7"])
    assert (recipe.train.workers, recipe.data.source, recipe.seed) == (2, "idx:/x", 7)


def test_a_models_own_train_section_wins_key_by_key(recipe_file):
    recipe = config.load_recipe(
        recipe_file, ["train.workers=2", "train.batch=64", "model.small.train.batch=32"]
    )
    merged = recipe.train_config("small")
    assert (merged.workers, merged.batch) == (2, 32)


def test_the_root_becomes_absolute(recipe_file):
    assert config.load_recipe(recipe_file).root.startswith("/")
    assert config.load_recipe(recipe_file, ["root=s3://bucket/run/"]).root == "s3://bucket/run"


@pytest.mark.parametrize("value", ["#x", "a #b", "[a, b] # c", "'a' #b", "{a: 1} #"])
def test_an_assignment_has_no_comment(recipe_file, value):
    said = refusal(recipe_file, f"tracking.experiment={value}")
    assert "the text after '#' would be a comment; put the value in quotes" in said


@pytest.mark.parametrize(("value", "read"), [("a#b", "a#b"), ("'a #b'", "a #b"), ('"#x"', "#x")])
def test_a_sign_of_comments_inside_a_value_is_part_of_it(recipe_file, value, read):
    assert config.load_recipe(recipe_file, [f"root={value}"]).root == os.path.abspath(read)


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("trian.workers=2", "did you mean 'train'?"),
        ("train.wrokers=2", "did you mean 'workers'?"),
        ("train.workers=two", "train.workers is 'two'"),
        ("train.workers=0", "greater than 0"),
        ("model.small.family=vea", "did you mean 'vae'?"),
        ("model.small.net.latnets=3", "unknown key 'model.small.net.latnets'"),
        ("model.small.score.kk=3", "unknown key 'model.small.score.kk'"),
        ("model.small.sample.foo=3", "unknown key 'model.small.sample.foo'"),
        ("model.small.train.foo=3", "unknown key 'model.small.train.foo'"),
        ("model.small.train.workers=-1", "model.small.train.workers is -1"),
        ("noequals", "expected key=value"),
        ("root.x=3", "'root' is a value"),
        ("seed=[1", "not YAML"),
    ],
)
def test_one_line_per_fault(recipe_file, assignment, says):
    assert says in refusal(recipe_file, assignment)


def test_no_such_recipe():
    assert "did you mean 'quickstart'?" in refusal("quikstart")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "is not YAML"),
        ("- 1", "must be a mapping"),
        ("root: x", "'data' is missing"),
        ("'': x", "unknown key ''"),
        (MINIMAL.partition("model:")[0] + "model: {}", "at least 1"),
        (MINIMAL + "\nmodel: {}", "occurs twice"),
        ("!!python/object/apply:os.system [true]", "is not allowed"),
    ],
)
def test_broken_files(tmp_path, text, says):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    assert says in refusal(str(path))


def test_merge_leaves_its_inputs_alone():
    base, changes = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": [1]}
    assert config.merge_sections(base, changes) == {"a": {"b": 3, "c": 2}, "d": [1]}
    assert base == {"a": {"b": 1, "c": 2}}


def test_to_yaml_is_safe_yaml(recipe_file):
    assert yaml.safe_load(config.load_recipe(recipe_file).to_yaml())["seed"] == 0


def example(pattern):
    """A key that a pattern of the tables matches."""
    return pattern.replace("rules.*", "rules.fd").replace("*", "small")


@pytest.mark.parametrize(("pattern", "new_name"), RENAMED_KEYS.items())
def test_an_old_key_is_refused_with_its_new_name(recipe_file, pattern, new_name):
    keys = [example(pattern)]
    if pattern.startswith("train."):
        keys.append(f"model.small.{pattern}")
    for key in keys:
        new_key = f"{key.rpartition('.')[0]}.{new_name}"
        says = f"recipe: {key} was renamed; use {new_key}"
        assert refusal(recipe_file, f"{key}=1") == says


def test_an_old_value_is_refused_with_its_new_name(recipe_file):
    ((pattern, values),) = RENAMED_VALUES.items()
    for old, new in values.items():
        key = example(pattern)
        says = f"recipe: {key}={old} was renamed; use {key}={new}"
        assert refusal(recipe_file, f"{key}={old}") == says


@pytest.mark.parametrize("pattern", RENAMED_KEYS)
def test_every_new_name_exists(pattern):
    """The new name is a key of the configuration, so the advice of the error works."""
    path = pattern.split(".")
    path[-1] = RENAMED_KEYS[pattern]
    if path[0] != "model":
        model = Recipe
    elif path[2] in ("net", "score"):
        model = getattr(family("diffusion"), {"net": "Config", "score": "Score"}[path[2]])
        path = path[3:]
    else:
        model, path = RecipeModel, path[2:]
    for name in path:
        if name == "*":
            continue
        field = model.model_fields[name].annotation
        parts = [field, *get_args(field), *(p for a in get_args(field) for p in get_args(a))]
        model = next((p for p in parts if hasattr(p, "model_fields")), None)


def test_an_error_names_keys_and_no_types():
    assert "recipe: data.image_size is [1, 2, 3]:" in refusal(
        "quickstart", "data.image_size=[1, 2, 3]"
    )
