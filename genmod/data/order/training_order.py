"""Rows that training reads, of one dataset or a mixture, and their order: the recipe's ``train.order``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from genmod import storage
from genmod.config import Config
from genmod.data.order.balanced import BalancedOrder, ClassIndex, shard_labels
from genmod.data.order.mixed import MixedOrder, integer_weights
from genmod.data.order.row_order import LastBatch, RowOrder, UniformOrder, WindowOrder, epoch_rows
from genmod.errors import ConfigError
from genmod.interface.snapshot import ManifestSnapshot
from genmod.manifest import DatasetManifest, ImageSpec, Split, StoredShard
from genmod.manifest.class_match import Classes, match_classes

MAIN = "data"
"""Name of the recipe's own dataset in ``train.order.mixture``."""


class OrderConfig(Config):
    """The recipe's ``train.order``: row order of training. Every order resumes at any position in O(1)."""

    shuffle_window_shards: int | None = Field(default=None, gt=0, le=1 << 24)
    """Shuffle within windows of this many shards, so that only a few shards are read at a time; for remote
    datasets that are too large to cache. Default: shuffle the whole split."""
    balance: Literal["none", "classes"] = "none"
    """``classes`` draws all classes that have training rows equally often; rows of small classes then occur
    more often."""
    mixture: dict[storage.Url, Annotated[float, Field(ge=0, le=1e12)]] = Field(
        default={}, max_length=1_000
    )
    """Weights of the datasets to train on, by URL; ``data`` is the recipe's own. The shares of the images are
    exact, and each dataset has its own epochs."""
    last_batch: LastBatch = "wrap"
    """Incomplete last batch of an epoch: ``wrap`` fills it from the next epoch, ``drop`` drops it (other rows
    in each epoch). Validation, evaluation and scores read every row in any case."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mixture and MAIN not in self.mixture:
            raise ValueError(
                f"mixture has no weight for {MAIN!r}, the recipe's own dataset; set it, 0 to exclude it"
            )
        if self.shuffle_window_shards and self.balance == "classes":
            raise ValueError(
                "shuffle_window_shards and balance are incompatible: a class may be in any shard"
            )
        if self.last_batch == "drop" and (self.mixture or self.balance == "classes"):
            raise ValueError(
                "last_batch is drop, but with mixture or balance there are no common epochs"
            )
        if self.mixture:
            integer_weights(list(self.mixture.values()))
        return self

    def result(self) -> dict[str, Any]:
        """Fields that determine the weights; the mixture is represented by its datasets' contents."""
        return self.model_dump(mode="json", exclude={"mixture"})

    def resolved(self) -> Self:
        """Copy with absolute paths, for processes with another working directory."""
        mix = {url if url == MAIN else storage.resolve(url): w for url, w in self.mixture.items()}
        return self.model_copy(update={"mixture": mix})


@dataclass(frozen=True)
class MixturePart:
    """One dataset of a mixture."""

    root: str
    manifest: DatasetManifest
    weight: float = 1.0

    def matched(self, split: Split, own: MixturePart) -> tuple[int, ...]:
        """Number of each class in the recipe's own dataset; empty if all are equal.

        Raises:
            ConfigError: the own dataset lacks a class that has rows.
        """
        used = self.manifest.classes_with_rows(split)
        return match_classes(self.manifest.classes(self.root), own.manifest.classes(own.root), used)

    def empty_classes(self, split: Split, own: MixturePart) -> set[int]:
        """Classes of the recipe's own dataset of which this one has no rows."""
        used, matched = self.manifest.classes_with_rows(split), self.matched(split, own)
        known = {matched[number] for number in used} if matched else used
        return set(range(own.manifest.spec.classes)) - known


@dataclass(frozen=True)
class TrainingOrder:
    """Shards whose rows are numbered consecutively, and the order of these rows in the stream."""

    shards: tuple[StoredShard, ...]
    order: RowOrder
    label_maps: tuple[tuple[int, ...], ...] = ()
    """For each shard the class number of each of its labels; an empty map keeps them, and so does no map."""


def mixture_parts(
    config: OrderConfig, snapshot: ManifestSnapshot | None = None
) -> list[MixturePart]:
    """The other datasets of a mix, read through ``snapshot`` if given. ConfigError if one does not exist."""
    snapshot = snapshot or ManifestSnapshot()
    return [
        MixturePart(url, snapshot.dataset(url, "shard, or sample"), weight)
        for url, weight in config.mixture.items()
        if url != MAIN
    ]


def check_mixture(
    parts: Sequence[MixturePart], split: Split, spec: ImageSpec, class_names: tuple[str, ...]
) -> None:
    """Check that datasets can be mixed.

    Args:
        parts: datasets to check.
        split: split to read.
        spec: spec of the recipe's own dataset.
        class_names: class names of the recipe's own dataset.

    Raises:
        ConfigError: a dataset has other images, a class that the own one lacks, no rows, or occurs twice.
    """
    seen = dict[str, str]()
    for part in parts:
        manifest = part.manifest
        # The same images as the recipe's dataset, and no classes that it lacks.
        if not manifest.spec.same_images(spec):
            raise ConfigError(
                f"train.order.mixture: {part.root} has {manifest.spec}, the recipe's dataset has {spec}; "
                "mix datasets of the same images"
            )
        own = Classes("the recipe's dataset", spec.classes, class_names)
        classes = manifest.classes(f"train.order.mixture: {part.root}")
        match_classes(classes, own, manifest.classes_with_rows(split))
        # Rows to draw from, and each dataset only once.
        if part.weight and not manifest.rows(split):
            raise ConfigError(f"train.order.mixture: {part.root} has no rows in its {split} split")
        if manifest.digest in seen:
            raise ConfigError(
                f"train.order.mixture: {part.root} and {seen[manifest.digest]} are the same dataset; "
                "list it once, with the sum of the weights"
            )
        seen[manifest.digest] = part.root


def check_order(
    config: OrderConfig,
    split: Split,
    spec: ImageSpec,
    class_names: tuple[str, ...],
    snapshot: ManifestSnapshot | None = None,
) -> list[MixturePart]:
    """Check that a dataset, existing or planned, can be read in this order.

    Args:
        config: the recipe's ``train.order``.
        split: split to read.
        spec: spec of the recipe's own dataset.
        class_names: class names of the recipe's own dataset.
        snapshot: manifests that the command has read; without it manifests are read again.

    Returns:
        The other datasets of the mixture.

    Raises:
        ConfigError: ``balance`` without classes, or datasets that cannot be mixed.
    """
    if config.balance == "classes" and not spec.classes:
        raise ConfigError(
            "train.order.balance is classes, but the dataset has no labels; set train.order.balance=none"
        )
    others = mixture_parts(config, snapshot)
    check_mixture(others, split, spec, class_names)
    return others


def make_training_order(
    parts: Sequence[MixturePart], split: Split, config: OrderConfig, *, seed: int, global_batch: int
) -> TrainingOrder:
    """Determine the shards and the row order of a training stream.

    Memory is O(shards), with balanced classes O(shards x classes). The order of a mixture depends on the
    contents and weights of its datasets, not on their URLs.

    Args:
        parts: one or more datasets, the recipe's own first; of several, those with weight 0 are excluded.
        split: split to read, e.g. ``train``.
        config: the recipe's ``train.order``; its ``mixture`` is ignored in favour of ``parts``.
        seed: seed of the run.
        global_batch: images of a step over all ranks.

    Raises:
        ConfigError: the datasets cannot be mixed or balanced.
        DataError: with ``balance``, an index is inconsistent with the manifest.
    """
    first = parts[0].manifest
    check_order(config.model_copy(update={"mixture": {}}), split, first.spec, first.class_names)
    if len(parts) == 1:
        (part,) = parts
        order = _OrderFactory(split, config, seed, global_batch).order(part, "order")
        return TrainingOrder(part.manifest.stored(part.root, split), order)
    check_mixture(parts, split, first.spec, first.class_names)
    # Sort the datasets by digest, so that the order is independent of their URLs.
    weights = integer_weights([part.weight for part in parts])
    weighted = [(part, weight) for part, weight in zip(parts, weights, strict=True) if weight]
    weighted.sort(key=lambda pair: pair[0].manifest.digest)
    factory = _OrderFactory(split, config, seed, global_batch)
    orders = [factory.order(part, f"order/{part.manifest.digest}") for part, _ in weighted]
    rows = [part.manifest.rows(split) for part, _ in weighted]
    shards = tuple(
        shard for part, _ in weighted for shard in part.manifest.stored(part.root, split)
    )
    maps = tuple(
        part.matched(split, parts[0]) for part, _ in weighted for _ in part.manifest.of_split(split)
    )
    order = MixedOrder(orders, rows, [weight for _, weight in weighted])
    return TrainingOrder(shards, order, maps if any(maps) else ())


@dataclass(frozen=True)
class _OrderFactory:
    """Creates the row order of one dataset."""

    split: Split
    config: OrderConfig
    seed: int
    global_batch: int

    def order(self, part: MixturePart, purpose: str) -> RowOrder:
        """Create the order of the rows of the dataset's split."""
        rows_S = [shard.rows for shard in part.manifest.of_split(self.split)]
        rows = sum(rows_S)
        if rows == 0:
            return UniformOrder.of(part.manifest, self.split, self.seed)  # raises ConfigError
        if self.config.balance == "classes":
            return BalancedOrder(self._class_index(part), self.seed, purpose)
        epoch = epoch_rows(rows, self.global_batch, self.config.last_batch)
        if self.config.shuffle_window_shards:
            return WindowOrder(rows_S, self.config.shuffle_window_shards, self.seed, purpose, epoch)
        return UniformOrder(rows, self.seed, purpose, epoch)

    def _class_index(self, part: MixturePart) -> ClassIndex:
        shards, spec = part.manifest.stored(part.root, self.split), part.manifest.spec
        labels = shard_labels(shards)
        return ClassIndex([shard.rows for shard in shards], spec.classes, labels)
