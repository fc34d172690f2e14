"""Decisions that are published: what is read of them has the right types."""

import pytest

from genmod.errors import DataError
from genmod.evaluation.inputs import checked_decision
from genmod.manifest import Manifest

DECISION = {"promote": True, "reasons": ["better"], "candidate": {"version": 2}, "champion": None}


def decision(parents=None, **changes):
    metadata = {key: value for key, value in (DECISION | changes).items() if value != "gone"}
    parents = {"model": "a" * 64} if parents is None else parents
    return Manifest(kind="decision", fingerprint="f", parents=parents, metadata=metadata)


def test_a_decision_is_returned():
    assert checked_decision(decision(), "d").metadata["promote"] is True


@pytest.mark.parametrize(
    "changes",
    [
        {"promote": "false"},
        {"promote": 1},
        {"promote": None},
        {"promote": "gone"},
        {"reasons": "better"},
        {"reasons": [3]},
        {"reasons": "gone"},
        {"candidate": "gone"},
        {"champion": 3},
        {"parents": {}},
    ],
)
def test_another_value_is_an_error_that_names_the_folder(changes):
    with pytest.raises(DataError, match=r"^d[: ].*remove that folder"):
        checked_decision(decision(**changes), "d")
