"""Every text of a recipe is an address, a name or a title with a type that checks it, or free text."""

import json
import typing

import pytest
from pydantic import BaseModel

from genmod import storage
from genmod.data.sources.config import SourceText
from genmod.data.sources.registry import open_source
from genmod.errors import ConfigError
from genmod.interface.registry import families, family
from genmod.storage.settings import LocalFolder
from pipelines.commands.price import price_lines
from pipelines.recipe.recipe import Recipe, load_recipe
from pipelines.recipe.retraining import CronLine, TimeZone

SEEDS = {"seed", "data.draw_seed", "sample.labels"}
"""Numbers of any size: hashed, or compared with those of the data."""

TYPES = {
    "Url": storage.Url,
    "RootUrl": storage.RootUrl,
    "OutputFolder": storage.OutputFolder,
    "Name": storage.Name,
    "Title": storage.Title,
    "ExperimentName": storage.ExperimentName,
    "Line": storage.Line,
    "ClusterAddress": storage.ClusterAddress,
    "TrackingUri": storage.TrackingUri,
    "WebhookUrl": storage.WebhookUrl,
    "VariableName": storage.VariableName,
    "LocalFolder": LocalFolder,
    "SourceText": SourceText,
    "CronLine": CronLine,
    "TimeZone": TimeZone,
}

FREE = {
    "sample.labels": "compared with the class names of the data",
    "sample.request": "compared with the class names of the data",
    "train.phase_optim": "compared with the phases of the model",
    "promote.rules": "compared with the metrics of the evaluation",
    "model.net": "validated by the family",
    "evaluate.features.onnx.sha256": "64 hexadecimal digits, compared with the file's",
    "model.train": "validated as the section train",
    "model.sample": "validated by the family",
    "model.score": "validated by the family",
}
"""Keys with texts that only select one of several known things."""

EXPECTED = {
    "about.source": "Line", "about.published": "Line", "about.published_cost": "Line",
    "about.differs": "Line", "root": "RootUrl", "data.source": "SourceText",
    "data.image": "Line", "data.label": "Line", "model": "Name",
    "model.family": "Name", "model.distills": "Name", "train.order.mixture": "Url",
    "sample.model": "Line", "sample.licence": "Line", "cluster.labels": "Name",
    "sample.output": "OutputFolder", "score.data": "Url", "score.output": "OutputFolder",
    "evaluate.ood": "OutputFolder", "evaluate.features.onnx.file": "Url",
    "evaluate.features.onnx.output": "Title", "promote.ledger": "RootUrl",
    "tracking.uri": "TrackingUri", "tracking.experiment": "ExperimentName",
    "tracking.prefix": "Title", "tracking.artifacts": "Url", "tracking.roots": "Url",
    "tracking.webhook.url": "WebhookUrl", "tracking.webhook.secret_env": "VariableName",
    "cluster.address": "ClusterAddress", "cluster.shared_folders": "LocalFolder",
    "storage.cache.folder": "LocalFolder",
    "schedule.cron": "CronLine", "schedule.timezone": "TimeZone",
}  # fmt: skip


def texts(annotation, metadata=()):
    """The validators of each text in a type, as a tuple of functions."""
    if annotation is str:
        yield tuple(each.func for each in metadata if hasattr(each, "func"))
    elif typing.get_origin(annotation) is typing.Annotated:
        inner, *more = typing.get_args(annotation)
        yield from texts(inner, more)
    elif typing.get_origin(annotation) is not typing.Literal:
        for inner in typing.get_args(annotation):
            yield from texts(inner, metadata if len(typing.get_args(annotation)) == 2 else ())


def schemas(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from schemas(inner)


def text_fields(schema, where=""):
    """Key -> names of the types of its texts, of every key with texts."""
    names = {validators[0]: name for name, t in TYPES.items() for validators in texts(t)}
    found = {}
    for key, field in schema.model_fields.items():
        path = f"{where}{key}"
        kinds = [validators for validators in texts(field.annotation, field.metadata)]
        if kinds:
            found[path] = {names.get(each[0]) if each else None for each in kinds}
        for inner in schemas(field.annotation):
            found |= text_fields(inner, f"{path}.")
    return found


def test_every_text_has_a_type():
    found = text_fields(Recipe)
    assert set(found) == set(EXPECTED) | set(FREE)
    typed = {key: names for key, names in found.items() if key not in FREE}
    assert typed == {key: {name} for key, name in EXPECTED.items()}


@pytest.mark.parametrize("name", families())
def test_families_have_no_text(name):
    model = family(name)
    for schema in (model.Config, model.Sample, model.Score):
        assert text_fields(schema) == {}


def test_a_new_text_is_found():
    class More(Recipe):
        """A recipe with one more text."""

        place: str | None = None

    assert text_fields(More)["place"] == {None}


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text('root: out\ndata: {source: "builtin:digits"}\nmodel: {small: {family: vae}}\n')
    return str(path)


ADDRESSES = [
    "root={}",
    "data.source={}",
    "score.data={}",
    "score.output={}",
    "sample.output={}",
    "evaluate.ood={}",
    "evaluate.features={{kind: onnx, onnx: {{file: {}, sha256: %s}}}}" % (64 * "0"),
    "tracking.uri={}",
    "tracking.webhook={{url: {}, secret_env: A_SECRET}}",
    "cluster.address={}",
    "storage.cache={{folder: {}, size_bytes: 9}}",
    "train.order.mixture={{data: 1, {}: 1}}",
    "model.small.train.order.mixture={{data: 1, {}: 1}}",
]
SECRETS = [
    "https://user:hunter2@host/x",
    "https://hunter2@host/x",
    "s3://key:hunter2@bucket/x",
    "s3://bucket/x?X-Amz-Signature=hunter2",
    "https://host/x?token=hunter2",
    "https://host/x?sig=hunter2&v=1",
    "sqlite://user:hunter2@host/x",
    "ray://user:hunter2@host:10001",
    "folder:https://user:hunter2@host/x",
    "s3:/key:hunter2@bucket/x",
]


@pytest.mark.parametrize("key", ADDRESSES)
@pytest.mark.parametrize("secret", SECRETS)
def test_no_address_holds_a_secret(recipe_file, key, secret):
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe_file, [key.format(json.dumps(secret))])
    assert "hunter2" not in str(caught.value)
    assert str(caught.value).startswith("recipe: ")


@pytest.mark.parametrize("key", ADDRESSES)
@pytest.mark.parametrize(
    "url",
    ["ftp://host/x", "hdfs://host/x", "a::b", "simplecache::s3://b/x", "folder:zip://x::s3://b/x",
     "s3:/b/x", "/a\x1b[2J", "/a\nb", "/a\u202eb", "/a\x9bb", "github://a:b@c/"],
)  # fmt: skip
def test_no_address_has_another_scheme_or_a_chain(recipe_file, key, url):
    with pytest.raises(ConfigError) as caught:
        open_source(load_recipe(recipe_file, [key.format(json.dumps(url))]).data.source)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "change",
    [
        "sample.output=../out", "sample.output=a/b", "sample.output=..", "sample.output=.hidden",
        "score.output=/data/../etc", "score.output=https://host/x", "evaluate.ood=../x",
        "root=https://host/x", "root=http://host/x", "model.small.family=../vae",
        "model.small.distills=a/b", "tracking.experiment=\"a' or 1=1\"", "tracking.prefix='a`b'",
        "tracking.uri=databricks", "tracking.uri=file:///x", "tracking.uri=postgresql://host/db",
        "tracking.uri='sqlite:///x?mode=memory'", "cluster.address=host:1:2:x",
        "cluster.address=http://host:8265", "storage.cache={folder: 's3://b/x', size_bytes: 9}",
    ],
)  # fmt: skip
def test_names_are_names(recipe_file, change):
    with pytest.raises(ConfigError):
        load_recipe(recipe_file, [change])


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("root=s3://bucket/run", "s3://bucket/run"),
        ("root='/data/my runs/é'", "/data/my runs/é"),
        ("sample.output=bulk-2.0_x", "bulk-2.0_x"),
        ("sample.output=s3://bucket/bulk", "s3://bucket/bulk"),
        ("score.output=/data/scores", "/data/scores"),
        ("score.data=/runs/familiarity-digits/data", "/runs/familiarity-digits/data"),
        ("evaluate.ood=digits", "digits"),
        ("tracking.uri=http://mlflow.lab:5000", "http://mlflow.lab:5000"),
        ("tracking.uri=https://host/mlflow/", "https://host/mlflow/"),
        ("tracking.uri=sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("tracking.experiment=/Shared/my experiment", "/Shared/my experiment"),
        ("cluster.address=local", "local"),
        ("cluster.address=ray://head.lab:10001", "ray://head.lab:10001"),
        ("cluster.address=10.0.0.1:6379", "10.0.0.1:6379"),
        ("cluster.address='[::1]:6379'", "[::1]:6379"),
        ("data.source=webdataset:s3://b/{000..010}.tar", "webdataset:s3://b/{000..010}.tar"),
    ],
)
def test_ordinary_values(recipe_file, change, value):
    recipe = load_recipe(recipe_file, [change])
    section = recipe.model_dump()
    for part in change.partition("=")[0].split("."):
        section = section[part]
    assert section == value


def unbounded(annotation, metadata=(), where=""):
    """Keys of the numbers in a type that have no upper limit."""
    if annotation in (int, float):
        if not any(hasattr(each, "le") or hasattr(each, "lt") for each in metadata):
            yield where
    elif typing.get_origin(annotation) is typing.Annotated:
        inner, *more = typing.get_args(annotation)
        more = [each for m in more for each in (m, *getattr(m, "metadata", ()))]
        yield from unbounded(inner, (*metadata, *more), where)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield from unbounded(field.annotation, field.metadata, f"{where}.{name}".strip("."))
    else:
        for inner in typing.get_args(annotation):
            yield from unbounded(inner, metadata, where)


def test_every_number_has_an_upper_limit():
    """A time of 1e308 s or 1e308 CPUs ends in an error of another package."""
    assert set(unbounded(Recipe)) == SEEDS


def test_about_cannot_fake_lines_of_the_plan(recipe_file):
    text = "a paper\\nstage  model\\ntrain  vae  done\\u2028x"
    recipe = load_recipe(
        recipe_file, [f'about={{source: "{text}", published: "  b\\tc  "}}', "data.image_size=8"]
    )
    assert recipe.about.source == "a paper stage model train vae done x"
    lines = price_lines(recipe, {"small": {"parameters": 3}})
    assert "published: b c" in lines
    assert all(line.isprintable() for line in lines)
    with pytest.raises(ConfigError, match="control characters"):
        load_recipe(recipe_file, ['about={source: "a\\e[2Jb", published: ""}'])
