"""A clone of the working tree with an environment of its own, so that it can be upgraded while jobs run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from tests.infra.runbook import ROOT

_GIT = ("git", "-c", "user.name=gameday", "-c", "user.email=gameday@localhost")


def make_checkout(folder: Path) -> tuple[Path, Path]:
    """Copy the working tree to a repository, and clone that.

    Args:
        folder: an empty folder.

    Returns:
        The repository, and its clone, which has a ``.venv``.
    """
    upstream, clone = folder / "upstream", folder / "clone"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (source := ROOT / name).is_file():
            (upstream / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, upstream / name)
    git(upstream, "init", "--quiet", "--initial-branch=main")
    commit(upstream, "The working tree")
    git(folder, "clone", "--quiet", str(upstream), str(clone))
    _make_environment(clone)
    return upstream, clone


def commit(repository: Path, subject: str) -> None:
    """Commit everything."""
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", subject)


def git(folder: Path, *words: str) -> None:
    """Run git with an author of its own."""
    subprocess.run([*_GIT, *words], cwd=folder, check=True)


def _make_environment(clone: Path) -> None:
    """A ``.venv`` with the packages of this Python and the code of the clone, made in a second."""
    place = clone / ".venv"
    venv.create(place, with_pip=False)
    (packages,) = place.glob("lib/python3*/site-packages")
    installed = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "clone.pth").write_text("\n".join([str(clone), *installed]) + "\n")
    for program in Path(sys.prefix, "bin").iterdir():
        copy = place / "bin" / program.name
        if copy.exists() or not program.is_file():
            continue
        content = program.read_bytes()
        first, _, rest = content.partition(b"\n")
        if first.startswith(b"#!") and b"python" in first:
            copy.write_bytes(b"#!" + os.fsencode(place / "bin" / "python") + b"\n" + rest)
            copy.chmod(0o755)
        else:
            copy.symlink_to(program.resolve())
    (place / ".installed").touch()
