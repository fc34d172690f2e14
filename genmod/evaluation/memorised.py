"""Memorisation of a synthetic dataset: every sample against every training row, and the table of evidence.

Pixels are read in blocks. In memory are at most 256 MiB of decoded images for each of the three sets, 256
bytes of features per training row, and 100 bytes per sample. Letters: N samples, R rows.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from genmod.config import canonical_json, fingerprint
from genmod.data.reading.reader import RowReader
from genmod.errors import ConfigError
from genmod.evaluation.images import Images, split_digest
from genmod.generation.synthetic import SAMPLE_SPLIT
from genmod.manifest import DatasetManifest, Split
from genmod.metrics.copy_forms import Likeness, likeness
from genmod.metrics.memorisation import MOST_FALSE, STATISTIC, Memorisation, memorisation
from genmod.metrics.near_copies import CopySearch, Pixels, blocks
from genmod.metrics.protocol import EvaluateConfig, MetricValue, Protocol

EVIDENCE = "memorisation.parquet"
"""File of an evaluation with a row for every sample."""

SHOWN = 10
"""Samples shown with their training images, if so few are named."""

MOST_SHOWN = 50
"""Named samples that are shown, at most."""

LEAKAGE_CALIBRATION = 10_000
"""Most real images on which the p-values of copies of reference rows are measured."""

_CACHED_BYTES = 1 << 28
_BLOCK_NUMBERS = 400_000
"""Numbers in the images of a block; about 200 bytes of memory each."""

_SCHEMA = pa.schema(
    [
        pa.field("sample_key", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("train_key", pa.string(), nullable=False),
        pa.field("named", pa.bool_(), nullable=False),
        pa.field("p_value", pa.float64(), nullable=False),
        pa.field("q_value", pa.float64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("distance", pa.float64(), nullable=False),
        pa.field("closeness", pa.float64(), nullable=False),
    ]
)
"""``index``: number of the row among the samples. ``distance``: root mean square difference in grey levels,
after the kind of change. ``closeness``: logarithm of the distance that is usual there over the distance."""


@dataclass(frozen=True)
class RowSource:
    """Random access to the images of some rows."""

    pixels: Pixels
    rows: int

    @classmethod
    def of(cls, images: Images) -> RowSource:
        """Images that are in memory."""
        return cls(images.pixels_NCHW.__getitem__, len(images))


@dataclass(frozen=True)
class Memorised:
    """The metric, and for every sample its evidence."""

    value: MetricValue
    result: Memorisation

    def shown(self) -> Tensor:
        """The samples to show, most suspicious first: all named ones within reason, at least some."""
        named = int(self.result.named_N.sum())
        return self.result.most_suspicious(min(MOST_SHOWN, max(SHOWN, named)))

    def evidence(self, sample_keys: list[str], train_keys: list[str]) -> bytes:
        """The Parquet file with a row for every sample."""
        result, found = self.result, self.result.likeness
        columns = {
            "sample_key": sample_keys,
            "index": range(len(sample_keys)),
            "train_key": [train_keys[row] for row in found.row_B.tolist()],
            "named": result.named_N.tolist(),
            "p_value": result.p_N.tolist(),
            "q_value": result.q_N.tolist(),
            "kind": list(found.kinds),
            "distance": found.distance_B.tolist(),
            "closeness": found.closeness_B.tolist(),
        }
        protocol = canonical_json(self.value.protocol.model_dump(mode="json"))
        schema = _SCHEMA.with_metadata({b"genmod": protocol})
        stream = pa.BufferOutputStream()
        pq.write_table(pa.table(columns, schema=schema), stream)
        return stream.getvalue().to_pybytes()

    def metadata(self, sample_keys: list[str], train_keys: list[str]) -> dict[str, Any]:
        """What the report shows, as JSON values."""
        result, found = self.result, self.result.likeness
        return {
            "samples": len(result.named_N),
            "named": int(result.named_N.sum()),
            "fdr": result.fdr,
            "train_rows": self.value.protocol.settings["n_train"],
            "held_out": result.calibration[0],
            "train_against_others": result.calibration[1],
            "shown": [
                {
                    "sample": row,
                    "sample_key": sample_keys[row],
                    "train_key": train_keys[int(found.row_B[row])],
                    "named": bool(result.named_N[row]),
                    "kind": found.kinds[row],
                    "p_value": float(result.p_N[row]),
                    "q_value": float(result.q_N[row]),
                    "distance": float(found.distance_B[row]),
                }
                for row in self.shown().tolist()
            ],
        }


class CopyTest:
    """Compares samples with every training row, as many sets of them as needed.

    p-values are measured on held-out images, and on training rows, evenly spaced, until there are
    ``config.memorisation_calibration`` images. These are compared once.
    """

    def __init__(
        self,
        train: RowSource,
        held_out: RowSource,
        config: EvaluateConfig,
        reference_digest: str,
        *,
        metric: str = "memorisation",
    ) -> None:
        """Compare the real images.

        Args:
            train: what samples may be copies of.
            held_out: real images that are no copies of them.
            config: settings of the evaluation.
            reference_digest: of the images that the evaluation compares samples with.
            metric: name of the metric.

        Raises:
            ConfigError: there is only one training row.
        """
        if train.rows < 2:
            raise ConfigError(
                f"memorisation needs at least 2 training images, got {train.rows}; provide more images"
            )
        self._config, self._digest, self._metric = config, reference_digest, metric
        self._search = CopySearch(train.pixels, train.rows)
        self._real = min(held_out.rows, config.memorisation_calibration)
        self._others = min(train.rows, config.memorisation_calibration - self._real)
        rows_R = torch.arange(self._others) * train.rows // max(1, self._others)
        self._calibration = (
            _likeness(self._search, held_out, torch.arange(self._real)),
            _likeness(self._search, train, rows_R, True),
        )

    def measure(self, samples: RowSource) -> Memorised:
        """The metric of samples, and the evidence for each."""
        found = _likeness(self._search, samples, torch.arange(samples.rows))
        result = memorisation(found, *self._calibration, self._config.memorisation_fdr)
        protocol = Protocol(
            metric=self._metric,
            features="pixels",
            features_digest=fingerprint("pixels", STATISTIC),
            reference_digest=self._digest,
            reference_split=self._config.reference,
            n_real=self._real,
            n_fake=samples.rows,
            settings={
                "n_train": self._search.rows,
                "n_train_against_others": self._others,
                "fdr": self._config.memorisation_fdr,
                "largest_p": max(MOST_FALSE, 2 / (self._real + self._others + 1)),
                "statistic": STATISTIC,
            },
        )
        return Memorised(MetricValue.of(protocol, result.share, result.interval), result)


def leakage_test(
    train: RowSource, reference: RowSource, config: EvaluateConfig, reference_digest: str
) -> CopyTest:
    """The test for samples that repeat reference rows, which no model should have seen.

    The same test as that of memorisation with the sets exchanged: p-values are measured on training rows
    against the reference rows, and on reference rows against the others.
    """
    rows = min(config.memorisation_calibration, LEAKAGE_CALIBRATION)
    few = config.model_copy(update={"memorisation_calibration": rows})
    return CopyTest(reference, train, few, reference_digest, metric="leakage")


def _likeness(
    search: CopySearch, source: RowSource, row_R: Tensor, of_train: bool = False
) -> Likeness:
    """Of some rows, block by block; rows of the training set are compared with the others."""
    size = max(16, _BLOCK_NUMBERS // search.image_numbers)
    parts = [
        likeness(search, source.pixels(row_R[part_B]), row_R[part_B] if of_train else None)
        for part_B in blocks(len(row_R), size)
    ]
    return Likeness.join(parts)


@contextmanager
def row_source(root: str, manifest: DatasetManifest, split: Split) -> Generator[RowSource]:
    """All rows of a split, in their order."""
    reader = RowReader(manifest.spec, manifest.stored(root, split), decoded_bytes=_CACHED_BYTES)

    def pixels(row_R: Tensor) -> Tensor:
        return reader.read(row_R.numpy().astype(np.int64, copy=False)).pixels_BCHW

    try:
        yield RowSource(pixels, len(reader))
    finally:
        reader.close()


def measure_memorisation(
    samples: tuple[str, DatasetManifest],
    trained: tuple[str, DatasetManifest],
    data: tuple[str, DatasetManifest],
    config: EvaluateConfig,
) -> tuple[Memorised, MetricValue]:
    """Memorisation and leakage of published samples.

    Args:
        samples: URL and manifest of the synthetic dataset.
        trained: those of the data that the model was trained on.
        data: those of the data with the reference rows.
        config: settings of the evaluation.
    """
    with (
        row_source(*samples, SAMPLE_SPLIT) as sampled,
        row_source(*trained, "train") as train,
        row_source(*data, config.reference) as held_out,
    ):
        digest = split_digest(data[1], config.reference)
        memorised = CopyTest(train, held_out, config, digest).measure(sampled)
        return memorised, leakage_test(train, held_out, config, digest).measure(sampled).value
