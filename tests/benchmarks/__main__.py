"""Runs every benchmark: ``python -m tests.benchmarks [NAME ...]``. One core, peers in the same run.

Prints a table for people and writes JSON with versions, machine and configuration to runs/bench/.
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


def main(wanted: list[str]) -> int:
    set_environment()
    import torch

    torch.set_num_threads(1)
    import tests.benchmarks as package

    names = [info.name for info in pkgutil.iter_modules(package.__path__) if info.name[0] != "_"]
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
