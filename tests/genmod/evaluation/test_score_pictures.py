"""Pictures of scores: the images at both ends, the same bytes each time, drawn again if removed."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from genmod.errors import DataError
from genmod.evaluation import score_pictures
from genmod.evaluation.score_pictures import ScoredTable, draw_scores
from tests.builders import SMALL_SPEC, write_scores, write_two_shards


@pytest.fixture
def scored(tmp_path):
    """URL of scores, and their tables: three of each shard."""
    data = write_two_shards(str(tmp_path / "data"))
    root = str(tmp_path / "scores")
    manifest = write_scores(root, data, str(tmp_path / "data"), "train")
    first, second = data.stored(str(tmp_path / "data"))
    shards = [first, first, first, second, second]
    rows = manifest.metadata["rows_of_files"]
    return root, [ScoredTable(*each) for each in zip(manifest.files, rows, shards, strict=True)]


def test_the_most_and_the_least_likely_images(scored):
    """The log p of row i is -i, and its grey level is 9 times its number in its shard."""
    root, tables = scored
    histogram, extremes = draw_scores(root, tables, SMALL_SPEC)
    with Image.open(extremes) as image:
        pixels = np.asarray(image)
    side = 4 * 14 + 1
    greys = [[int(pixels[row * side + 3, at * side + 3]) for at in range(10)] for row in range(2)]
    of_row = [9 * i for i in range(7)] + [9 * i for i in range(6)]
    assert greys == [of_row[:10], of_row[::-1][:10]]
    tree = ElementTree.parse(histogram)
    assert tree.getroot().tag == "{http://www.w3.org/2000/svg}svg"
    text = "".join(tree.getroot().itertext())
    assert "log p in nats (above: bits per dimension), exact by test" in text
    assert "script" not in text


def test_pictures_are_drawn_once_and_again_if_removed(scored):
    root, tables = scored
    first = {url: Path(url).read_bytes() for url in draw_scores(root, tables, SMALL_SPEC)}
    Path(next(iter(first))).unlink()
    draw_scores(root, tables, SMALL_SPEC)
    assert {url: Path(url).read_bytes() for url in first} == first
    for table in tables:
        Path(root, table.entry.path).unlink()
    assert draw_scores(root, tables, SMALL_SPEC) == list(first)
    Path(next(iter(first))).unlink()
    with pytest.raises(DataError, match="missing"):
        draw_scores(root, tables, SMALL_SPEC)


def test_of_many_rows_some_tables_are_read(scored, monkeypatch):
    root, tables = scored
    monkeypatch.setattr(score_pictures, "PICTURED_ROWS", 7)
    histogram, _ = draw_scores(root, tables, SMALL_SPEC)
    text = "".join(ElementTree.parse(histogram).getroot().itertext())
    assert "7 of 13 rows" in text


def test_a_row_that_the_dataset_lost_is_one_error(scored):
    root, tables = scored
    wrong = [ScoredTable(table.entry, table.rows, tables[-1].shard) for table in tables]
    with pytest.raises(DataError, match="no row 0-0, which was scored"):
        draw_scores(root, wrong, SMALL_SPEC)
