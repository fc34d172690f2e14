"""A gain with its interval as inline SVG, against the tolerated loss and the gain that counts."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

_WIDTH, _HEIGHT = 240, 30
_MARGIN = 8
_MIDDLE = _HEIGHT // 2


@dataclass(frozen=True)
class Gain:
    """A gain of the candidate over the champion, in the metric's unit; positive if it is better."""

    value: float
    stderr: float
    low: float
    """Lower end of its interval at the error rate of the decision."""
    high: float
    """Upper end of its interval."""
    tolerated: float | None
    """Largest loss that is tolerated; None for any."""
    needed: float | None
    """Smallest gain that counts; None if none does."""


def gain_chart(gain: Gain) -> Markup:
    """The interval as a line, one standard error to either side as a bar, the gain as a dot.

    The losses beyond the tolerated one are a zone at the left, the gains that count a zone at the right; the
    line between them marks no difference. The text next to the chart says the numbers.
    """
    marks = [0.0, gain.value, gain.low, gain.high]
    marks += [] if gain.tolerated is None else [-gain.tolerated]
    marks += [] if gain.needed is None else [gain.needed]
    low, high = min(marks), max(marks)
    scale = (_WIDTH - 2 * _MARGIN) / (high - low) if high > low else 0.0

    def at(value: float) -> float:
        inside = min(max(value, low), high)
        return round(_MARGIN + (inside - low) * scale, 1)

    def zone(kind: str, begin: float, end: float) -> Markup:
        return Markup('<rect class="{}" x="{}" y="0" width="{}" height="{}"/>').format(
            kind, begin, round(end - begin, 1), _HEIGHT
        )

    parts: list[Markup] = []
    if gain.tolerated is not None:
        parts.append(zone("loss", 0, at(-gain.tolerated)))
    if gain.needed is not None:
        parts.append(zone("win", at(gain.needed), _WIDTH))
    line = Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>')
    parts += [
        line.format("zero", at(0), at(0), 0, _HEIGHT),
        line.format("interval", at(gain.low), at(gain.high), _MIDDLE, _MIDDLE),
        line.format(
            "stderr",
            at(gain.value - gain.stderr),
            at(gain.value + gain.stderr),
            _MIDDLE,
            _MIDDLE,
        ),
        Markup('<circle cx="{}" cy="{}" r="4"/>').format(at(gain.value), _MIDDLE),
    ]
    return Markup('<svg class="gain" viewBox="0 0 {} {}" aria-hidden="true">{}</svg>').format(
        _WIDTH, _HEIGHT, Markup("").join(parts)
    )
