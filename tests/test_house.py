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
TREES = {path: ast.parse(path.read_text()) for path in FILES}


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


def name_of(path):
    return str(path.relative_to(ROOT))


LEAVES = [
    "errors",
    "terminal",
    "memory",
    "world",
    "units",
    "rng",
    "compat",
    "nets",
    "numerics",
    "stopwatch",
]
BASE = ["config", "permutation", "budget", "parquet_layout", *LEAVES]
STORES = ["storage", "samplers", *BASE]
RECORDS = ["manifest", "receipts", "lease", "documents", "tables", "tensors", "net_budget", *STORES]
STATISTICS = ["metrics", "distributions", *RECORDS]
CONTRACT = ["interface", "report", *STATISTICS]
WORK = ["data", "likelihood", "costs", *CONTRACT]
FAMILIES = ["models", *WORK]
PROCESSES = ["scoring", "lineage", "selection", "training", "generation", *FAMILIES]


def _genmod(*rooms):
    return {f"genmod.{room}" for room in rooms}


_PIPELINES = ["tracking", "recipe", "jobs", "stages", "commands"]
_BELOW_PIPELINES = _genmod(
    *PROCESSES, "serving", "export", "evaluation", "selftest", "promotion"
) | {"cluster", "cluster.doctor"}

ROOMS = {
    "genmod.errors": set(),
    "genmod.memory": set(),
    "genmod.compat": set(),
    "genmod.budget": _genmod("errors"),
    "genmod.documents": _genmod("budget", "errors"),
    "genmod.tables": _genmod("budget", "errors", "parquet_layout"),
    "genmod.parquet_layout": _genmod("budget", "errors"),
    "genmod.net_budget": _genmod("budget", "errors"),
    "genmod.tensors": _genmod("documents", "errors"),
    "genmod.world": _genmod("errors"),
    "genmod.terminal": _genmod("errors"),
    "genmod.units": set(),
    "genmod.numerics": set(),
    "genmod.rng": set(),
    "genmod.stopwatch": set(),
    "genmod.nets": _genmod("compat"),
    "genmod.config": _genmod("errors"),
    "genmod.permutation": _genmod("rng"),
    "genmod.storage": _genmod(*BASE),
    "genmod.samplers": _genmod("config", "errors", "rng"),
    "genmod.manifest": _genmod("storage", "documents", *BASE),
    "genmod.receipts": _genmod("storage", "documents", *BASE),
    "genmod.lease": _genmod("storage", "documents", *BASE),
    "genmod.promotion": _genmod(*RECORDS),
    "genmod.distributions": _genmod(*RECORDS),
    "genmod.metrics": _genmod(*RECORDS),
    "genmod.interface": _genmod("distributions", *RECORDS),
    "genmod.report": _genmod(*STATISTICS),
    "genmod.data": _genmod(*CONTRACT),
    "genmod.likelihood": _genmod("interface", *STATISTICS),
    "genmod.costs": _genmod("interface", *STATISTICS),
    "genmod.models": _genmod("likelihood", "interface", *STATISTICS),
    "genmod.scoring": _genmod("data", "likelihood", *CONTRACT),
    "genmod.lineage": _genmod("scoring", "data", *CONTRACT),
    "genmod.selection": _genmod("scoring", "data", *CONTRACT),
    "genmod.training": _genmod(*WORK),
    "genmod.generation": _genmod("data", *CONTRACT),
    "genmod.serving": _genmod("scoring", "generation", *WORK),
    "genmod.export": _genmod(*CONTRACT),
    "genmod.evaluation": _genmod("scoring", "generation", *WORK),
    "genmod.selftest": _genmod("training", "generation", "evaluation", "scoring", *WORK),
    "cluster": _genmod(*PROCESSES, "evaluation"),
    "cluster.doctor": _genmod("selftest", *STORES) | {"cluster"},
    **{
        f"pipelines.{room}": _BELOW_PIPELINES
        | {f"pipelines.{below}" for below in _PIPELINES[:level]}
        for level, room in enumerate(_PIPELINES)
    },
    "pipelines.cli": _BELOW_PIPELINES | {f"pipelines.{room}" for room in _PIPELINES},
    "pipelines.__main__": {"pipelines.cli"},
}
"""Each room and the rooms that it may import, besides itself. Imports inside functions count."""

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in FILES
}


def room_of(module):
    """The room of a module; None for the packages' own ``__init__``."""
    parts = module.split(".")
    if parts[0] == "cluster":
        return "cluster.doctor" if parts[1:2] == ["doctor"] else "cluster"
    return ".".join(parts[:2]) if len(parts) > 1 else None


def imports_of(module):
    """Modules of this project that a module imports, anywhere in the file."""
    for node in ast.walk(TREES[MODULES[module]]):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{module}: relative import"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in full]
        else:
            continue
        yield from (name for name in names if name in MODULES and name != module)


def upward_imports(rooms):
    return sorted(
        f"{module} imports {name}"
        for module in MODULES
        for name in imports_of(module)
        if (room := room_of(module)) is not None
        and room_of(name) not in {room, None}
        and room_of(name) not in rooms.get(room, ())
    )


def test_every_room_is_in_the_table():
    rooms = {room_of(module) for module in MODULES} - {None}
    assert rooms <= set(ROOMS), rooms - set(ROOMS)
    assert set(ROOMS) <= rooms, set(ROOMS) - rooms


def test_rooms_import_only_rooms_below():
    assert upward_imports(ROOMS) == []


def test_the_table_has_no_circle():
    assert circles({room: set(below) for room, below in ROOMS.items()}) == []


def test_an_upward_import_is_found():
    strict = ROOMS | {"genmod.training": ROOMS["genmod.training"] - {"genmod.data"}}
    assert any("genmod.training.job imports genmod.data" in line for line in upward_imports(strict))


def circles(edges):
    """Nodes from which a path leads back to themselves."""
    found = []
    for start in edges:
        seen, todo = set(), list(edges[start])
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo.extend(edges.get(node, ()))
        if start in seen:
            found.append(start)
    return sorted(found)


def test_no_two_files_import_each_other_in_a_circle():
    edges = {module: set(imports_of(module)) for module in MODULES}
    assert circles(edges) == []
    assert circles(edges | {"genmod.rng": {"genmod.permutation"}}) != []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_outer_packages_stay_in_their_rooms(path):
    tops = {name.split(".")[0] for name in imported(TREES[path])}
    if path.relative_to(ROOT).parts[0] == "genmod":
        assert not tops & {"ray", "mlflow"}
    if "mlflow" in tops:
        assert path.parent == ROOT / "pipelines" / "tracking"
    assert not tops & {"pickle", "dill", "cloudpickle", "shelve", "marshal"}


def test_nothing_names_a_family():
    families = {path.stem for path in (ROOT / "genmod" / "models").iterdir()} - {"__init__"}
    assert "vae" in families
    for path in FILES:
        if not path.is_relative_to(ROOT / "genmod" / "models"):
            names = {".".join(name.split(".")[:3]) for name in imported(TREES[path])}
            assert not names & {f"genmod.models.{family}" for family in families}, path


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
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(tmp_path.iterdir()) == []


def test_rooms_are_small():
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > 300} == {}
