"""YAML of recipes: what is accepted, and that small text cannot stand for much."""

import os
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from genmod.budget import BUDGET
from genmod.config import Config, parse
from genmod.errors import ConfigError
from pipelines.recipe.recipe import load_recipe
from pipelines.recipe.scalars import typed
from pipelines.recipe.tree import shipped_recipes
from pipelines.recipe.yaml_text import parse_yaml, read_yaml

MAX_BYTES, MAX_NODES = BUDGET.recipe_bytes, BUDGET.recipe_nodes
MAX_DEPTH = BUDGET.recipe_nesting

BASE = 'root: out\ndata: {source: "builtin:digits"}\nmodel: {small: {family: vae}}\n'


def bomb(levels, head="[x, x]", level="[*a{0}, *a{0}]"):
    """Anchors whose values double at each level."""
    lines = [f"a{i}: &a{i} {level.format(i - 1)}" for i in range(1, levels + 1)]
    return "\n".join([f"a0: &a0 {head}", *lines]) + "\n"


HOSTILE = {
    "30 levels of lists": (bomb(30), "stand for more than"),
    "30 levels of sections": (bomb(30, "{b: x}", "{{b: *a{0}, c: *a{0}}}"), "stand for more than"),
    "30 levels of merges": (bomb(30, "{b: x}", "{{<<: [*a{0}, *a{0}]}}"), "stand for more than"),
    "an alias of itself": ("a: &a [*a]", "contains itself"),
    "a section in itself": ("a: &a {b: {c: *a}}", "contains itself"),
    "open lists": ("[" * 60_000, f"more than {MAX_DEPTH} sections"),
    "open sections": ("{a: " * 15_000, f"more than {MAX_DEPTH} sections"),
    "nested entries": ("- " * 30_000, f"more than {MAX_DEPTH} sections"),
    "many values": ("a: [" + "1, " * 20_000 + "1]", f"more than {MAX_NODES:,} keys"),
    "too much text": ("a: " + "x" * MAX_BYTES, "more than"),
    "digits": ("a: " + "9" * 5000, "5,000 characters"),
    "hexadecimal digits": ("a: 0x" + "f" * 5000, "characters"),
    "digits of base 60": ("a: " + ":".join(["1"] * 30_000), "characters"),
    "an integer of 65 bits": (f"a: {2**64}", "64 bits"),
    "infinity": ("a: [[.inf]]", "no finite number"),
    "not a number": ("a: {b: [.nan]}", "no finite number"),
    "overflow": ("a: 1.0e+999", "no finite number"),
    "a key twice": ("a: 1\na: 2", "'a' occurs twice, line 2"),
    "a key twice, deep": ("a: [[{b: 1, c: [{d: 1, d: 2}]}]]", "'d' occurs twice"),
    "two merges": ("a: {<<: {b: 1}, <<: {b: 2}}", "occurs twice"),
    "null as key": ("~: x", "is no text"),
    "a list as key": ("? [a]\n: b", "is no text"),
    "binary": ("a: !!binary aGk=", "not allowed"),
    "a set": ("a: !!set {b}", "not allowed"),
    "an object": ("a: !!python/object/apply:os.system [true]", "not allowed"),
    "another tag": ("a: !x y", "not allowed"),
    "text as number": ("a: !!int x", "is not YAML"),
    "text as truth": ("a: !!bool x", "is not YAML"),
    "a list as section": ("a: !!map [1]", "is not YAML"),
    "two documents": ("a: 1\n---\na: 2", "is not YAML"),
    "a control character": ("a: \x1b[2J", "is not YAML"),
    "a surrogate": ("a: \udc9b", "is not YAML"),
}


@pytest.mark.parametrize(("text", "says"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_refused(text, says):
    with pytest.raises(ConfigError, match=says) as caught:
        parse_yaml(text, "my.yaml")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(("text", "says"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_recipes_and_assignments_are_refused(text, says, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path))
    assert "\n" not in str(caught.value)
    path.write_text(BASE)
    with pytest.raises(ConfigError):
        load_recipe(str(path), [f"train={text}"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: 2020-01-01", {"a": "2020-01-01"}),
        ("a: 2020-13-45", {"a": "2020-13-45"}),
        ("a: &x {b: 1}\nc: {<<: *x, d: *x}", {"a": {"b": 1}, "c": {"b": 1, "d": {"b": 1}}}),
        ("a: [1, 1.5, true, null, x, '1']", {"a": [1, 1.5, True, None, "x", "1"]}),
        ("{1: x, yes: y, 1e3: z}", {"1": "x", "yes": "y", "1e3": "z"}),
        ("[=, !!str 5, !!int '5', \"no\"]", ["=", "5", 5, "no"]),
        (f"[{2**64 - 1}, {-(2**63)}, 0x1f]", [2**64 - 1, -(2**63), 31]),
    ],
)
def test_plain_values(text, value):
    assert typed(Any, parse_yaml(text, "my.yaml")) == value


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_mean_the_same_as_for_other_programs(name, tmp_path):
    text = load_recipe(name).to_yaml()
    assert typed(Any, parse_yaml(text, name)) == yaml.safe_load(text)
    assert len(text) < MAX_BYTES / 4


@pytest.mark.parametrize("value", ["nan", "inf", "-Infinity"])
@pytest.mark.parametrize(
    "key", ["train.optim.lr", "model.small.net.beta", "model.small.train.optim.lr"]
)
def test_texts_of_numbers_that_are_not_finite(tmp_path, key, value):
    path = tmp_path / "my.yaml"
    path.write_text(BASE)
    with pytest.raises(ConfigError, match=r"finite|greater|less|unknown key"):
        load_recipe(str(path), [f"{key}='{value}'"])


class Free(Config):
    """Numbers without bounds."""

    number: float = 0.0
    numbers: tuple[float, ...] = ()
    section: dict[str, Any] = {}
    free: "Free | None" = None


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"number": "nan"}, "x.number"),
        ({"numbers": [1, "inf"]}, "x.numbers"),
        ({"section": {"a": {"b": [float("nan")]}}}, "x.section.a.b"),
        ({"free": {"free": {"number": "-inf"}}}, "x.free.free.number"),
    ],
)
def test_no_setting_is_infinite(values, where):
    with pytest.raises(ConfigError, match=f"recipe: {where} is .*, expected a finite number"):
        parse(Free, values, "x")


def refused_file(path):
    with pytest.raises(ConfigError) as caught:
        read_yaml(str(path), "the recipe 'x'")
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_files_that_are_no_text(tmp_path):
    fifo, folder = tmp_path / "fifo", tmp_path / "folder"
    os.mkfifo(fifo)
    folder.mkdir()
    for path in (fifo, folder, "/dev/zero", "/dev/tty"):
        assert "give a YAML file" in refused_file(path) or "cannot be read" in refused_file(path)
    (tmp_path / "latin").write_bytes(b"about: caf\xe9")
    assert "byte 10 is not UTF-8" in refused_file(tmp_path / "latin")
    (tmp_path / "large").write_bytes(b"# " + b"x" * MAX_BYTES)
    assert "shorten the recipe" in refused_file(tmp_path / "large")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "loop", "a\0b", "x" * 300):
        assert "check the path" in refused_file(path)
    (tmp_path / "mark").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_yaml(str(tmp_path / "mark"), "x") == {"a": "1"}


def test_an_endless_file_takes_no_memory(tmp_path):
    """A sparse file of a terabyte as recipe: refused after its first bytes."""
    path = tmp_path / "endless.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "from pipelines.recipe.yaml_text import read_yaml\n"
        "try: read_yaml(sys.argv[1], 'the recipe')\n"
        "finally: print(open('/proc/self/status').read())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert "ConfigError: the recipe has more than" in done.stderr
    # The peak of this process alone: rusage also counts other children of the tests, and their parent.
    peak = re.search(r"VmHWM:\s+(\d+) kB", done.stdout)
    assert peak is not None
    assert int(peak[1]) < 2 << 20
