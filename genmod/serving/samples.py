"""Images by index, with the bits that the sampling job gives them on the same kind of processor.

Letters: B rows, C channels, H height, W width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from genmod.config import Config, parse
from genmod.data.format.codecs import Codec
from genmod.documents import parse_json
from genmod.errors import ConfigError, DataError
from genmod.generation.labels import LabelRequest
from genmod.generation.synthetic import SampleGenerator
from genmod.interface.model import GenerativeModel
from genmod.interface.options import SampleOptions
from genmod.serving.settings import MAX_MICRO_BATCHES, Overrides, SampleSettings

_MAX_INDEX = 1 << 62
_OPTIONS_REMEDY = "send a JSON object with options of the sampler"


@dataclass(frozen=True)
class _ChosenLabels(LabelRequest):
    """Labels of a job, except for some indices whose labels a request chose."""

    chosen: Mapping[int, int] = field(default_factory=dict[int, int])

    def label(self, index: int) -> int | None:
        """Label of an image; None for a model without labels."""
        return self.chosen.get(index, super().label(index))

    def labels_B(self, index_B: Tensor) -> Tensor | None:
        """Labels of images, int64; None for a model without labels."""
        labels_B = super().labels_B(index_B)
        if labels_B is not None:
            labels_B = labels_B.clone()
            for index, label in self.chosen.items():
                labels_B[index_B == index] = label
        return labels_B


@dataclass(frozen=True)
class _Pass:
    """A micro-batch that is computed, and the labels that a request chose in it."""

    number: int
    turn: int
    """An index that is asked for with several labels takes several turns."""


class Sampler:
    """Makes the images of requests.

    Args:
        model: with its weights.
        settings: of the sampling job.
        labels: the job's labels.
        model_digest: digest of the model's manifest.

    Raises:
        ConfigError: the settings do not fit the model.
    """

    def __init__(
        self,
        model: GenerativeModel,
        settings: SampleSettings,
        labels: LabelRequest,
        model_digest: str,
    ) -> None:
        self._model, self._settings, self._labels = model, settings, labels
        self._digest = model_digest
        self._registered: SampleOptions = parse(
            type(model).Sample, settings.options, "sample options"
        )
        self._check(self._registered)

    def records(
        self, indices: Sequence[int], labels: Sequence[int] | None, overrides: Overrides
    ) -> list[dict[str, Any]]:
        """The images as records with ``index``, ``label`` (None without classes) and ``image`` (PNG).

        Args:
            indices: of the images, 0 or more.
            labels: valid ones in place of the job's; None for the job's.
            overrides: settings of this request.

        Raises:
            DataError: a setting is out of its range, or the request asks for too much.
            GenmodError: an image is not finite.
        """
        size = self._micro_batch(overrides.micro_batch)
        if max(indices) >= _MAX_INDEX:
            raise DataError(f"index is {max(indices)}, expected less than 2**62; correct it")
        options = self._options(overrides.options)
        seed = self._settings.seed if overrides.seed is None else overrides.seed
        passes, places = _plan(indices, labels, size)
        if len(passes) > MAX_MICRO_BATCHES:
            raise DataError(
                f"the rows are of {len(passes):,} micro-batches of {size:,} images, expected at most "
                f"{MAX_MICRO_BATCHES}; send neighbouring indices together, or several requests"
            )
        codec = Codec(self._model.spec)
        images: dict[tuple[_Pass, int], dict[str, Any]] = {}
        for each, chosen in passes.items():
            given = {index: label for index, label in chosen.items() if label is not None}
            asked = _ChosenLabels(
                self._labels.classes,
                self._labels.only,
                self._labels.empty,
                self._labels.block,
                given,
            )
            generator = SampleGenerator(self._model, options, asked, seed, size)
            pixels_BCHW = generator.pixels_BCHW(each.number)
            for index in chosen:
                row = generator.row(index, pixels_BCHW[index % size], self._digest)
                png = codec.encode(row.image_HWC)
                images[each, index] = {"index": index, "label": row.label, "image": png}
        return [images[place] for place in places]

    def _micro_batch(self, asked: int | None) -> int:
        most = self._settings.micro_batch
        if asked is None:
            return most
        if not 1 <= asked <= most:
            raise DataError(f"micro_batch is {asked}, expected 1 to {most}; correct it")
        return asked

    def _options(self, text: str | None) -> SampleOptions:
        """The registered options, changed by those of a request."""
        if text is None:
            return self._registered
        values: Any = parse_json(text.encode(), "options", _OPTIONS_REMEDY)
        if not isinstance(values, dict):
            raise DataError(f"options is not a JSON object; {_OPTIONS_REMEDY}")
        try:
            options = parse(type(self._model).Sample, self._settings.options | values, "options")
            self._check(options)
        except ConfigError as error:
            raise DataError(str(error).removeprefix("recipe: ")) from None
        _check_not_raised(self._registered, options)
        return options

    def _check(self, options: SampleOptions) -> None:
        model = self._model
        type(model).check_sampling(model.config, options, model.spec)


def _plan(
    indices: Sequence[int], labels: Sequence[int] | None, size: int
) -> tuple[dict[_Pass, dict[int, int | None]], list[tuple[_Pass, int]]]:
    """Which micro-batches are computed with which labels, and where each row's image is in them."""
    passes: dict[_Pass, dict[int, int | None]] = defaultdict(dict)
    places: list[tuple[_Pass, int]] = []
    for index, label in zip(indices, labels or [None] * len(indices), strict=True):
        turn = 0
        while passes[_Pass(index // size, turn)].setdefault(index, label) != label:
            turn += 1
        places.append((_Pass(index // size, turn), index))
    return passes, places


def _check_not_raised(registered: Config, options: Config) -> None:
    """Whole numbers are counts that decide time and memory: a request may lower them, not raise them."""
    for name in type(options).model_fields:
        before, after = getattr(registered, name), getattr(options, name)
        if before == after:
            continue
        if isinstance(after, Config) and isinstance(before, Config):
            _check_not_raised(before, after)
        elif isinstance(after, int) and not isinstance(after, bool):
            if not isinstance(before, int):
                raise DataError(f"options: {name} is not set in the model; leave it out")
            if after > before:
                raise DataError(f"options: {name} is {after}, expected at most {before}")
