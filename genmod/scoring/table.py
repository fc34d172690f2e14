"""One score table: log-likelihoods of some rows of a dataset as the bytes of a Parquet file.

The table's metadata carries the label of its numbers, so a file that has lost its manifest still says
what they are. Letters: B rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field
from torch import Tensor

from genmod import units
from genmod.config import Config, canonical_json
from genmod.errors import DataError, GenmodError
from genmod.interface.log_prob import LogProb
from genmod.manifest import Split
from genmod.scoring.moments import RunningMoments
from genmod.scoring.ood_scores import CalibrationConfig

_METADATA_KEY = b"genmod"
"""Key of the JSON object in a table's schema metadata."""

_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("label", pa.int64()),
        pa.field("nats", pa.float64(), nullable=False),
        pa.field("stderr", pa.float64(), nullable=False),
        pa.field("bits_per_dim", pa.float64(), nullable=False),
    ]
)
"""``index`` is the row's place in its split, ``nats`` log p summed over dimensions, ``stderr`` its Monte
Carlo standard error in nats, 0 where the number is not random. An estimator may add columns of its own."""


class ScoreConfig(Config):
    """The recipe's ``score``: which rows get a log-likelihood, and how the work is cut."""

    split: Split = "val"
    """The split to score."""
    max_rows: int | None = Field(default=None, gt=0)
    """Score so many rows, drawn from the split by the seed; all of them if not given."""
    micro_batch: int = Field(default=50, gt=0)
    """Rows that the model computes together. Part of the result: it fixes how sums are rounded."""
    rows_per_task: int = Field(default=250, gt=0)
    """Rows of one unit of work, one Parquet file; a shard with more rows is cut."""
    workers: int = Field(default=1, gt=0)
    """Actors, each with the model on a device of its own. They do not change the result."""
    weights: Literal["ema", "raw"] = "ema"
    """``ema``: the moving average; ``raw``: the trained weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: cuda where the recipe's ``cluster.gpus_per_worker`` is above 0."""
    data: str | None = None
    """URL of another dataset of such images to score, e.g. to see how unfamiliar it is; the recipe's own if
    not given. Its content counts for the result, not its place."""
    calibration: CalibrationConfig | None = CalibrationConfig()
    """Rows of the recipe's own data that all others are compared with; ``null`` leaves the columns out."""
    output: str = Field(default="scores", min_length=1)
    """Folder below the root, or a URL; each model has one in it. ``evaluate`` reads the default one."""
    deadline_s: float = Field(default=3600.0, gt=0)
    """For one unit of work. One that takes longer is given up, the others go on, the stage fails."""

    def result(self) -> dict[str, Any]:
        """The fields that the scores depend on, for the fingerprint."""
        exclude = {"workers", "device", "data", "output", "deadline_s"}
        return self.model_dump(mode="json", exclude=exclude)


class ScoreLabel(Config):
    """What a log-likelihood is. Two numbers with different labels are never compared."""

    label: str
    estimator: str
    of: str
    measure: str
    budget: dict[str, int | float | str]
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


def common_label(labels: Iterable[ScoreLabel]) -> ScoreLabel:
    """The label that all parts of one job share.

    Raises:
        GenmodError: they differ, so their rows must not stand in one table.
    """
    distinct = {canonical_json(label.model_dump()): label for label in labels}
    if len(distinct) != 1:
        raise GenmodError(
            f"one scoring job gave {len(distinct)} different labels: "
            + " and ".join(text.decode() for text in sorted(distinct)[:2])
        )
    return next(iter(distinct.values()))


@dataclass(frozen=True)
class Rows:
    """Which rows of a dataset a table is about."""

    keys: Sequence[str]
    index_B: Tensor
    """int64, each row's place in its split."""
    labels_B: Tensor | None
    """int64 class labels, None for data without."""


@dataclass(frozen=True)
class Scores:
    """Log-likelihoods of B rows with their label."""

    rows: Rows
    nats_B: Tensor
    """float64."""
    stderr_B: Tensor
    """float64, nats."""
    label: ScoreLabel
    columns: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """More numbers of each row, as the estimator names them."""

    @classmethod
    def joined(cls, rows: Rows, parts: Sequence[LogProb]) -> Self:
        """Put the micro-batches of a unit of work together.

        Raises:
            GenmodError: rows were lost or added, or a log-likelihood is not a finite number.
        """
        keys = rows.keys
        nats_B = torch.cat([part.nats_B for part in parts]).to("cpu", torch.float64)
        stderr_B = torch.cat([part.stderr_B for part in parts]).to("cpu", torch.float64)
        if not len(keys) == nats_B.shape[0] == stderr_B.shape[0]:
            raise GenmodError(
                f"{len(keys)} rows went in, {nats_B.shape[0]} log-likelihoods came out"
            )
        bad = (~(nats_B.isfinite() & stderr_B.isfinite())).nonzero()
        if len(bad):
            row = int(bad[0])
            raise GenmodError(
                f"the log-likelihood of {keys[row]} is {float(nats_B[row])} "
                f"({len(bad)} such of {len(keys)} rows); a trained model gives finite numbers"
            )
        label = common_label(ScoreLabel.from_log_prob(part) for part in parts)
        columns = {
            name: torch.cat([part.columns[name] for part in parts]).to("cpu", torch.float64)
            for name in parts[0].columns
        }
        return cls(rows, nats_B, stderr_B, label, columns)

    @classmethod
    def from_parquet(cls, data: bytes) -> Self:
        """The table's rows again. DataError if it is not a score table."""
        table, metadata = read_parquet(data)
        values = {
            name: torch.tensor(table[name].to_numpy(), dtype=torch.float64)
            for name in table.schema.names
            if name not in {"key", "index", "label", "bits_per_dim"}
        }
        labels = table["label"].to_pylist()
        rows = Rows(
            keys=table["key"].to_pylist(),
            index_B=torch.tensor(table["index"].to_numpy(), dtype=torch.int64),
            labels_B=None if None in labels else torch.tensor(labels, dtype=torch.int64),
        )
        fields = {name: metadata[name] for name in ScoreLabel.model_fields}
        return cls(
            rows,
            values.pop("nats"),
            values.pop("stderr"),
            ScoreLabel.model_validate(fields),
            values,
        )

    @classmethod
    def together(cls, parts: Sequence[Self]) -> Self:
        """Rows of several tables of one label, at least one table, in order."""
        labels = [part.rows.labels_B for part in parts if part.rows.labels_B is not None]
        rows = Rows(
            keys=[key for part in parts for key in part.rows.keys],
            index_B=torch.cat([part.rows.index_B for part in parts]),
            labels_B=torch.cat(labels) if len(labels) == len(parts) else None,
        )
        return cls(
            rows,
            torch.cat([part.nats_B for part in parts]),
            torch.cat([part.stderr_B for part in parts]),
            common_label(part.label for part in parts),
            {name: torch.cat([part.columns[name] for part in parts]) for name in parts[0].columns},
        )

    def take(self, which_M: Tensor) -> Self:
        """Some of the rows, in the order of their numbers in ``which_M``."""
        labels_B = self.rows.labels_B
        rows = Rows(
            keys=[self.rows.keys[int(row)] for row in which_M.tolist()],
            index_B=self.rows.index_B[which_M],
            labels_B=None if labels_B is None else labels_B[which_M],
        )
        return replace(
            self,
            rows=rows,
            nats_B=self.nats_B[which_M],
            stderr_B=self.stderr_B[which_M],
            columns={name: values_B[which_M] for name, values_B in self.columns.items()},
        )

    def with_columns(self, more: Mapping[str, Tensor]) -> Self:
        """The same with more numbers of each row."""
        return replace(self, columns={**self.columns, **more})

    def to_parquet(
        self, dims: int, metadata: Mapping[str, Any], levels: int = units.LEVELS
    ) -> bytes:
        """The table's file.

        Args:
            dims: D, for bits per dimension.
            metadata: what else the metadata says: digests of model and dataset, split, seed.
            levels: values that a pixel takes, for bits per dimension.
        """
        rows = self.rows
        labels = [None] * len(rows.keys) if rows.labels_B is None else rows.labels_B.tolist()
        bits_B = units.bits_per_dim(self.nats_B, dims, self.label.measure, levels)
        assert isinstance(bits_B, Tensor)
        columns = {
            "key": list(rows.keys),
            "index": rows.index_B.tolist(),
            "label": labels,
            "nats": self.nats_B.numpy(),
            "stderr": self.stderr_B.numpy(),
            "bits_per_dim": bits_B.numpy(),
        }
        header = {_METADATA_KEY: canonical_json({**self.label.model_dump(), **metadata})}
        schema = _SCHEMA
        for name, values_B in self.columns.items():
            schema = schema.append(pa.field(name, pa.float64(), nullable=False))
            columns[name] = values_B.numpy()
        table = pa.table(columns, schema=schema.with_metadata(header))
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        return sink.getvalue().to_pybytes()


def read_parquet(data: bytes) -> tuple[Any, dict[str, Any]]:
    """A pyarrow Table and what its metadata says.

    Raises:
        DataError: it is not a score table.
    """
    try:
        table = pq.read_table(pa.BufferReader(data))
    except pa.ArrowInvalid as error:
        raise DataError(f"not a Parquet file: {error}") from None
    metadata = table.schema.metadata or {}
    if _METADATA_KEY not in metadata or table.schema.names[: len(_SCHEMA)] != _SCHEMA.names:
        raise DataError("a Parquet file, but not a table of scores that genmod wrote")
    return table, json.loads(metadata[_METADATA_KEY])


def summary(
    parts: Sequence[RunningMoments], dims: int, label: ScoreLabel, levels: int = units.LEVELS
) -> dict[str, Any]:
    """What a manifest and a report say of all rows, with the numbers' label."""
    total = RunningMoments()
    for part in parts:
        total = total.merged(part)
    return {
        "n": total.n,
        "mean_nats": total.mean,
        "mean_nats_stderr": total.stderr,
        "mean_bits_per_dim": units.bits_per_dim(total.mean, dims, label.measure, levels),
        "mean_bits_per_dim_stderr": units.bits_per_dim_error(total.stderr, dims),
        **label.model_dump(),
    }
