"""The report: one self-contained HTML page about some models. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from markupsafe import Markup

from genmod import units
from genmod.metrics.protocol import MetricResult, MetricValue, Protocol
from genmod.report.charts import Histogram, histogram_chart, paired_bars
from genmod.report.metric_texts import MetricText, metric_text
from genmod.report.model_page import ModelPage, curve_charts, extreme_images, nfe_chart
from genmod.report.template import render_template

_RELATIONS: dict[str, str] = {
    "exact": "exact",
    "exact_to_tolerance": "exact up to the tolerance of the solver",
    "lower_bound": "lower bound: the true value is at least this",
    "stochastic_lower_bound": "stochastic lower bound: below the true value on average",
    "estimate": "estimate: may be above or below the true value",
    "stochastic_upper_bound": "stochastic upper bound: above the true value on average",
    "upper_bound": "upper bound: the true value is at most this",
}


@dataclass(frozen=True)
class ReportContent:
    """Content of the whole page."""

    title: str
    dims: int
    """Dimensions of an image, for bits per dimension."""
    levels: int
    """Number of values of a pixel, for bits per dimension of densities."""
    data: Sequence[tuple[str, str]]
    """Name and value of each property of the dataset."""
    reference_png: bytes
    models: Sequence[ModelPage]
    provenance: Sequence[tuple[str, str, str]]
    """Name, URL and digest of each artifact."""
    tracking: str
    """Command or URL that shows the tracked runs."""


def render(content: ReportContent) -> str:
    """The page as HTML. All text is escaped; its policy allows its own style and images alone."""
    return render_template(
        "page.html",
        content=content,
        relations=_RELATIONS,
        position=_position,
        budget=_budget,
        metrics=_metric_rows(content.models),
        losses={model.name: curve_charts(model.losses) for model in content.models},
        quantities={model.name: curve_charts(model.quantities) for model in content.models},
        nfe_curves={model.name: nfe_chart(model) for model in content.models},
        extremes={m.name: extreme_images(m, i) for i, m in enumerate(content.models)},
        histograms={
            model.name: _histogram(model, content.dims, content.levels) for model in content.models
        },
        units={model.name: _units(model) for model in content.models},
        encoding=[m for m in content.models if "latents/traversals.png" in m.pictures],
        classes={model.name: _classes(model) for model in content.models},
        labels_differ=_labels_differ(content.models),
    )


@dataclass(frozen=True)
class _MetricRow:
    """One metric of all models, a row of the table."""

    metric: str
    text: MetricText
    name: str
    rows: str
    floor: MetricValue | None
    ceiling: MetricValue | None
    cells: Sequence[tuple[MetricResult | None, bool]]
    """For each model its result, and whether it is among the best."""
    better: str


def _metric_rows(models: Sequence[ModelPage]) -> list[_MetricRow]:
    by_model = [{result.value.name: result for result in model.metrics} for model in models]
    rows: list[_MetricRow] = []
    for name in dict.fromkeys(name for metrics in by_model for name in metrics):
        results = [metrics.get(name) for metrics in by_model]
        first = next(result for result in results if result is not None)
        protocol, metric = first.value.protocol, first.value.protocol.metric
        best = _best(results)
        rows.append(
            _MetricRow(
                metric=metric,
                text=metric_text(protocol),
                name=name,
                rows=_row_counts(protocol),
                floor=first.floor,
                ceiling=first.ceiling,
                cells=list(zip(results, best, strict=True)),
                better=first.better,
            )
        )
    return rows


def _row_counts(protocol: Protocol) -> str:
    counts = {"samples": protocol.n_fake, "real": protocol.n_real}
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def _best(results: Sequence[MetricResult | None]) -> list[bool]:
    """Whether each interval overlaps that of the best value; False for all if they are not comparable."""
    known = [result for result in results if result is not None]
    if len(known) < 2 or len({result.value.protocol_digest for result in known}) > 1:
        return [False] * len(results)
    lower = known[0].better == "lower"
    best = (min if lower else max)(known, key=lambda result: result.value.value).value.interval
    return [
        result is not None
        and result.value.interval.low <= best.high
        and best.low <= result.value.interval.high
        for result in results
    ]


def _position(result: MetricResult) -> int | None:
    """Relative position between real images and noise in per cent, limited to 0 .. 100."""
    if result.relative_position is None:
        return None
    return round(100 * min(1.0, max(0.0, result.relative_position)))


def _units(model: ModelPage) -> list[float]:
    """KL of each latent unit, largest first."""
    kls = [kl for name, kl in model.latents.items() if name.startswith("kl_nats_of_unit/")]
    return sorted(kls, reverse=True)


def _histogram(model: ModelPage, dims: int, levels: int) -> Markup | None:
    scores = model.metadata.get("scores")
    if scores is None:
        return None
    histogram = Histogram.model_validate(scores["histogram"])
    bits = partial(units.bits_per_dim, dims=dims, measure=scores["measure"], levels=levels)
    return histogram_chart(histogram, "log p in nats; above: bits/dim", lambda n: float(bits(n)))


def _classes(model: ModelPage) -> Markup | None:
    counts: dict[str, list[int]] | None = model.metadata.get("class_counts")
    if counts is None:
        return None
    classes = len(counts["samples"])
    names: Sequence[str] = model.metadata.get("class_names") or [str(c) for c in range(classes)]
    shares = {
        title: [count / max(1, sum(counts[side])) for count in counts[side]]
        for title, side in ((model.name, "samples"), ("real images", "reference"))
    }
    return paired_bars(names, shares, "share of images")


def _budget(budget: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(budget.items())) or "none"


def _labels_differ(models: Sequence[ModelPage]) -> bool:
    """Whether scores of models have different labels, so that they must not be compared."""
    keys = ("label", "estimator", "of", "measure")
    labels: set[tuple[Any, ...]] = set()
    for model in models:
        scores = model.metadata.get("scores")
        if scores is not None:
            labels.add((*(scores[key] for key in keys), _budget(scores["budget"])))
    return len(labels) > 1
