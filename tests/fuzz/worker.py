"""Gives documents to the readers, in a process of its own: one line of JSON for each document on stdout."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import logging
import os
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fuzz.session import HARNESS

if TYPE_CHECKING:
    from tests.fuzz.documents import Document

_LOST_S = 400.0
"""Seconds after which a document that code outside Python does not give back ends the process."""


_RENEW_BYTES = 3 << 30
"""Memory of a worker at which another one replaces it."""


def _memory_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Saved:
    """Keeps the first documents of each bad place.

    Args:
        folder: gets one folder for each document that is kept.
    """

    _MOST = 3
    """Documents that are kept of one place."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._counts: Counter[tuple[str, str]] = Counter()

    def keep(self, document: Document, result: dict[str, Any]) -> None:
        """Write the files of a document and its outcome, if it is among the first of a place."""
        places = {(bad["place"], bad["error"]) for bad in result["bad"]}
        if self._folder is None or all(self._counts[place] >= self._MOST for place in places):
            return
        self._counts.update(places)
        folder = self._folder / f"{document.number:07d}-{document.kind.name}"
        for path, data in document.files.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "outcome.json").write_text(json.dumps(result, indent=1))


def main() -> None:
    """Build the corpus, then try one document after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--start", type=int, required=True)
    parser.add_argument("--stop", type=int, required=True)
    parser.add_argument("--kinds", default="")
    parser.add_argument("--save", type=Path, default=None)
    options = parser.parse_args()
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the product prints is no result
    logging.disable(logging.CRITICAL)
    temporary = options.folder / "tmp"
    temporary.mkdir(parents=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)

    from tests.fuzz.corpus import build
    from tests.fuzz.documents import Documents
    from tests.fuzz.sandbox import Sandbox
    from tests.fuzz.trial import Trial, place_of

    corpus = build(options.folder / "case")
    kinds = tuple(filter(None, options.kinds.split(",")))
    documents = Documents(corpus, options.seed, kinds)
    trial = Trial(corpus, Sandbox([corpus.folder, temporary], place_of))
    trial.warm_up(documents)
    saved = Saved(options.save)
    print(json.dumps({"ready": True}), file=lines)
    for number in range(options.start, options.stop):
        faulthandler.dump_traceback_later(_LOST_S, exit=True)
        document = documents.make(number)
        print(json.dumps({"begin": number, "kind": document.kind.name}), file=lines)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            result = trial.run(document, documents.rng(number))
        if options.save is not None:
            saved.keep(document, result)
        print(json.dumps(result), file=lines)
        if _memory_bytes() > _RENEW_BYTES:
            break  # heaps are fragmented; the next process goes on
    faulthandler.cancel_dump_traceback_later()
    lines.flush()
    os._exit(0)  # threads that a document left waiting end with the process


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(HARNESS)
