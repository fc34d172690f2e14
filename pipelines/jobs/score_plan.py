"""What a scoring job will do: checked against its model and data, with a fingerprint. Writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from genmod import storage
from genmod.config import Config, as_json, fingerprint, parse
from genmod.errors import ConfigError
from genmod.interface.model_store import open_model
from genmod.interface.options import ScoreOptions
from genmod.interface.registry import family
from genmod.manifest import DatasetManifest, ImageSpec, Manifest, require
from genmod.scoring.table import ScoreConfig
from genmod.scoring.work_units import HELD_OUT_SPLIT, SCORE_PURPOSE, rows_to_score, shard_slices

ROW_BYTES_AT_MOST = 240
"""Of one row of a table, with a key of the longest kind."""

CALIBRATION = "calibration"
"""Folder of the calibration rows' scores."""


@dataclass(frozen=True)
class ScoreJob:
    """One model to score a split with."""

    name: str
    model_root: str
    data_root: str
    out_root: str
    options: Mapping[str, Any]
    """The family's options."""
    own_root: str | None = None
    """URL of the dataset that the model belongs to, for calibration and fits; ``data_root`` if not given."""
    calibration_root: str | None = None
    """Folder for scores of calibration rows, shared by all jobs of one model; below ``out_root`` if not
    given."""


class ScorePlan(Config):
    """What a scoring job will do; everything that an actor needs to know of it."""

    name: str
    model_root: str
    data_root: str
    out_root: str
    model_digest: str
    dataset_digest: str
    family: str
    spec: ImageSpec
    config: ScoreConfig
    options: dict[str, Any]
    seed: int
    fingerprint: str
    tables: int
    rows: int
    size_bytes_at_most: int
    own_root: str
    """URL of the dataset that the model belongs to."""
    calibration: ScorePlan | None
    """Of the rows that the others are compared with, done before."""

    @property
    def is_calibrated_by_own_rows(self) -> bool:
        """Whether the calibration rows are rows of the split that is scored."""
        other = self.calibration
        return other is not None and (other.dataset_digest, other.config.split) == (
            self.dataset_digest,
            self.config.split,
        )

    def parsed_options(self) -> ScoreOptions:
        """The family's options."""
        return parse(family(self.family).Score, self.options, f"model.{self.name}.score")

    def metadata(self) -> dict[str, Any]:
        """What each table says of itself beside its label."""
        return {
            "model": self.model_digest,
            "dataset": self.dataset_digest,
            "split": self.config.split,
            "weights": self.config.weights,
            "seed": self.seed,
            "options": self.options,
        }


def plan_score(job: ScoreJob, config: ScoreConfig, *, seed: int) -> ScorePlan:
    """Check a job against its model and dataset and say what it will do. Writes nothing.

    Raises:
        Unscorable: the model has no density, or not as it is asked for.
        ConfigError: there is no such model or dataset, or they do not fit together.
    """
    manifest = require(Manifest, job.model_root, "model", "train, with the same --recipe and --set")
    dataset = require(DatasetManifest, job.data_root, "dataset", "shard")
    model = open_model(job.model_root, manifest).config
    model_class = family(model.family)
    options = parse(model_class.Score, job.options, f"model.{job.name}.score")
    net = parse(model_class.Config, model.net, f"model.{job.name}.net")
    model_class.check_scorable(net, options)
    if model.spec != dataset.spec:
        raise ConfigError(
            f"model {job.name} is of images {model.spec}, but {job.data_root} has {dataset.spec}; "
            "score a dataset of the same images, or train a model on this one"
        )
    if options.max_rows is not None and options.max_rows < dataset.rows(config.split):
        config = config.model_copy(
            update={"max_rows": min(options.max_rows, config.max_rows or options.max_rows)}
        )
    own_root = job.own_root or job.data_root
    own = require(DatasetManifest, own_root, "dataset", "shard")
    if options.held_out_rows > own.rows(HELD_OUT_SPLIT):
        raise ConfigError(
            f"model.{job.name}.score wants {options.held_out_rows} held-out rows to fit itself to, but "
            f"split {HELD_OUT_SPLIT} has {own.rows(HELD_OUT_SPLIT)}; give that split more, or fit to fewer"
        )
    rows = rows_to_score(dataset, config)
    tables = sum(1 for _ in shard_slices(dataset, config, seed))
    calibration = _calibration(job, config, seed)
    inputs = [manifest.digest, dataset.digest]
    if own.digest != dataset.digest:
        inputs.append(own.digest)
    if calibration is not None:
        inputs.append(calibration.fingerprint)
    return ScorePlan(
        name=job.name,
        model_root=job.model_root,
        data_root=job.data_root,
        out_root=job.out_root,
        model_digest=manifest.digest,
        dataset_digest=dataset.digest,
        family=model.family,
        spec=model.spec,
        config=config,
        options=as_json(options),
        seed=seed,
        fingerprint=fingerprint("score", SCORE_PURPOSE, *inputs, config.result(), options, seed),
        tables=tables,
        rows=rows,
        size_bytes_at_most=rows * ROW_BYTES_AT_MOST + tables * 4_096,
        own_root=own_root,
        calibration=calibration,
    )


def _calibration(job: ScoreJob, config: ScoreConfig, seed: int) -> ScorePlan | None:
    """The plan for the rows that the others are compared with."""
    wanted = config.calibration
    if wanted is None:
        return None
    root = job.own_root or job.data_root
    there = require(DatasetManifest, root, "dataset", "shard").rows(wanted.split)
    if there < 2:
        raise ConfigError(
            f"recipe: score.calibration.split is {wanted.split}, which has {there} rows; raise "
            f"data.splits.{wanted.split}, name another split, or set score.calibration=null"
        )
    rows = wanted.rows if wanted.rows < there else None
    narrow = {"split": wanted.split, "max_rows": rows, "calibration": None, "data": None}
    folder = job.calibration_root or storage.join(job.out_root, CALIBRATION)
    inner = replace(job, data_root=root, out_root=folder)
    plan = plan_score(inner, config.model_copy(update=narrow), seed=seed)
    # Jobs that ask for the same share it, others have a folder of their own.
    return plan.model_copy(update={"out_root": storage.join(folder, plan.fingerprint[:12])})
