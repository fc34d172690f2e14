"""A published model that answers requests: images by index, scores of images."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from genmod import storage
from genmod.documents import parse_document
from genmod.errors import ConfigError, DataError, GenmodError
from genmod.generation.labels import named
from genmod.interface.model import GenerativeModel
from genmod.interface.model_store import WEIGHTS, Weights, classes_of, load_model
from genmod.interface.snapshot import ManifestSnapshot
from genmod.serving.classes import class_numbers
from genmod.serving.samples import Sampler
from genmod.serving.scores import Scorer
from genmod.serving.settings import SETTINGS_FILE, Limits, Overrides, ServingSettings

_WAIT_S = 30.0
"""Time that a request waits for those before it."""

_MAX_SETTINGS_BYTES = 1 << 20
_REMEDY = "register the model again"


class ModelBusy(GenmodError):
    """Other requests take too long. The same request may succeed later."""


class ServedModel:
    """A model with its settings. Safe to share between threads: it computes one request at a time.

    Args:
        root: URL of a folder with the model's files and its settings.
        device: ``cpu`` or ``cuda``.

    Raises:
        ConfigError: there is no such model or device, or the settings do not fit the model.
        DataError: a file differs from its digest, or is not what it should be.
    """

    def __init__(self, root: str, device: str = "cpu") -> None:
        settings = _settings(root)
        published = ManifestSnapshot().model(root)
        _check_digest(published.manifest.digest, settings, root)
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device is cuda, but torch finds none here; set device to cpu")
        self.spec = published.config.spec
        self.limits = Limits.of(self.spec)
        model = _load(root, settings, settings.sample.weights, device)
        self._classes = classes_of(published)
        labels = settings.sample.label_request(self.spec, self._classes)
        self._sampler = Sampler(model, settings.sample, labels, settings.model_digest)
        if settings.score.weights != settings.sample.weights:
            model = _load(root, settings, settings.score.weights, device)
        self._scorer = Scorer(model, settings.score)
        self._lock = threading.Lock()

    def sample(
        self, indices: Sequence[int], labels: Sequence[int | str] | None, overrides: Overrides
    ) -> list[dict[str, Any]]:
        """The images of some indices: see :meth:`genmod.serving.samples.Sampler.records`.

        If classes have names, each record also has the name, ``class``.

        Args:
            indices: of the images.
            labels: number or name of the class of each; None for the job's.
            overrides: settings of this request.

        Raises:
            DataError: the request is not valid, or asks for too much.
            GenmodError: an image is not finite.
            ModelBusy: other requests take too long.
        """
        numbers = self._check_rows(len(indices), indices, labels)
        if numbers and (unknown := set(numbers) & set(self._classes.empty_classes)):
            shown = named(min(unknown), self._classes.class_names)
            raise DataError(
                f"class {shown} has no training rows, so the model has not learned it; ask for another class"
            )
        with self._turn():
            records = self._sampler.records(indices, numbers, overrides)
        names = self._classes.class_names
        return [r | {"class": names[r["label"]]} for r in records] if names else records

    def score(
        self,
        images: Sequence[bytes],
        labels: Sequence[int | str] | None,
        indices: Sequence[int] | None,
        overrides: Overrides,
    ) -> list[dict[str, Any]]:
        """Log-likelihoods of images: see :meth:`genmod.serving.scores.Scorer.records`.

        Args:
            images: PNG or JPEG files.
            labels: number or name of the class of each; None for a model without labels.
            indices: addresses of the random numbers.
            overrides: settings of this request.

        Raises:
            DataError: the request is not valid, or the model has no density.
            GenmodError: a score is not finite.
            ModelBusy: other requests take too long.
        """
        numbers = self._check_rows(len(images), indices, labels)
        with self._turn():
            return self._scorer.records(images, numbers, indices, overrides)

    def _check_rows(
        self, rows: int, indices: Sequence[int] | None, labels: Sequence[int | str] | None
    ) -> list[int] | None:
        """Check a request; numbers of the classes."""
        if not 1 <= rows <= self.limits.rows:
            raise DataError(
                f"the request has {rows:,} rows, expected 1 to {self.limits.rows:,}; "
                "send several requests"
            )
        if indices is not None and min(indices) < 0:
            raise DataError(f"index is {min(indices)}, expected 0 or more; correct it")
        return None if labels is None else class_numbers(labels, self.spec, self._classes)

    @contextmanager
    def _turn(self) -> Generator[None]:
        if not self._lock.acquire(timeout=_WAIT_S):
            raise ModelBusy("the model computes other requests; send this one again later")
        try:
            yield
        finally:
            self._lock.release()


def _settings(root: str) -> ServingSettings:
    where = storage.join(root, SETTINGS_FILE)
    try:
        data = storage.read_bytes(where, _MAX_SETTINGS_BYTES)
    except FileNotFoundError:
        raise ConfigError(f"{where} is missing; {_REMEDY}") from None
    return parse_document(ServingSettings, data, "serving settings", where, _REMEDY)


def _check_digest(digest: str, settings: ServingSettings, root: str) -> None:
    if digest != settings.model_digest:
        raise DataError(
            f"{root} contains model {digest[:12]}, but model {settings.model_digest[:12]} is registered; "
            f"{_REMEDY}"
        )


def _load(root: str, settings: ServingSettings, weights: Weights, device: str) -> GenerativeModel:
    """The model with its weights; from where it was trained if they were too large to copy."""
    if not storage.exists(storage.join(root, WEIGHTS[weights])):
        trained = ManifestSnapshot().model(settings.root)
        _check_digest(trained.manifest.digest, settings, settings.root)
        root = settings.root
    return load_model(root, weights).to(torch.device(device))
