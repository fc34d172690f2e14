"""Mutated documents of every kind: readers return, or raise a GenmodError. The sandbox sees what it must."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.fuzz.kinds import KINDS
from tests.fuzz.session import ENVIRONMENT, REPOSITORY, Summary, run

DOCUMENTS = 600
"""About 25 s on one core. ``make fuzz`` runs as many as are wanted."""

LENIENT = {"checkpoint", "metrics", "heartbeats", "notes", "images", "ticks", "spool"}
"""Kinds whose readers skip what is broken, instead of raising."""


@pytest.mark.slow
def test_no_document_does_harm():
    summary = run(range(DOCUMENTS), seed=0)
    assert not summary.bad, summary.text()
    assert sum(summary.documents.values()) == DOCUMENTS
    # The documents are neither all refused at the door nor all harmless.
    assert set(summary.documents) == {kind.name for kind in KINDS}
    assert all(summary.accepted[kind.name] for kind in KINDS)
    lenient = {kind.name for kind in KINDS if not summary.refused[kind.name]}
    assert lenient <= LENIENT, lenient


@pytest.fixture(scope="module")
def outcomes():
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.probes"],
        cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    return {each["name"]: each for each in map(json.loads, done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("reads outside", "Refused"),
        ("reads outside in a thread", "Refused"),
        ("hides it", "Refused"),
        ("through a link", "Refused"),
        ("up", "Refused"),
        ("writes outside", "Refused"),
        ("removes outside", "Refused"),
        ("lists outside", "Refused"),
        ("waits for a pipe", "Refused"),
        ("connects", "Refused"),
        ("asks for a name", "Refused"),
        ("runs a command", "Refused"),
        ("kills", "Refused"),
        ("takes memory", "MemoryError"),
        ("loops", "TimeLimit"),
        ("waits", "TimeLimit"),
        ("another error", "IndexError"),
        ("changes a document", "Changed"),
        ("removes a document", "Changed"),
    ],
)
def test_the_sandbox_sees_it(outcomes, name, error):
    assert error in {bad["error"] for bad in outcomes[name]["bad"]}, outcomes[name]


@pytest.mark.slow
def test_what_is_allowed_passes(outcomes):
    fine = {name: each for name, each in outcomes.items() if name.startswith("fine")}
    assert len(fine) == 3
    assert all(not each["bad"] for each in fine.values()), fine
    assert fine["fine: refuse"]["refused"] == ["fine: refuse"]


def test_a_summary_names_each_place_once():
    summary = Summary()
    bad = {"call": "read", "error": "KeyError", "place": "genmod/x.py:1 read", "text": "'a'"}
    for number in (3, 4):
        summary.add(
            {
                "end": number,
                "kind": "k",
                "note": "n",
                "accepted": ["a"],
                "refused": [],
                "bad": [bad],
            }
        )
    text = summary.text()
    assert "2 documents, 4 calls: 2 bad outcomes in 1 places; 0 s" in text
    assert "genmod/x.py:1 read: KeyError: \"'a'\" (2 times; first: document 3" in text
