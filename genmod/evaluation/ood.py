"""Out-of-distribution detection by the columns of score tables: the AUROC of each."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from genmod.errors import ConfigError, sanitize
from genmod.evaluation.inputs import ood_input, parent_of, score_label
from genmod.manifest import Manifest
from genmod.scoring.calibrated import read_scores
from genmod.scoring.ood_scores import OOD_COLUMN, RARE_P, auroc
from genmod.scoring.table import Scores

_COLUMNS: dict[str, tuple[int, str]] = {
    "nats": (-1, "log p alone: lower is more unusual"),
    "p_two_sided": (-1, "two-sided p-value of log p among calibration images"),
    "typicality_bits_per_dim": (
        1,
        "distance from the mean bits per dimension of calibration images",
    ),
    OOD_COLUMN: (1, "bits per dimension minus those of a compressor"),
}
"""Column -> the sign with which larger means more unusual, and the column's meaning."""


def require_comparable_scores(inside: Manifest, outside: Manifest, roots: tuple[str, str]) -> None:
    """Refuse scores that cannot be compared.

    Args:
        inside: manifest of the scores of the model's own data.
        outside: manifest of the scores of other data.
        roots: URLs of both, for the error.

    Raises:
        ConfigError: they are from two models or two estimators, or lack a calibration.
    """
    both = list(zip((inside, outside), roots, strict=True))
    inside_label, outside_label = (score_label(m, root).model_dump() for m, root in both)
    calibrated = [manifest.parents.get("calibration") for manifest in (inside, outside)]
    differences = [
        sanitize(f"{name} {outside_label[name]} against {value}")
        for name, value in inside_label.items()
        if outside_label[name] != value
    ]
    if len({parent_of(manifest, "model", root) for manifest, root in both}) > 1:
        differences.append("of another model")
    if None in calibrated:
        differences.append("not both calibrated (score.calibration)")
    if differences:
        raise ConfigError(
            f"{roots[1]}: cannot be compared with the scores of the model's own data: "
            f"{'; '.join(differences)}; score both with one recipe"
        )


def ood_auroc(roots: tuple[str, str], inside: Manifest, outside: Manifest) -> dict[str, Any]:
    """AUROC of every column, with what the report says about it.

    Args:
        roots: URLs of the scores of the model's own data and of the other data.
        inside: manifest of the former.
        outside: manifest of the latter.

    Returns:
        JSON values: ``dataset``, ``split``, ``rows``, ``columns``, ``rare_below`` and ``rare``.
    """
    inside_input, outside_input = ood_input(inside, roots[0]), ood_input(outside, roots[1])
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
        "dataset": parent_of(outside, "dataset", roots[1]),
        "split": outside_input.split,
        "rows": {"own": len(own.nats_B), "other": len(other.nats_B)},
        "columns": columns,
        "rare_below": RARE_P,
        "rare": {"own": inside_input.rare, "other": outside_input.rare},
    }


def _column(scores: Scores, name: str) -> Tensor:
    return scores.nats_B if name == "nats" else scores.column(name)
