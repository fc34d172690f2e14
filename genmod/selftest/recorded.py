"""The candidates of ``genmod selftest gate`` as they were measured once: whether a policy is safe, at once.

``python -m genmod.selftest.recorded`` measures them again and writes the file next to this module, in about
three minutes on one core. It must be run when a metric or a candidate changes.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from genmod.config import Config
from genmod.errors import ConfigError
from genmod.evaluation.policy import PromoteConfig, Rule, default_rules
from genmod.metrics.protocol import MetricResult
from genmod.selftest.gate import Case, build_bench, check_case, digit_parts, gate_cases
from genmod.selftest.sabotage import OF_LABELS, SHOWN_BY_LABELS

_FILE = "gate_cases.json.gz"


class RecordedCases(Config):
    """Measured candidates, and the champion that they were compared with."""

    champion: tuple[MetricResult, ...]
    cases: tuple[Case, ...]

    def without_labels(self) -> RecordedCases:
        """The cases as data without labels has them: faults that only labels show are left out."""

        def unlabelled(metrics: Sequence[MetricResult]) -> tuple[MetricResult, ...]:
            return tuple(each for each in metrics if each.value.protocol.metric not in OF_LABELS)

        cases = tuple(
            case.model_copy(update={"metrics": unlabelled(case.metrics)})
            for case in self.cases
            if case.candidate not in SHOWN_BY_LABELS
        )
        return RecordedCases(champion=unlabelled(self.champion), cases=cases)


@cache
def recorded_cases() -> RecordedCases:
    """The cases that this version of genmod contains."""
    content = gzip.decompress((files("genmod.selftest") / _FILE).read_bytes())
    return RecordedCases.model_validate_json(content)


def let_through(policy: PromoteConfig, *, labelled: bool = True) -> list[Case]:
    """The recorded candidates with a fault that a policy promotes; an equal one too if it requires a gain.

    A rule for a metric without recorded values is left out, and its gain is taken for granted.
    """
    recorded = recorded_cases() if labelled else recorded_cases().without_labels()
    measured = {each.value.protocol.metric for each in recorded.champion}
    rules = {name.split("[")[0]: rule for name, rule in policy.rules.items()}
    unknown = [name for name in rules if name not in measured]
    granted = sum(rules.pop(name).improve_by is not None for name in unknown)
    improvements = max(0, policy.improvements - granted)
    policy = policy.model_copy(update={"rules": rules, "improvements": improvements})
    wrong = {"refused", "kept"} if improvements else {"refused"}
    return [
        case
        for case in recorded.cases
        if case.expected in wrong and check_case(policy, case, recorded.champion).decision.promote
    ]


def loosened(policy: PromoteConfig) -> list[str]:
    """The settings with which a policy promotes more easily than the default one: key and both values.

    They are choices, so they are no error: the stated error rates and margins hold. Margins of a rule are
    compared if both are relative, or neither is; without a margin, any loss is tolerated.
    """
    default = PromoteConfig()
    found = [
        (f"promote.{key}", getattr(policy, key), getattr(default, key))
        for key in ("false_promotion", "familywise_error")
        if getattr(policy, key) > getattr(default, key)
    ]
    if policy.improvements < default.improvements:
        found.append(("promote.improvements", policy.improvements, default.improvements))
    for name, rule in policy.rules.items():
        usual = default.rules.get(name.partition("[")[0])
        key = f"promote.rules.{name}"
        if rule.improve_by == 0:
            found.append((f"{key}.improve_by", 0, usual.improve_by if usual else "none"))
        if usual is not None:
            found += [(f"{key}.{field}", *values) for field, values in _wider(rule, usual)]
    return [
        f"{key}={'null' if value is None else f'{value:g}'} (default {usual})"
        for key, value, usual in found
    ]


def _wider(rule: Rule, usual: Rule) -> Iterator[tuple[str, tuple[float | None, float | None]]]:
    """The fields of a rule that allow more than those of the default rule, with both values."""
    same_unit = rule.relative == usual.relative
    gain, least = rule.improve_by, usual.improve_by
    if gain and least is not None and same_unit and gain < least:
        yield "improve_by", (gain, least)
    for field in "max_regression", "max_relative_position", "limit":
        value, most = getattr(rule, field), getattr(usual, field)
        comparable = same_unit or field != "max_regression"
        if most is not None and (value is None or (comparable and value > most)):
            yield field, (value, most)


def check_policy(policy: PromoteConfig, *, labelled: bool = True) -> None:
    """Refuse a policy that promotes a candidate of the self-test which it must not.

    Raises:
        ConfigError: with the candidates, and the rules that would refuse them.
    """
    passed = let_through(policy, labelled=labelled)
    if not passed:
        return
    names = ", ".join(case.candidate for case in passed)
    refusing = {metric for case in passed for metric in case.against}
    missing = [name for name in default_rules() if name in refusing and name not in policy.rules]
    remedy = f"add rules for {', '.join(missing)}" if missing else "use smaller margins and limits"
    raise ConfigError(
        f"promote.rules: this policy would promote {names} (genmod selftest gate); {remedy}, or leave "
        "promote.rules out for the default"
    )


def record() -> None:
    """Measure the candidates again and write the file."""
    bench = build_bench(digit_parts())
    recorded = RecordedCases(champion=bench.champion_metrics, cases=tuple(gate_cases(bench)))
    content = recorded.model_dump_json().encode()
    Path(__file__).with_name(_FILE).write_bytes(gzip.compress(content, mtime=0))


if __name__ == "__main__":
    record()
