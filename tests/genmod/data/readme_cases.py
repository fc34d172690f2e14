"""Registry and builders of the cases of the README's table of data: small real files, planned in process."""

import numpy as np

from genmod.data.format.foreign import Rejected
from genmod.data.sharding.plan import make_plan
from genmod.data.sources.config import DataConfig
from genmod.data.sources.registry import open_source
from genmod.data.sources.source import converted
from tests.genmod.data.builders import encode

CASES = {}
"""Case of each row, by the row's first cell."""


def brings(row):
    """Register the case of a row of the README's table."""

    def register(case):
        assert row not in CASES, row
        CASES[row] = case
        return case

    return register


def pixels(number, side=4, channels=1, base=100):
    """An image (H, W) or (H, W, 3) of noise around a shade; each number gives another one."""
    noise = np.random.default_rng(number).integers(-9, 10, (side, side))
    grey = (base + noise).astype(np.uint8)
    return grey if channels == 1 else np.stack((grey, 255 - grey, grey // 2), 2)


def image(number, kind="PNG", **options):
    """Bytes of an image file."""
    return encode(pixels(number, **options), kind)


def write(path, data):
    """Write a file, and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_images(folder, count, first=0, **options):
    """Write images 0.png, 1.png, ... into a folder."""
    for number in range(count):
        write(folder / f"{number}.png", image(first + number, **options))


def plan_of(source, **data):
    """Plan a dataset from a source KIND:WHERE."""
    return make_plan(DataConfig(source=source, **data), 0)


def decisions(plan):
    """What the census says was decided, in one text."""
    return "\n".join(plan.census.decisions)


def passed_over(plan):
    """Number of files that were passed over, by kind."""
    return {part.kind: part.count for part in plan.census.passed_over}


def class_rows(plan):
    """Number of rows of each class, by its name, or its number if classes have none."""
    return {
        part.number if part.name is None else part.name: sum(part.rows.values())
        for part in plan.census.classes
    }


def rows_of(plan):
    """(label, split) of each planned row, by its name in the source."""
    found = {}
    for shard in plan.shards:
        job = plan.job(shard, "unused")
        labels = job["labels"] or [None] * shard.rows
        names = [plan.class_names[n] if plan.class_names else n for n in labels]
        found |= {
            name: (label, shard.split) for name, label in zip(job["names"], names, strict=True)
        }
    return found


def stored(plan):
    """Pixels (H, W, C) of each planned row by its name, or the reason why it is rejected."""
    found = {}
    source = open_source(plan.source, plan.data.options)
    for shard in plan.shards:
        job = plan.job(shard, "unused")
        fetched = source.fetch(job["refs"], plan.scan.fingerprint)
        for name, one in zip(job["names"], fetched, strict=True):
            try:
                found[name] = converted(one, plan.spec, plan.data.resize)
            except Rejected as reason:
                found[name] = str(reason)
    return found
