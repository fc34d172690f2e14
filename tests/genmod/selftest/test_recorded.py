"""The recorded candidates of ``genmod selftest gate``: a policy that promotes a bad one is named at once."""

from __future__ import annotations

import pytest

from genmod.errors import ConfigError
from genmod.evaluation.policy import PromoteConfig, Rule, default_rules
from genmod.selftest.gate import check_case
from genmod.selftest.recorded import check_policy, let_through, loosened, recorded_cases

COPIES = {"training images", "training images with noise", "one training image among 1,000"}


def names(policy, **options):
    return {case.candidate for case in let_through(policy, **options)}


def without(*metrics):
    rules = {name: rule for name, rule in default_rules().items() if name not in metrics}
    return PromoteConfig(rules=rules)


def test_the_default_policy_decides_right_on_every_candidate():
    recorded = recorded_cases()
    checks = [check_case(PromoteConfig(), case, recorded.champion) for case in recorded.cases]
    assert [check.case.candidate for check in checks if not check.passed] == []
    assert len(checks) == 17
    check_policy(PromoteConfig())


@pytest.mark.parametrize(
    ("metric", "expected"), [("memorisation", COPIES), ("label_accuracy", {"labels permuted"})]
)
def test_without_a_rule_its_candidates_are_let_through(metric, expected):
    assert expected <= names(without(metric))
    with pytest.raises(ConfigError, match=rf"would promote .*; add rules for {metric}, or leave"):
        check_policy(without(metric))


@pytest.mark.parametrize(
    ("rule", "passed", "refused"),
    [
        ({"c2st": Rule(limit=0.7)}, COPIES, {"blurred", "noise", "an early checkpoint"}),
        ({"duplicates": Rule(limit=0.1)}, COPIES, {"one class only", "one image repeated"}),
        ({"support_size": Rule(limit=3.0)}, COPIES, {"one class only", "one image repeated"}),
    ],
)
def test_rules_for_differences_and_repeats_refuse_what_shows_them(rule, passed, refused):
    promoted = names(PromoteConfig(rules=rule, improvements=0))
    assert passed <= promoted
    assert not promoted & refused


def test_a_limit_that_is_too_wide_is_named():
    rules = {**default_rules(), "memorisation": Rule(limit=0.01)}
    assert names(PromoteConfig(rules=rules)) == {"one training image among 1,000"}
    with pytest.raises(ConfigError, match="use smaller margins"):
        check_policy(PromoteConfig(rules=rules))


def test_data_without_labels_need_no_rules_for_labels():
    policy = without("label_accuracy", "class_coverage")
    assert "labels permuted" in names(policy)
    assert names(policy, labelled=False) == set()


def test_a_gain_in_a_metric_without_recorded_values_is_taken_for_granted():
    rules = {"bits": Rule(improve_by=0.1), "memorisation": Rule(limit=0)}
    assert {"noise", "constant"} <= names(PromoteConfig(rules=rules))
    safe = {**default_rules(), "bits": Rule(improve_by=0.1)}
    assert names(PromoteConfig(rules=safe)) == set()


def test_an_equal_candidate_may_pass_only_if_no_gain_is_required():
    rules = {**default_rules(), "fd": Rule(improve_by=0, max_regression=1e9)}
    loose = PromoteConfig(
        rules=rules, false_promotion=0.5, familywise_error=0.5, planned_decisions=1
    )
    always = loose.model_copy(update={"improvements": 0})
    assert "an equal model" not in names(always)


def test_looser_error_rates_and_margins_are_named_with_their_keys():
    assert loosened(PromoteConfig()) == []
    stricter = {"fd": Rule(improve_by=0.1, max_regression=0.01, relative=True, limit=1)}
    stricter["fd"] = stricter["fd"].model_copy(update={"max_relative_position": 0.3})
    assert loosened(PromoteConfig(rules=stricter, false_promotion=0.001)) == []
    rates = PromoteConfig(false_promotion=0.5, familywise_error=0.2, improvements=0)
    assert loosened(rates) == [
        "promote.false_promotion=0.5 (default 0.01)",
        "promote.familywise_error=0.2 (default 0.05)",
        "promote.improvements=0 (default 1)",
    ]
    rules = {
        "fd": Rule(improve_by=0, max_regression=0.2, relative=True),
        "coverage": Rule(improve_by=0.01, max_relative_position=0.9),
        "memorisation[pca]": Rule(limit=0.01),
        "kid": Rule(improve_by=0),
    }
    assert loosened(PromoteConfig(rules=rules)) == [
        "promote.rules.fd.improve_by=0 (default 0.05)",
        "promote.rules.fd.max_regression=0.2 (default 0.05)",
        "promote.rules.fd.max_relative_position=null (default 0.5)",
        "promote.rules.coverage.improve_by=0.01 (default 0.03)",
        "promote.rules.coverage.max_regression=null (default 0.05)",
        "promote.rules.coverage.max_relative_position=0.9 (default 0.7)",
        "promote.rules.memorisation[pca].limit=0.01 (default 0.0)",
        "promote.rules.kid.improve_by=0 (default none)",
    ]
    absolute = {"fd": Rule(improve_by=0.01, max_regression=1, max_relative_position=0.5)}
    assert loosened(PromoteConfig(rules=absolute)) == [], "margins of another unit"
