"""The checks of licences, advisories and insecure code find what they are for."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests import licences
from tests.advisories import problems_of

ROOT = Path(__file__).parent.parent


def test_every_pinned_licence_is_known():
    assert licences.problems() == []


def test_an_unknown_licence_is_named(monkeypatch):
    monkeypatch.delitem(licences.ALLOWED, "BSL-1.0")
    (problem,) = licences.problems()
    assert problem.startswith("torch: licence 'BSL-1.0' is not in tests/licences.py")


def test_an_exception_has_to_be_needed(monkeypatch):
    monkeypatch.setitem(licences.EXCEPTIONS, "numpy", "none")
    monkeypatch.setitem(licences.EXCEPTIONS, "no-such-package", "none")
    monkeypatch.delitem(licences.EXCEPTIONS, "huey")
    found = licences.problems()
    assert len(found) == 3
    assert any(line.startswith("huey: licence 'none'") for line in found)


def test_an_advisory_is_named_with_its_repair():
    package = {"name": "pillow", "version": "1.0", "vulns": []}
    package["vulns"].append({"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.1"]})
    skipped = {"name": "x", "skip_reason": "Dependency not found on PyPI"}
    found, asked = problems_of({"dependencies": [package, skipped]})
    assert asked == 1
    assert found[0].startswith("pillow 1.0: PYSEC-1, repaired in 1.1; raise it")
    assert problems_of({"dependencies": [skipped]}) == ([], 0)


@pytest.mark.slow
def test_insecure_code_is_found(tmp_path):
    (tmp_path / "bad.py").write_text("import yaml\nyaml.load(open('x').read(), yaml.Loader)\n")
    command = [sys.executable, "-m", "bandit", "--quiet", "--configfile", "pyproject.toml"]
    done = subprocess.run(
        [*command, str(tmp_path / "bad.py")], check=False, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "B506" in done.stdout


def test_every_exception_from_a_check_has_a_reason():
    """Above each ``nosec`` is a comment; each names the finding."""
    for package in ("genmod", "cluster", "pipelines"):
        for path in (ROOT / package).rglob("*.py"):
            lines = path.read_text().splitlines()
            for number, line in enumerate(lines):
                if re.search(r"\bnosec\b", line):  # not in "nanoseconds"
                    assert re.search(r"# nosec B\d{3}$", line), f"{path}:{number + 1}"
                    assert lines[number - 1].lstrip().startswith("# "), f"{path}:{number + 1}"
    skips = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["bandit"]["skips"]
    comment = (
        (ROOT / "pyproject.toml").read_text().partition("[tool.bandit]")[2].partition("skips")[0]
    )
    assert all(name in comment for name in skips)
