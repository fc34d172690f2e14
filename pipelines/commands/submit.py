"""``genmod submit``: runs a stage as a job on a Ray cluster, shows its log here, returns its exit code.

The recipe travels as one resolved file in the job's working folder. A job is named after its stage and
recipe, so submitting it a second time follows the running job.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmod import storage
from genmod.config import fingerprint
from genmod.errors import ConfigError, GenmodError, sanitize_log
from genmod.interface.external import FAMILIES_VARIABLE

if TYPE_CHECKING:  # a recipe takes seconds to import, and --status needs none
    from cluster.jobs import JobRequest, Jobs, JobState
    from pipelines.recipe.recipe import Recipe

_RECIPE_FILE = "recipe.yaml"


def submit(
    stage: str,
    *,
    recipe: str,
    assignments: Sequence[str] = (),
    models: Sequence[str] = (),
    address: str | None = None,
    wait: bool = True,
    as_json: bool = False,
) -> dict[str, Any]:
    """Run a stage as a Ray job and follow it.

    Args:
        stage: as on the command line.
        recipe: a shipped recipe's name or a file.
        assignments: texts ``a.b=c``, applied here.
        models: only these models of the recipe; empty means all.
        address: URL of the cluster's job server; RAY_API_SERVER_ADDRESS if not given.
        wait: follow the job to its end; otherwise return when it is submitted.
        as_json: the job's own JSON result becomes part of this one.

    Returns:
        The job's result with ``job`` (its id) and ``exit_code``.
    """
    from pipelines.recipe import recipe as config

    jobs = _jobs(address)
    resolved = _portable(config.load_recipe(recipe, assignments))
    for model in models:
        resolved.entry(model)
    options = [part for model in models for part in ("--model", model)]
    with tempfile.TemporaryDirectory(prefix="genmod-job-") as folder:
        Path(folder, _RECIPE_FILE).write_text(resolved.to_yaml())
        job_id, started = jobs.submit(_request(stage, resolved, options, folder, as_json))
    _say(f"{'submitted' if started else 'following'} {job_id} at {jobs.address}")
    metadata = {"stage": stage, "output": resolved.root, "fingerprint": None, "job": job_id}
    if not wait:
        return {**metadata, "status": "submitted" if started else "running"}
    tail = _Tail()
    try:
        state = jobs.follow(job_id, tail.write)
    except KeyboardInterrupt:
        raise GenmodError(
            f"{job_id} keeps running; stop it with: genmod submit --stop {job_id} --address "
            f"{jobs.address}; the same command follows it again"
        ) from None
    return {**metadata, **_job_result(tail.last_line), **_ending(state)}


def manage(action: str, job_id: str, address: str | None) -> dict[str, Any]:
    """Return the state of a job, show its log, or stop it.

    Args:
        action: ``status``, ``logs`` or ``stop``.
        job_id: of the job, as :func:`submit` returned it.
        address: URL of the cluster's job server; RAY_API_SERVER_ADDRESS if not given.
    """
    jobs = _jobs(address)
    state = jobs.stop(job_id) if action == "stop" else jobs.state(job_id)
    if action == "logs":
        sys.stderr.write(sanitize_log(jobs.logs(job_id)))
    else:
        _say(f"{job_id}: {state.status} {state.message}".rstrip())
    return {
        "stage": "submit",
        "status": state.status.lower(),
        "output": None,
        "fingerprint": None,
        "job": job_id,
        "message": state.message,
    }


def _jobs(address: str | None) -> Jobs:
    from cluster.jobs import Jobs  # imports ray: seconds

    address = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not address:
        raise ConfigError(
            "no cluster to submit to; give the address of its job server: --address http://HOST:8265"
        )
    return Jobs(address)


def _portable(recipe: Recipe) -> Recipe:
    """The recipe with an absolute source, so that it means the same in another folder."""
    from genmod.data.sources.registry import open_source

    source = open_source(recipe.data.source).text
    data = recipe.data.model_copy(update={"source": source})
    cluster = recipe.cluster.model_copy(update={"address": "auto"})
    return recipe.model_copy(update={"data": data, "cluster": cluster})


def _request(
    stage: str, recipe: Recipe, options: Sequence[str], folder: str, as_json: bool
) -> JobRequest:
    from cluster.jobs import JobRequest

    forwarded = (*storage.FORWARDED_VARIABLES, FAMILIES_VARIABLE)
    words = ["python", "-m", "pipelines", stage, "--recipe", _RECIPE_FILE, *options]
    return JobRequest(
        name=f"genmod-{stage}-{fingerprint(stage, recipe, list(options))[:12]}",
        entrypoint=shlex.join([*words, "--json"] if as_json else words),
        working_dir=folder,
        env={name: os.environ[name] for name in forwarded if name in os.environ},
        metadata={"genmod": stage, "root": recipe.root},
    )


def _ending(state: JobState) -> dict[str, Any]:
    """The exit code, and the status if the job printed no result."""
    if state.status == "SUCCEEDED":
        return {"exit_code": 0}
    if state.exit_code is None or state.exit_code not in (1, 2):
        _say(f"{state.id}: {state.status} {state.message}".rstrip())
        return {"exit_code": 1, "status": state.status.lower()}
    return {"exit_code": state.exit_code}


def _job_result(line: str) -> dict[str, Any]:
    """The job's JSON result, if the last line of its log is one."""
    try:
        result = json.loads(line)
    except ValueError:
        return {"status": "done"}
    return result if isinstance(result, dict) else {"status": "done"}


class _Tail:
    """Writes text to stderr and keeps the last line."""

    def __init__(self) -> None:
        self.last_line = ""
        self._open = ""

    def write(self, text: str) -> None:
        sys.stderr.write(sanitize_log(text))
        sys.stderr.flush()
        *lines, self._open = (self._open + text).split("\n")
        for line in [*lines, self._open]:
            self.last_line = line if line.strip() else self.last_line


def _say(text: str) -> None:
    print(f"genmod: {text}", file=sys.stderr, flush=True)
