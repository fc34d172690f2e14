"""Synthetic datasets: the label, the pixels and the sidecar of each image.

Image i is a pure function of (model, seed, i) and the micro-batch size m. It is always computed in the
complete micro-batch ``[m k, m (k + 1))`` that contains i. So its bits do not depend on the number of images,
on the shards, or on the process that computes it. Letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from genmod import storage, units
from genmod.budget import BUDGET
from genmod.config import Config
from genmod.data.format.shards import Row
from genmod.documents import validate
from genmod.errors import ConfigError, DataError, GenmodError
from genmod.generation.labels import LabelRequest
from genmod.interface.model import GenerativeModel
from genmod.interface.options import SampleOptions
from genmod.manifest import DatasetManifest, ImageSpec
from genmod.rng import rng_for

SAMPLE_PURPOSE = "sample"
"""RNG purpose of samples. All models share it, so an index has the same noise in each of them."""

MAX_MICRO_BATCH = 1 << 16
"""Images that are generated together, at most."""

_REMEDY = "remove the folder and run genmod sample again"

SAMPLE_SPLIT: Literal["train"] = "train"
"""The only split of a synthetic dataset."""


class SampleConfig(Config):
    """The recipe's ``sample``: number of images, their labels, and the division of the work."""

    count: int = Field(default=10_000, gt=0, le=BUDGET.rows)
    """Images to generate with each model."""
    shard_rows: int = Field(default=1_000, gt=0, le=BUDGET.shard_rows)
    """Images per shard, the unit of work. Multiples of ``micro_batch`` are the most efficient."""
    micro_batch: int = Field(default=100, gt=0, le=MAX_MICRO_BATCH)
    """Images that the model generates together. Affects the result: it determines how sums are rounded."""
    labels: int | str = "auto"
    """``balanced`` cycles through the classes with training rows; the name or number of a class generates
    that class only (``name:10`` or ``number:9`` where a number is also the name of another class); ``none``
    is for models without labels. ``auto``: balanced if the model has classes, else none."""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Addresses the random numbers of the samples alone; other images of the same models, in another
    ``output``. Default: the recipe's ``seed``."""
    workers: int = Field(default=1, gt=0, le=65_536)
    """Number of Ray actors, each with the model on its own device. Does not affect the result."""
    weights: Literal["ema", "raw"] = "ema"
    """``ema``: the moving average; ``raw``: the trained weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: cuda where the recipe's ``cluster.gpus_per_worker`` is above 0."""
    output: storage.OutputFolder = "samples"
    """Folder below the root, or a URL, with a folder per model. ``evaluate`` reads the default one."""
    deadline_s: float = Field(default=3600.0, gt=0, le=1e7)
    """Time limit of one shard. A shard beyond it fails the stage after the other shards are written."""

    def result(self) -> dict[str, Any]:
        """Fields that determine the images, for the fingerprint; the seed is part of it by its value."""
        exclude = {"seed", "workers", "device", "output", "deadline_s"}
        return self.model_dump(mode="json", exclude=exclude)


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
    seed: int = Field(ge=-(2**63), lt=2**63)
    micro_batch: int = Field(gt=0, le=MAX_MICRO_BATCH)

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
        return LabelRequest(classes, self.only_label, self.empty_classes)


def _quantise(x_BCHW: Tensor, spec: ImageSpec) -> Tensor:
    """Convert model outputs in [-1, 1] to uint8 pixels; binary images get pixels 0 and 255."""
    if spec.levels == 2:
        x_BCHW = units.binarise(x_BCHW)
    return units.to_pixels(x_BCHW)


@dataclass(frozen=True)
class SampleGenerator:
    """Generates the images of one job."""

    model: GenerativeModel
    options: SampleOptions
    label_request: LabelRequest
    seed: int
    micro_batch: int

    @torch.no_grad()
    def pixels_BCHW(self, number: int) -> Tensor:
        """Generate micro-batch ``number`` completely: uint8 on the CPU, B = ``micro_batch``.

        Raises:
            GenmodError: an image contains NaN or infinite values.
        """
        device = next(self.model.parameters()).device
        size = self.micro_batch
        index_B = torch.arange(number * size, (number + 1) * size, device=device)
        rng = rng_for(self.seed, SAMPLE_PURPOSE, index_B)
        x_BCHW = self.model.sample(self.label_request.labels_B(index_B), rng, self.options)
        assert x_BCHW.shape == (size, *self.model.spec.shape), x_BCHW.shape
        bad = (~x_BCHW.isfinite().flatten(1).all(1)).nonzero()
        if len(bad):
            raise GenmodError(
                f"image {int(index_B[int(bad[0])])} contains NaN or infinite values "
                f"({len(bad)} of {size} images do); the model is broken, or its sampler diverges"
            )
        return _quantise(x_BCHW, self.model.spec).cpu()

    def images(self, indices: range) -> Iterator[tuple[int, Tensor]]:
        """Generate images of consecutive indices: (index, uint8 pixels (C, H, W)).

        Only one micro-batch is in memory at a time. A micro-batch that exceeds ``indices`` is computed
        completely, and the surplus is dropped.
        """
        first, last = indices.start // self.micro_batch, -(-indices.stop // self.micro_batch)
        for number in range(first, last):
            for row, pixels_CHW in enumerate(self.pixels_BCHW(number)):
                index = number * self.micro_batch + row
                if index in indices:
                    yield index, pixels_CHW

    def image(self, index: int) -> Tensor:
        """Generate one image, uint8 (C, H, W), with the same bits as in :meth:`images`."""
        return self.pixels_BCHW(index // self.micro_batch)[index % self.micro_batch]

    def row(self, index: int, pixels_CHW: Tensor, model_digest: str) -> Row:
        """Convert an image to a dataset row, with a sidecar that allows to regenerate it."""
        label = self.label_request.label(index)
        sidecar = {
            "index": index,
            "seed": self.seed,
            "model": model_digest,
            "sampler": self.options.sampler,
            "draws_from_p": self.options.draws_from_p,
            "label_asked": label,
        }
        image_HWC = pixels_CHW.permute(1, 2, 0).contiguous().numpy()
        return Row(
            key=f"{index:09d}", index=index, image_HWC=image_HWC, label=label, sidecar=sidecar
        )


def shard_range(number: int, config: SampleConfig) -> range:
    """Indices of the images of a shard."""
    start = number * config.shard_rows
    return range(start, min(start + config.shard_rows, config.count))


def shard_count(config: SampleConfig) -> int:
    """Number of shards of a job."""
    return -(-config.count // config.shard_rows)


def size_bytes_at_most(config: SampleConfig, spec: ImageSpec) -> int:
    """Upper bound of the size of the tars: incompressible images, three members each."""
    png = spec.dims + spec.height + 256
    members = sum(512 + -(-content // 512) * 512 for content in (png, 8, 400))
    return config.count * members + shard_count(config) * 10_240
