"""Class folders that are numbers keep the order of their numbers."""

import numpy as np
import pytest

from genmod.data.sharding.plan import make_plan
from genmod.data.sources.class_names import in_class_order
from genmod.data.sources.config import DataConfig
from genmod.data.sources.registry import open_source
from tests.genmod.data.builders import encode


@pytest.mark.parametrize(
    "names",
    [
        [str(n) for n in range(1, 13)],
        [f"{n:02d}" for n in range(1, 13)],
        ["1", "10", "2a", "3"],
        ["007", "7", "10"],
        ["-1", "10", "9"],
        ["٣", "10", "9"],
        [],
    ],
)
def test_numbers_are_in_numeric_order_and_other_names_are_in_that_of_texts(names):
    assert in_class_order(reversed(names)) == tuple(
        names if all(n.isascii() and n.isdigit() for n in names) else sorted(names)
    )


def test_class_folders_with_numbers(tmp_path):
    for name in range(1, 13):
        (tmp_path / str(name)).mkdir()
        for row in range(4):
            pixels = np.full((4, 4), 20 * name + row, np.uint8)
            (tmp_path / str(name) / f"{row}.png").write_bytes(encode(pixels))
    source = f"folder:{tmp_path}"
    plan = make_plan(DataConfig(source=source), 0)
    assert plan.class_names == tuple(str(n) for n in range(1, 13))
    labels = {
        name: label
        for shard in plan.shards
        for job in [plan.job(shard, "r")]
        for name, label in zip(job["names"], job["labels"], strict=True)
    }
    assert labels["10/0.png"] == 9
    assert all(label == int(name.partition("/")[0]) - 1 for name, label in labels.items())
    assert open_source(source).listing().class_names == plan.class_names
