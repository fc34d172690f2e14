"""The part of a page about one model: its content, and the charts and pictures drawn from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from genmod.metrics.protocol import MetricResult
from genmod.report.charts import line_chart
from genmod.report.curves import Charts
from genmod.report.template import data_url, format_number

EXTREMES = "extremes.png"
"""Picture of an evaluation: a row of the most likely images, above a row of the least likely ones."""

_GAP = 1
"""Pixels between the images of a grid."""


@dataclass(frozen=True)
class ModelPage:
    """Content of a page about one model."""

    name: str
    family: str
    metrics: Sequence[MetricResult]
    metadata: Mapping[str, Any]
    """Metadata of the evaluation's manifest."""
    pictures: Mapping[str, bytes]
    """PNG files by name: ``samples.png``, ``nearest.png``; of a model with scores :data:`EXTREMES`; of a
    model with latents ``latents/reconstructions.png`` and ``latents/traversals.png``."""
    losses: Charts = field(default_factory=Charts)
    """Training and validation losses."""
    quantities: Charts = field(default_factory=Charts)
    """Other quantities that were logged during training."""
    events: Sequence[str] = ()
    """Events of the monitors during training, such as rollbacks."""
    latents: Mapping[str, float] = field(default_factory=dict[str, float])
    """Use of the latents at the end of training, see :func:`genmod.interface.latents.latent_usage`."""


def curve_charts(charts: Charts) -> list[tuple[str, Markup]]:
    """Title and chart of each quantity against images seen. Quantities without a point are left out."""
    return [
        (title, line_chart(curves, "images seen", title.rsplit(" ", maxsplit=1)[-1]))
        for title, curves in charts.items()
        if any(curves.values())
    ]


def nfe_chart(model: ModelPage) -> Markup | None:
    """Quality against network evaluations, a curve for each solver; None if it was not measured."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for point in model.metadata.get("quality_vs_nfe") or ():
        curves.setdefault(point["curve"], []).append((point["nfe"], point["fd"]))
    return line_chart(curves, "network evaluations", "Fréchet distance") if curves else None


def extreme_images(model: ModelPage, number: int) -> Markup | None:
    """The most and the least likely images with their log p; None if the evaluation has none.

    Args:
        model: its pictures contain :data:`EXTREMES`, its metadata ``extremes`` with a row for each image.
        number: of the model on the page, for the id of the picture.
    """
    extremes, picture = model.metadata.get("extremes"), model.pictures.get(EXTREMES)
    if not extremes or picture is None:
        return None
    width, height = (int.from_bytes(picture[at : at + 4]) for at in (16, 20))
    rows = {"most likely": extremes["most"], "least likely": extremes["least"]}
    tall = (height + _GAP) / len(rows)
    drawn = [
        Markup('<h4>{}, log p in nats</h4><ul class="strip">{}</ul>').format(
            title.capitalize(),
            Markup("").join(
                _cell(image, f"extremes-{number}", at * (width + _GAP) / len(images), top, tall)
                for at, image in enumerate(images)
            ),
        )
        for top, (title, images) in zip((0, tall), rows.items(), strict=True)
    ]
    source = Markup(
        '<svg class="source" width="0" height="0" aria-hidden="true"><defs>'
        '<image id="extremes-{}" href="{}" width="{}" height="{}"/></defs></svg>'
    ).format(number, data_url(picture), width, height)
    return source + Markup("").join(drawn)


def _cell(image: Mapping[str, Any], source: str, left: float, top: float, side: float) -> Markup:
    """One image of the picture, and its log p below it."""
    return Markup(
        '<li><svg viewBox="{} {} {} {}" role="img" aria-label="image {}"><use href="#{}"/></svg>'
        "<span>{}</span></li>"
    ).format(left, top, side, side, image["key"], source, format_number(image["nats"]))
