"""Synthetic datasets: the label, the pixels and the sidecar of each image.

Image i is a pure function of (model, seed, i) and the micro-batch size m. It is always computed in the
complete micro-batch ``[m k, m (k + 1))`` that contains i. So its bits do not depend on the number of images,
on the shards, or on the process that computes it. Letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from torch import Tensor

from genmod import units
from genmod.budget import BUDGET
from genmod.data.format.encodings import DEFAULT_JPEG_QUALITY, Encoding, ImageFormat
from genmod.data.format.shards import Row
from genmod.documents import validate
from genmod.errors import ConfigError, DataError, GenmodError
from genmod.generation.config import MAX_MICRO_BATCH
from genmod.generation.labels import LabelRequest
from genmod.interface.batch import Batch
from genmod.interface.model import GenerativeModel
from genmod.interface.options import SampleOptions
from genmod.manifest import DatasetManifest, ImageSpec
from genmod.rng import rng_for

SAMPLE_PURPOSE = "sample"
"""RNG purpose of samples. All models share it, so an index has the same noise in each of them."""

_REMEDY = "remove the folder and run genmod sample again"

SAMPLE_SPLIT: Literal["train"] = "train"
"""The only split of a synthetic dataset."""


class SampledBy(BaseModel):
    """What the manifest of a synthetic dataset says about its images, as far as one can be made again."""

    weights: Literal["ema", "raw"]
    options: dict[str, Any]
    """Of the family's sampler."""
    only_label: int | None = Field(default=None, ge=0, lt=BUDGET.classes)
    empty_classes: tuple[Annotated[int, Field(ge=0, lt=BUDGET.classes)], ...] = Field(
        default=(), max_length=BUDGET.classes
    )
    """Classes that are not generated in turn with the others."""
    class_block: int = Field(default=0, ge=0, le=MAX_MICRO_BATCH)
    """Consecutive images of a class, where classes take turns by blocks."""
    seed: int = Field(ge=-(2**63), lt=2**63)
    micro_batch: int = Field(gt=0, le=MAX_MICRO_BATCH)
    filters: dict[str, Any] | None = None
    """The filters that are on; None if every image is accepted."""
    image_format: ImageFormat = "png"
    jpeg_quality: int = Field(default=DEFAULT_JPEG_QUALITY, ge=1, le=100)

    @property
    def encoding(self) -> Encoding:
        """How images are encoded."""
        return Encoding(self.image_format, self.jpeg_quality)

    @classmethod
    def of(cls, dataset: DatasetManifest, root: str) -> Self:
        """Read the manifest of a synthetic dataset.

        Raises:
            ConfigError: the dataset is not synthetic.
            DataError: the manifest says it in another form, or a micro-batch exhausts memory.
        """
        settings: Any = dataset.metadata.get("sample")
        if settings is None:
            raise ConfigError(
                f"{root} is not a synthetic dataset; give one that genmod sample wrote"
            )
        found = validate(cls, settings, "a synthetic dataset", root, _REMEDY)
        pixels = found.micro_batch * dataset.spec.height * dataset.spec.width
        BUDGET.check(f"{root}: a micro-batch", _REMEDY, pixels=pixels)
        if found.only_label is not None and found.only_label >= max(dataset.spec.classes, 1):
            raise DataError(f"{root}: label {found.only_label} of {dataset.spec}; {_REMEDY}")
        empty = set(found.empty_classes)
        if empty and (len(empty) >= dataset.spec.classes or max(empty) >= dataset.spec.classes):
            raise DataError(f"{root}: its empty classes are not some of {dataset.spec}; {_REMEDY}")
        return found

    def labels(self, classes: int) -> LabelRequest:
        """The labels of the images, of a model with so many classes."""
        return LabelRequest(classes, self.only_label, self.empty_classes, self.class_block)


def _quantise(x_BCHW: Tensor, spec: ImageSpec) -> Tensor:
    """Convert model outputs in [-1, 1] to uint8 pixels; binary images get pixels 0 and 255."""
    if spec.levels == 2:
        x_BCHW = units.binarise(x_BCHW)
    return units.to_pixels(x_BCHW)


class MicroBatch(NamedTuple):
    """Images that were generated together."""

    batch: Batch
    """Pixels, labels and indices. Images that are not finite are grey."""
    is_finite_B: Tensor
    """Whether all values of an image were finite, bool."""


@dataclass(frozen=True)
class SampleGenerator:
    """Generates the images of one job."""

    model: GenerativeModel
    options: SampleOptions
    label_request: LabelRequest
    seed: int
    micro_batch: int
    is_filtered: bool = False
    """Whether some images are rejected; those that are not are then no draws from p(x)."""

    @torch.no_grad()
    def micro_batch_of(self, number: int) -> MicroBatch:
        """Generate micro-batch ``number`` completely; its tensors are on the CPU, B = ``micro_batch``."""
        device = next(self.model.parameters()).device
        size = self.micro_batch
        index_B = torch.arange(number * size, (number + 1) * size, device=device)
        rng = rng_for(self.seed, SAMPLE_PURPOSE, index_B)
        labels_B = self.label_request.labels_B(index_B)
        x_BCHW = self.model.sample(labels_B, rng, self.options)
        assert x_BCHW.shape == (size, *self.model.spec.shape), x_BCHW.shape
        is_finite_B = x_BCHW.isfinite().flatten(1).all(1)
        x_BCHW = torch.where(is_finite_B[:, None, None, None], x_BCHW, 0.0)
        pixels_BCHW = _quantise(x_BCHW, self.model.spec).cpu()
        labels_B = None if labels_B is None else labels_B.cpu()
        return MicroBatch(Batch(pixels_BCHW, labels_B, index_B.cpu()), is_finite_B.cpu())

    def pixels_BCHW(self, number: int) -> Tensor:
        """Pixels of micro-batch ``number``, uint8 on the CPU.

        Raises:
            GenmodError: an image contains NaN or infinite values.
        """
        images = self.micro_batch_of(number)
        bad = (~images.is_finite_B).nonzero()[:, 0].tolist()
        if bad:
            raise GenmodError(
                f"image {int(images.batch.index_B[bad[0]])} contains NaN or infinite values ({len(bad)} of "
                f"{self.micro_batch} images do); the model is broken, or its sampler diverges"
            )
        return images.batch.pixels_BCHW

    def images(self, ranges: Iterable[range]) -> Iterator[tuple[MicroBatch, list[int]]]:
        """Generate images of some indices: complete micro-batches, and which of their rows are asked for.

        Only one micro-batch is in memory at a time. One that exceeds the ranges is computed completely, and
        the surplus rows are left out.

        Args:
            ranges: of indices, ascending and disjoint.
        """
        size = self.micro_batch
        number, rows = -1, list[int]()
        for indices in ranges:
            for next_number in range(indices.start // size, -(-indices.stop // size)):
                if next_number != number and rows:
                    yield self.micro_batch_of(number), rows
                    rows = []
                number = next_number
                first = max(indices.start - number * size, 0)
                rows += range(first, min(indices.stop - number * size, size))
        if rows:
            yield self.micro_batch_of(number), rows

    def image(self, index: int) -> Tensor:
        """Generate one image, uint8 (C, H, W), with the same bits as in :meth:`images`.

        Raises:
            GenmodError: the image contains NaN or infinite values.
        """
        number, row = divmod(index, self.micro_batch)
        images = self.micro_batch_of(number)
        if not images.is_finite_B[row]:
            raise GenmodError(
                f"image {index} contains NaN or infinite values; the model is broken, or its sampler diverges"
            )
        return images.batch.pixels_BCHW[row]

    def row(self, index: int, pixels_CHW: Tensor, model_digest: str) -> Row:
        """Convert an image to a dataset row, with a sidecar that allows to regenerate it."""
        return self.row_of(index, pixels_CHW.permute(1, 2, 0).contiguous().numpy(), model_digest)

    def row_of(
        self,
        index: int,
        image_HWC: NDArray[np.uint8],
        model_digest: str,
        encoded: bytes | None = None,
    ) -> Row:
        """As :meth:`row`, for an array. ``encoded`` is the image as it is stored, where it is encoded."""
        label = self.label_request.label(index)
        sidecar = {
            "index": index,
            "seed": self.seed,
            "model": model_digest,
            "sampler": self.options.sampler,
            "draws_from_p": self.options.draws_from_p and not self.is_filtered,
            "label_asked": label,
        }
        return Row(
            key=f"{index:09d}",
            index=index,
            image_HWC=image_HWC,
            label=label,
            sidecar=sidecar,
            encoded=encoded,
        )
