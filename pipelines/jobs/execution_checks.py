"""Checks of a bulk execution: its nodes before it, failed units and missing rows after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.actors import TaskResult
from cluster.nodes import on_each_node, usable_nodes
from cluster.resources import resource_request
from genmod.errors import ConfigError, GenmodError
from genmod.generation.config import SampleConfig
from genmod.numerics import numeric_class
from genmod.scoring.config import ScoreConfig
from pipelines.jobs.bulk import BulkJob, BulkOptions
from pipelines.jobs.job_state import RESUME


def check_nodes(section: str, config: SampleConfig | ScoreConfig, options: BulkOptions) -> None:
    """ConfigError if nodes would compute other bits and the recipe allows one numeric class only."""
    resources = resource_request(config.device, options.cluster)
    if config.numerics != "strict" or len(usable_nodes(resources.labels)) < 2:
        return
    classes = on_each_node(
        numeric_class, resources.device, labels=resources.labels, gpus=resources.gpus
    )
    if len(set(classes.values())) > 1:
        listed = "; ".join(f"{node}: {name}" for node, name in sorted(classes.items())[:5])
        raise ConfigError(
            f"{section}.numerics is strict, but nodes compute in {len(set(classes.values()))} numeric "
            f"classes ({listed}); choose nodes of one kind with cluster.labels, or set portable or any"
        )


def check_missing(job: BulkJob[Any, Any], manifest: Any) -> None:
    """GenmodError if more rows are missing than the recipe allows."""
    missing = job.missing(manifest)
    if missing > job.max_quarantined:
        raise GenmodError(
            f"{job.title}: {missing:,} {job.missing_text}, more than {job.section}.max_quarantined="
            f"{job.max_quarantined}; all others are in {job.out_root}, where quarantine.parquet lists these"
        )


def raise_if_failed(failed: Sequence[TaskResult], tasks: int) -> None:
    """GenmodError for the first of the failed units."""
    if not failed:
        return
    first = failed[0]
    error = GenmodError(
        f"{len(failed)} of {tasks} tasks failed, first {first['task']['name']}: {first['error']}; {RESUME}"
    )
    if "trace" in first:
        error.add_note(first["trace"])
    raise error
