"""The report: what is known of some models as one page of HTML that needs nothing else. Pure functions."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from genmod import units
from genmod.metrics.protocol import MetricResult, MetricValue
from genmod.report.charts import Histogram, histogram_chart, line_chart, paired_bars
from genmod.report.curves import Charts


@dataclass(frozen=True)
class MetricText:
    """How a metric is told to people."""

    title: str
    meaning: str
    percent: bool = False


_METRIC_TEXTS: dict[str, MetricText] = {
    "fd": MetricText(
        "Fréchet distance",
        "How far the cloud of samples lies from the cloud of real images: their centres and their "
        "spreads. The real images in the first column show what 0 becomes with so few rows.",
    ),
    "kid": MetricText(
        "Kernel distance",
        "Another distance between the two clouds, fair with few rows: 0 on average, a little above or "
        "below, for samples as good as real images.",
    ),
    "precision": MetricText(
        "Precision",
        "Share of samples that land among real images: do they look real? Read it together with "
        "coverage, since even noise can land there.",
        True,
    ),
    "recall": MetricText(
        "Recall",
        "Share of real images that land among the samples: could the model have made them?",
        True,
    ),
    "density": MetricText(
        "Density",
        "How crowded with real images it is where samples land: about 1 for real images, more if the "
        "model prefers typical ones.",
    ),
    "coverage": MetricText(
        "Coverage",
        "Share of real images with a sample nearby. It falls when the model forgets kinds of images.",
        True,
    ),
    "class_balance": MetricText(
        "Class mix",
        "How differently the classes are mixed, as the classifier sees them: 0 % is the same mix, "
        "100 % no class in common.",
        True,
    ),
    "label_accuracy": MetricText(
        "Label accuracy",
        "How often the classifier sees the class that the model was asked for. First column: how "
        "often it is right about real held-out images.",
        True,
    ),
    "memorisation": MetricText(
        "Memorisation",
        "Share of samples suspiciously close to a training image, compared in pixels. Honest samples "
        "give about 5 %, replayed training images 100 %.",
        True,
    ),
}

_RELATIONS: dict[str, str] = {
    "exact": "exact",
    "exact_to_tolerance": "exact up to the solver's tolerance",
    "lower_bound": "lower bound: the truth is at least this",
    "stochastic_lower_bound": "lower bound on average over its own randomness",
    "estimate": "estimate: may err to either side",
    "stochastic_upper_bound": "upper bound on average over its own randomness",
    "upper_bound": "upper bound: the truth is at most this",
}


@dataclass(frozen=True)
class ModelPage:
    """What the report says of one model."""

    name: str
    family: str
    metrics: Sequence[MetricResult]
    metadata: Mapping[str, Any]
    """Of its evaluation."""
    pictures: Mapping[str, bytes]
    """PNG files by name: ``samples.png``, ``nearest.png``; of a model with latents
    ``latents/reconstructions.png`` and ``latents/traversals.png``."""
    losses: Charts = field(default_factory=Charts)
    """What training descended."""
    quantities: Charts = field(default_factory=Charts)
    """What else was measured while training."""
    events: Sequence[str] = ()
    """What happened when its samples and latents were watched."""
    latents: Mapping[str, float] = field(default_factory=dict[str, float])
    """How they were used at the end of training, see :func:`genmod.interface.latents.latent_usage`."""


@dataclass(frozen=True)
class ReportContent:
    """Everything on the page."""

    title: str
    dims: int
    """D of the images, for bits per dimension."""
    levels: int
    """Values that a pixel takes, for bits per dimension of densities."""
    data: Sequence[tuple[str, str]]
    """TaskResult of the dataset."""
    reference_png: bytes
    models: Sequence[ModelPage]
    provenance: Sequence[tuple[str, str, str]]
    """What, where it lies, its digest."""
    tracking: str
    """How to see the runs."""


def render(content: ReportContent) -> str:
    """The page. All text is escaped; nothing is loaded from elsewhere."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = resources.files("genmod.report").joinpath("page.html").read_text("utf-8")
    return environment.from_string(template).render(
        content=content,
        picture=_picture,
        number=number,
        relations=_RELATIONS,
        place=_place,
        budget=_budget,
        metrics=_metric_rows(content.models),
        losses={model.name: _charts(model.losses) for model in content.models},
        quantities={model.name: _charts(model.quantities) for model in content.models},
        efforts={model.name: _effort(model) for model in content.models},
        histograms={
            model.name: _histogram(model, content.dims, content.levels) for model in content.models
        },
        units={model.name: _units(model) for model in content.models},
        encoding=[m for m in content.models if "latents/traversals.png" in m.pictures],
        classes={model.name: _classes(model) for model in content.models},
        labels_differ=_labels_differ(content.models),
    )


def number(value: float, percent: bool = False) -> str:
    """A value with as many digits as are of use."""
    if percent:
        return f"{value:.1%}"
    size = abs(value)
    if size >= 100:
        return f"{value:,.1f}"
    return f"{value:.2f}" if size >= 1 else f"{value:.3f}" if size >= 1e-3 else f"{value:.1g}"


@dataclass(frozen=True)
class _MetricRow:
    """One metric of all models."""

    metric: str
    text: MetricText
    name: str
    rows: str
    floor: MetricValue | None
    ceiling: MetricValue | None
    cells: Sequence[tuple[MetricResult | None, bool]]
    """Of each model: its reading, and whether it is among the best."""
    better: str


def _metric_rows(models: Sequence[ModelPage]) -> list[_MetricRow]:
    by_model = [{r.value.protocol.metric: r for r in model.metrics} for model in models]
    rows: list[_MetricRow] = []
    for metric in dict.fromkeys(name for found in by_model for name in found):
        metrics = [found.get(metric) for found in by_model]
        first = next(reading for reading in metrics if reading is not None)
        protocol = first.value.protocol
        best = _best(metrics)
        rows.append(
            _MetricRow(
                metric=metric,
                text=_METRIC_TEXTS.get(metric, MetricText(metric, "")),
                name=first.value.name,
                rows=f"{protocol.n_fake:,} samples, {protocol.n_real:,} real",
                floor=first.floor,
                ceiling=first.ceiling,
                cells=list(zip(metrics, best, strict=True)),
                better=first.better,
            )
        )
    return rows


def _best(metrics: Sequence[MetricResult | None]) -> list[bool]:
    """Which are the best, with all whose interval reaches the best one's; none if not comparable."""
    there = [reading for reading in metrics if reading is not None]
    if len(there) < 2 or len({reading.value.protocol_digest for reading in there}) > 1:
        return [False] * len(metrics)
    lower = there[0].better == "lower"
    best = (min if lower else max)(there, key=lambda reading: reading.value.value).value.interval
    return [
        reading is not None
        and reading.value.interval.low <= best.high
        and best.low <= reading.value.interval.high
        for reading in metrics
    ]


def _place(reading: MetricResult) -> int | None:
    """Per cent of the way from real images to noise, within the track that is drawn."""
    if reading.relative_position is None:
        return None
    return round(100 * min(1.0, max(0.0, reading.relative_position)))


def _picture(png: bytes, alt: str) -> Markup:
    data = base64.b64encode(png).decode()
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(alt, data)


def _charts(charts: Charts) -> list[tuple[str, Markup]]:
    return [
        (title, line_chart(curves, "images seen", title.rsplit(" ", maxsplit=1)[-1]))
        for title, curves in charts.items()
        if any(curves.values())
    ]


def _units(model: ModelPage) -> list[float]:
    """KL of each latent unit, largest first."""
    found = [kl for name, kl in model.latents.items() if name.startswith("kl_nats_of_unit/")]
    return sorted(found, reverse=True)


def _effort(model: ModelPage) -> Markup | None:
    """Quality against calls of the net, a curve for each solver."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for point in model.metadata.get("effort") or ():
        curves.setdefault(point["curve"], []).append((point["nfe"], point["fd"]))
    return line_chart(curves, "calls of the net", "Fréchet distance") if curves else None


def _histogram(model: ModelPage, dims: int, levels: int) -> Markup | None:
    scores = model.metadata.get("scores")
    if scores is None:
        return None

    def bits(nats: float) -> float:
        value = units.bits_per_dim(nats, dims, scores["measure"], levels)
        assert isinstance(value, float)
        return value

    histogram = Histogram.model_validate(scores["histogram"])
    return histogram_chart(histogram, "log p in nats; above: bits/dim", bits)


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
    """Whether scores of models carry unlike labels, so that they must not be compared."""
    keys = ("label", "estimator", "of", "measure")
    told: set[tuple[Any, ...]] = set()
    for model in models:
        scores = model.metadata.get("scores")
        if scores is not None:
            told.add((*(scores[key] for key in keys), _budget(scores["budget"])))
    return len(told) > 1
