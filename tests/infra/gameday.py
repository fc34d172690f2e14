"""Makes each problem of infra/RUNBOOK.md, runs its command blocks as they stand, and checks the cure.

``python -m tests.infra.gameday`` runs all entries in order, with titles as arguments only those.
It works in a clone of the working tree with an environment of its own, on free ports, and leaves nothing.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time

from tests.infra import runbook
from tests.infra.drained_node import DrainedNode
from tests.infra.fault import Fault
from tests.infra.faults import (
    CollapsedModel,
    FullDisk,
    HangingJob,
    LostHead,
    RestoringMLflow,
    StolenToken,
    StoreCredentials,
    Upgrade,
)
from tests.infra.gameday_stack import GamedayStack, say

FAULTS: dict[str, type[Fault]] = {
    "Lost head": LostHead,
    "Full disk": FullDisk,
    "Hanging job": HangingJob,
    "Collapsed model": CollapsedModel,
    "Stolen token": StolenToken,
    "Store credentials": StoreCredentials,
    "Upgrade": Upgrade,
    "Restoring MLflow": RestoringMLflow,
    "Draining a node": DrainedNode,
}
"""Title of the entry -> its fault."""


def run_entry(stack: GamedayStack, entry: runbook.Entry) -> None:
    """Make the fault, run the blocks of the entry, check the cure. Raises if a block or a check fails."""
    fault = FAULTS[entry.title](stack, entry)
    try:
        fault.prepare()
        _run(stack, entry, "before", fault.variables)
        fault.make()
        for part in ("sign", "cure", "check"):
            _run(stack, entry, part, fault.variables)
        fault.check()
    finally:
        fault.close()


def _run(stack: GamedayStack, entry: runbook.Entry, part: str, variables: dict[str, str]) -> None:
    for block in entry.blocks.get(part, ()):
        say(f"{entry.title}: {part}\n" + "".join(f"    {line}\n" for line in block.splitlines()))
        stack.bash(block, variables)


def gameday(titles: list[str]) -> list[str]:
    """Run the entries with these titles, or all; one line for each."""
    book = runbook.read(runbook.RUNBOOK.read_text())
    unknown = set(titles) - {entry.title for entry in book.entries}
    if unknown:
        raise SystemExit(f"gameday: the runbook has no entry {', '.join(sorted(unknown))}")
    lines = []
    with GamedayStack.started(book.settings) as stack:
        for entry in book.entries:
            if titles and entry.title not in titles:
                continue
            if reason := FAULTS[entry.title].reason_to_skip():
                lines.append(f"{entry.title}: skipped: {reason}")
                continue
            start_s = time.monotonic()
            run_entry(stack, entry)
            lines.append(f"{entry.title}: cured, {time.monotonic() - start_s:.0f} s")
            say(lines[-1])
    return lines


def main() -> None:
    """Run the entries that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("titles", nargs="*", help="titles of entries; all by default")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(*gameday(chosen.titles), sep="\n")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONSAFEPATH", "")
    main()
