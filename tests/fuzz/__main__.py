"""Fuzz test: ``python -m tests.fuzz --documents 50000 --seed 0`` gives mutated documents to every reader.

A run of all stages is the corpus (:mod:`tests.fuzz.corpus`). Each document is one of its files, changed:
bytes, JSON values, columns, tensors; for most, all digests are written again, as one who forges data would.
A call of a reader must return or raise a GenmodError, within 10 s of CPU time and 2 GiB, and must not touch
anything outside the working folder (:mod:`tests.fuzz.sandbox`). Document N of a seed is always the same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.fuzz.kinds import KINDS
from tests.fuzz.session import run


def main() -> int:
    """Run documents and print what happened. Returns 1 if an outcome is bad."""
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    names = ",".join(kind.name for kind in KINDS)
    parser.add_argument("--documents", type=int, default=5000, help="number of documents")
    parser.add_argument("--seconds", type=float, default=None, help="stop after this time")
    parser.add_argument("--seed", type=int, default=0, help="selects the documents")
    parser.add_argument("--start", type=int, default=0, help="number of the first document")
    parser.add_argument("--kinds", default="", help=f"some of {names}; default: all")
    parser.add_argument(
        "--save", type=Path, default=Path("runs/fuzz"), help="folder for bad documents"
    )
    options = parser.parse_args()
    kinds = tuple(filter(None, options.kinds.split(",")))
    if unknown := set(kinds) - {kind.name for kind in KINDS}:
        parser.error(f"no kind {sorted(unknown)[0]!r}; known: {names}")
    documents = sys.maxsize if options.seconds is not None else options.documents
    summary = run(
        range(options.start, options.start + min(documents, 10**9)),
        seed=options.seed,
        kinds=kinds,
        seconds=options.seconds,
        save=options.save,
    )
    print(summary.text())
    return 1 if summary.bad else 0


if __name__ == "__main__":
    sys.exit(main())
