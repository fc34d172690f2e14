"""The long one: ``python -m tests.soak --kills 200 --seed 0``. Exit 0 if nothing is lost, doubled, changed.

The log of every kill, and the work itself, lie in --folder until the next run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from cluster.environment import set_environment


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", default="ranks,shard,ranks,sample,ranks,train")
    parser.add_argument("--folder", type=Path, default=Path("runs/soak"))
    told = parser.parse_args()
    set_environment()
    import ray

    from cluster.session import LOCAL, ClusterConfig, connect, disconnect
    from tests.soak.soak import Soak

    shutil.rmtree(told.folder, ignore_errors=True)
    stages, address, start_s = told.stages.split(","), None, time.monotonic()
    if set(stages) != {"ranks"}:
        connect(ClusterConfig(address=LOCAL, cpus=2))
        address = ray.get_runtime_context().gcs_address
    soak = Soak(told.folder.absolute(), told.seed, told.kills, stages, address)
    try:
        soak.run()
    finally:
        disconnect()
        summary = {
            "seed": told.seed,
            "kills": sum(soak.killed.values()),
            "killed": dict(sorted(soak.killed.items())),
            "rounds": dict(soak.rounds),
            "lost": soak.lost,
            "doubled": soak.doubled,
            "differing": soak.differing,
            "wall_s": round(time.monotonic() - start_s),
        }
        print(json.dumps(summary, indent=1))
    return int(bool(soak.lost or soak.doubled or soak.differing))


if __name__ == "__main__":
    sys.exit(main())
