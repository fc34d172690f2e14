"""The gate: laws of a decision, on values made by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from genmod.errors import ConfigError
from genmod.evaluation.differences import MetricDifference
from genmod.evaluation.gate import decide
from genmod.evaluation.policy import ErrorRates, PromoteConfig, Rule
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


def _check(decision, metric):
    return next(check for check in decision.checks if check.metric == f"{metric}[pca@1]")


def test_noise_counts_on_both_sides():
    config = PromoteConfig(rules=RULES)
    assert decide(_both(8, 0.5, half=0.01), _both(10, 0.5, half=0.01), config).promote
    noisy = decide(_both(8, 0.5, half=1), _both(10, 0.5, half=1), config)
    assert not noisy.promote
    assert noisy.undecided
    assert _check(noisy, "fd").outcome == "undecided"
    # A loss that is no larger than tolerated, but is not surely so.
    fd_only = PromoteConfig(rules={**RULES, "coverage": Rule(max_regression=0.05)})
    unsure = decide(
        [_reading("fd", 5, 0.1), _reading("coverage", 0.48, 0.1)], _both(10, 0.5, 0.1), fd_only
    )
    assert not unsure.promote
    assert unsure.undecided
    assert unsure.reasons == (_check(unsure, "coverage").reason,)
    sure = decide(
        [_reading("fd", 5, 0.1), _reading("coverage", 0.48, 0.001)],
        [_reading("fd", 10, 0.1), _reading("coverage", 0.5, 0.001)],
        fd_only,
    )
    assert sure.promote


def test_an_equal_candidate_is_equal_and_neither_better_nor_worse():
    decision = decide(_both(10, 0.5, 0.01), _both(10, 0.5, 0.01), PromoteConfig(rules=RULES))
    assert not decision.promote
    assert not decision.undecided
    assert {check.outcome for check in decision.checks} == {"equal"}


def test_paired_differences_replace_the_intervals():
    config = PromoteConfig(rules={"fd": Rule(improve_by=1)})
    candidate, champion = [_reading("fd", 8, half=5)], [_reading("fd", 10, half=5)]
    assert not decide(candidate, champion, config).promote
    gain = MetricDifference(metric="fd[pca@1]", better="lower", gain=2, stderr=0.1, paired=True)
    paired = decide(candidate, champion, config, [gain])
    assert paired.promote
    assert _check(paired, "fd").stderr == 0.1
    other = gain.model_copy(update={"metric": "fd[pca@2]"})
    assert not decide(candidate, champion, config, [other]).promote


def quantiles(config, freedom=math.inf):
    return ErrorRates.of(config).quantiles(freedom)


def test_the_error_of_a_decision_is_divided_over_planned_decisions_and_gains():
    one = {"fd": Rule(improve_by=1)}
    alone = PromoteConfig(rules=one, false_promotion=0.01, planned_decisions=1)
    assert alone.error == 0.01
    assert quantiles(alone).gain == pytest.approx(2.3263, abs=1e-4)
    assert quantiles(alone, freedom=49).gain == pytest.approx(2.4049, abs=1e-4)
    chain = PromoteConfig(rules=one, familywise_error=0.05, planned_decisions=100)
    assert chain.error == 0.0005
    assert quantiles(chain).gain == pytest.approx(3.2905, abs=1e-4)
    two = PromoteConfig(rules=RULES, planned_decisions=1)
    assert quantiles(two).gain == pytest.approx(2.5758, abs=1e-4)
    assert quantiles(two).loss == pytest.approx(2.3263, abs=1e-4)
    assert quantiles(two).worse == pytest.approx(1.9600, abs=1e-4)
    # Both must improve, so chance has one way only.
    both = two.model_copy(update={"improvements": 2})
    assert quantiles(both).gain == pytest.approx(2.3263, abs=1e-4)


def test_nothing_is_promoted_beyond_the_planned_decisions():
    config = PromoteConfig(rules={"fd": Rule(improve_by=1)}, planned_decisions=3)
    pair = [_reading("fd", 5)], [_reading("fd", 10)]
    third, fourth = (decide(*pair, config, number=number) for number in (3, 4))
    assert (third.promote, third.number) == (True, 3)
    assert (fourth.promote, fourth.number) == (False, 4)
    assert "all 3 planned decisions" in fourth.reasons[0]


@pytest.mark.slow
def test_error_rates_by_simulation():
    """Equal candidates are called worse in at most 5 %; gains at the margin are promoted as stated."""
    generator = torch.Generator().manual_seed(0)
    config = PromoteConfig(rules=RULES, false_promotion=0.02, planned_decisions=1)
    draws = 2_000
    noise = torch.randn(draws, 2, dtype=torch.float64, generator=generator)

    def outcomes(gains, margin_stderr):
        for row in noise.tolist():
            differences = [
                MetricDifference(
                    metric=f"{name}[pca@1]", better=BETTER[name], gain=g + s * e, stderr=s
                )
                for name, g, s, e in zip(BETTER, gains, margin_stderr, row, strict=True)
            ]
            yield decide(_both(10, 0.5), _both(10, 0.5), config, differences)

    stderr = (0.9, 0.03)
    equal = list(outcomes((0.0, 0.0), stderr))
    worse = sum(any(check.outcome == "worse" for check in d.checks) for d in equal)
    at_margin = sum(d.promote for d in outcomes((1.0, 0.1), (0.3, 0.01)))
    clear = sum(d.promote for d in outcomes((3.0, 0.0), (0.3, 0.01)))
    assert worse / draws < 0.05
    assert 0.01 < at_margin / draws < 0.033, at_margin  # at most 0.02, and 4 standard errors
    assert clear / draws > 0.95
    assert not any(
        d.promote for d in outcomes((3.0, -0.05), (0.3, 0.001)) if d.checks[1].gain < -0.05
    )


def test_optional_rules_are_left_out_where_the_metric_is_absent():
    config = PromoteConfig(
        rules={"fd": Rule(improve_by=1), "coverage": Rule(limit=0.6, optional=True)}
    )
    assert decide([_reading("fd", 8)], [_reading("fd", 10)], config).promote
    assert not decide(_both(8, 0.5), _both(10, 0.5), config).promote


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rules": {"fd": {}}}, "allows everything"),
        ({"rules": {"fd": {"max_regression": 1}}}, "0 rules have improve_by"),
        ({"rules": {"fd": {"improve_by": -0.1}}}, "greater than or equal to 0"),
        ({"rules": {"fd": {"max_regression": -0.1}}}, "greater than or equal to 0"),
        ({"false_promotion": 0}, "greater than 0"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        PromoteConfig.model_validate(wrong)


def test_relative_margins_are_shares_of_the_champions_value():
    config = PromoteConfig(rules={"fd": Rule(improve_by=0.1, max_regression=0.1, relative=True)})
    for scale in (1.0, 1000.0):
        champion = [_reading("fd", 10 * scale)]
        assert decide([_reading("fd", 8.9 * scale)], champion, config).promote
        assert not decide([_reading("fd", 9.1 * scale)], champion, config).promote


def test_without_a_champion_the_limits_decide():
    config = PromoteConfig(rules={"fd": Rule(limit=5), "coverage": Rule(limit=0.3)}, improvements=0)
    assert decide(_both(4, 0.4), None, config).promote
    for fd, coverage in ((6, 0.4), (4, 0.2)):
        decision = decide(_both(fd, coverage), None, config)
        assert not decision.promote
        assert "allowed is" in decision.reasons[0]


def test_a_limit_holds_against_any_champion():
    config = PromoteConfig(rules={"fd": Rule(limit=5)}, improvements=0)
    assert not decide([_reading("fd", 6)], [_reading("fd", 100)], config).promote


@pytest.mark.parametrize(("metric", "floor", "ceiling"), [("fd", 1, 11), ("coverage", 0.9, 0.1)])
def test_a_position_between_real_and_noise_is_a_limit_in_both_directions(metric, floor, ceiling):
    config = PromoteConfig(rules={metric: Rule(max_relative_position=0.5)}, improvements=0)
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
    config = PromoteConfig(rules={"fd": Rule(improve_by=0)})
    with pytest.raises(ConfigError, match=next(iter(protocol))):
        decide([_reading("fd", 1, **protocol)], [_reading("fd", 2)], config)


def test_a_rule_for_a_metric_that_was_not_measured_is_an_error():
    with pytest.raises(ConfigError, match="did you mean 'fd'"):
        decide([_reading("fd", 1)], None, PromoteConfig(rules={"fid": Rule(improve_by=0)}))


def test_a_rule_may_name_the_feature_space():
    config = PromoteConfig(rules={"fd[pca@1]": Rule(limit=5)}, improvements=0)
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
