"""A few races of promoters on the tests' S3 server; ``python -m tests.soak.promotions`` runs more."""

import pytest

from tests.soak.promotions import run_races


@pytest.mark.slow
def test_races_of_promoters_give_one_line_of_history(s3_root):
    counts = run_races(s3_root, races=4, seed=1)
    assert counts["races"] == 4
    assert counts["entries"] >= 4
    assert counts["made_again"] > 0, "no race was one"
