"""The rooms: one-way imports, no side effects on import, nothing unpickles."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("genmod", "cluster", "pipelines")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
BENCHMARKS = sorted((ROOT / "tests" / "benchmarks").glob("*.py"))
MAY_IMPORT = {
    "genmod": {"genmod"},
    "cluster": {"genmod", "cluster"},
    "pipelines": {"genmod", "cluster", "pipelines"},
}
TREES = {path: ast.parse(path.read_text()) for path in FILES}


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_one_way(path):
    room = path.relative_to(ROOT).parts[0]
    tops = {name.split(".")[0] for name in imported(TREES[path])}
    assert not (tops & set(PACKAGES)) - MAY_IMPORT[room]
    if room == "genmod":
        assert not tops & {"ray", "mlflow"}
    if "mlflow" in tops:
        assert name_of(path) == "pipelines/tracking.py"
    assert not tops & {"pickle", "dill", "cloudpickle", "shelve", "marshal"}


INSIDE_GENMOD = {
    "nets": {"nets"},
    "samplers": {"config", "errors", "rng", "samplers"},
}
"""Rooms of genmod that must not know the others."""


@pytest.mark.parametrize("room", INSIDE_GENMOD)
def test_inner_rooms_stay_small(room):
    for path in FILES:
        if path.parent == ROOT / "genmod" / room:
            inner = {n.split(".")[1] for n in imported(TREES[path]) if n.startswith("genmod.")}
            assert inner <= INSIDE_GENMOD[room], path


def test_training_names_no_family():
    families = {p.stem for p in (ROOT / "genmod" / "models").glob("*.py")} - {"base", "__init__"}
    assert families
    for path in FILES:
        names = {f"genmod.models.{family}" for family in families}
        inside = path.parent == ROOT / "genmod" / "models"
        if not inside:
            assert not names & set(imported(TREES[path])), path


FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_unpickles_or_runs_data(path):
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            where = owner.id if isinstance(owner, ast.Name) else ""
            assert (where, node.func.attr) not in {("torch", "load"), ("torch", "save")}
            if (where, node.func.attr) == ("yaml", "load"):
                raise AssertionError("yaml.load; use safe_load")
        if isinstance(node, ast.keyword) and node.arg in {"allow_pickle", "weights_only"}:
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is (node.arg == "weights_only")


WATCH = """
import os, sys, logging, builtins, socket, threading
modules = sys.argv[1:]
for name in ("ray", "mlflow", "torch", "numpy", "pandas", "pyarrow", "PIL", "scipy.linalg", "fsspec",
             "fsspec.implementations.local", "pydantic", "yaml", "safetensors.torch", "jinja2",
             "matplotlib.figure", "simplejpeg", "pyspng", "ray.data", "ray.train.torch",
             "torch.nn.parallel", "scipy.stats", "psutil", "ray.job_submission", "pyarrow.parquet",
             "fsspec.core", "PIL.Image", "http.client", "matplotlib.backends.backend_agg"):
    try:
        __import__(name)
    except ImportError:
        pass
environment, cwd, threads = dict(os.environ), sorted(os.listdir(".")), threading.active_count()
handlers = {n: len(getattr(l, "handlers", ())) for n, l in logging.root.manager.loggerDict.items()}
root_handlers = len(logging.root.handlers)
written = []
real_open = builtins.open
def watched(file, mode="r", *args, **kwargs):
    if set(mode) & set("wax+"):
        written.append((file, mode))
    return real_open(file, mode, *args, **kwargs)
builtins.open = watched
def no_network(*args, **kwargs):
    raise AssertionError("network during import")
socket.socket.connect = no_network
for name in modules:
    __import__(name)
assert not written, written
assert dict(os.environ) == environment, set(os.environ.items()) ^ set(environment.items())
assert sorted(os.listdir(".")) == cwd
assert threading.active_count() == threads
assert len(logging.root.handlers) == root_handlers
for n, l in logging.root.manager.loggerDict.items():
    if n.split(".")[0] in ("genmod", "cluster", "pipelines"):
        assert not getattr(l, "handlers", ()), n
import torch
assert not torch.cuda.is_initialized()
"""


@pytest.mark.parametrize("path", BENCHMARKS, ids=name_of)
def test_benchmarks_import_what_there_is(path):
    """Few run in the tests, and some need peers that are not installed here."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.slow
def test_importing_any_module_has_no_side_effect(tmp_path):
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
        if path.name != "__main__.py"
    ]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WATCH, *modules],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(tmp_path.iterdir()) == []


def test_rooms_are_small():
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > 300} == {}
