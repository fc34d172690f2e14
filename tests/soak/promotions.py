"""Races of promoters: ``python -m tests.soak.promotions --races 200 --seed 0``, on the tests' S3 server.

In each race 2 to 4 processes promote a model of their own at the same time, each better than the one before,
against one champion. Whatever their order, the history must be one line, each promotion must be in it exactly
once, every entry must replace a worse model, and the best model must be the champion in the end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from genmod import storage
from genmod.promotion import Ledger, ledger_problems
from pipelines.recipe.context import Context
from pipelines.recipe.recipe import load_recipe
from pipelines.stages.promote import promote
from tests.pipelines.stages.champion_world import World
from tests.stores import weed

_HEAD_START_S = 0.05
"""Time in which all processes get ready for a race."""


def run_promoter(recipe: str, root: str, start_s: float) -> bool:
    """Promote the model below a root at a given time; whether its decision was new or applied."""
    context = Context(load_recipe(recipe), ("vae",)).with_root(root)
    context.progress.log = lambda text: None
    time.sleep(max(0.0, start_s - time.time()))
    return promote(context, "vae").is_new


def run_race(pool: ProcessPoolExecutor, folder: Path, root: str, promoters: int) -> Counter[str]:
    """One race; counts of what happened. AssertionError if the history is not as it must be."""
    world = World(folder, root, "{enabled: false}")
    world.add(1, 100)
    with world.command() as context:
        promote(context, "vae")
    fds = {world.add(2 + each, 50 - 10 * each): 50 - 10 * each for each in range(promoters)}
    start_s = time.time() + _HEAD_START_S
    running = [
        pool.submit(run_promoter, str(world.recipe), world.at(2 + each), start_s)
        for each in range(promoters)
    ]
    for each in running:
        each.result()
    history = Ledger(f"{root}/promotions", "vae").read()
    promoted = [entry.model.digest for entry in history.entries[1:]]
    assert len(promoted) == len(set(promoted)), "a model was promoted twice"
    values = [100, *(fds[digest] for digest in promoted)]
    assert values == sorted(values, reverse=True), f"a worse model replaced a better one: {values}"
    assert values[-1] == 60 - 10 * promoters, f"the best promotion was lost: {values}"
    names = storage.list_names(f"{root}/promotions/vae", pending=True)
    assert len(names) == len(history.entries), names
    assert ledger_problems(f"{root}/promotions/vae") == []
    again = sum(
        name.startswith("against-")
        for each in range(promoters)
        for name in storage.list_names(f"{world.at(2 + each)}/decision/vae")
    )
    return Counter(races=1, promoters=promoters, entries=len(promoted), made_again=again)


def run_races(root: str, races: int, seed: int) -> Counter[str]:
    """Races with 2, 3 or 4 promoters; counts of what happened."""
    rng, counts = random.Random(seed), Counter[str]()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(4, context) as pool:
        for number in range(races):
            counts += run_race(pool, Path(folder), f"{root}/{number}", rng.choice((2, 3, 4)))
    return counts


def main(arguments: list[str]) -> int:
    """Run races and print their counts as JSON."""
    parser = argparse.ArgumentParser(prog="tests.soak.promotions", description=__doc__)
    parser.add_argument("--races", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    start_s = time.monotonic()
    with weed.running() as store:
        os.environ.update(store.environment())
        counts = run_races(f"s3://{weed.BUCKET}/races", options.races, options.seed)
    print(json.dumps({**counts, "wall_s": round(time.monotonic() - start_s, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
