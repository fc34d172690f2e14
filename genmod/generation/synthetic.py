"""What makes a synthetic dataset: which label an image gets, its pixels, and what its sidecar says.

Image i is a pure function of (model, seed, i) and of the size of micro-batches: it is computed in the
micro-batch of all indices ``[m k, m (k + 1))`` that holds i, always whole, so its bits do not depend on how
many images are made, how they are cut into shards, or who makes them. Letters: B batch, C channels,
H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from genmod import units
from genmod.config import Config
from genmod.data.format.shards import Row
from genmod.errors import ConfigError, GenmodError, did_you_mean
from genmod.interface.model import GenerativeModel
from genmod.interface.options import SampleOptions
from genmod.manifest import ImageSpec
from genmod.rng import rng_for

SAMPLE_PURPOSE = "sample"
"""Of the randomness of samples. The same for all models: one index is the same noise for each of them."""

SAMPLE_SPLIT: Literal["train"] = "train"
"""The split of a synthetic dataset."""


class SampleConfig(Config):
    """The recipe's ``sample``: how many images, with which labels, and how the work is cut."""

    count: int = Field(default=10_000, gt=0)
    """Images to generate with each model."""
    shard_rows: int = Field(default=1_000, gt=0)
    """Images of one tar, the unit of work. A multiple of ``micro_batch`` wastes nothing."""
    micro_batch: int = Field(default=100, gt=0)
    """Images that the model makes together. Part of the result: it fixes how sums are rounded."""
    labels: int | str = "auto"
    """``balanced`` deals the classes out in turn, a class's number or name asks for it alone, ``none`` is
    for a model without labels. ``auto``: balanced where the model knows classes, none elsewhere."""
    workers: int = Field(default=1, gt=0)
    """Actors, each with the model on a device of its own. They do not change the result."""
    weights: Literal["ema", "raw"] = "ema"
    """``ema``: the moving average; ``raw``: the trained weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: cuda where the recipe's ``cluster.gpus_per_worker`` is above 0."""
    output: str = Field(default="samples", min_length=1)
    """Folder below the root, or a URL; each model has one in it. ``evaluate`` judges the default one."""
    deadline_s: float = Field(default=3600.0, gt=0)
    """For one shard. One that takes longer is given up, the others go on, the stage fails."""

    def result(self) -> dict[str, Any]:
        """The fields that the images depend on, for the fingerprint."""
        return self.model_dump(mode="json", exclude={"workers", "device", "output", "deadline_s"})


@dataclass(frozen=True)
class LabelRequest:
    """Which labels a job asks for, resolved against what the model knows."""

    classes: int
    """Number of labels that the model knows, 0 for none."""
    only: int | None = None
    """The one class that is asked for; all in turn if not given."""

    @property
    def rule(self) -> int | str:
        """What is asked for, in the recipe's words: one text for one meaning."""
        if self.only is not None:
            return self.only
        return "balanced" if self.classes else "none"

    def label(self, index: int) -> int | None:
        """The label of an index; None for a model without labels."""
        if not self.classes:
            return None
        return index % self.classes if self.only is None else self.only

    def labels_B(self, index_B: Tensor) -> Tensor | None:
        """The same for many: int64, on their device."""
        if not self.classes:
            return None
        return index_B % self.classes if self.only is None else torch.full_like(index_B, self.only)


def label_request(
    labels: int | str, spec: ImageSpec, class_names: Sequence[str] = ()
) -> LabelRequest:
    """Resolve the recipe's ``sample.labels`` for a model.

    Raises:
        ConfigError: the model does not know such a class.
    """
    if labels == "auto":
        return LabelRequest(spec.classes)
    if not spec.classes:
        if labels == "none":
            return LabelRequest(0)
        raise ConfigError(
            f"recipe: sample.labels is {labels!r}, but the model was trained without labels; "
            "use none or auto"
        )
    if labels == "none":
        raise ConfigError(
            "recipe: sample.labels is 'none', but the model makes images of a class; "
            "use auto, balanced or a class"
        )
    if labels == "balanced":
        return LabelRequest(spec.classes)
    if isinstance(labels, str) and labels in class_names:
        return LabelRequest(spec.classes, class_names.index(labels))
    if isinstance(labels, int) or labels.isdecimal():
        if 0 <= int(labels) < spec.classes:
            return LabelRequest(spec.classes, int(labels))
        raise ConfigError(
            f"recipe: sample.labels is {labels}, but the model knows classes 0 to {spec.classes - 1}"
        )
    valid = ["auto", "balanced", "none", *class_names]
    raise ConfigError(f"recipe: sample.labels is {labels!r}; {did_you_mean(labels, valid)}")


def quantise(x_BCHW: Tensor, spec: ImageSpec) -> Tensor:
    """What a model made, in [-1, 1], as pixels (uint8); binary images get pixels 0 and 255."""
    if spec.levels == 2:
        x_BCHW = units.binarise(x_BCHW)
    return units.to_pixels(x_BCHW)


@dataclass(frozen=True)
class SampleGenerator:
    """Makes the images of one job; everything that they depend on."""

    model: GenerativeModel
    options: SampleOptions
    want: LabelRequest
    seed: int
    micro_batch: int

    @torch.no_grad()
    def pixels_BCHW(self, number: int) -> Tensor:
        """The whole micro-batch ``number``: uint8 on the CPU, B = ``micro_batch``.

        Raises:
            GenmodError: an image holds something that is not a finite number.
        """
        device = next(self.model.parameters()).device
        size = self.micro_batch
        index_B = torch.arange(number * size, (number + 1) * size, device=device)
        rng = rng_for(self.seed, SAMPLE_PURPOSE, index_B)
        x_BCHW = self.model.sample(self.want.labels_B(index_B), rng, self.options)
        assert x_BCHW.shape == (size, *self.model.spec.shape), x_BCHW.shape
        bad = (~x_BCHW.isfinite().flatten(1).all(1)).nonzero()
        if len(bad):
            raise GenmodError(
                f"image {int(index_B[int(bad[0])])} holds values that are not finite numbers "
                f"({len(bad)} such of {size}); the model is broken, or its sampler diverges"
            )
        return quantise(x_BCHW, self.model.spec).cpu()

    def images(self, wanted: range) -> Iterator[tuple[int, Tensor]]:
        """Images of consecutive indices, one by one: (index, pixels of shape (C, H, W)).

        One micro-batch at a time is held. One that sticks out of ``wanted`` is made whole and cut.
        """
        first, last = wanted.start // self.micro_batch, -(-wanted.stop // self.micro_batch)
        for number in range(first, last):
            for row, pixels_CHW in enumerate(self.pixels_BCHW(number)):
                index = number * self.micro_batch + row
                if index in wanted:
                    yield index, pixels_CHW

    def image(self, index: int) -> Tensor:
        """One image alone, pixels of shape (C, H, W): the same bits as among others."""
        return self.pixels_BCHW(index // self.micro_batch)[index % self.micro_batch]

    def row(self, index: int, pixels_CHW: Tensor, model_digest: str) -> Row:
        """An image as a row of the dataset. Its sidecar says how to make it again."""
        label = self.want.label(index)
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
    """The indices of a shard."""
    start = number * config.shard_rows
    return range(start, min(start + config.shard_rows, config.count))


def shard_count(config: SampleConfig) -> int:
    """How many shards a job makes."""
    return -(-config.count // config.shard_rows)


def size_bytes_at_most(config: SampleConfig, spec: ImageSpec) -> int:
    """An upper estimate of the tars' size: images that do not compress, three members each."""
    png = spec.dims + spec.height + 256
    members = sum(512 + -(-content // 512) * 512 for content in (png, 8, 400))
    return config.count * members + shard_count(config) * 10_240
