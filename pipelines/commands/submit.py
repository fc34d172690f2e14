"""``genmod submit``: runs a stage as a job on a Ray cluster, shows its log here, returns its exit code.

The recipe travels as one resolved file in the job's working folder. A job is named after its stage and
recipe, so submitting it a second time follows the running job.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cluster.job_server import query_state
from genmod import storage
from genmod.budget import ReadBudget
from genmod.config import fingerprint
from genmod.documents import parse_json
from genmod.errors import ConfigError, DataError, GenmodError
from genmod.interface.external import FAMILIES_VARIABLE
from genmod.terminal import print_line, print_log

if TYPE_CHECKING:  # a recipe takes seconds to import, and --status needs none
    from cluster.jobs import JobRequest, Jobs, JobState
    from pipelines.recipe.recipe import Recipe

_RECIPE_FILE = "recipe.yaml"

_READ_SOURCE = ("run", "shard", "retrain")
"""Stages that read the recipe's ``data.source``."""

_LAST_LINE_CHARS = 1 << 20
"""Of the last line of a log, which may be the job's result."""

_RESULT = ReadBudget(document_bytes=4 * _LAST_LINE_CHARS)


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
        address: URL of the cluster's job server; default: RAY_API_SERVER_ADDRESS, else a URL in RAY_ADDRESS.
        wait: follow the job to its end; otherwise return when it is submitted.
        as_json: the job's own JSON result becomes part of this one.

    Returns:
        The job's result with ``job`` (its id) and ``exit_code``.
    """
    from pipelines.recipe import recipe as config

    address = job_server(address)
    loaded = config.load_recipe(recipe, assignments)
    _check_paths(stage, loaded, address)
    jobs = _jobs(address)
    resolved = _portable(loaded)
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
    except KeyboardInterrupt as interrupt:
        stop = f"genmod submit --stop {job_id} --address {jobs.address}"
        raise keeps_running(job_id, stop, interrupt) from None
    return {**metadata, **_job_result(tail.last_line), "job": job_id, **_ending(state)}


def keeps_running(job: str, stop: str, interrupt: KeyboardInterrupt) -> GenmodError:
    """The error of a command that no longer follows a job, with the exit code of the signal.

    Args:
        job: its name.
        stop: the command that stops it.
        interrupt: what ended the command.
    """
    error = GenmodError(
        f"{job} keeps running; stop it with: {stop}; the same command follows it again"
    )
    error.exit_code = getattr(interrupt, "exit_code", 130)
    return error


def manage(action: str, job_id: str, address: str | None) -> dict[str, Any]:
    """Return the state of a job, show its log, or stop it.

    Args:
        action: ``status``, ``logs`` or ``stop``.
        job_id: of the job, as :func:`submit` returned it.
        address: URL of the cluster's job server; default: RAY_API_SERVER_ADDRESS, else a URL in RAY_ADDRESS.
    """
    address = job_server(address)
    if action == "status":  # without ray, which takes seconds to import
        state = query_state(address, job_id)
    else:
        jobs = _jobs(address)
        state = jobs.stop(job_id) if action == "stop" else jobs.state(job_id)
        if action == "logs":
            print_log(jobs.logs(job_id))
    if action != "logs":
        _say(f"{job_id}: {state.status} {state.message}".rstrip())
    return {
        "stage": "submit",
        "status": state.status.lower(),
        "output": None,
        "fingerprint": None,
        "job": job_id,
        "message": state.message,
    }


def _jobs(address: str) -> Jobs:
    from cluster.jobs import Jobs  # imports ray: seconds

    return Jobs(address)


def job_server(address: str | None) -> str:
    """The URL of the job server: of the command line, else of a variable that has one."""
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not address and (variable := os.environ.get("RAY_ADDRESS", "")).startswith("http"):
        address = variable
    if not address:
        raise ConfigError(
            "no cluster to submit to; give the address of its job server: --address http://HOST:8265"
        )
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"--address is {storage.check_url(address)}, but expected the URL of the job server, e.g. "
            "http://HOST:8265"
        )
    return storage.check_url(address)


def _check_paths(stage: str, recipe: Recipe, address: str) -> None:
    """Refuse paths of this machine in a recipe for another one."""
    from pipelines.recipe.remote_paths import check_paths

    check_paths(recipe, urlsplit(address).hostname or "", _used_paths(stage, recipe))


def _used_paths(stage: str, recipe: Recipe) -> Callable[[str], bool]:
    """Whether a stage uses the path in a key of the recipe."""
    return lambda key: (
        (stage in _READ_SOURCE or key != "data.source")
        and (recipe.tracking.enabled or not key.startswith("tracking."))
    )


def portable_recipe(stage: str, recipe: Recipe, place: str) -> Recipe:
    """The recipe for a job on other machines, with an absolute source.

    Args:
        stage: of the job.
        recipe: as loaded here.
        place: where the job runs, in words.

    Raises:
        ConfigError: the stage uses a path of this machine.
    """
    from pipelines.recipe.remote_paths import refuse_paths

    refuse_paths(recipe, place, _used_paths(stage, recipe))
    return _portable(recipe)


def _portable(recipe: Recipe) -> Recipe:
    """The recipe with an absolute source, so that it means the same in another folder."""
    from genmod.data.sources.registry import open_source
    from pipelines.tracking.place import portable

    source = open_source(recipe.data.source).text
    data = recipe.data.model_copy(update={"source": source})
    cluster = recipe.cluster.model_copy(update={"address": "auto"})
    tracking, lines = portable(recipe.tracking)
    for line in lines:
        _say(line)
    return recipe.model_copy(update={"data": data, "cluster": cluster, "tracking": tracking})


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
        result = parse_json(
            line.encode(errors="replace"), "the job's result", "see its log", _RESULT
        )
    except DataError:
        return {"status": "done"}
    return result if isinstance(result, dict) else {"status": "done"}


class _Tail:
    """Writes text to stderr and keeps the last line."""

    def __init__(self) -> None:
        self.last_line = ""
        self._open = ""

    def write(self, text: str) -> None:
        print_log(text)
        *lines, self._open = (self._open + text).split("\n")
        self._open = self._open[: _LAST_LINE_CHARS + 1]  # a longer line is no result
        for line in [*lines, self._open]:
            self.last_line = line if line.strip() else self.last_line


def _say(text: str) -> None:
    print_line(f"genmod: {text}")
