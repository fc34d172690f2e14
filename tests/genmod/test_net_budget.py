"""Sizes of nets: every option is bounded, and a net is counted before it is allocated."""

import inspect
import math
import typing
from types import UnionType

import annotated_types as at
import pytest
import torch
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from genmod.budget import BUDGET, ReadBudget
from genmod.config import as_json
from genmod.errors import ConfigError, DataError
from genmod.evaluation.policy import PromoteConfig
from genmod.generation.config import SampleConfig
from genmod.interface.model import DataStats
from genmod.interface.registry import ModelConfig, families, family
from genmod.manifest import ImageSpec
from genmod.metrics.protocol import EvaluateConfig
from genmod.net_budget import net_budget
from genmod.training.plan import TrainConfig

OWN = sorted({*families()} - {"coins"})
OPTIONS = [
    schema
    for name in OWN
    for schema in (family(name).Config, family(name).Sample, family(name).Score)
]
SETTINGS = [DataStats, TrainConfig, SampleConfig, EvaluateConfig, PromoteConfig]
UNBOUNDED = {"SampleConfig.labels"}
"""A class by number, which is checked against the model's classes."""


def bounds(metadata):
    """Lower and upper bound, and the largest length."""
    low = high = length = None
    for each in metadata:
        for item in each if isinstance(each, at.GroupedMetadata) else [each]:
            match item:
                case at.Ge(value) | at.Gt(value):
                    low = value
                case at.Le(value) | at.Lt(value):
                    high = value
                case at.MaxLen(value):
                    length = value
    return low, high, length


def parts(annotation, metadata=()):
    """Each type within an annotation, with its constraints."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        extra = [
            m for a in arguments[1:] for m in (a.metadata if isinstance(a, FieldInfo) else [a])
        ]
        yield from parts(arguments[0], [*metadata, *extra])
    elif origin in (typing.Union, UnionType):
        for argument in arguments:
            yield from parts(argument, metadata)
    else:
        yield annotation, origin, metadata
        for argument in arguments if origin in (tuple, dict) else ():
            if argument is not Ellipsis:
                yield from parts(argument)


def fields(schema, prefix=""):
    """Every field of a schema and of the schemas within it, with its types."""
    for name, field in schema.model_fields.items():
        for annotation, origin, metadata in parts(field.annotation, field.metadata):
            if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
                yield from fields(annotation, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", annotation, origin, metadata


def unbounded(schema):
    for name, annotation, origin, metadata in fields(schema):
        low, high, length = bounds(metadata)
        if f"{schema.__name__}.{name}" in UNBOUNDED:
            continue
        if annotation in (int, float) and (low is None or high is None):
            yield f"{schema.__name__}.{name}: {annotation.__name__} between {low} and {high}"
        is_open = origin is dict or (origin is tuple and Ellipsis in typing.get_args(annotation))
        if is_open and length is None:
            yield f"{schema.__name__}.{name}: {annotation} of any length"


def test_every_option_has_bounds():
    schemas = [*OPTIONS, *SETTINGS]
    assert [problem for schema in schemas for problem in unbounded(schema)] == []
    assert sum(1 for schema in schemas for _ in fields(schema)) > 150


def model(name, net, side=8):
    spec = ImageSpec(channels=1, height=side, width=side)
    return ModelConfig(family=name, net=net, spec=spec, stats=DataStats(mean=(0.0,), std=(0.5,)))


def extremes(name):
    """The tiny net of a family with one option at its largest value."""
    tiny = as_json(family(name).Config.tiny())
    for field, info in family(name).Config.model_fields.items():
        for annotation, origin, metadata in parts(info.annotation, info.metadata):
            _, high, length = bounds(metadata)
            if annotation in (int, float) and high is not None:
                value = annotation(high)
            elif origin is tuple and length is not None:
                (_, _, inner) = next(parts(typing.get_args(annotation)[0]))
                value = [bounds(inner)[1]] * length
            else:
                continue
            yield field, tiny | {field: value}


@pytest.mark.parametrize(
    ("name", "net"),
    [
        pytest.param(name, net, id=f"{name}-{field}")
        for name in OWN
        for field, net in extremes(name)
        if field not in ("kinds",)
    ],
)
def test_the_largest_value_of_each_option_is_counted_or_refused(name, net):
    try:
        shapes = model(name, net).shapes()
    except ConfigError:
        return
    assert sum(p.numel() for p in shapes.parameters()) <= BUDGET.net_parameters
    assert sum(1 for _ in shapes.modules()) <= BUDGET.net_modules + 1


@pytest.mark.parametrize(
    ("name", "net", "side", "message"),
    [
        ("diffusion", {"blocks": 10**9}, 8, "less than or equal to"),
        ("diffusion", {"widths": [10**12]}, 8, "less than or equal to"),
        ("diffusion", {"widths": [8] * 1000}, 8, "at most"),
        ("diffusion", {"widths": [65536, 65536], "attention": []}, 8, "more than the limit"),
        ("diffusion", {"blocks": 64, "widths": [8] * 13, "attention": []}, 1 << 12, "layers, more"),
        ("gan", {"generator": {"widths": [65536] * 4, "blocks": 64}}, 16, "more than the limit"),
        ("vae", {"latents": 65536, "widths": [65536]}, 1 << 12, "parameters, more than the limit"),
        ("vae", {"hidden": [65536] * 16}, 8, "more than the limit"),
        ("vae", {}, 10**6, "image|pixels|32"),
        ("flow", {}, 1 << 12, "mask entries"),
    ],
)
def test_a_net_beyond_the_budget_is_never_allocated(name, net, side, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        model(name, net, side).build()


def test_a_net_is_stopped_where_it_exceeds_the_budget():
    built = []

    class Layers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for number in range(10**9):
                built.append(number)
                self.add_module(str(number), torch.nn.Linear(1, 1))

    small = ReadBudget(net_modules=50)
    with (
        pytest.raises(
            DataError, match="net: 51 layers, more than the limit of 50; make it smaller"
        ),
        net_budget("net", "make it smaller", small),
    ):
        Layers()
    assert len(built) == 51
    torch.nn.Linear(1000, 1000)  # not counted any more


def test_values_that_are_not_finite_are_refused():
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ConfigError, match="sigma_max"):
            model("diffusion", {"sigma_max": value}).build()
