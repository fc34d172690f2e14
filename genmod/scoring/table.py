"""Score tables: log-likelihoods of rows of a data set as a Parquet file.

The metadata of a file contains the label of its numbers, so a table is self-describing without its manifest.
Letters: B rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from genmod import units
from genmod.config import canonical_json
from genmod.documents import parse_json
from genmod.errors import DataError, GenmodError
from genmod.interface.log_prob import LogProb
from genmod.scoring.label import ScoreLabel, common_label
from genmod.scoring.moments import RunningMoments
from genmod.tables import numbers, read_table

_HINT = "remove its folder and score again"

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
"""``index``: position of the row in its split. ``nats``: log p summed over dimensions. ``stderr``: Monte
Carlo standard error in nats, 0 if the number is deterministic. Estimators may add further columns."""


@dataclass(frozen=True)
class Rows:
    """The rows of a data set that a table contains."""

    keys: Sequence[str]
    """Key of each row."""
    index_B: Tensor
    """int64, position of each row in its split."""
    labels_B: Tensor | None
    """int64 class labels; None for data without labels."""


@dataclass(frozen=True)
class Scores:
    """Log-likelihoods of B rows with their label: the content of a score table."""

    rows: Rows
    nats_B: Tensor
    """float64, log p summed over dimensions."""
    stderr_B: Tensor
    """float64, standard error in nats."""
    label: ScoreLabel
    columns: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Further columns, (B,) float64 each."""

    @classmethod
    def from_log_probs(cls, rows: Rows, parts: Sequence[LogProb]) -> Self:
        """Concatenate the estimates of micro-batches.

        Args:
            rows: all rows, in order.
            parts: the estimates of the micro-batches, in the same order.

        Raises:
            GenmodError: the number of rows differs, or a log-likelihood is not finite.
        """
        keys = rows.keys
        nats_B = torch.cat([part.nats_B for part in parts]).to("cpu", torch.float64)
        stderr_B = torch.cat([part.stderr_B for part in parts]).to("cpu", torch.float64)
        if not len(keys) == nats_B.shape[0] == stderr_B.shape[0]:
            raise GenmodError(
                f"log_prob: got {nats_B.shape[0]} log-likelihoods, expected {len(keys)}, one per row"
            )
        bad = (~(nats_B.isfinite() & stderr_B.isfinite())).nonzero()
        if len(bad):
            row = int(bad[0])
            raise GenmodError(
                f"log-likelihood of {keys[row]}: got {float(nats_B[row])}, expected a finite number "
                f"({len(bad)} of {len(keys)} rows); check that the model is trained and did not diverge"
            )
        label = common_label(ScoreLabel.from_log_prob(part) for part in parts)
        columns = {
            name: torch.cat([part.columns[name] for part in parts]).to("cpu", torch.float64)
            for name in parts[0].columns
        }
        return cls(rows, nats_B, stderr_B, label, columns)

    @classmethod
    def from_parquet(cls, data: bytes, where: str, rows: int | None = None) -> Self:
        """Read a table from the bytes of its file.

        Args:
            data: the file.
            where: its name, for errors.
            rows: expected number of rows; None: any.

        Raises:
            DataError: it is not a score table.
        """
        table, metadata = read_parquet(data, where, rows)
        label = ScoreLabel.from_metadata(metadata, where)
        values = {
            name: torch.tensor(numbers(table[name]), dtype=torch.float64)
            for name in table.schema.names
            if name not in {"key", "index", "label", "bits_per_dim"}
        }
        labels = table["label"].to_pylist()
        scored = Rows(
            keys=table["key"].to_pylist(),
            index_B=torch.tensor(numbers(table["index"]), dtype=torch.int64),
            labels_B=None if None in labels else torch.tensor(labels, dtype=torch.int64),
        )
        return cls(scored, values.pop("nats"), values.pop("stderr"), label, values)

    def column(self, name: str) -> Tensor:
        """A further column, (B,) float64. DataError if the table has none of this name."""
        if name not in self.columns:
            raise DataError(f"a score table has no column {name}; score again")
        return self.columns[name]

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Concatenate tables, at least one.

        Raises:
            GenmodError: their labels or columns differ.
        """
        if len({tuple(sorted(part.columns)) for part in parts}) != 1:
            raise GenmodError(
                f"{len(parts)} score tables do not have the same columns; score again"
            )
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
        """Select rows by their positions, in the order of ``which_M``."""
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
        """The same table with further columns, (B,) float64 each."""
        return replace(self, columns={**self.columns, **more})

    def to_parquet(
        self, dims: int, metadata: Mapping[str, Any], levels: int = units.LEVELS
    ) -> bytes:
        """The bytes of the table's Parquet file.

        Args:
            dims: D, number of dimensions of an image, for bits per dimension.
            metadata: added to the label in the file's metadata: digests of model and data set, split, seed.
            levels: number of values of a pixel, for bits per dimension.
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


def read_parquet(data: bytes, where: str, rows: int | None = None) -> tuple[Any, dict[str, Any]]:
    """The pyarrow Table of a score table's file, and its metadata.

    Args:
        data: the file.
        where: its name, for errors.
        rows: expected number of rows; None: any.

    Raises:
        DataError: it is not a score table, or a number in it is not finite.
    """
    table = read_table(data, where, _SCHEMA, rows, others=True)
    header = pq.read_schema(pa.BufferReader(data)).metadata or {}
    if _METADATA_KEY not in header:
        raise DataError(f"{where}: a Parquet file without genmod's metadata; {_HINT}")
    metadata = parse_json(header[_METADATA_KEY], f"{where}: its metadata", _HINT)
    if not isinstance(metadata, dict):
        raise DataError(f"{where}: its metadata is not an object; {_HINT}")
    return table, cast("dict[str, Any]", metadata)


def summary(
    parts: Sequence[RunningMoments], dims: int, label: ScoreLabel, levels: int = units.LEVELS
) -> dict[str, Any]:
    """Mean log-likelihood over all rows with its label, for manifests and reports.

    Args:
        parts: moments of the nats of each table.
        dims: D, number of dimensions of an image.
        label: the common label of the tables.
        levels: number of values of a pixel.
    """
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
