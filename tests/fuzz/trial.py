"""One trial: write a document over the corpus, call its readers, say what happened, restore the corpus."""

from __future__ import annotations

import os
import random
import traceback
from pathlib import Path
from typing import Any

from genmod.errors import GenmodError
from tests.fuzz.corpus import Corpus
from tests.fuzz.documents import Document, Documents
from tests.fuzz.kinds import KINDS
from tests.fuzz.sandbox import Sandbox

_ROOMS = ("genmod", "cluster", "pipelines")


class Trial:
    """Tries documents on one corpus.

    Args:
        corpus: its folder is changed and restored.
        sandbox: of every call.
    """

    def __init__(self, corpus: Corpus, sandbox: Sandbox) -> None:
        self._corpus, self._sandbox = corpus, sandbox
        self._stamps: dict[str, tuple[int, int, int]] = {}
        folder = corpus.folder
        (folder.parent / "outside.txt").write_text("outside")
        os.mkfifo(folder / "fifo")
        for root in ("data", "models/m", "features", "scores/m"):
            os.mkfifo(folder / root / "fifo")
            (folder / root / "link").symlink_to("/etc/passwd")
            (folder / root / "folder-link").symlink_to("/etc")
        for path in corpus.files:
            self._stamps[path] = _stamp(folder / path)

    def warm_up(self, documents: Documents) -> None:
        """Call every reader on the unchanged corpus, which must succeed, then within the limits."""
        for kind in KINDS:
            for _, call in kind.calls(self._corpus, random.Random(1)):
                if kind.name != "set":
                    call()
            self.restore(kind.changes)
        for kind in KINDS:
            result = self.run(Document(-1, kind), random.Random(1))
            problems = [bad for bad in result["bad"] if kind.name != "set"]
            assert not problems, f"{kind.name}, unchanged: {problems}"
            assert kind.name == "set" or not result["refused"], f"{kind.name}, unchanged: {result}"

    def run(self, document: Document, rng: random.Random) -> dict[str, Any]:
        """Try one document.

        Returns:
            Number and kind, names of calls that accepted and refused it, and all bad outcomes.
        """
        folder = self._corpus.folder
        for path, data in document.files.items():
            (folder / path).write_bytes(data)
        accepted: list[str] = []
        refused: list[str] = []
        bad: list[dict[str, str]] = []
        for name, call in document.kind.calls(self._corpus, rng):
            try:
                with self._sandbox.call():
                    call()
                accepted.append(name)
            except GenmodError:
                refused.append(name)
            except BaseException as error:
                bad.append(_outcome(name, error))
            bad += [
                {"call": name, "error": "Refused", "place": place, "text": text}
                for text, place in self._sandbox.violations
            ]
        changed = self.restore((*document.kind.changes, *document.files))
        bad += [
            {"call": "", "error": "Changed", "place": document.kind.name, "text": path}
            for path in changed
        ]
        return {
            "end": document.number,
            "kind": document.kind.name,
            "note": document.note[:300],
            "accepted": accepted,
            "refused": refused,
            "bad": bad,
        }

    def restore(self, allowed: tuple[str, ...]) -> list[str]:
        """Restore all files; returns those that changed and must not."""
        folder, seen, changed = self._corpus.folder, set[str](), []
        for parent, folders, names in os.walk(folder):
            for name in (*names, *(each for each in folders if (Path(parent) / each).is_symlink())):
                file = Path(parent) / name
                path = str(file.relative_to(folder))
                if path not in self._corpus.files:
                    if name not in {"fifo", "link", "folder-link"}:
                        file.unlink()
                        changed.append(path)
                    continue
                seen.add(path)
                if _stamp(file) != self._stamps[path]:
                    changed.append(path)
        for path in {*changed, *(self._corpus.files.keys() - seen)} & self._corpus.files.keys():
            if path not in seen:
                changed.append(path)
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(self._corpus.files[path])
            self._stamps[path] = _stamp(file)
        return sorted({path for path in changed if not path.startswith(allowed)})


def _stamp(file: Path) -> tuple[int, int, int]:
    found = os.lstat(file)
    return found.st_size, found.st_mtime_ns, found.st_ino


def _outcome(call: str, error: BaseException) -> dict[str, str]:
    """What went wrong, and the innermost line of the product."""
    frames = traceback.extract_tb(error.__traceback__)
    text = " ".join(str(error).split())[:200]
    return {
        "call": call,
        "error": type(error).__name__,
        "place": place_of(frames),
        "text": text,
        "line": "".join(traceback.format_list(frames[-1:])).strip() if frames else "",
    }


def place_of(frames: traceback.StackSummary) -> str:
    """File, line and function of the innermost frame in the product, e.g. ``genmod/receipts.py:7 read``."""
    for frame in reversed(frames):
        parts = Path(frame.filename).parts
        room = next((room for room in _ROOMS if room in parts), None)
        if room is not None and "site-packages" not in parts:
            file = "/".join(parts[parts.index(room) :])
            return f"{file}:{frame.lineno} {frame.name}"
    return "tests" if frames else "no frame"
