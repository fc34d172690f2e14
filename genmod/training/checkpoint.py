"""Checkpoints are written in two phases: whole files in a new folder, then a receipt with their digests.

    checkpoints/000000012800-1f3a.../   model.safetensors, ema.safetensors, optimiser.safetensors, state.json
    checkpoints/000000012800.json       the receipt: created only if absent, so one writer wins

Readers trust receipts alone, newest first, and check every digest. After a new receipt is on disk, older
checkpoints are deleted, except the newest ones and the one with the best validation loss.
"""

from __future__ import annotations

import logging
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from genmod import storage
from genmod.budget import BUDGET
from genmod.config import Config, as_json, canonical_json
from genmod.documents import parse_document
from genmod.errors import ConfigError, DataError, StorageError
from genmod.manifest import Manifest, read_checked, write_file
from genmod.training.metric_point import Nimg
from genmod.training.state import CHECKPOINT_FILES, REMEDY, StateSnapshot, TrainState
from genmod.training.writer import storage_errors
from genmod.world import World, broadcast_int

CHECKPOINTS_FOLDER = "checkpoints"
"""Folder below a model's root while it is trained."""

_CONFIG_FILE = "config.json"

_RECEIPT = re.compile(r"([0-9]{12})\.json")
_FOLDER = re.compile(r"[0-9]{12}-[0-9a-f]{12}")
"""Names of receipts and of folders that :class:`Checkpoints` makes."""

logger = logging.getLogger(__name__)


class CheckpointMetadata(Config):
    """What a receipt says about its checkpoint."""

    nimg: Nimg
    val_loss: float | None = Field(default=None, allow_inf_nan=False)
    """Validation loss of these weights if known; lower is better."""


class CheckpointReceipt(Manifest):
    """The files of one whole checkpoint, all in one folder."""

    kind: Literal["checkpoint"] = "checkpoint"  # pyright: ignore
    metadata: CheckpointMetadata  # pyright: ignore

    @property
    def folder(self) -> str:
        """Name of the folder below the checkpoints' one."""
        return self.files[0].path.partition("/")[0]

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        places = [entry.path.split("/") for entry in self.files]
        folders = {place[0] for place in places}
        names = [place[-1] for place in places]
        known = {_CONFIG_FILE, *CHECKPOINT_FILES}
        if (
            len(folders) != 1
            or any(len(place) != 2 for place in places)
            or not _FOLDER.fullmatch(next(iter(folders)))
            or not next(iter(folders)).startswith(f"{_name(self.metadata.nimg)}-")
            or len(set(names)) != len(names)
            or not set(names) <= known
        ):
            raise ValueError("files: expected those of one checkpoint in its folder")
        return self


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training run."""

    root: str
    """URL of the model's folder."""
    fingerprint: str
    """Fingerprint of the training; a checkpoint of another training is an error."""
    config: Config
    """The model's configuration, saved with the weights."""
    keep: int = 2
    """Number of newest checkpoints to keep; the best one is kept too."""

    @property
    def url(self) -> str:
        """URL of the checkpoints' folder."""
        return storage.join(self.root, CHECKPOINTS_FOLDER)

    def save(self, snapshot: StateSnapshot, val_loss: float | None = None) -> None:
        """Write a checkpoint, then its receipt, then delete old ones. For rank 0 alone.

        Args:
            snapshot: the state to write.
            val_loss: validation loss of these weights if known; lower is better.

        Raises:
            StorageError: it cannot be written; earlier checkpoints are unchanged.
        """
        with storage_errors(self.url, f"the checkpoint at {snapshot.nimg:,} images"):
            self._write(snapshot, val_loss)
            self._delete_old()

    def _write(self, snapshot: StateSnapshot, val_loss: float | None) -> None:
        attempt = f"{_name(snapshot.nimg)}-{uuid.uuid4().hex[:12]}"
        folder = storage.join(self.url, attempt)
        try:
            contents = {_CONFIG_FILE: canonical_json(as_json(self.config))} | snapshot.files()
            files = [
                write_file(self.url, f"{attempt}/{file}", data) for file, data in contents.items()
            ]
            storage.fsync_dir(folder)
        except BaseException:
            with suppress(OSError, StorageError):  # free the space that it takes
                storage.remove(folder)
            raise
        receipt = CheckpointReceipt(
            fingerprint=self.fingerprint,
            files=tuple(files),
            metadata=CheckpointMetadata(nimg=snapshot.nimg, val_loss=val_loss),
        ).sealed()
        url = self._receipt_url(snapshot.nimg)
        if not storage.create(url, canonical_json(as_json(receipt))):
            with suppress(DataError, ConfigError):
                if self._receipt(snapshot.nimg).digest == receipt.digest:
                    return  # the store created it, but its reply was lost
            storage.remove(folder)  # another writer has won with the same bytes
        storage.fsync_dir(self.url)

    def newest(self, state: TrainState) -> int | None:
        """Restore the newest whole checkpoint. For rank 0 alone.

        The receipt of a damaged one is deleted, and the next older one is tried.

        Returns:
            Its ``nimg``, None if there is no whole checkpoint.

        Raises:
            ConfigError: the checkpoints belong to another training.
        """
        for nimg in reversed(self.nimgs()):
            try:
                self.restore(nimg, state)
            except DataError as error:
                logger.warning("skipping a damaged checkpoint: %s", error)
                storage.remove(self._receipt_url(nimg))
                continue
            return nimg
        return None

    def restore(self, nimg: int, state: TrainState) -> None:
        """Restore the checkpoint at ``nimg``.

        Raises:
            DataError: it is not whole.
            ConfigError: it belongs to another training.
        """
        receipt = self._receipt(nimg)
        folder = storage.join(self.url, receipt.folder)
        sizes = {entry.path.rpartition("/")[2]: entry.size_bytes for entry in receipt.files}
        state.check_sizes(sizes, folder)
        files: dict[str, bytes] = {}
        for entry in receipt.files:
            try:
                files[entry.path.rpartition("/")[2]] = read_checked(self.url, entry, REMEDY)
            except (IsADirectoryError, NotADirectoryError, StorageError) as error:
                raise DataError(f"{folder} cannot be read ({error}); {REMEDY}") from None
        state.load(files, nimg, folder)

    def nimgs(self) -> list[int]:
        """``nimg`` of each checkpoint with a receipt, ascending."""
        names = storage.list_names(self.url)
        return sorted(int(match[1]) for name in names if (match := _RECEIPT.fullmatch(name)))

    def remove(self) -> None:
        """Delete all checkpoints, once the trained model is published. Other files stay."""
        storage.remove_named(self.url, _is_ours)

    def _receipt_url(self, nimg: int) -> str:
        return storage.join(self.url, f"{_name(nimg)}.json")

    def _receipt(self, nimg: int) -> CheckpointReceipt:
        url = self._receipt_url(nimg)
        try:
            data = storage.read_bytes(url, BUDGET.document_bytes)
        except (
            DataError,
            FileNotFoundError,
            IsADirectoryError,
            NotADirectoryError,
            StorageError,
        ) as error:
            raise DataError(f"{url} cannot be read ({error}); {REMEDY}") from None
        receipt = parse_document(CheckpointReceipt, data, "a checkpoint's receipt", url, REMEDY)
        if not receipt.is_whole():
            raise DataError(f"{url} does not match its own digest; {REMEDY}")
        if receipt.metadata.nimg != nimg:
            raise DataError(f"{url} is of {receipt.metadata.nimg:,} images; {REMEDY}")
        if receipt.fingerprint != self.fingerprint:
            raise ConfigError(
                f"{self.url} contains checkpoints of another recipe (fingerprint "
                f"{receipt.fingerprint[:12]}, expected {self.fingerprint[:12]}); "
                "set another root with --set root=URL, or remove that folder"
            )
        return receipt

    def kept(self) -> list[int]:
        """``nimg`` of the checkpoints to keep, the newest and the best; ascending."""
        nimgs = self.nimgs()
        losses: dict[int, float] = {}
        for nimg in nimgs:
            with suppress(DataError, ConfigError):
                loss = self._receipt(nimg).metadata.val_loss
                if loss is not None:
                    losses[nimg] = loss
        best = [min(losses, key=lambda nimg: (losses[nimg], -nimg))] if losses else []
        return sorted({*nimgs[-self.keep :], *best})

    def _delete_old(self) -> None:
        """Delete receipts, then folders: of old checkpoints and of writers that crashed.

        Only names that this class makes are deleted; a user's files stay.
        """
        kept = self.kept()
        if not kept:
            return  # another process has published the model
        for nimg in self.nimgs():
            if nimg not in kept and nimg < kept[-1]:
                storage.remove(self._receipt_url(nimg))
        kept_names = {_name(nimg) for nimg in kept}
        for name in storage.list_names(self.url):
            stem, _, _ = name.partition("-")
            is_old = stem < _name(kept[-1]) and stem not in kept_names
            if is_old and _FOLDER.fullmatch(name):
                storage.remove(storage.join(self.url, name))


def resume(checkpoints: Checkpoints, state: TrainState, world: World) -> None:
    """Restore the newest whole checkpoint, chosen by rank 0, on all ranks. Collective."""
    newest = checkpoints.newest(state) if world.rank == 0 else None
    nimg = broadcast_int(world, -1 if newest is None else newest)
    if world.rank > 0 and nimg >= 0:
        checkpoints.restore(nimg, state)


def _is_ours(name: str) -> bool:
    """Whether checkpoints are written under this name."""
    return bool(_RECEIPT.fullmatch(name) or _FOLDER.fullmatch(name))


def _name(nimg: int) -> str:
    return f"{nimg:012d}"
