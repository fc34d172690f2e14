"""Charts as inline SVG. Colours are from the style sheet of the page, with a light and a dark form.

All text in the markup is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from genmod.config import Config

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 42
LOG_RATIO = 30.0
"""A curve whose values span more than this ratio gets a logarithmic axis."""

MAX_POINTS = 400
"""Most points of a curve; groups of points are averaged in longer ones."""

CurvePoint = tuple[float, float]


class Histogram(Config):
    """Counts of a value in bins of equal width."""

    low: float
    high: float
    counts: tuple[int, ...]
    below: int = 0
    """Values under ``low``."""
    above: int = 0
    """Values over ``high``."""

    @property
    def total(self) -> int:
        """Number of all values."""
        return sum(self.counts) + self.below + self.above


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers in [low, high], 1, 2 or 5 times a power of ten apart.

    >>> ticks(0, 10)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten in [low, high]; only powers of ten if there are more than six."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [m * 10.0**p for p in powers for m in (1, 2, 5)]
    inside = [t for t in fine if low <= t <= high]
    return inside if len(inside) <= 6 else [10.0**p for p in powers if low <= 10.0**p <= high]


def axis_number(value: float) -> str:
    """A number in the short form of an axis.

    >>> axis_number(12_000), axis_number(0.05), axis_number(-80)
    ('12k', '0.05', '-80')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return f"{value:.4g}"


@dataclass(frozen=True)
class _Scale:
    """Maps values to pixels along one axis."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        at = math.log(value) if self.log else value
        share = (at - low) / (high - low) if high > low else 0.5
        return round(self.begin + share * (self.end - self.begin), 1)

    def ticks(self, count: int = 5) -> list[float]:
        """Values at which the axis is marked."""
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high, count)


def line_chart(curves: Mapping[str, Sequence[CurvePoint]], x_label: str, y_label: str) -> Markup:
    """Curves over a common x axis. At least one curve has a point."""
    thin = {name: thinned(points) for name, points in curves.items() if points}
    xs = [x for points in thin.values() for x, _ in points]
    ys = [y for points in thin.values() for _, y in points]
    log = min(ys) > 0 and max(ys) / min(ys) > LOG_RATIO
    pad = 0.0 if log else 0.05 * (max(ys) - min(ys))
    across = _Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    up = _Scale(min(ys) - pad, max(ys) + pad, HEIGHT - BOTTOM, TOP, log)
    lines = Markup("").join(
        Markup('<polyline class="curve c{}" points="{}"><title>{}</title></polyline>').format(
            i % 6, " ".join(f"{across(x)},{up(y)}" for x, y in points), name
        )
        for i, (name, points) in enumerate(thin.items())
    )
    summary = ", ".join(f"{name} ends at {axis_number(p[-1][1])}" for name, p in thin.items())
    title = f"{y_label} by {x_label}: {summary}"
    chart = _frame(lines, across, up, x_label, y_label + (" (log)" if log else ""), title=title)
    return chart + legend(list(thin)) if len(thin) > 1 else chart


def histogram_chart(histogram: Histogram, x_label: str, second: Callable[[float], float]) -> Markup:
    """A histogram as bars, with a second scale above them.

    Args:
        histogram: counts to draw.
        x_label: label of the x axis with the units of both scales.
        second: converts a value to the second scale.
    """
    across = _Scale(histogram.low, histogram.high, LEFT, WIDTH - RIGHT)
    up = _Scale(0, max(1, *histogram.counts), HEIGHT - BOTTOM, TOP + 22)
    width = (histogram.high - histogram.low) / len(histogram.counts)
    bars = Markup("").join(
        Markup('<rect class="bar c0" x="{}" y="{}" width="{}" height="{}"/>').format(
            across(histogram.low + i * width) + 0.5,
            up(count),
            max(0.5, round(across(width) - across(0) - 1, 1)),
            round(up(0) - up(count), 1),
        )
        for i, count in enumerate(histogram.counts)
    )
    upper = Markup("").join(
        Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{:.4g}</text>').format(
            across(t), TOP + 8, second(t)
        )
        for t in across.ticks(4)
    )
    title = f"rows by {x_label}, {histogram.total} rows"
    return _frame(bars + upper, across, up, x_label, "rows", title=title, x_ticks=4)


def paired_bars(names: Sequence[str], pairs: Mapping[str, Sequence[float]], y_label: str) -> Markup:
    """A group of bars for each name, with one bar for each series. Values are shares in [0, 1]."""
    greatest = max(max(values) for values in pairs.values())
    across = _Scale(0, len(names), LEFT, WIDTH - RIGHT)
    up = _Scale(0, greatest or 1.0, HEIGHT - BOTTOM, TOP)
    slot = (across(1) - across(0)) * 0.8 / len(pairs)
    marks: list[Markup] = []
    # One bar per series and name, side by side within the name's slot.
    for s, (series, values) in enumerate(pairs.items()):
        for i, value in enumerate(values):
            marks.append(
                Markup(
                    '<rect class="bar c{}" x="{}" y="{}" width="{}" height="{}">'
                    "<title>{}, {}: {:.1%}</title></rect>"
                ).format(
                    s,
                    round(across(i + 0.1) + s * slot, 1),
                    up(value),
                    round(slot, 1),
                    round(up(0) - up(value), 1),
                    series,
                    names[i],
                    value,
                )
            )
    labels = Markup("").join(
        Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            across(i + 0.5), HEIGHT - BOTTOM + 15, name if len(name) <= 6 else f"{name[:5]}…"
        )
        for i, name in enumerate(names)
    )
    title = f"{y_label} of {', '.join(pairs)}"
    body = Markup("").join(marks) + labels
    chart = _frame(body, across, up, "class", y_label, title=title, x_ticks=0, percent=True)
    return chart + legend(list(pairs))


def legend(names: Sequence[str]) -> Markup:
    """A list of curves' names with their colours."""
    items = Markup("").join(
        Markup('<li><span class="swatch c{}"></span>{}</li>').format(i % 6, name)
        for i, name in enumerate(names)
    )
    return Markup('<ul class="legend">{}</ul>').format(items)


def thinned(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """At most :data:`MAX_POINTS` finite points; if there are more, means of groups."""
    finite = [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])]
    size = -(-len(finite) // MAX_POINTS) or 1
    groups = [finite[i : i + size] for i in range(0, len(finite), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _frame(
    body: Markup,
    across: _Scale,
    up: _Scale,
    x_label: str,
    y_label: str,
    *,
    title: str,
    x_ticks: int = 5,
    percent: bool = False,
) -> Markup:
    """The chart: marks with axes, grid and labels."""
    rows = Markup("").join(
        Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>'
            '<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>'
        ).format(
            LEFT,
            WIDTH - RIGHT,
            up(t),
            up(t),
            LEFT - 6,
            up(t) + 4,
            f"{t:.0%}" if percent else axis_number(t),
        )
        for t in up.ticks(4)
    )
    columns = Markup("").join(
        Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            across(t), HEIGHT - BOTTOM + 15, axis_number(t)
        )
        for t in (across.ticks(x_ticks) if x_ticks else ())
    )
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    return Markup(
        '<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-label="{title}">{rows}{body}'
        '<line class="axis" x1="{l}" x2="{r}" y1="{b}" y2="{b}"/>{columns}'
        '<text class="label" x="{mx}" y="{lb}" text-anchor="middle">{x}</text>'
        '<text class="label" x="12" y="{my}" text-anchor="middle" '
        'transform="rotate(-90 12 {my})">{y}</text></svg>'
    ).format(
        w=WIDTH,
        h=HEIGHT,
        title=title,
        rows=rows,
        body=body,
        l=LEFT,
        r=WIDTH - RIGHT,
        b=HEIGHT - BOTTOM,
        columns=columns,
        mx=middle_x,
        my=middle_y,
        lb=HEIGHT - 8,
        x=x_label,
        y=y_label,
    )
