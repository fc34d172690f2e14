"""Calls that must not pass: run as a script, it prints what the sandbox says about each, as JSON."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from genmod.errors import DataError
from tests.fuzz import sandbox
from tests.fuzz.corpus import Corpus
from tests.fuzz.documents import Document
from tests.fuzz.kinds import Kind
from tests.fuzz.trial import Trial, place_of


def probes(folder: Path) -> dict[str, object]:
    """Name -> a call. Those whose name starts with ``fine`` must pass."""

    def refuses() -> None:
        raise DataError("no")

    def in_a_thread() -> None:
        thread = threading.Thread(target=lambda: Path("/etc/passwd").read_bytes())
        thread.start()
        thread.join()

    def swallows() -> None:
        try:
            Path("/etc/passwd").read_bytes()
        except BaseException:
            return

    def loops() -> None:
        while True:
            pass

    def connects() -> None:
        socket.create_connection(("127.0.0.1", 9))

    return {
        "fine: read": (folder / "a.txt").read_text,
        "fine: refuse": refuses,
        "fine: write": lambda: (folder / "out.txt").write_text("x"),
        "reads outside": lambda: open("/etc/passwd"),
        "reads outside in a thread": in_a_thread,
        "hides it": swallows,
        "through a link": lambda: open(folder / "data" / "link"),
        "up": lambda: open(folder / ".." / "outside.txt"),
        "writes outside": lambda: open(folder.parent / "new.txt", "w"),
        "removes outside": lambda: os.remove(folder.parent / "outside.txt"),
        "lists outside": lambda: os.listdir("/etc"),
        "waits for a pipe": lambda: open(folder / "fifo"),
        "connects": connects,
        "asks for a name": lambda: socket.getaddrinfo("localhost", 80),
        "runs a command": lambda: subprocess.run(["true"], check=True),
        "kills": lambda: os.kill(os.getpid(), 0),
        "takes memory": lambda: np.ones(3 << 28),
        "loops": loops,
        "waits": lambda: threading.Event().wait(),
        "another error": lambda: list[int]()[0],
        "changes a document": lambda: (folder / "b.txt").write_text("x"),
        "removes a document": (folder / "b.txt").unlink,
    }


def main() -> None:
    """Try every call once."""
    sandbox.CPU_S, sandbox.WALL_S = 0.3, 2.0
    parent = Path(tempfile.mkdtemp())
    folder = parent / "case"
    files = {"a.txt": b"a", "b.txt": b"b"}
    for each in ("data", "models/m", "features", "scores/m"):
        (folder / each).mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    trial = Trial(Corpus(folder, files, {}), sandbox.Sandbox([folder], place_of))
    for name, call in probes(folder).items():

        def calls(
            corpus: Corpus, rng: random.Random, pair: object = (name, call)
        ) -> Iterator[object]:
            yield pair

        kind = Kind("probe", 1, (), calls, ("out.txt",))
        result = trial.run(Document(0, kind, {"a.txt": b"mutated"}), random.Random(0))
        print(json.dumps({"name": name, **result}), flush=True)
        whole = {path: (folder / path).read_bytes() for path in files}
        assert whole == files, f"{name}: not restored"
    os._exit(0)


if __name__ == "__main__":
    try:
        main()
    finally:
        sys.stdout.flush()
