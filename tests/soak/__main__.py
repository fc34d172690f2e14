"""The long soak test: ``python -m tests.soak --kills 300 --seed 0``. Exits 0 if nothing is lost, doubled or
changed.

The folder keeps the log of all kills and the outputs until the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

from cluster.environment import set_environment


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", help="names of stages and configurations; all without it")
    parser.add_argument("--rows", type=int, default=6_000, help="images of a sampling job")
    parser.add_argument("--folder", type=Path, default=Path("runs/soak"))
    options = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")  # else workers starve next to their driver
    os.environ.setdefault("PYTHONSAFEPATH", "")  # further processes import ``tests`` from here
    set_environment()
    import ray

    from cluster.session import LOCAL, ClusterConfig, connect, disconnect
    from tests.soak.configurations import WORKS
    from tests.soak.soak import Soak
    from tests.stores import weed
    from tests.stores.proxy import proxied

    shutil.rmtree(options.folder, ignore_errors=True)
    start_s = time.monotonic()
    stages = options.stages.split(",") if options.stages else ["ranks", "shard", "train", *WORKS]
    soak = Soak(options.folder.absolute(), options.seed, options.kills, stages, rows=options.rows)
    with weed.running() as store, proxied(store) as proxy:
        os.environ |= store.environment(proxy.endpoint)  # before Ray starts, for its workers
        if set(stages) != {"ranks"}:
            connect(ClusterConfig(address=LOCAL, cpus=2))
            soak.address = ray.get_runtime_context().gcs_address
        soak.proxy = proxy
        try:
            soak.run()
        finally:
            disconnect()
            wall_s = round(time.monotonic() - start_s)
            print(json.dumps(soak.summary() | {"wall_s": wall_s}, indent=1))
    return int(bool(soak.lost or soak.doubled or soak.differing))


if __name__ == "__main__":
    sys.exit(main())
