"""Channels and size are decided from a sample of the whole source, not from its first image."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genmod.data.sharding.catalog import Catalog
from genmod.data.sharding.image_sample import sample_images
from genmod.data.sharding.plan import make_plan
from genmod.data.sharding.row_sample import RowSample
from genmod.data.sources.config import DataConfig, Splits
from genmod.data.sources.registry import open_source
from genmod.errors import ConfigError
from tests.genmod.data.builders import encode


@pytest.fixture
def folder(tmp_path):
    """Returns a function that writes images, (name, (H, W) or (H, W, 3)), and returns their source."""

    def write(shapes):
        for number, (name, shape) in enumerate(shapes.items()):
            pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
            if len(shape) == 3 and "equal" in name:
                pixels[:] = pixels[:, :, :1]
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(encode(pixels))
        return f"folder:{tmp_path}"

    return write


def planned(source, **data):
    plan = make_plan(DataConfig(source=source, **data), 0)
    return plan.spec, [
        text for text in plan.census.decisions if re.match(r"\d channel|\d+x\d+ pixels", text)
    ]


def test_one_grey_image_before_colour_ones_leaves_colour(folder):
    shapes = {"b/000.png": (8, 8)} | {f"a/{n:03d}.png": (8, 8, 3) for n in range(1, 60)}
    spec, decisions = planned(folder(shapes))
    assert spec.shape == (3, 8, 8)
    assert decisions == [
        "3 channels: 59 of 60 sampled images are RGB, 1 is grey and repeated; "
        "data.channels=1 makes all grey"
    ]
    spec, decisions = planned(folder({}), channels=1)
    assert spec.channels == 1
    assert decisions[0].startswith("1 channel: 59 of 60 sampled images are RGB and become grey")


def test_one_colour_image_among_grey_ones_is_kept_in_colour(folder):
    shapes = {f"b/{n:03d}.png": (8, 8) for n in range(59)} | {"a/z.png": (8, 8, 3)}
    spec, decisions = planned(folder(shapes))
    assert spec.channels == 3
    assert "1 of 60 sampled images are RGB, 59 are grey and repeated" in decisions[0]


def test_grey_stored_as_colour_counts_as_colour_and_is_reported(folder):
    spec, decisions = planned(folder({f"equal{n}.png": (4, 4, 3) for n in range(6)}))
    assert spec.channels == 3
    assert decisions == [
        "3 channels: 6 of 6 sampled images are grey stored as RGB with equal channels; "
        "data.channels=1 stores one channel"
    ]


def test_grey_images_alone_decide_without_a_word(folder):
    spec, decisions = planned(folder({f"{n}.png": (4, 4) for n in range(6)}))
    assert spec.shape == (1, 4, 4)
    assert decisions == []


def test_the_most_common_size_counts_and_others_are_reported(folder):
    shapes = {"000.png": (6, 8)} | {f"{n:03d}.png": (5, 7) for n in range(1, 40)}
    source = folder(shapes)
    spec, decisions = planned(source, max_quarantined=0.1)
    assert spec.shape == (1, 5, 7)
    assert decisions == [
        "5x7 pixels: 39 of 40 sampled images have this size, others (1 of 6x8) are rejected; "
        "data.resize=fit, crop or pad scales them"
    ]
    _, decisions = planned(source, resize="crop")
    assert decisions[0].endswith("others (1 of 6x8) are scaled (data.resize=crop)")
    with pytest.raises(
        ConfigError, match=r"1 of 40 .* not 5x7 \(1 of 6x8\).*data.resize.*data.image_size"
    ):
        planned(source)


def test_a_sample_of_more_images_allows_for_chance(folder):
    shapes = {f"{n:03d}.png": (4, 4) if n % 100 else (5, 5) for n in range(300)}
    spec, _ = planned(folder(shapes), max_quarantined=0.01)
    assert spec.shape == (1, 4, 4)
    with pytest.raises(ConfigError, match=r"data\.resize"):
        planned(folder({f"{n:03d}.png": (5, 5) for n in range(1, 40)}), max_quarantined=0.01)


def test_the_sample_is_spread_over_all_names_and_has_no_order():
    random = np.random.default_rng(0)
    digest_N = random.integers(0, 1 << 63, 5000, dtype=np.uint64)
    expected = sorted(digest_N.tolist())[:256]
    for order_N in (np.arange(5000), random.permutation(5000)):
        sample = RowSample(per_class=3)
        for part_N in np.array_split(order_N, 7):
            sample.add(part_N.tolist(), (part_N % 2).tolist(), digest_N[part_N])
        assert [row.digest for row in sample.rows()] == expected
        odd = sorted(digest_N[1::2].tolist())[:3]
        assert [row.digest for row in sample.rows_by_class()[1]] == odd


def test_few_row_groups_of_a_table_are_read(tmp_path):
    rows = [{"image": encode(np.full((4, 4), n, np.uint8))} for n in range(200)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=10)
    source = open_source(f"parquet:{tmp_path}/t.parquet")
    catalog = Catalog(source, Splits())
    sampled = catalog.sample.rows()
    assert len({row.ref[1] for row in sampled}) == 8
    assert len(sampled) == 80
    assert sample_images(source, catalog.scan, sampled, catalog.inputs).grey == 80


def test_rows_of_a_class_are_from_one_block():
    refs = [["file", n // 10, n % 10] for n in range(100)]
    digest_N = np.arange(100, dtype=np.uint64)[::-1].copy()
    kept = []
    for parts in (1, 7):
        sample = RowSample(block_fields=2, per_class=3)
        for part_N in np.array_split(np.arange(100), parts):
            labels = [row // 50 for row in part_N.tolist()]
            sample.add([refs[row] for row in part_N.tolist()], labels, digest_N[part_N])
        kept.append({k: [row.ref for row in rows] for k, rows in sample.rows_by_class().items()})
    assert kept[0] == kept[1]
    for k in (0, 1):
        (block,) = {ref[1] for ref in kept[0][k]}
        assert block // 5 == k
        assert [ref[2] for ref in kept[0][k]] == [9, 8, 7]


def test_the_header_of_an_image_tells_what_decoding_would():
    from PIL import Image

    from genmod.data.format.foreign import decode_foreign, probe_foreign

    turned = Image.Exif()
    turned[0x0112] = 6
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        image = Image.new("RGBA", (5, 3), (200, 10, 20, 255)).convert(mode)
        shape = decode_foreign(encode(image)).shape
        assert probe_foreign(encode(image)) == (*shape[:2], shape[2] if len(shape) == 3 else 1)
    data = encode(Image.new("RGB", (5, 3)), "JPEG", exif=turned)
    assert probe_foreign(data) == decode_foreign(data).shape == (5, 3, 3)
