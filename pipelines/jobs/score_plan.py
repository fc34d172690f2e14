"""Plans a scoring job: checks it against its model and data, and computes its fingerprint. Writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from genmod import storage
from genmod.config import Config, as_json, fingerprint, parse
from genmod.errors import ConfigError
from genmod.interface.model_store import classes_of
from genmod.interface.options import ScoreOptions
from genmod.interface.registry import family
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import ImageSpec
from genmod.manifest.class_match import Classes, match_classes
from genmod.scoring.config import ScoreConfig
from genmod.scoring.work_units import HELD_OUT_SPLIT, SCORE_PURPOSE, rows_to_score, shard_slices

ROW_BYTES_AT_MOST = 240
"""Bytes of one row of a table, with the longest kind of key."""

CALIBRATION = "calibration"
"""Folder of the calibration rows' scores."""


@dataclass(frozen=True)
class ScoreJob:
    """One model and the dataset of which it scores a split."""

    name: str
    """Of the model in the recipe."""
    model_root: str
    """URL of the model's folder."""
    data_root: str
    """URL of the dataset that is scored."""
    out_root: str
    """URL of the scores' folder."""
    options: Mapping[str, Any]
    """The family's options."""
    own_root: str | None = None
    """URL of the dataset that the model belongs to, for calibration and fits; ``data_root`` if not given."""
    calibration_root: str | None = None
    """Folder for scores of calibration rows, shared by all jobs of one model; below ``out_root`` if not
    given."""


class ScorePlan(Config):
    """A checked scoring job: everything that its actors need, as JSON values."""

    name: str
    model_root: str
    data_root: str
    out_root: str
    model_digest: str
    dataset_digest: str
    family: str
    spec: ImageSpec
    """Of the dataset that is scored; the model may know more classes."""
    label_map: tuple[int, ...] = ()
    """The model's number of each of the dataset's classes, matched by name; empty if they are equal."""
    own_label_map: tuple[int, ...] = ()
    """The same for the dataset that the model belongs to, of which held-out rows are read."""
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
    """The plan of the rows that all rows are compared with; it runs first."""

    @property
    def is_calibrated_by_own_rows(self) -> bool:
        """Whether the calibration rows are rows of the split that is scored."""
        other = self.calibration
        return other is not None and (other.dataset_digest, other.config.split) == (
            self.dataset_digest,
            self.config.split,
        )

    def parsed_options(self) -> ScoreOptions:
        """The options as the family's configuration."""
        return parse(family(self.family).Score, self.options, f"model.{self.name}.score")

    def metadata(self) -> dict[str, Any]:
        """The metadata of each table, without its label."""
        return {
            "model": self.model_digest,
            "dataset": self.dataset_digest,
            "split": self.config.split,
            "weights": self.config.weights,
            "seed": self.seed,
            "options": self.options,
        }


def plan_score(
    job: ScoreJob, config: ScoreConfig, *, seed: int, snapshot: ManifestSnapshot | None = None
) -> ScorePlan:
    """Check a job against its model and dataset and plan it. Writes nothing.

    Args:
        job: the model, its options and the dataset.
        config: the recipe's section.
        seed: of the recipe.
        snapshot: the manifests that the command has read; new ones are read where it is not given.

    Raises:
        Unscorable: the model has no density under its options.
        ConfigError: the model or a dataset does not exist, or they do not fit together.
    """
    snapshot = snapshot or ManifestSnapshot()
    published = snapshot.model(job.model_root, "train, with the same --recipe and --set")
    manifest, model = published.manifest, published.config
    dataset = snapshot.dataset(job.data_root)
    model_class = family(model.family)
    options = parse(model_class.Score, job.options, f"model.{job.name}.score")
    net = parse(model_class.Config, model.net, f"model.{job.name}.net")
    model_class.check_scorable(net, options)
    if not model.spec.same_images(dataset.spec):
        raise ConfigError(
            f"model {job.name} is of images {model.spec}, but {job.data_root} has {dataset.spec}; "
            "score a dataset of the same images, or train a model on this one"
        )
    if options.max_rows is not None and options.max_rows < dataset.rows(config.split):
        config = config.model_copy(
            update={"max_rows": min(options.max_rows, config.max_rows or options.max_rows)}
        )
    own_root = job.own_root or job.data_root
    own = snapshot.dataset(own_root)
    names = classes_of(published).class_names
    known = Classes(f"model {job.name}", model.spec.classes, names)
    used = dataset.classes_with_rows(config.split)
    label_map = match_classes(dataset.classes(job.data_root), known, used)
    own_label_map: tuple[int, ...] = ()
    if options.held_out_rows:
        used = own.classes_with_rows(HELD_OUT_SPLIT)
        own_label_map = match_classes(own.classes(own_root), known, used)
    if options.held_out_rows > own.rows(HELD_OUT_SPLIT):
        raise ConfigError(
            f"model.{job.name}.score fits to {options.held_out_rows} held-out rows, but split "
            f"{HELD_OUT_SPLIT} has {own.rows(HELD_OUT_SPLIT)}; raise data.splits.{HELD_OUT_SPLIT}, or fit "
            "to fewer rows"
        )
    rows = rows_to_score(dataset, config)
    tables = sum(1 for _ in shard_slices(job.data_root, dataset, config, seed))
    calibration = _calibration(job, config, seed, snapshot)
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
        spec=dataset.spec,
        label_map=label_map,
        own_label_map=own_label_map,
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


def _calibration(
    job: ScoreJob, config: ScoreConfig, seed: int, snapshot: ManifestSnapshot
) -> ScorePlan | None:
    """The plan of the calibration rows, None if the recipe has none."""
    calibration = config.calibration
    if calibration is None:
        return None
    root = job.own_root or job.data_root
    num_rows = snapshot.dataset(root).rows(calibration.split)
    if num_rows < 2:
        raise ConfigError(
            f"recipe: score.calibration.split is {calibration.split}, which has {num_rows} rows; raise "
            f"data.splits.{calibration.split}, name another split, or set score.calibration=null"
        )
    max_rows = calibration.rows if calibration.rows < num_rows else None
    changes = {
        "split": calibration.split,
        "max_rows": max_rows,
        "calibration": None,
        "data": None,
    }
    folder = job.calibration_root or storage.join(job.out_root, CALIBRATION)
    inner = replace(job, data_root=root, out_root=folder)
    plan = plan_score(inner, config.model_copy(update=changes), seed=seed, snapshot=snapshot)
    # Jobs with the same calibration share its folder; others have one of their own.
    return plan.model_copy(update={"out_root": storage.join(folder, plan.fingerprint[:12])})
