"""``genmod bundle``: one file for a bug report: logs, documents, versions and stacks, no credentials."""

from __future__ import annotations

import gzip
import io
import json
import os
import platform
import re
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from cluster.compat import jobs_of, session_folder
from cluster.doctor.store import short_retries
from cluster.doctor.versions import own_versions
from cluster.node_logs import node_texts
from genmod import storage
from genmod.errors import ConfigError, GenmodError, escape, sanitize
from genmod.terminal import print_line
from pipelines.commands.bundle_store import store_texts
from pipelines.tracking.redact import redact_foreign

_OURS = re.compile(r"\bgenmod\b|-m pipelines\b")
"""In the commands of jobs that belong to genmod."""

_JOB_ID = re.compile(r"genmod-[a-z]+-[0-9a-f]{12}(-[0-9]+)?")
"""Ids of jobs that ``genmod submit`` starts."""

_LOG_CHARS = 4 << 20
"""Of a job's log that are kept, from its end."""

_NAME_CHARS = re.compile(r"[^A-Za-z0-9._/=+,@-]")


@dataclass(frozen=True)
class BundleRequest:
    """What to collect, and where to write it."""

    target: str
    """URL of a root, or the id of a job."""
    addresses: Sequence[str] = ()
    """URL of a job server, and HOST:PORT or ``auto`` of a Ray cluster."""
    out: str | None = None
    """The file; default: a name with the time in the current folder."""
    recipe: str | None = None
    assignments: Sequence[str] = ()


@dataclass
class _Contents:
    """Texts by name, and lines about what could not be collected."""

    texts: dict[str, str] = field(default_factory=dict[str, str])
    problems: list[str] = field(default_factory=list[str])

    def add(self, name: str, text: str) -> None:
        """Add a text; nothing leaves this function with a credential or a control character."""
        name = _NAME_CHARS.sub("_", clean(name)).lstrip("/").replace("..", "__")[:240]
        self.texts[name] = escape(clean(text), keep="\n\t")

    def report(self, line: str) -> None:
        """Note what is missing."""
        self.problems.append(sanitize(clean(line)))


def clean(text: str) -> str:
    """The text without its credentials: see :func:`redact_foreign`."""
    return redact_foreign(text)


def bundle(request: BundleRequest) -> dict[str, Any]:
    """Collect what explains a problem, and write it to one file that only this user can read.

    Returns:
        the command's JSON result, with the number of files and one line for each thing that is missing.

    Raises:
        ConfigError: there is no such root or job, an address is wrong, or the file exists.
    """
    out = Path(request.out or time.strftime("genmod-bundle-%Y%m%d-%H%M%S.tar.gz", time.gmtime()))
    handle = _create(out)
    try:
        contents = _collect(request)
        data = _archive(out.name.removesuffix(".gz").removesuffix(".tar"), contents.texts)
        with os.fdopen(handle, "wb") as stream:
            handle = -1
            stream.write(data)
    except BaseException:
        out.unlink(missing_ok=True)
        raise
    finally:
        if handle >= 0:
            os.close(handle)
    for line in contents.problems:
        print_line(f"not in the bundle: {line}")
    print_line(
        f"{out}: {len(contents.texts)} files, {len(data):,} bytes; read it before you send it"
    )
    return {
        "stage": "bundle",
        "status": "done",
        "output": str(out),
        "fingerprint": None,
        "files": len(contents.texts),
        "problems": contents.problems,
    }


def _collect(request: BundleRequest) -> _Contents:
    servers = [each for each in request.addresses if "://" in each and not each.startswith("ray:")]
    clusters = [each for each in request.addresses if each not in servers]
    if len(servers) > 1 or len(clusters) > 1:
        raise ConfigError(
            "bundle: --address takes one http://HOST:8265 of a job server and one HOST:PORT of Ray"
        )
    contents = _Contents()
    root: str | None = request.target
    if servers or _JOB_ID.fullmatch(request.target):
        root = _add_job(contents, request.target, servers[0] if servers else None)
    if request.recipe is not None:
        _add_recipe(contents, request.recipe, request.assignments)
    elif request.assignments:
        raise ConfigError("bundle: --set needs --recipe; give it too")
    if root is not None:
        _add_store(contents, root, is_target=root == request.target)
    if clusters:
        _add_cluster(contents, clusters[0])
    else:
        for name, text in node_texts(None, (), clean).items():
            contents.add(f"this-machine/{name}", text)
    contents.add("environment.json", json.dumps(sorted(os.environ), indent=1))
    versions = {
        **own_versions().model_dump(),
        "platform": platform.platform(),
        "packages": dict(
            sorted((each.metadata["Name"] or "", each.version) for each in distributions())
        ),
    }
    contents.add("versions.json", json.dumps(versions, indent=1))
    summary = {
        "target": request.target,
        "root": root,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "files": {name: len(text) for name, text in sorted(contents.texts.items())},
        "not_in_the_bundle": contents.problems,
    }
    contents.add("bundle.json", json.dumps(summary, indent=1))
    return contents


def _add_job(contents: _Contents, job_id: str, address: str | None) -> str | None:
    """Facts and log of a job. Returns the root that it works below, if it is a job of genmod."""
    from cluster.jobs import Jobs
    from pipelines.commands.submit import job_server

    jobs = Jobs(job_server(address))
    facts = jobs.describe(job_id)
    contents.add("job.json", json.dumps(facts, indent=1, default=str))
    log = clean(jobs.logs(job_id))
    contents.add("job.log", log[-_LOG_CHARS:])
    root = facts["metadata"].get("root")
    if root is None:
        contents.report(f"the root of {job_id}: it was not submitted by genmod")
    return root


def _add_recipe(contents: _Contents, recipe: str, assignments: Sequence[str]) -> None:
    """The resolved recipe, and its plan if there is one. Its storage settings are used from now on."""
    from pipelines.commands.plan import plan_data
    from pipelines.recipe.context import Context, configure_storage
    from pipelines.recipe.recipe import load_recipe

    configure_storage(loaded := load_recipe(recipe, assignments))
    contents.add("recipe.yaml", loaded.to_yaml())
    try:
        step, _ = plan_data(Context(loaded, tuple(loaded.model)))
        contents.add("plan.json", step.model_dump_json(indent=1))
    except (GenmodError, OSError) as error:
        contents.report(f"the plan of the dataset ({error})")


def _add_store(contents: _Contents, root: str, *, is_target: bool) -> None:
    """Documents below a root. ConfigError if a user named it and it has no file."""
    before = len(contents.texts)
    storage.check_url(root)
    try:
        with short_retries():
            for name, text in store_texts(root, clean, contents.report):
                contents.add(name, text)
    except (OSError, GenmodError) as error:
        if is_target:
            raise
        contents.report(f"{root} ({error})")
    if is_target and not contents.texts.get("files.txt") and len(contents.texts) == before + 1:
        raise ConfigError(
            f"{root}: no file below it, and it is no job of genmod; give the root of a run, or a job's id "
            "with --address http://HOST:8265"
        )


def _add_cluster(contents: _Contents, address: str) -> None:
    """Logs and stacks of each node, and what Ray says about the nodes."""
    from cluster import session
    from cluster.nodes import on_each_node

    session.connect(session.ClusterConfig(address=address))
    try:
        import ray

        contents.add("nodes.json", json.dumps(ray.nodes(), indent=1, default=str))
        jobs = jobs_of(_OURS)
        found = on_each_node(_of_node, jobs, labels={})
        for node, texts in found.items():
            for name, text in texts.items():
                contents.add(f"nodes/{node}/{name}", text)
    except GenmodError as error:
        contents.report(f"logs of the nodes ({error})")
    finally:
        session.disconnect()


def _of_node(jobs: Sequence[str]) -> dict[str, str]:
    """In a task: the texts of its node, cleaned there, because only there its credentials are known."""
    folders = session_folder()
    return node_texts(folders[0] if folders else None, jobs, clean)


def _create(out: Path) -> int:
    """A new file for this user alone. ConfigError if it exists or cannot be written."""
    try:
        return os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise ConfigError(f"bundle: {out} exists; give another file with --out") from None
    except OSError as error:
        raise ConfigError(
            f"bundle: {out} cannot be written ({error.strerror}); give another file with --out"
        ) from error


def _archive(folder: str, texts: dict[str, str]) -> bytes:
    """A tar.gz of the texts in one folder, without names of users."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", filename="", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as tar,
    ):
        for name, text in sorted(texts.items()):
            data = text.encode(errors="replace")
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size, member.mtime, member.mode = len(data), int(time.time()), 0o600
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
