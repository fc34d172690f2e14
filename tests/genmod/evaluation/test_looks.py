"""Decisions with the same reference rows are counted once each, also by several commands at once."""

from concurrent.futures import ThreadPoolExecutor

from genmod.config import fingerprint
from genmod.evaluation.looks import count_decision, decisions_made


def test_each_decision_counts_once(tmp_path):
    root = str(tmp_path / "looks")
    assert decisions_made(root) == 0
    works = [fingerprint("decision", number) for number in range(3)]
    assert [count_decision(root, work, {"model": "vae"}) for work in works] == [1, 2, 3]
    assert count_decision(root, works[0], {"model": "again"}) == 3


def test_decisions_at_once_are_all_counted(tmp_path):
    root = str(tmp_path / "looks")
    works = [fingerprint("decision", number) for number in range(20)] * 2
    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(lambda work: count_decision(root, work, {}), works))
    assert decisions_made(root) == 20
    assert max(counts) == 20


def test_other_files_are_no_decisions(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "decision-x.json").write_text("{}")
    assert decisions_made(str(tmp_path)) == 0
