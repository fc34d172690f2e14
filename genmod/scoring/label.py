"""The label of a score table: what its log-likelihoods are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

from genmod.config import Config, canonical_json
from genmod.documents import validate
from genmod.errors import GenmodError
from genmod.interface.log_prob import LogProb


class ScoreLabel(Config):
    """The label of log-likelihoods. Numbers with different labels are never compared.

    The fields are those of :class:`~genmod.interface.log_prob.LogProb`.
    """

    label: str
    """Bound, estimate or exact value."""
    estimator: str
    of: str
    """The density that the numbers belong to."""
    measure: str
    budget: dict[str, int | float | str]
    """Settings of the estimator."""
    units: str = "nats per image, summed over dimensions"

    @classmethod
    def from_log_prob(cls, log_prob: LogProb) -> Self:
        """The label of an estimate."""
        return cls(
            label=log_prob.label,
            estimator=log_prob.estimator,
            of=log_prob.of,
            measure=log_prob.measure,
            budget=dict(log_prob.budget),
        )

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], where: str) -> Self:
        """The label in the metadata of a score table or manifest.

        Args:
            metadata: JSON values, with other keys too.
            where: its file, for the error.

        Raises:
            DataError: a field is missing or of another type.
        """
        fields = {name: metadata[name] for name in cls.model_fields if name in metadata}
        return validate(cls, fields, "the label of scores", where, "score again")


def common_label(labels: Iterable[ScoreLabel]) -> ScoreLabel:
    """The common label of all parts of a job.

    Raises:
        GenmodError: labels differ, so the rows must not be in one table.
    """
    distinct = {canonical_json(label.model_dump()): label for label in labels}
    if len(distinct) != 1:
        raise GenmodError(
            f"scores of one job: got {len(distinct)} different labels, expected 1: "
            + " and ".join(text.decode() for text in sorted(distinct)[:2])
        )
    return next(iter(distinct.values()))
