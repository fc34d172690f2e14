"""What the page shows of a decision is checked first: one error that names the file and the field."""

from __future__ import annotations

import pytest

from genmod.errors import DataError
from genmod.report.decided import shown_decision

RULE = {
    "metric": "fd[pca]",
    "candidate": 1.0,
    "champion": None,
    "outcome": "beyond limit",
    "reason": "far",
}
COMPARED = RULE | {"outcome": "equal", "gain": 0.5, "stderr": 0.25, "low": 0.0, "high": 1.0}
FRESH = {"metric": "fd[pca]", "gain": 1.0, "stderr": 1.0, "low": -1.0, "high": 3.0}
FRESH |= {"outcome": "no difference"}
DECISION = {"promote": False, "reasons": ["far"], "checks": [RULE, COMPARED], "number": 3}


def test_the_fields_of_a_decision():
    shown = shown_decision(DECISION | {"candidate": {}, "error": 0.1}, "x")
    assert shown.alarms == ("far",)
    assert [rule.interval is not None for rule in shown.checks] == [False, True]
    assert shown_decision(DECISION | {"fresh": [FRESH]}, "x").fresh[0].high == 3.0
    older = {key: value for key, value in COMPARED.items() if key not in ("low", "high")}
    assert shown_decision(DECISION | {"checks": [older]}, "x").checks[0].interval is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("promote", "perhaps"),
        ("reasons", "far"),
        ("number", -1),
        ("images", 1.5),
        ("checks", [RULE | {"candidate": float("nan")}]),
        ("checks", [COMPARED | {"stderr": -1.0}]),
        ("checks", [COMPARED | {"needed": 1e300}]),
        ("checks", [RULE] * 1001),
        ("retrain", {"version": 0.5, "reason": "new rows"}),
        ("fresh", [FRESH | {"stderr": -1.0}]),
    ],
)
def test_other_decisions_are_refused(field, value):
    with pytest.raises(DataError, match=f"x is not a decision on a model.*{field}"):
        shown_decision(DECISION | {field: value}, "x")
