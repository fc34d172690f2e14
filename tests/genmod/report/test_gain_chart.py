"""The drawing of a gain: zones of losses and gains, the interval between them, whatever the numbers are."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from genmod.report.gain_chart import Gain, gain_chart

GAIN = Gain(1.0, 0.25, low=0.0, high=2.0, tolerated=2.0, needed=1.5)
LEFT, RIGHT, WIDTH = 8, 232, 240


def drawn(gain):
    """Class -> the x coordinates of its shape."""
    shapes = re.findall(
        r'class="(\w+)" x1?="([\d.-]+)" [^>]*?(?:x2|width)="([\d.-]+)"', gain_chart(gain)
    )
    return {kind: (float(begin), float(end)) for kind, begin, end in shapes}


def test_the_ends_of_everything_are_the_ends_of_the_chart():
    shapes = drawn(GAIN)
    assert shapes["loss"] == (0, LEFT)  # up to the tolerated loss, -2
    assert shapes["interval"] == (LEFT + 112, RIGHT)  # 0 to 2
    assert shapes["stderr"] == (LEFT + 112 + 42, LEFT + 112 + 70)  # 0.75 to 1.25
    assert shapes["zero"] == (LEFT + 112, LEFT + 112)
    begin, width = shapes["win"]
    assert begin + width == WIDTH
    assert begin == LEFT + 196  # 1.5


def test_a_rule_without_margins_has_no_zones():
    shapes = drawn(replace(GAIN, tolerated=None, needed=None))
    assert set(shapes) == {"zero", "interval", "stderr"}


@pytest.mark.parametrize("value", [0.0, 1e-300, -1e100])
def test_a_chart_of_one_value_stays_inside(value):
    shapes = drawn(Gain(value, 0.0, value, value, tolerated=0.0, needed=0.0))
    assert all(0 <= at <= WIDTH for shape in shapes.values() for at in shape)
