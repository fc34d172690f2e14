"""The file of an embedded MLflow, read before work begins without importing MLflow, which takes seconds."""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

from genmod.errors import ConfigError
from pipelines.tracking.place import ARTIFACTS, TrackingPlace, database_of

_TIMEOUT_S = 20.0
"""How long to wait for another process that writes to the database."""

_REVISION = re.compile(r"^revision\s*=\s*[\"'](\w+)[\"']", re.MULTILINE)
_DOWN_REVISIONS = re.compile(r"^down_revision\s*=\s*(.+)$", re.MULTILINE)

_ADDRESSES = (
    ("experiments", "artifact_location", "experiment_id = :id"),
    ("runs", "artifact_uri", "experiment_id = :id"),
    ("logged_models", "artifact_location", "experiment_id = :id"),
    (
        "model_versions",
        "storage_location",
        "run_id in (select run_uuid from runs where experiment_id = :id)",
    ),
)
"""Table, column and condition of every address of artifacts of an experiment."""

_TAGS = """update model_version_tags set value = :new || substr(value, length(:old) + 1)
where key in ('genmod.root', 'genmod.evaluation') and substr(value, 1, length(:old)) = :old
and (name, version) in (select name, version from model_versions where run_id in
(select run_uuid from runs where experiment_id = :id))"""
"""Moves the folders of an experiment's models."""


def check_database(place: TrackingPlace) -> None:
    """Check that an embedded database can be used. Does nothing if there is none yet.

    Raises:
        ConfigError: it is no database of this MLflow, or the experiment is deleted.
    """
    file = database_of(place.uri)
    if not os.path.isfile(file) or not os.path.getsize(file):
        return
    try:
        with closing(_connect(file, "ro")) as database:
            revisions = database.execute("select version_num from alembic_version").fetchall()
            found = database.execute(
                "select experiment_id, lifecycle_stage from experiments where name = ?",
                (place.experiment,),
            ).fetchone()
    except sqlite3.OperationalError:
        return  # tables are missing or locked: another process makes them
    except sqlite3.DatabaseError as error:
        raise ConfigError(
            f"{file} is not MLflow's database ({error}); move it away, or set tracking.uri"
        ) from None
    if revisions:
        _check_revision(place.uri, str(revisions[0][0]))
    if found is not None and found[1] == "deleted":
        raise deleted_experiment(place, str(found[0]))


def deleted_experiment(place: TrackingPlace, experiment_id: str) -> ConfigError:
    """The error that an experiment is deleted, with the command that restores it."""
    command = f"mlflow experiments restore --experiment-id {shlex.quote(experiment_id)}"
    return ConfigError(
        f"the experiment {place.experiment} of MLflow at {place.uri} is deleted; restore it with: "
        f"MLFLOW_TRACKING_URI={shlex.quote(place.uri)} {command}, or set another tracking.experiment"
    )


def follow_moved_folder(place: TrackingPlace) -> str:
    """Correct the addresses of artifacts in a database that was moved with its folder.

    Only addresses of the place's experiment below the folder of artifacts that it names change.

    Returns:
        The folder that the database named; empty if it is where it was.
    """
    file = database_of(place.uri)
    if not os.path.isfile(file) or not os.path.getsize(file):
        return ""
    try:
        with closing(_connect(file, "rw")) as database, database:
            query = "select experiment_id, artifact_location from experiments where name = ?"
            found = database.execute(query, (place.experiment,)).fetchone()
            old = _folder_of(str(found[1])) if found else ""
            if not old or os.path.realpath(old) == os.path.realpath(place.folder):
                return ""
            values = {"id": found[0], "old": found[1], "new": Path(place.folder).as_uri()}
            keep = not os.path.isdir(place.folder) and os.path.isdir(old)  # only the file was moved
            for address in _ADDRESSES[: 1 if keep else None]:
                database.execute(_move(*address), values)
            if not keep:
                folders = {"old": f"{Path(old).parent}/", "new": f"{Path(place.folder).parent}/"}
                database.execute(_TAGS, {"id": found[0], **folders})
            return old
    except sqlite3.DatabaseError:
        return ""  # read-only, locked, or not made yet: a later command corrects it


def _move(table: str, column: str, condition: str) -> str:
    """The statement that moves addresses at or below a folder; its parts are constants of this module."""
    return (
        # All parts are constants; the folders are parameters of the statement.
        f"update {table} set {column} = :new || substr({column}, length(:old) + 1) "  # nosec B608
        f"where {condition} and ({column} = :old or "
        f"substr({column}, 1, length(:old) + 1) = :old || '/')"
    )


def _connect(file: str, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{Path(file).absolute().as_uri()}?mode={mode}", timeout=_TIMEOUT_S, uri=True
    )


def _folder_of(location: str) -> str:
    """The folder of an experiment that an embedded MLflow made; empty for other addresses."""
    if not location.startswith("file:///"):
        return ""
    folder = unquote(location.removeprefix("file://"))
    return folder if os.path.basename(folder) == ARTIFACTS else ""


def _check_revision(uri: str, found: str) -> None:
    known = list(_revisions())
    older = {revision for _, earlier in known for revision in earlier}
    latest = {revision for revision, _ in known} - older
    if not latest or found in latest:
        return
    if found in older:
        raise ConfigError(
            f"MLflow's database {uri} has an older schema; copy the file, then upgrade it with: "
            f"mlflow db upgrade {shlex.quote(uri)}"
        )
    raise ConfigError(
        f"MLflow's database {uri} was made by a newer MLflow; install that version (pip install --upgrade "
        "mlflow), or set another tracking.uri"
    )


def _revisions() -> Iterator[tuple[str, list[str]]]:
    """The schemas that the installed MLflow knows: each one, and those before it."""
    spec = find_spec("mlflow")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for file in Path(folder, "store", "db_migrations", "versions").glob("*.py"):
            text = file.read_text(encoding="utf-8")
            revision, before = _REVISION.search(text), _DOWN_REVISIONS.search(text)
            if revision:
                yield revision[1], re.findall(r"[\"'](\w+)[\"']", before[1] if before else "")
