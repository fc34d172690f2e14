"""Copies of files, and those in several splits, against a count by dictionaries."""

from collections import Counter, defaultdict

import numpy as np

from genmod.data.sharding.copies import Copies, CopyCount


def test_copies_are_those_of_a_count_by_dictionaries():
    random = np.random.default_rng(0)
    rows = 5000
    contents = [f"{number * 997:064x}"[-16:] for number in random.integers(0, 4000, rows)]
    digests = [None if n % 50 == 0 else text for n, text in enumerate(contents)]
    code_N = random.choice([0, 1, 2, 4], rows, p=[0.8, 0.08, 0.08, 0.04]).astype(np.uint8)
    copies = Copies()
    for first in range(0, rows, 700):
        copies.add(first, digests[first : first + 700])
    taken = [n for n in range(rows) if digests[n] is not None and code_N[n] < 3]
    splits = defaultdict(set)
    for n in taken:
        splits[digests[n]].add(code_N[n])
    shared = [n for n in taken if code_N[n] and len(splits[digests[n]]) > 1]
    expected = len(taken) - len(Counter(digests[n] for n in taken))
    assert copies.count(code_N) == CopyCount(expected, len(shared), shared[0])
    assert expected > 500
    assert len(shared) > 100


def test_nothing_known_is_no_copy():
    copies = Copies()
    copies.add(0, [None, None])
    assert copies.count(np.zeros(2, dtype=np.uint8)) == CopyCount()
    assert Copies().count(np.zeros(0, dtype=np.uint8)) == CopyCount()
