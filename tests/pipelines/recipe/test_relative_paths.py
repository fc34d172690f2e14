"""Paths in a recipe's file start at the file's folder, others at the current folder."""

import pytest

from genmod.errors import ConfigError, StorageError
from pipelines.commands import submit
from pipelines.recipe.recipe import load_recipe
from pipelines.recipe.relative_paths import local_paths, resolve_paths

RECIPE = """
root: ../out
data: {source: "folder:photos [1]/a b"}
model: {vae: {family: vae, train: {order: {mixture: {data: 1, more/data: 1}}}}}
score: {data: other}
tracking: {uri: "sqlite:///runs.db", roots: [a, "s3://b/c"]}
storage: {cache: {folder: c, size_bytes: 1e9}}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe in a folder with an unusual name; the current folder is another one."""
    folder = tmp_path / "Läufe #1 [3]"
    folder.mkdir()
    (folder / "my recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    return f"../{folder.name}/my recipe.yaml"


def test_paths_of_a_file_start_at_its_folder(recipe, tmp_path):
    loaded = load_recipe(recipe)
    folder = tmp_path / "Läufe #1 [3]"
    assert loaded.root == str(tmp_path / "out")
    assert loaded.data.source == f"folder:{folder}/photos [1]/a b"
    assert loaded.score.data == f"{folder}/other"
    assert loaded.tracking.uri == f"sqlite:///{folder}/runs.db"
    assert loaded.tracking.roots == (f"{folder}/a", "s3://b/c")
    assert loaded.storage.cache is not None
    assert loaded.storage.cache.folder == f"{folder}/c"
    mixture = loaded.train_config("vae").order.mixture
    assert mixture == {"data": 1, f"{folder}/more/data": 1}


def test_paths_of_assignments_and_shipped_recipes_start_at_the_current_folder(recipe, tmp_path):
    current = tmp_path / "current"
    loaded = load_recipe(recipe, ["score.data=x", "tracking.uri='sqlite:///runs.db'", "root=./r"])
    assert loaded.score.data == f"{current}/x"
    assert loaded.tracking.uri == f"sqlite:///{current}/runs.db"
    assert loaded.root == f"{current}/r"
    assert load_recipe("quickstart").root == f"{current}/runs/quickstart"


@pytest.mark.parametrize(
    "value",
    [
        "/a/b",
        "s3://bucket/x",
        "~/x",
        "s3:/bucket",
        "file:x",
        "a::b",
        "",
        7,
        None,
        ["x", 1],
        {"a": 1},
    ],
)
def test_other_values_are_left_for_the_validation(value):
    tree = {"score": {"data": value}, "root": "x", "data": "text", "model": 7}
    resolved = resolve_paths(tree, "/folder")
    assert resolved["root"] == "/folder/x"
    assert (resolved["data"], resolved["model"]) == ("text", 7)
    if isinstance(value, list):
        assert resolved["score"]["data"] == ["/folder/x", 1]
    elif not isinstance(value, dict):
        assert resolved["score"]["data"] == value


def test_a_root_below_the_folder_above_a_link_is_as_the_system_finds_it(tmp_path):
    (tmp_path / "far" / "recipes").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "recipes")
    resolved = resolve_paths({"root": "../out"}, str(tmp_path / "link"))
    assert resolved["root"] == str(tmp_path / "far" / "out")


def test_a_recipe_for_another_machine_names_no_path_of_this_one(recipe, monkeypatch):
    monkeypatch.setattr(
        "pipelines.recipe.remote_paths.is_this_machine", lambda host: host == "here"
    )
    loaded = load_recipe(recipe, ["root=s3://bucket/run"])
    found = [key for key, _ in local_paths(loaded.model_dump(mode="json"))]
    assert found == [
        "data.source",
        "score.data",
        "tracking.roots",
        "tracking.uri",
        "model.*.train.order.mixture",
    ]
    submit._check_paths("run", loaded, "http://here:8265")
    with pytest.raises(ConfigError, match=r"data\.source has the path .*photos.* runs at there"):
        submit._check_paths("run", loaded, "http://there:8265")
    with pytest.raises(ConfigError, match=r"score\.data has the path"):
        submit._check_paths("train", loaded, "http://there:8265")
    shared = loaded.cluster.model_copy(update={"shared_folders": (loaded.score.data,)})
    loaded = loaded.model_copy(update={"cluster": shared})
    with pytest.raises(ConfigError, match=r"tracking\.roots has the path"):
        submit._check_paths("train", loaded, "http://there:8265")


def test_a_home_of_nobody_is_one_line():
    with pytest.raises(StorageError, match=r"no_such_user_5.* write \./"):
        load_recipe("quickstart", ["root=~no_such_user_5/x"])
