"""The gate: laws of a decision, on values made by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genmod.errors import ConfigError
from genmod.evaluation.gate import PromoteConfig, Rule, decide
from genmod.metrics.protocol import Interval, MetricResult, MetricValue, Protocol

BETTER = {"fd": "lower", "coverage": "higher"}


def _value(metric: str, value: float, half: float = 0.0, **protocol) -> MetricValue:
    defaults = {
        "features": "pca@1",
        "features_digest": "f" * 64,
        "reference_digest": "r" * 64,
        "reference_split": "test",
        "n_real": 100,
        "n_fake": 100,
    }
    interval = Interval(low=value - half, high=value + half, method="by hand")
    return MetricValue.of(Protocol(metric=metric, **(defaults | protocol)), value, interval)


def _reading(metric: str, value: float, half: float = 0.0, **more) -> MetricResult:
    ends = {key: _value(metric, more.pop(key)) for key in ("floor", "ceiling") if key in more}
    return MetricResult(
        value=_value(metric, value, half, **more),
        floor=ends.get("floor"),
        ceiling=ends.get("ceiling"),
        better=BETTER[metric],
    )


def _both(fd: float, coverage: float, half: float = 0.0):
    return [_reading("fd", fd, half), _reading("coverage", coverage, half)]


RULES = {
    "fd": Rule(improve_by=1, max_regression=2),
    "coverage": Rule(improve_by=0.1, max_regression=0.05),
}


@pytest.mark.parametrize(
    ("fd", "coverage", "promoted"),
    [
        (8.5, 0.50, True),  # one is better, one is equal
        (10.0, 0.65, True),
        (9.5, 0.55, False),  # better, but by less than the margins
        (12.5, 0.90, False),  # one is worse by more than is borne
        (11.5, 0.65, True),  # worse, but within what is borne
        (8.5, 0.40, False),
        (10.0, 0.50, False),
    ],
)
def test_margins_count_in_the_better_direction(fd, coverage, promoted):
    decision = decide(_both(fd, coverage), _both(10, 0.5), PromoteConfig(rules=RULES))
    assert decision.promote is promoted
    assert decision.reasons
    assert len(decision.checks) == 2


def test_an_improvement_within_noise_does_not_count():
    config = PromoteConfig(rules=RULES)
    assert decide(_both(8, 0.5, half=0.5), _both(10, 0.5, half=0.5), config).promote
    noisy = decide(_both(8, 0.5, half=2), _both(10, 0.5, half=2), config)
    assert not noisy.promote
    assert any("noise" in reason for reason in noisy.reasons)
    bold = PromoteConfig(rules=RULES, beyond_noise=False)
    assert decide(_both(8, 0.5, half=2), _both(10, 0.5, half=2), bold).promote


def test_relative_margins_are_shares_of_the_champions_value():
    config = PromoteConfig(rules={"fd": Rule(improve_by=0.1, max_regression=0.1, relative=True)})
    for scale in (1.0, 1000.0):
        champion = [_reading("fd", 10 * scale)]
        assert decide([_reading("fd", 8.9 * scale)], champion, config).promote
        assert not decide([_reading("fd", 9.1 * scale)], champion, config).promote


def test_without_a_champion_the_limits_decide():
    config = PromoteConfig(rules={"fd": Rule(limit=5), "coverage": Rule(limit=0.3)})
    assert decide(_both(4, 0.4), None, config).promote
    for fd, coverage in ((6, 0.4), (4, 0.2)):
        decision = decide(_both(fd, coverage), None, config)
        assert not decision.promote
        assert "allowed is" in decision.reasons[0]


def test_a_limit_holds_against_any_champion():
    config = PromoteConfig(rules={"fd": Rule(limit=5)})
    assert not decide([_reading("fd", 6)], [_reading("fd", 100)], config).promote


@pytest.mark.parametrize(("metric", "floor", "ceiling"), [("fd", 1, 11), ("coverage", 0.9, 0.1)])
def test_a_position_between_real_and_noise_is_a_limit_in_both_directions(metric, floor, ceiling):
    config = PromoteConfig(rules={metric: Rule(max_relative_position=0.5)})
    near, far = (floor + share * (ceiling - floor) for share in (0.4, 0.6))
    assert decide([_reading(metric, near, floor=floor, ceiling=ceiling)], None, config).promote
    assert not decide([_reading(metric, far, floor=floor, ceiling=ceiling)], None, config).promote


def test_no_improvement_asked_for_lets_an_equal_candidate_through():
    config = PromoteConfig(rules=RULES, improvements=0)
    assert decide(_both(10, 0.5), _both(10, 0.5), config).promote
    assert not decide(_both(13, 0.5), _both(10, 0.5), config).promote


@pytest.mark.parametrize(
    "protocol",
    [{"n_fake": 50}, {"reference_digest": "s" * 64}, {"features_digest": "g" * 64}],
)
def test_unlike_protocols_are_refused(protocol):
    config = PromoteConfig(rules={"fd": Rule()})
    with pytest.raises(ConfigError, match=next(iter(protocol))):
        decide([_reading("fd", 1, **protocol)], [_reading("fd", 2)], config)


def test_a_rule_for_a_metric_that_was_not_measured_is_an_error():
    with pytest.raises(ConfigError, match="did you mean 'fd'"):
        decide([_reading("fd", 1)], None, PromoteConfig(rules={"fid": Rule()}))


def test_a_rule_may_name_the_feature_space():
    config = PromoteConfig(rules={"fd[pca@1]": Rule(limit=5)})
    assert decide([_reading("fd", 4)], None, config).promote


@given(
    st.lists(st.floats(0.1, 100), min_size=2, max_size=2),
    st.floats(0, 10),
    st.floats(0, 10),
    st.booleans(),
)
def test_two_models_never_beat_each_other(values, improve_by, tolerate, relative):
    config = PromoteConfig(
        rules={"fd": Rule(improve_by=improve_by, max_regression=tolerate, relative=relative)}
    )
    a, b = ([_reading("fd", value)] for value in values)
    assert not (decide(a, b, config).promote and decide(b, a, config).promote)


@given(st.floats(0.1, 100), st.floats(0.1, 100), st.floats(0, 50))
def test_a_better_candidate_is_never_refused_where_a_worse_one_is_promoted(mine, theirs, gain):
    config = PromoteConfig(rules={"fd": Rule(improve_by=1, max_regression=1)})
    champion = [_reading("fd", theirs)]
    if decide([_reading("fd", mine)], champion, config).promote:
        assert decide([_reading("fd", mine - gain)], champion, config).promote
