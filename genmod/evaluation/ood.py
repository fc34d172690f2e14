"""How well the columns of score tables tell other data from the model's own: one AUROC for each."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from genmod.errors import ConfigError
from genmod.manifest import Manifest
from genmod.scoring.calibrated import read_scores
from genmod.scoring.ood_scores import OOD_COLUMN, RARE_P, auroc
from genmod.scoring.table import ScoreLabel, Scores

_COLUMNS: dict[str, tuple[int, str]] = {
    "nats": (-1, "log p alone: lower is stranger"),
    "p_two_sided": (-1, "how rare so low or so high a log p is"),
    "typicality_bits_per_dim": (1, "distance from the usual bits per dimension"),
    OOD_COLUMN: (1, "bits per dimension beyond those of a compressor"),
}
"""Column -> the direction in which rows are stranger, and what it is."""


def require_comparable_scores(inside: Manifest, outside: Manifest, where: str) -> None:
    """Refuse scores that cannot be compared.

    Raises:
        ConfigError: they are of two models, estimated in two ways, or without a calibration.
    """
    mine, theirs = (
        {name: manifest.metadata[name] for name in ScoreLabel.model_fields}
        for manifest in (inside, outside)
    )
    calibrated = [manifest.parents.get("calibration") for manifest in (inside, outside)]
    faults = [
        f"{name} {theirs[name]} against {mine[name]}" for name in mine if mine[name] != theirs[name]
    ]
    if inside.parents["model"] != outside.parents["model"]:
        faults.append("of another model")
    if None in calibrated:
        faults.append("not both calibrated (score.calibration)")
    if faults:
        raise ConfigError(
            f"{where}: cannot be compared with the scores of the model's own data: {'; '.join(faults)}; "
            "score both by one recipe"
        )


def ood_auroc(roots: tuple[str, str], inside: Manifest, outside: Manifest) -> dict[str, Any]:
    """AUROC of every column, with what a report says beside it.

    Args:
        roots: where the scores of the model's own data and those of the other data lie.
        inside: manifest of the first.
        outside: manifest of the second.
    """
    own, other = (
        read_scores(root, manifest) for root, manifest in zip(roots, (inside, outside), strict=True)
    )
    columns: list[dict[str, Any]] = []
    for name, (sign, meaning) in _COLUMNS.items():
        value, stderr = auroc(sign * _column(own, name), sign * _column(other, name))
        columns.append(
            {
                "name": name,
                "meaning": meaning,
                "auroc": value,
                "stderr": stderr,
                "own": float(_column(own, name).mean()),
                "other": float(_column(other, name).mean()),
                "recommended": name == OOD_COLUMN,
            }
        )
    return {
        "dataset": outside.parents["dataset"],
        "split": outside.metadata["split"],
        "rows": {"own": len(own.nats_B), "other": len(other.nats_B)},
        "columns": columns,
        "rare_below": RARE_P,
        "rare": {"own": inside.metadata["rare"], "other": outside.metadata["rare"]},
    }


def _column(scores: Scores, name: str) -> Tensor:
    return scores.nats_B if name == "nats" else scores.columns[name]
