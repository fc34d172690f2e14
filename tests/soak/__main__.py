"""The long soak test: ``python -m tests.soak --kills 200 --seed 0``. Exits 0 if nothing is lost, doubled or
changed.

The folder keeps the log of all kills and the outputs until the next run.
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
    options = parser.parse_args()
    set_environment()
    import ray

    from cluster.session import LOCAL, ClusterConfig, connect, disconnect
    from tests.soak.soak import Soak

    shutil.rmtree(options.folder, ignore_errors=True)
    stages, address, start_s = options.stages.split(","), None, time.monotonic()
    if set(stages) != {"ranks"}:
        connect(ClusterConfig(address=LOCAL, cpus=2))
        address = ray.get_runtime_context().gcs_address
    soak = Soak(options.folder.absolute(), options.seed, options.kills, stages, address)
    try:
        soak.run()
    finally:
        disconnect()
        summary = {
            "seed": options.seed,
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
