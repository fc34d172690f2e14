"""Scores of images, with the random numbers that the scoring job gives a row of the same index.

Letters: B rows, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genmod.config import parse
from genmod.data.format.codecs import Codec
from genmod.errors import DataError, GenmodError, Unscorable
from genmod.interface.batch import Batch
from genmod.interface.model import GenerativeModel
from genmod.interface.options import ScoreOptions
from genmod.rng import rng_for
from genmod.scoring.work_units import SCORE_PURPOSE
from genmod.serving.settings import Overrides, ScoreSettings


class Scorer:
    """Scores the images of requests.

    Args:
        model: with its weights.
        settings: of the scoring job.

    Raises:
        ConfigError: the settings are not those of the model's family.
    """

    def __init__(self, model: GenerativeModel, settings: ScoreSettings) -> None:
        self._model, self._settings = model, settings
        self._options: ScoreOptions = parse(type(model).Score, settings.options, "score options")

    def records(
        self,
        images: Sequence[bytes],
        labels: Sequence[int] | None,
        indices: Sequence[int] | None,
        overrides: Overrides,
    ) -> list[dict[str, Any]]:
        """Log-likelihoods with their label: ``nats``, ``stderr``, ``bits_per_dim``, ``likelihood``, ...

        Args:
            images: PNG or JPEG files of the model's format.
            labels: valid ones; None for a model without labels.
            indices: addresses of the random numbers, 0 or more. None: each image's digest decides, so equal
                images have equal scores.
            overrides: settings of this request; only the seed applies.

        Raises:
            DataError: an image cannot be read, or the model has no density.
            GenmodError: a score is not finite.
        """
        if overrides.options is not None or overrides.micro_batch is not None:
            raise DataError("options and micro_batch are for samples; leave them out for scores")
        spec, size = self._model.spec, self._settings.micro_batch
        self._check_scorable()
        if spec.classes and labels is None:
            raise DataError(
                f"the model has {spec.classes} classes, but the images have no labels; send column label "
                "or class"
            )
        pixels_BCHW = self._decoded(images)
        if indices is None:
            indices = [_address(image_CHW) for image_CHW in pixels_BCHW]
        batch = Batch(
            pixels_BCHW,
            None if labels is None else torch.tensor(labels, dtype=torch.int64),
            torch.tensor(indices, dtype=torch.int64),
        )
        seed = self._settings.seed if overrides.seed is None else overrides.seed
        records: list[dict[str, Any]] = []
        for first in range(0, len(batch), size):
            records += self._scored(batch.rows(slice(first, first + size)), seed)
        return records

    def _scored(self, batch: Batch, seed: int) -> list[dict[str, Any]]:
        """The scores of one micro-batch."""
        batch = batch.to(next(self._model.parameters()).device)
        rng = rng_for(seed, SCORE_PURPOSE, batch.index_B)
        result = self._model.log_prob(batch, rng, self._options)
        if not bool((result.nats_B.isfinite() & result.stderr_B.isfinite()).all()):
            raise GenmodError("a log-likelihood is not finite; check that the model is trained")
        columns = {
            "nats": result.nats_B,
            "stderr": result.stderr_B,
            "bits_per_dim": result.bits_per_dim(self._model.spec),
        }
        label = {
            "likelihood": result.label,
            "estimator": result.estimator,
            "density": result.of,
            "measure": result.measure,
        }
        rows = zip(*(values_B.tolist() for values_B in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) | label for row in rows]

    def _decoded(self, images: Sequence[bytes]) -> Tensor:
        """Pixels of encoded images, (B, C, H, W) uint8. DataError names the first that is wrong."""
        codec, spec = Codec(self._model.spec), self._model.spec
        parts: list[Tensor] = []
        for number, image in enumerate(images):
            try:
                parts.append(torch.from_numpy(codec.decode([image])))
            except DataError as error:
                raise DataError(f"image {number}: {error}; send a PNG of this format") from None
        pixels_BCHW = torch.cat(parts)
        if spec.levels == 2 and bool(((pixels_BCHW != 0) & (pixels_BCHW != 255)).any()):
            raise DataError("an image has grey pixels, but the model is of black and white ones")
        return pixels_BCHW

    def _check_scorable(self) -> None:
        """Raise DataError if the model has no density that can be computed here."""
        try:
            type(self._model).check_scorable(self._model.config, self._options)
        except Unscorable as error:
            raise DataError(str(error)) from None
        if self._options.held_out_rows:
            raise DataError(
                "scores of this model are fitted to held-out rows, which a server does not have; run genmod "
                "score, or register the model with a number in place of the fit"
            )


def _address(image_CHW: Tensor) -> int:
    """Address of an image's random numbers: the same for equal images, wherever they are."""
    digest = hashlib.sha256(image_CHW.contiguous().numpy().tobytes()).digest()
    return int.from_bytes(digest[:8], "little") >> 2
