"""infra/RUNBOOK.md and its gameday belong together: entries, faults, alerts, variables."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.infra import runbook
from tests.infra.fault import Fault
from tests.infra.gameday import FAULTS
from tests.processes import TIMEOUT_S

TEXT = runbook.RUNBOOK.read_text()
BOOK = runbook.read(TEXT)
ALERTS = [
    rule["alert"]
    for name in ("metrics/alerts.yml", "compose/prometheus/alerts.yml")
    for group in yaml.safe_load((runbook.ROOT / "infra" / name).read_text())["groups"]
    for rule in group["rules"]
]
BLOCKS = [
    (entry.title, part, block)
    for entry in BOOK.entries
    for part, blocks in entry.blocks.items()
    for block in blocks
]


def test_every_entry_has_its_fault_and_every_fault_its_entry():
    assert [entry.title for entry in BOOK.entries] == list(FAULTS)
    assert len(set(FAULTS.values())) == len(FAULTS) >= 9
    for fault in FAULTS.values():
        for name in ("make", "check"):
            assert getattr(fault, name) is not getattr(Fault, name), fault


def test_every_alert_is_named_once():
    assert sorted(BOOK.alerts) == sorted(ALERTS)
    assert len(ALERTS) >= 10


def test_links_between_entries_lead_somewhere():
    anchors = {entry.title.lower().replace(" ", "-") for entry in BOOK.entries}
    found = set(re.findall(r"\]\(#([\w-]+)\)", TEXT))
    assert found
    assert found <= anchors


def test_blocks_use_the_variables_of_the_page_and_of_the_settings_only():
    table = set(re.findall(r"^\| `([A-Z]+)` \|", TEXT, flags=re.MULTILINE))
    of_settings = {"STACK", "BIN", "PATH", "GENMOD_GCS_PORT", "RAY_API_SERVER_ADDRESS"}
    used = {name for *_, block in BLOCKS for name in re.findall(r"\$\{?([A-Z_]+)", block)}
    assert used <= table | of_settings, used
    assert table <= used | {"RECIPE"}
    for title, part, block in BLOCKS:
        assert "<" not in block, f"{title}, {part}: a blank that the reader must fill in"


def test_a_part_that_is_missing_is_found():
    cut = TEXT.replace("**Check.**", "Check.", 1)
    with pytest.raises(AssertionError, match="Lost head has the parts"):
        runbook.read(cut)


def test_blocks_are_read_as_they_stand():
    text = "A line:\n\n    a \\\n      b\n    c\n\nText\n    no block\n\n    d\n"
    assert runbook.command_blocks(text) == ["a \\\n  b\nc", "d"]


def test_an_unknown_entry_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "tests.infra.gameday", "Lost tail"],
        cwd=runbook.ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "gameday: the runbook has no entry Lost tail\n"


@pytest.mark.slow
@pytest.mark.long
def test_gameday(tmp_path):
    """Every fault is made and cured by the blocks of the page; nothing is left."""
    log = tmp_path / "log"
    with log.open("wb") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "tests.infra.gameday"],
            cwd=runbook.ROOT, stdout=stream, stderr=subprocess.STDOUT, timeout=6 * TIMEOUT_S,
            check=False,
        )  # fmt: skip
    text = log.read_text(errors="replace")
    assert done.returncode == 0, text[-6000:]
    for title, fault in FAULTS.items():
        outcome = "skipped" if fault.reason_to_skip() else "cured"
        assert f"\n{title}: {outcome}" in text
    assert "gameday" not in Path("/proc/self/mounts").read_text()
