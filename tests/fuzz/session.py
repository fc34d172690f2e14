"""Runs documents in worker processes and collects what happened. A process that ends is replaced."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
HARNESS = 3
"""Exit code of a worker that failed by itself."""

_TELL_S = 60.0
"""Seconds between two lines about the progress."""

_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
ENVIRONMENT = {
    **os.environ,
    **_ONE_THREAD,
    "MALLOC_ARENA_MAX": "2",  # threads would otherwise reserve address space that they never use
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "PYTHONFAULTHANDLER": "1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Of a worker process."""


@dataclass
class Summary:
    """What happened to the documents of a session."""

    documents: Counter[str] = field(default_factory=Counter[str])
    """Kind -> documents."""
    accepted: Counter[str] = field(default_factory=Counter[str])
    """Kind -> calls that returned."""
    refused: Counter[str] = field(default_factory=Counter[str])
    """Kind -> calls that raised a GenmodError."""
    bad: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    """(place, error) -> its outcomes."""
    seconds: float = 0.0

    def add(self, result: dict[str, Any]) -> None:
        """Count one document."""
        kind = result["kind"]
        self.documents[kind] += 1
        self.accepted[kind] += len(result["accepted"])
        self.refused[kind] += len(result["refused"])
        for outcome in result["bad"]:
            same = self.bad.setdefault((outcome["place"], outcome["error"]), [])
            same.append(outcome | {"number": result["end"], "kind": kind, "note": result["note"]})

    def line(self) -> str:
        """Documents, calls and bad outcomes so far."""
        count = sum(len(same) for same in self.bad.values())
        total = sum(self.documents.values())
        calls = sum((self.accepted + self.refused).values()) + count
        return f"{total:,} documents, {calls:,} calls: {count:,} bad outcomes in {len(self.bad):,} places"

    def text(self) -> str:
        """All counts, and each bad place with its first document."""
        lines = [
            f"{kind:<12} {number:>7,} documents, calls: {self.accepted[kind]:>8,} returned, "
            f"{self.refused[kind]:>8,} refused"
            for kind, number in sorted(self.documents.items())
        ]
        lines.append(f"{self.line()}; {self.seconds:.0f} s")
        for (place, error), same in sorted(self.bad.items()):
            first = same[0]
            lines.append(
                f"{place}: {error}: {first['text']!r} ({len(same)} times; first: document {first['number']}, "
                f"kind {first['kind']}, call {first['call']}: {first['note'][:160]})"
            )
        return "\n".join(lines)


def run(
    numbers: range,
    *,
    seed: int,
    kinds: tuple[str, ...] = (),
    seconds: float | None = None,
    save: Path | None = None,
) -> Summary:
    """Try documents, in their order.

    Args:
        numbers: of the documents.
        seed: selects the documents.
        kinds: names of kinds; all if empty.
        seconds: stop after this time; None for all documents.
        save: folder for the first documents of each bad place.
    """
    summary, start_s = Summary(), time.monotonic()
    deadline_s = None if seconds is None else start_s + seconds
    first = numbers.start
    while first < numbers.stop and (deadline_s is None or time.monotonic() < deadline_s):
        first = _one_process(range(first, numbers.stop), summary, seed, kinds, deadline_s, save)
    summary.seconds = time.monotonic() - start_s
    return summary


def _one_process(
    numbers: range,
    summary: Summary,
    seed: int,
    kinds: tuple[str, ...],
    deadline_s: float | None,
    save: Path | None,
) -> int:
    """Run documents until the process ends; returns the number of the next document."""
    folder = Path(tempfile.mkdtemp(prefix="genmod-fuzz-"))
    command = [sys.executable, "-m", "tests.fuzz.worker", str(folder), f"--seed={seed}"]
    command += [f"--start={numbers.start}", f"--stop={numbers.stop}", f"--kinds={','.join(kinds)}"]
    command += [f"--save={save.absolute()}"] if save is not None else []
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=REPOSITORY,
            env=ENVIRONMENT,
        )
        assert process.stdout is not None
        is_ready, begun, ended = False, numbers.start, numbers.start - 1
        kind, tell_s = "?", time.monotonic() + _TELL_S
        try:
            for line in process.stdout:
                values = json.loads(line)
                is_ready = is_ready or "ready" in values
                if "begin" in values:
                    begun, kind = values["begin"], values["kind"]
                elif "end" in values:
                    ended = values["end"]
                    summary.add(values)
                if time.monotonic() > tell_s:
                    tell_s = time.monotonic() + _TELL_S
                    print(summary.line(), file=sys.stderr, flush=True)
                if deadline_s is not None and time.monotonic() > deadline_s:
                    return numbers.stop
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)
        errors.seek(0)
        text = errors.read()
    if not is_ready or code == HARNESS:
        raise RuntimeError(f"the fuzz worker failed at document {begun} ({code}):\n{text[-4000:]}")
    if code == 0:  # all documents, or as many as one process should do
        return ended + 1
    outcome = {"call": "", "error": f"exit {code}", "place": _place(text), "text": text[-1500:]}
    result = {"end": begun, "kind": kind, "accepted": [], "refused": [], "bad": [outcome]}
    summary.add(result | {"note": "the process ended"})
    return begun + 1


def _place(dump: str) -> str:
    """The innermost line of the product in the stack that faulthandler wrote."""
    for line in dump.splitlines():
        for room in ("genmod", "cluster", "pipelines"):
            if f"/{room}/" in line and line.lstrip().startswith("File") and "/tests/" not in line:
                file, _, rest = line.partition(f"/{room}/")[2].partition('"')
                return f"{room}/{file}:{''.join(filter(str.isdigit, rest.split(' in ')[0]))}"
    return "no frame"
