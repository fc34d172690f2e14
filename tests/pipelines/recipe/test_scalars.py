"""A value without quotes is a number where one is wanted, a text where one is wanted, else refused."""

from typing import Any, Literal

import pytest
import yaml

from genmod.config import Config, parse
from genmod.errors import ConfigError
from pipelines.recipe.recipe import Recipe, load_recipe
from pipelines.recipe.scalars import Plain, dump_yaml, typed
from pipelines.recipe.yaml_text import parse_yaml

REFUSED = object()

TABLE = [
    # written         whole number  number   truth    text           text or whole number
    ("1",             1,            1.0,     True,    "1",           1),
    ("-7",            -7,           -7.0,    REFUSED, "-7",          -7),
    ("+7",            7,            7.0,     REFUSED, "+7",          "+7"),
    ("1.5",           REFUSED,      1.5,     REFUSED, "1.5",         "1.5"),
    ("2.0",           2,            2.0,     REFUSED, "2.0",         "2.0"),
    (".5",            REFUSED,      0.5,     REFUSED, ".5",          ".5"),
    ("1e-3",          REFUSED,      0.001,   REFUSED, "1e-3",        "1e-3"),
    ("2e3",           2000,         2000.0,  REFUSED, "2e3",         "2e3"),
    ("1E6",           1_000_000,    1e6,     REFUSED, "1E6",         "1E6"),
    ("1.5e3",         1500,         1500.0,  REFUSED, "1.5e3",       "1.5e3"),
    ("15e-1",         REFUSED,      1.5,     REFUSED, "15e-1",       "15e-1"),
    ("1e400",         REFUSED,      REFUSED, REFUSED, "1e400",       "1e400"),
    ("1_000",         1000,         1000.0,  REFUSED, "1_000",       "1_000"),
    ("1__0",          REFUSED,      REFUSED, REFUSED, "1__0",        "1__0"),
    ("_1",            REFUSED,      REFUSED, REFUSED, "_1",          "_1"),
    ("1,000",         REFUSED,      REFUSED, REFUSED, "1,000",       "1,000"),
    ("0o17",          15,           15.0,    REFUSED, "0o17",        "0o17"),
    ("0x1F",          31,           31.0,    REFUSED, "0x1F",        "0x1F"),
    ("0b101",         5,            5.0,     REFUSED, "0b101",       "0b101"),
    ("010",           REFUSED,      REFUSED, REFUSED, "010",         "010"),
    ("007",           REFUSED,      REFUSED, REFUSED, "007",         "007"),
    ("1:30",          REFUSED,      REFUSED, REFUSED, "1:30",        "1:30"),
    ("2024-01-01",    REFUSED,      REFUSED, REFUSED, "2024-01-01",  "2024-01-01"),
    ("no",            REFUSED,      REFUSED, False,   "no",          "no"),
    ("on",            REFUSED,      REFUSED, True,    "on",          "on"),
    ("Off",           REFUSED,      REFUSED, False,   "Off",         "Off"),
    ("YES",           REFUSED,      REFUSED, True,    "YES",         "YES"),
    ("true",          REFUSED,      REFUSED, True,    "true",        "true"),
    ("2",             2,            2.0,     REFUSED, "2",           2),
    ("maybe",         REFUSED,      REFUSED, REFUSED, "maybe",       "maybe"),
    ("'5'",           5,            5.0,     REFUSED, "5",           "5"),
    ("'007'",         7,            7.0,     REFUSED, "007",         "007"),
    ("null",          REFUSED,      REFUSED, REFUSED, REFUSED,       REFUSED),
]  # fmt: skip
"""Written in YAML -> its value where each type is wanted."""


class Whole(Config):
    """A whole number."""

    value: int


class Number(Config):
    """A number."""

    value: float


class Truth(Config):
    """A truth value."""

    value: bool


class Text(Config):
    """A text."""

    value: str


class Either(Config):
    """A text or a whole number, e.g. labels."""

    value: int | str


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_the_wanted_type_decides(row):
    text, *expected = row
    for schema, value in zip((Whole, Number, Truth, Text, Either), expected, strict=True):

        def read(schema=schema):
            return parse(schema, typed(schema, parse_yaml(f"value: {text}", "my.yaml")), "x").value

        if value is REFUSED:
            with pytest.raises(ConfigError, match=r"value(\.int)? is"):
                read()
        else:
            assert (type(read()), read()) == (type(value), value), schema.__name__


class Nested(Config):
    """Sections, lists, names and choices."""

    numbers: tuple[float, ...] = ()
    pair: tuple[int, str] = (0, "")
    shares: dict[str, float] = {}
    counts: dict[int, int] = {}
    maybe: int | None = 3
    mode: Literal["on", "off", "1e3"] | None = None
    channels: Literal[1, 3] | Literal["auto"] = "auto"
    labels: list[int | str] = []
    inner: Whole | Number | None = None
    free: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("numbers: [1e-3, 2, .5]", "numbers", (0.001, 2.0, 0.5)),
        ("pair: [1e3, 1e3]", "pair", (1000, "1e3")),
        ("shares: {no: 1e-3, 1e3: 1, 007: 2}", "shares", {"no": 0.001, "1e3": 1.0, "007": 2.0}),
        ("counts: {0: 1e3, 1_0: 2}", "counts", {0: 1000, 10: 2}),
        ("maybe: null", "maybe", None),
        ("maybe:", "maybe", None),
        ("mode: on", "mode", "on"),
        ("mode: 1e3", "mode", "1e3"),
        ("channels: 3", "channels", 3),
        ("labels: [1e3, 007, 2024-01-01, 7, no]", "labels", ["1e3", "007", "2024-01-01", 7, "no"]),
        ("inner: {value: 1e3}", "inner", Whole(value=1000)),
        ("free: {a: 1e3, b: [no, 0o17, 1.5, true]}", "free", {"a": 1000, "b": ["no", 15, 1.5, True]}),
    ],
)  # fmt: skip
def test_types_are_found_in_sections_and_lists(text, key, value):
    got = getattr(parse(Nested, typed(Nested, parse_yaml(text, "my.yaml")), ""), key)
    assert got == value
    assert repr(got) == repr(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("counts: {1: 1, 0x1: 2}", r"counts\.0x1 occurs twice"),
        ("maybe: 010", "maybe is 010: a number with a leading zero"),
        ("maybe: 0o7777777777777777777777777", "maybe: the number has more than 64 bits"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(text, says):
    with pytest.raises(ConfigError, match=says):
        typed(Nested, parse_yaml(text, "my.yaml"))


BASE = 'root: out\ndata: {source: "builtin:digits"}\nmodel: {small: {family: vae}}\n'


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(BASE)
    return path


@pytest.mark.parametrize(
    ("change", "read", "value"),
    [
        ("train.nimg=1e6", lambda r: r.train.nimg, 1_000_000),
        ("train.nimg=1_000_000", lambda r: r.train.nimg, 1_000_000),
        ("train.optim.lr=1e-3", lambda r: r.train.optim.lr, 0.001),
        ("model.small.train.optim.lr=3e-4", lambda r: r.train_config("small").optim.lr, 0.0003),
        ("model.small.net.hidden=[1e2, 0x20]", lambda r: r.model["small"].net["hidden"], [100, 32]),
        ("model.small.score.k=1e2", lambda r: r.score_options("small").k, 100),
        ("train.compile=on", lambda r: r.train.compile, True),
        ("tracking.enabled=no", lambda r: r.tracking.enabled, False),
        ("tracking.experiment=no", lambda r: r.tracking.experiment, "no"),
        ("tracking.experiment=2024", lambda r: r.tracking.experiment, "2024"),
        ("sample.labels=1e3", lambda r: r.sample.labels, "1e3"),
        ("sample.labels=007", lambda r: r.sample.labels, "007"),
        ("sample.labels=2024-01-01", lambda r: r.sample.labels, "2024-01-01"),
        ("sample.labels=no", lambda r: r.sample.labels, "no"),
        ("sample.labels=7", lambda r: r.sample.labels, 7),
        ("sample.output=2024-01-01", lambda r: r.sample.output, "2024-01-01"),
        ("evaluate.ood=007", lambda r: r.evaluate.ood, "007"),
        ("model.1e3.family=vae", lambda r: sorted(r.model), ["1e3", "small"]),
    ],
)
def test_recipes_and_assignments_mean_the_same(recipe_file, change, read, value):
    recipe = load_recipe(str(recipe_file), [change])
    assert read(recipe) == value
    assert load_recipe(_written(recipe_file, recipe)) == recipe
    tree = yaml.safe_load(BASE)
    *keys, last = change.partition("=")[0].split(".")
    section = tree
    for key in keys:
        section = section.setdefault(key, {})
    section[last] = "VALUE"
    text = yaml.safe_dump(tree).replace("VALUE", change.partition("=")[2])
    recipe_file.write_text(text)
    assert read(load_recipe(str(recipe_file))) == value


def _written(recipe_file, recipe: Recipe) -> str:
    path = recipe_file.with_name("resolved.yaml")
    path.write_text(recipe.to_yaml())
    return str(path)


@pytest.mark.parametrize(
    "change",
    ["train.nimg=1.5", "train.nimg=no", "train.nimg=010", "train.workers=true", "seed=1:30",
     "train.optim.lr=1,5", "train.compile=2", "train.optim.lr=2024-01-01", "model.small.net.latents=on"],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(recipe_file, change):
    with pytest.raises(ConfigError, match=change.partition("=")[0].replace(".", r"\.")):
        load_recipe(str(recipe_file), [change])


@pytest.mark.parametrize("text", [*(row[0] for row in TABLE), "", "~", "a: b", "#", "1.0e3"])
def test_a_text_that_is_written_is_read_as_the_same_text(text):
    written = dump_yaml({"a": text})
    assert typed(Any, parse_yaml(written, "my.yaml")) == {"a": text} == yaml.safe_load(written)
    assert typed(dict[str, str], {"a": Plain("no")}) == {"a": "no"}
