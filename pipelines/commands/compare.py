"""``genmod compare A B``: the metrics of two models side by side, where they were measured alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from genmod import storage
from genmod.errors import ConfigError, sanitize
from genmod.evaluation.measure import metrics_from
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import Manifest
from genmod.metrics.protocol import Better, MetricResult, MetricValue, protocol_differences
from pipelines.commands.paired_intervals import PairedDifference, paired_differences
from pipelines.commands.text_table import text_table
from pipelines.recipe.context import Context
from pipelines.stages.champions import Champions
from pipelines.stages.known_models import find_model, sibling

_OVERLAP = "intervals overlap"
_NO_DIFFERENCE = "no difference shown"


class _Measured:
    """One side of a comparison.

    Args:
        label: for people.
        root: URL of the folder with the evaluation.
        evaluation: its manifest.
    """

    def __init__(self, label: str, root: str, evaluation: Manifest) -> None:
        self.label = label
        self.root = root
        self.evaluation = evaluation
        self.digest = evaluation.digest
        results = metrics_from(evaluation.metadata)
        self.metrics = {result.value.protocol.metric: result for result in results}


def compare_models(a: str, b: str, context: Context | None) -> tuple[dict[str, Any], list[str]]:
    """Compare two models: as JSON values, and as lines for people.

    Args:
        a: a version (number, or start of a digest), or the folder of a model or of an evaluation.
        b: the same.
        context: the command, with one selected model; None if no recipe was given.

    Raises:
        ConfigError: a version is unknown, a model is not evaluated, or no metric was measured alike.
    """
    snapshot = ManifestSnapshot() if context is None else context.snapshot
    left, right = (_measured(text, context, snapshot) for text in (a, b))
    shared = [name for name in left.metrics if name in right.metrics]
    unlike = {
        name: "; ".join(found)
        for name in shared
        if (
            found := protocol_differences(
                left.metrics[name].value.protocol, right.metrics[name].value.protocol
            )
        )
    }
    alike = [name for name in shared if name not in unlike]
    if not alike:
        differences = " | ".join(f"{name}: {text}" for name, text in unlike.items())
        raise ConfigError(
            f"{left.label} and {right.label} were not measured alike: {differences or 'no common metric'}; "
            "evaluate both with one recipe, as genmod retrain does"
        )
    sides = (left.root, left.evaluation), (right.root, right.evaluation)
    pairs = paired_differences(*sides, snapshot)
    rows = [_compared(name, left.metrics[name], right.metrics[name], pairs) for name in alike]
    alone = [
        f"{name}: only of {side.label}"
        for side, other in ((left, right), (right, left))
        for name in side.metrics
        if name not in other.metrics
    ]
    header = ("metric", "better", left.label, right.label, "difference", "")
    cells = [
        (row["metric"], row["better"], *row["texts"], _difference_text(row), row["outcome"])
        for row in rows
    ]
    refused = [f"{name}: not compared, measured otherwise: {text}" for name, text in unlike.items()]
    lines = [*text_table(header, cells), *alone, *refused]
    if pairs:
        lines.append(
            "Differences with an interval are of samples with the same noise, or of the same scored rows, "
            "from the comparison by which a retrain decided."
        )
    for side in (left, right):
        lines.append(f"{side.label}: evaluation {side.digest[:12]} at {side.root}")
    values = {
        "a": {"label": left.label, "evaluation": left.root, "digest": left.digest},
        "b": {"label": right.label, "evaluation": right.root, "digest": right.digest},
        "metrics": [{key: row[key] for key in row if key != "texts"} for row in rows],
        "only_one": alone,
        "unlike": unlike,
    }
    return values, lines


def _compared(
    name: str, a: MetricResult, b: MetricResult, pairs: Mapping[str, PairedDifference]
) -> dict[str, Any]:
    """One metric of both, with the interval of each alone, and that of the difference if there is one."""
    pair = pairs.get(a.value.name)
    low, high = sorted((a.value, b.value), key=lambda value: value.value)
    outcome = _OVERLAP
    if low.interval.high < high.interval.low:
        lower_is_a = low is a.value
        is_a_better = lower_is_a == (a.better == "lower")
        outcome = "first is better" if is_a_better else "second is better"
    if pair is not None:
        outcome = _paired_outcome(pair, a.better)
    return {
        "metric": name,
        "better": a.better,
        "texts": (_text(a.value), _text(b.value)),
        "a": a.value.model_dump(mode="json", include={"value", "interval"}),
        "b": b.value.model_dump(mode="json", include={"value", "interval"}),
        "difference": b.value.value - a.value.value,
        "paired": None if pair is None else asdict(pair),
        "outcome": outcome,
    }


def _paired_outcome(pair: PairedDifference, better: Better) -> str:
    """Which model is better by the interval of their difference, second minus first."""
    if pair.low <= 0 <= pair.high:
        return _NO_DIFFERENCE
    is_second_better = (pair.low > 0) == (better == "higher")
    return "second is better" if is_second_better else "first is better"


def _difference_text(row: Mapping[str, Any]) -> str:
    pair = row["paired"]
    if pair is None:
        return f"{row['difference']:+.4g}"
    return f"{pair['difference']:+.4g} [{pair['low']:+.4g}, {pair['high']:+.4g}]"


def _text(value: MetricValue) -> str:
    return f"{value.value:.4g} [{value.interval.low:.4g}, {value.interval.high:.4g}]"


def _measured(text: str, context: Context | None, snapshot: ManifestSnapshot) -> _Measured:
    """A model with its evaluation, by its version or its folder."""
    if "/" in text or text in (".", ".."):
        return _in_folder(text, snapshot)
    if context is None:
        raise ConfigError(
            f"compare: {sanitize(text[:80])!r} is no folder, and a version needs --recipe; give the recipe, "
            "or the folders of two models"
        )
    if len(context.models) != 1:
        raise ConfigError(
            f"compare: a version is one of one model; name it with --model: {', '.join(context.models)}"
        )
    champions = Champions(context, context.models[0])
    model = find_model(champions, champions.ledger.read(), text)
    if model.evaluation is None:
        raise ConfigError(
            f"{champions.name}: {model.label} has no evaluation at {sibling(model.root, 'evaluation')}; "
            f"create it first: genmod evaluate --model {champions.name}"
        )
    root = champions.allowed(model.evaluation.root, f"the evaluation of {model.label}")
    evaluation = snapshot.require(Manifest, root, "evaluation", "evaluate")
    return _Measured(f"{champions.name} {model.label}", root, evaluation)


def _in_folder(folder: str, snapshot: ManifestSnapshot) -> _Measured:
    root = storage.resolve(folder)
    evaluation = snapshot.load(Manifest, root, "evaluation")
    if evaluation is not None:
        return _Measured(root, root, evaluation)
    model = snapshot.load(Manifest, root, "model")
    if model is None:
        raise ConfigError(
            f"{root} has neither a model nor an evaluation; give the folder of a model, ROOT/models/NAME"
        )
    where = sibling(root, "evaluation")
    evaluation = snapshot.load(Manifest, where, "evaluation") if where else None
    if where is None or evaluation is None:
        raise ConfigError(
            f"{root} has no evaluation next to it, expected {where or 'ROOT/evaluation/NAME'}; create it "
            "first: genmod evaluate, or give the folder of an evaluation"
        )
    if evaluation.metadata.get("model_digest") != model.digest:
        raise ConfigError(
            f"{where} is the evaluation of another model than {root}; remove it and run genmod evaluate again"
        )
    return _Measured(root, where, evaluation)
