"""The memory that a task requests covers the largest image that it accepts."""

import json
import subprocess
import sys
import textwrap

import pytest
from PIL import Image

from genmod.budget import BUDGET
from genmod.data.sharding.plan import make_plan
from genmod.data.sources.config import DataConfig

SIDE = 8192

SHARD = """
    import json, pathlib, re, sys
    from genmod.data.sharding.ingest import make_shard
    job = json.loads(sys.argv[1])
    receipt = make_shard(job)
    status = pathlib.Path("/proc/self/status").read_text()
    print(json.dumps([receipt.rejected, int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) << 10]))
"""


def largest(kind):
    turned = Image.Exif()
    turned[0x0112] = 6
    if kind == "jpg":
        options = {"progressive": True, "subsampling": 0, "exif": turned}
        return Image.new("RGB", (SIDE, SIDE), (10, 200, 30)), options
    image = Image.new("RGBA", (SIDE, SIDE), (1, 2, 3, 255))
    if kind == "webp":
        return image, {"lossless": True, "quality": 0, "method": 0}
    return image, {"compress_level": 1, "exif": turned}


@pytest.mark.parametrize(
    ("kind", "resize"),
    [pytest.param("webp", "fit", marks=pytest.mark.long), ("jpg", "pad"), ("png", "crop")],
)
def test_the_largest_image_fits_the_memory_of_a_task(tmp_path, kind, resize):
    assert BUDGET.pixels == SIDE * SIDE
    image, options = largest(kind)
    (tmp_path / "in").mkdir()
    image.save(tmp_path / "in" / f"a.{kind}", **options)
    data = DataConfig(
        source=f"folder:{tmp_path}/in",
        image_size=64,
        channels=3,
        resize=resize,
        splits={"val": 0, "test": 0},
    )
    plan = make_plan(data, 0)
    job = json.dumps(plan.job(plan.shards[0], str(tmp_path / "out")))
    run = [sys.executable, "-c", textwrap.dedent(SHARD), job]
    done = subprocess.run(run, capture_output=True, text=True, timeout=600, check=True)
    rejected, peak_bytes = json.loads(done.stdout)
    assert rejected == []
    assert peak_bytes > 800 << 20, "the image was decoded"
    assert peak_bytes < plan.task_bytes


def test_a_task_that_resizes_nothing_requests_no_memory_for_large_images(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("L", (16, 16)).save(tmp_path / "in" / "a.png")
    source = f"folder:{tmp_path}/in"
    small, large = (
        make_plan(
            DataConfig(source=source, resize=resize, splits={"val": 0, "test": 0}), 0
        ).task_bytes
        for resize in ("none", "fit")
    )
    assert small < 600 << 20
    assert large - small > 20 * BUDGET.pixels


def test_the_largest_file_is_part_of_the_memory(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("L", (16, 16)).save(tmp_path / "in" / "a.png")
    small = make_plan(DataConfig(source=f"folder:{tmp_path}/in", image_size=16, channels=1), 0)
    with open(tmp_path / "in" / "b.png", "wb") as file:
        file.truncate(200 << 20)
    grown = make_plan(DataConfig(source=f"folder:{tmp_path}/in", image_size=16, channels=1), 0)
    assert grown.task_bytes - small.task_bytes > 399 << 20
