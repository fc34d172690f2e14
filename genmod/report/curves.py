"""Training histories as curves for charts."""

from __future__ import annotations

from collections.abc import Sequence

from genmod.report.charts import CurvePoint
from genmod.report.evaluated import HistoryEntry

_SIDES = {"train": "training", "val": "validation"}
"""First part of a metric's name -> name of its curve. The other parts are the phase and the quantity."""

_LOSS = "loss"

Charts = dict[str, dict[str, list[CurvePoint]]]
"""Title -> name of a curve -> (nimg, value)."""


def training_curves(history: Sequence[HistoryEntry]) -> tuple[Charts, Charts]:
    """Charts of the losses of each phase, and charts of all other quantities.

    Args:
        history: content of a model's history.json.

    Returns:
        the charts of losses and the charts of other quantities, each with curves of training and validation.
    """
    losses: Charts = {}
    others: Charts = {}
    for entry in history:
        for name, value in entry.metrics.items():
            side, _, rest = name.partition("/")
            phase, _, quantity = rest.partition("/")
            if side not in _SIDES or not quantity:
                continue
            charts = losses if quantity == _LOSS else others
            chart = charts.setdefault(f"{phase} {quantity}", {})
            chart.setdefault(_SIDES[side], []).append((float(entry.nimg), float(value)))
    return losses, others
