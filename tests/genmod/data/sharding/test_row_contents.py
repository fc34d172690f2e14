"""The sum of rows' digests: independent of order and chunks, changed by any name or content."""

import numpy as np

from genmod.data.sharding.row_contents import RowContents, added, checked


def total(rows, chunk=2, counted=None):
    contents = RowContents()
    for first in range(0, len(rows), chunk):
        part = rows[first : first + chunk]
        contents.add([name for name, _ in part], [text for _, text in part])
    return contents.total(np.ones(len(rows), bool) if counted is None else np.array(counted))


ROWS = [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"), ("e", "5")]


def test_order_and_chunks_do_not_count():
    assert total(ROWS) == total(ROWS, 1) == total(ROWS[::-1], 3)
    assert len(total(ROWS)) == 16


def test_every_name_and_content_counts():
    changed = [*ROWS[:4], ("e", "6")], [*ROWS[:4], ("f", "5")], ROWS[:4], [*ROWS, ("e", "5")]
    swapped = [("a", "2"), ("b", "1"), *ROWS[2:]]
    assert len({total(ROWS), total(swapped), *map(total, changed)}) == 6


def test_parts_add_up():
    first = total(ROWS, counted=[True, False, True, False, False])
    rest = total(ROWS, counted=[False, True, False, True, True])
    assert added(first, rest) == total(ROWS)
    assert added("ffffffffffffffff", "0000000000000002") == "0000000000000001"


def test_what_a_manifest_lists_is_checked():
    assert checked(total(ROWS)) == total(ROWS)
    for forged in (None, 7, "", "x" * 16, "0" * 15, "0" * 17, "A" * 16, ["0" * 16]):
        assert checked(forged) == ""


def test_what_is_not_known_row_by_row_is_not_known():
    unknown = [*ROWS[:2], ("c", None)]
    assert total(unknown) == ""
    assert added("", total(ROWS)) == added(total(ROWS), "") == ""
    assert total([]) == "0000000000000000"
