"""Every number wears its label, and unlike numbers are not compared."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from genmod.errors import ConfigError
from genmod.metrics.protocol import (
    EvaluateConfig,
    Interval,
    MetricResult,
    MetricValue,
    Protocol,
    difference,
    protocol_differences,
)

PROTOCOL = Protocol(
    metric="fd",
    features="classifier-v1@1a2b3c4d",
    features_digest="1a2b3c4d" * 8,
    reference_digest="ab" * 32,
    reference_split="test",
    n_real=500,
    n_fake=1000,
)


def value(number, **changes):
    interval = Interval(low=number - 1, high=number + 1, method="by hand")
    return MetricValue.of(PROTOCOL.model_copy(update=changes), number, interval)


def test_the_name_says_the_features():
    assert value(3.0).name == "fd[classifier-v1@1a2b3c4d]"


def test_values_measured_alike_are_subtracted():
    assert difference(value(5.0), value(3.5)) == 1.5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_fake": 500}, "n_fake 1000 against 500"),
        ({"reference_split": "val"}, "reference_split test against val"),
        ({"features_digest": "0" * 64}, "features_digest 1a2b3c4d1a2b against 000000000000"),
        ({"metric": "kid"}, "metric fd against kid"),
        ({"settings": {"k": 5}}, "settings"),
    ],
)
def test_unlike_protocols_are_refused_in_words(change, said):
    with pytest.raises(ConfigError, match="not comparable") as error:
        difference(value(5.0), value(5.0, **change))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert protocol_differences(PROTOCOL, PROTOCOL) == []


def test_a_value_that_does_not_fit_its_protocol_is_no_value():
    values = value(5.0).model_dump()
    assert MetricValue.model_validate(values) == value(5.0)
    values["protocol"]["n_fake"] = 9
    with pytest.raises(ValidationError, match="does not fit"):
        MetricValue.model_validate(values)


def test_position_runs_from_the_floor_to_the_ceiling():
    reading = MetricResult(value=value(4.0), floor=value(2.0), ceiling=value(10.0), better="lower")
    assert reading.relative_position == 0.25
    assert (
        MetricResult(value=value(4.0), floor=None, ceiling=None, better="lower").relative_position
        is None
    )
    flat = MetricResult(value=value(4.0), floor=value(2.0), ceiling=value(2.0), better="lower")
    assert flat.relative_position is None


def test_waiting_longer_does_not_change_what_is_measured():
    assert EvaluateConfig(deadline_s=1).result() == EvaluateConfig(deadline_s=2).result()
    assert EvaluateConfig(images=11).result() != EvaluateConfig(images=12).result()
