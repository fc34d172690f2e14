"""Statistics that no pixels have are refused where they are read: in receipts and manifests."""

import pytest
from pydantic import ValidationError

from genmod.budget import BUDGET
from genmod.errors import DataError
from genmod.manifest.statistics import RowStats, network_stats
from genmod.receipts import together

STATS = {"rows": 2, "next_index": 2, "pixels": 8, "pixel_sum_C": [40], "pixel_square_sum_C": [400]}


@pytest.mark.parametrize(
    "change",
    [
        {"pixel_square_sum_C": []},
        {"pixel_square_sum_C": [199]},
        {"pixel_square_sum_C": [40 * 256]},
        {"pixel_sum_C": [8 * 256]},
        {"pixel_sum_C": [40, 40]},
        {"pixels": 0},
        {"pixels": 10**30},
    ],
)
def test_impossible_statistics_are_refused(change):
    whole = RowStats.model_validate(STATS)
    assert network_stats(whole)["mean"] == pytest.approx([(40 / 8 + 0.5) * 2 / 256 - 1])
    assert whole + RowStats() == whole
    with pytest.raises(ValidationError):
        RowStats.model_validate(STATS | change)


def test_receipts_whose_sums_do_not_fit_together_are_one_error():
    many = RowStats(rows=BUDGET.rows)
    with (
        pytest.raises(DataError, match=r"^root: its receipts do not fit together"),
        together("root"),
    ):
        sum([many, many], RowStats())
