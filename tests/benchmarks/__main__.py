"""Runs benchmarks: ``python -m tests.benchmarks [NAME ...]``. One core, peers in the same run.

Prints a table and writes JSON with versions, machine and configuration to runs/bench/. Modules whose name
starts with an underscore take minutes to hours and run by name alone: ``python -m tests.benchmarks._NAME``.

``python -m tests.benchmarks --quick [NAME ...]`` runs each of them, the long ones too, in a form of seconds
that measures nothing and proves that the code still works: with the constants that its ``QUICK`` replaces.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import platform
import subprocess
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path

from cluster.environment import set_environment

LIBRARIES = ("torch", "ray", "webdataset", "numpy", "pyarrow", "pillow", "pyspng", "simplejpeg")


def machine() -> dict[str, object]:
    model = "unknown"
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version()}


def revision() -> str:
    words = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def quick(name: str) -> None:
    """Run one benchmark in its form of seconds."""
    module = importlib.import_module(f"tests.benchmarks.{name}")
    for constant, value in getattr(module, "QUICK", {}).items():
        place, _, key = constant.rpartition(".")
        owner = importlib.import_module(f"tests.benchmarks.{place}") if place else module
        assert hasattr(owner, key), f"{name}: QUICK names {constant}, which does not exist"
        setattr(owner, key, value)
    if hasattr(module, "quick"):
        module.quick()
    elif hasattr(module, "bench"):
        for row in module.bench():
            assert {"name", "unit", "ours", "peer", "peer_name", "ratio"} <= row.keys(), row
    else:
        module.main(module.QUICK_ARGS)


def runnable() -> list[str]:
    """Names of all benchmarks: modules with ``bench`` or ``main`` that run in this environment."""
    import tests.benchmarks as package

    names = [info.name for info in pkgutil.iter_modules(package.__path__)]
    helpers = {"__main__", "_turns", "_equal_time", "_data_sets"}
    return [
        name
        for name in names
        if name not in helpers
        and not name.startswith("test_")
        and not name.endswith(("_peer", "_peers"))
    ]


def run_quick(names: list[str]) -> int:
    """Run each in a form of seconds; prints a line each. Returns 1 if one failed."""
    failed = 0
    for name in names or runnable():
        start_s = time.monotonic()
        try:
            quick(name)
        except Exception:
            traceback.print_exc()
            failed = 1
            print(f"quick {name}: failed", flush=True)
        else:
            print(f"quick {name}: ok in {time.monotonic() - start_s:.1f} s", flush=True)
    return failed


def main(wanted: list[str]) -> int:
    os.environ.setdefault("PYTHONSAFEPATH", "")  # further processes import ``tests`` from here
    set_environment()
    import torch

    torch.set_num_threads(1)
    if wanted[:1] == ["--quick"]:
        return run_quick(wanted[1:])
    import tests.benchmarks as package

    names = [
        info.name
        for info in pkgutil.iter_modules(package.__path__)
        if not info.name.startswith(("_", "test_"))
    ]
    unknown = set(wanted) - set(names)
    if unknown:
        print(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
        return 2
    rows = []
    for name in wanted or names:
        print(f"== {name}", flush=True)
        for row in importlib.import_module(f"tests.benchmarks.{name}").bench():
            rows.append({"benchmark": name, **row})
            print(
                f"{row['name']:<58} {row['ours']:>12.4g} {row['unit']:<18} "
                f"{row['peer_name']}: {row['peer']:.4g}  ratio {row['ratio']:.3g}",
                flush=True,
            )
    result = {
        "revision": revision(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "versions": {library: version(library) for library in LIBRARIES},
        "rows": rows,
    }
    path = Path("runs/bench") / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
