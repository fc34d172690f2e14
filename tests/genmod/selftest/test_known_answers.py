"""Known answers: right on this machine, recorded where its class is known, wrong where a device is."""

from __future__ import annotations

import pytest
import torch

from genmod.numerics import numeric_class
from genmod.selftest import known_answers
from genmod.selftest.known_answers import compute_answers, recorded_answers


@pytest.fixture(scope="module")
def answers():
    return compute_answers("cpu")


def test_this_cpu_computes_right(answers):
    assert answers.wrong == ()
    kinds = {name.rpartition("/")[2] for name in answers.digests}
    assert kinds == {"image", "log-likelihood"}
    assert answers.numerics == numeric_class("cpu")


def test_this_cpu_computes_what_was_recorded(answers):
    """A change of a model's code changes them: run ``python -m genmod.selftest.known_answers``."""
    if answers.numerics not in recorded_answers():
        pytest.skip(f"no values were recorded for {answers.numerics}")
    assert answers.digests == recorded_answers()[answers.numerics]


def test_some_answers_differ_between_classes():
    """Else they could not tell a device of another class that hides it."""
    digests = {tuple(sorted(each.items())) for each in recorded_answers().values()}
    assert len(digests) == len(recorded_answers()) >= 4


def test_other_kernels_are_found_though_the_class_is_the_same(answers):
    """Without oneDNN, PyTorch adds the products of a convolution in another order."""
    with torch.backends.mkldnn.flags(enabled=False):
        other = compute_answers("cpu")
    assert other.numerics == answers.numerics
    assert other.wrong == ()
    changed = {name for name in answers.digests if other.digests[name] != answers.digests[name]}
    assert any(name.endswith("/image") for name in changed)


def test_a_device_with_wrong_integers_is_found(monkeypatch):
    counter, key, words = known_answers.PHILOX_VECTORS[0]
    broken = ((counter, key, (words[0] ^ 1, *words[1:])),)
    monkeypatch.setattr(known_answers, "PHILOX_VECTORS", broken)
    monkeypatch.setattr(known_answers, "_model_digests", lambda device: {})
    assert compute_answers("cpu").wrong == ("philox",)
