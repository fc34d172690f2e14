"""Tables of candidates of a filtered request, and the list of rejected images. Letters: N rows, T tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from genmod import storage
from genmod.data.format.index import read_index
from genmod.data.reading.reader import RowReader
from genmod.errors import DataError
from genmod.generation.filters import TABLES, signatures
from genmod.generation.labels import LabelRequest
from genmod.generation.lanes import SampleUnit
from genmod.generation.sets import SampleSet, SampleShard
from genmod.generation.unit import CANDIDATE_SCHEMA, SIGNATURES, SampleReceipt
from genmod.manifest import FileEntry, ImageSpec, StoredShard, read_checked, write_file
from genmod.tables import numbers, read_table

REJECTED_FILE = "rejected.parquet"
"""File of a synthetic dataset with a row for each rejected image."""

REJECTED_SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""``label``: the class that was requested; null without labels."""

_HINT = "remove the folder and run genmod sample again"


class CandidateRows(NamedTuple):
    """Some candidates, in the order of their indices."""

    index_N: NDArray[np.int64]
    reasons: Sequence[str | None]
    """None if accepted so far."""
    signature_NT: NDArray[np.uint64] | None = None
    """Where earlier copies are rejected."""

    def written(self) -> list[int]:
        """Indices of the images that are in the unit's shard."""
        rows = zip(self.index_N.tolist(), self.reasons, strict=True)
        return [index for index, reason in rows if reason is None]


def read_candidates(root: str, receipt: SampleReceipt, *, signed: bool) -> CandidateRows:
    """The candidates of a unit; ``signed`` if earlier copies are rejected. DataError for a damaged table."""
    assert receipt.candidates is not None
    data = read_checked(root, receipt.candidates, _HINT)
    where = storage.join_below(root, receipt.candidates.path)
    table = read_table(data, where, CANDIDATE_SCHEMA, sum(part.rows for part in receipt.parts))
    signature_NT = None
    if signed:
        signature_NT = np.stack([numbers(table[name]) for name in SIGNATURES], axis=1)
    return CandidateRows(numbers(table["index"]), table["reason"].to_pylist(), signature_NT)


def candidates_of_shard(
    shard: SampleShard,
    unit: SampleUnit,
    spec: ImageSpec,
    rejected: Mapping[int, str],
    *,
    signed: bool,
) -> CandidateRows:
    """The candidates of a published shard: its rows, and the images between them that were rejected.

    Raises:
        DataError: an image is in neither.
    """
    stored = StoredShard(shard.entry, shard.folder)
    accepted: list[int] = numbers(read_index(stored, ["index"])["index"]).tolist()
    row_of = {index: row for row, index in enumerate(accepted)}
    index_N = np.array([index for part in unit.ranges() for index in part], dtype=np.int64)
    reasons: list[str | None] = []
    for index in index_N.tolist():
        if index not in row_of and index not in rejected:
            raise DataError(
                f"{shard.folder}: image {index} is neither accepted nor rejected; {_HINT}"
            )
        reasons.append(None if index in row_of else rejected[index])
    if not signed:
        return CandidateRows(index_N, reasons)
    reader = RowReader(spec, [stored])
    accepted_RT = signatures(reader.read(np.arange(len(row_of), dtype=np.int64)).pixels_BCHW)
    reader.close()
    signature_NT = np.zeros((len(index_N), TABLES), np.uint64)
    for row, index in enumerate(index_N.tolist()):
        if index in row_of:
            signature_NT[row] = accepted_RT[row_of[index]]
    return CandidateRows(index_N, reasons, signature_NT)


def write_rejected(
    root: str, labels: LabelRequest, rejected: Iterable[tuple[int, str]]
) -> FileEntry:
    """Write ``rejected.parquet``, in the order of the indices."""
    rows = sorted(rejected)
    columns = {
        "index": [index for index, _ in rows],
        "label": [labels.label(index) for index, _ in rows],
        "reason": [reason for _, reason in rows],
    }
    sink = pa.BufferOutputStream()
    table = pa.table(columns, schema=REJECTED_SCHEMA)
    pq.write_table(table, sink, compression="zstd", write_statistics=False, use_dictionary=False)
    return write_file(root, REJECTED_FILE, sink.getvalue().to_pybytes())


def read_rejected_images(dataset: SampleSet) -> Iterator[tuple[int, str]]:
    """Index and reason of each rejected image of a dataset; none if it has no filters."""
    entry = next((each for each in dataset.manifest.files if each.path == REJECTED_FILE), None)
    if entry is None:
        return
    data = read_checked(dataset.root, entry, _HINT)
    where = storage.join_below(dataset.root, REJECTED_FILE)
    table = read_table(data, where, REJECTED_SCHEMA)
    yield from zip(table["index"].to_pylist(), table["reason"].to_pylist(), strict=True)
