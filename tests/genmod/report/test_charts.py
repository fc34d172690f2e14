"""Charts: where marks go, and that nothing hostile gets through."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
import torch

from genmod.evaluation.likelihood import BINS, histogram
from genmod.report.charts import (
    HEIGHT,
    MAX_POINTS,
    WIDTH,
    axis_number,
    histogram_chart,
    legend,
    line_chart,
    log_ticks,
    paired_bars,
    thinned,
    ticks,
)
from genmod.report.curves import training_curves
from genmod.report.evaluated import HistoryEntry

HOSTILE = "\"><script>alert(1)</script>&'"


def parsed(markup):
    return ET.fromstring(f"<all>{markup}</all>")


def points_of(markup):
    return [
        [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
        for line in parsed(markup).iter("polyline")
    ]


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (-0.13, 0.31, [-0.1, 0, 0.1, 0.2, 0.3]),
        (120, 900, [200, 400, 600, 800]),
        (5, 5, [5]),
    ],
)
def test_ticks_are_round_and_inside(low, high, wanted):
    assert ticks(low, high) == pytest.approx(wanted)


def test_logarithmic_ticks():
    assert log_ticks(0.5, 30) == pytest.approx([0.5, 1, 2, 5, 10, 20])
    assert log_ticks(1, 1e6) == pytest.approx([10.0**p for p in range(7)])


def test_numbers_are_short():
    assert [axis_number(v) for v in (0, 0.05, 1500, 12_000, 3.4e6)] == [
        "0",
        "0.05",
        "1500",
        "12k",
        "3.4M",
    ]


def test_a_line_runs_over_the_whole_chart_with_the_greatest_value_on_top():
    (line,) = points_of(line_chart({"a": [(0, 1), (1, 3), (2, 2)]}, "x", "y"))
    (x0, y0), (x1, y1), (x2, y2) = line
    assert 0 < x0 < x1 < x2 < WIDTH
    assert 0 < y1 < y2 < y0 < HEIGHT
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)


def test_values_over_decades_are_drawn_logarithmically():
    markup = line_chart({"a": [(0, 1), (1, 10), (2, 100)]}, "x", "y")
    ys = [y for _, y in points_of(markup)[0]]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)
    assert "y (log)" in markup


def test_long_curves_are_averaged_and_what_is_not_finite_is_left_out():
    points = [(float(i), float(i % 2)) for i in range(10 * MAX_POINTS)] + [(1e9, float("nan"))]
    thin = thinned(points)
    assert len(thin) == MAX_POINTS
    assert {y for _, y in thin} == {0.5}


def test_hostile_names_are_only_text():
    bars = paired_bars([HOSTILE, "b"], {HOSTILE: [0.5, 0.5], "other": [1, 0]}, HOSTILE)
    line = line_chart({HOSTILE: [(0, 1)], "b": [(0, 2)]}, HOSTILE, HOSTILE)
    for markup in (bars, line, legend([HOSTILE])):
        assert "<script" not in markup
        assert any(HOSTILE in (e.text or e.tail or "") for e in parsed(markup).iter())


def test_bars_hold_every_value_once():
    values_N = torch.cat((torch.linspace(-3, 3, 998), torch.tensor([-1e6, 1e6]))).double()
    found = histogram(values_N)
    assert found.total == len(values_N)
    assert len(found.counts) == BINS
    assert -3 < found.low < found.high < 3
    assert found.below > 0 < found.above
    markup = histogram_chart(found, "nats", lambda nats: -nats)
    heights = [float(bar.get("height")) for bar in parsed(markup).iter("rect")]
    assert len(heights) == BINS
    assert max(heights) < HEIGHT


def test_equal_scores_still_make_a_histogram():
    assert histogram(torch.full((7,), 2.0, dtype=torch.float64)).total == 7


def test_a_history_becomes_curves_of_training_and_validation():
    history = [
        {
            "nimg": 10,
            "metrics": {"train/d/loss": 3.0, "val/d/loss": 4.0, "train/d/lr": 0.1, "x": 1},
        },
        {"nimg": 20, "metrics": {"train/d/loss": 2.0}},
    ]
    losses, others = training_curves([HistoryEntry.model_validate(entry) for entry in history])
    assert losses == {"d loss": {"training": [(10, 3), (20, 2)], "validation": [(10, 4)]}}
    assert others == {"d lr": {"training": [(10, 0.1)]}}
