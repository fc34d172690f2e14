"""Which rows training reads, of one dataset or several, and in which order: the recipe's ``train.order``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, model_validator

from genmod import storage
from genmod.config import Config
from genmod.data.order.balanced import BalancedOrder, ClassIndex, shard_labels
from genmod.data.order.mixed import MixedOrder, integer_weights
from genmod.data.order.row_order import LastBatch, RowOrder, UniformOrder, WindowOrder, epoch_rows
from genmod.errors import ConfigError
from genmod.interface.snapshot import Snapshot
from genmod.manifest import DatasetManifest, FileEntry, ImageSpec, ShardEntry, Split

MAIN = "data"
"""What ``train.order.mixture`` calls the recipe's own dataset."""


class OrderConfig(Config):
    """The recipe's ``train.order``: which row comes when. Every choice resumes anywhere at the same cost."""

    shuffle_window_shards: int | None = Field(default=None, gt=0)
    """Shuffle inside windows of so many shards, which change with the epoch, so that few shards are read at
    a time; for remote shards that are too many to keep. Not given: over the whole split."""
    balance: Literal["none", "classes"] = "none"
    """``classes``: every class equally often; rows of small classes then come more often than others."""
    mixture: dict[str, NonNegativeFloat] = {}
    """Other datasets to train on as well, by URL, and ``data`` for the recipe's own, each with its weight:
    the share of the images is exact, and each dataset has epochs of its own."""
    last_batch: LastBatch = "wrap"
    """Where an epoch ends inside a batch: ``wrap`` fills it up from the next epoch, ``drop`` leaves the
    rest out, other rows each epoch. Validation, evaluation and scores read every row either way."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mixture and MAIN not in self.mixture:
            raise ValueError(
                f"mixture has no weight for {MAIN!r}, the recipe's own dataset; 0 leaves it out"
            )
        if self.shuffle_window_shards and self.balance == "classes":
            raise ValueError(
                "shuffle_window_shards and balance exclude each other: a class may be in any shard"
            )
        if self.last_batch == "drop" and (self.mixture or self.balance == "classes"):
            raise ValueError(
                "last_batch is drop, but with mixture or balance no epoch ends for all rows at once"
            )
        if self.mixture:
            integer_weights(list(self.mixture.values()))
        return self

    def result(self) -> dict[str, Any]:
        """What the trained weights depend on; mixed datasets count by their content."""
        return self.model_dump(mode="json", exclude={"mixture"})

    def resolved(self) -> Self:
        """The same with absolute paths, for processes that have another current folder."""
        mix = {url if url == MAIN else storage.resolve(url): w for url, w in self.mixture.items()}
        return self.model_copy(update={"mixture": mix})


@dataclass(frozen=True)
class MixturePart:
    """One dataset of a mix."""

    root: str
    manifest: DatasetManifest
    weight: float = 1.0


@dataclass(frozen=True)
class TrainingOrder:
    """Some shards as one list of rows, and the order of a stream over them."""

    shards: tuple[ShardEntry, ...]
    """Relative to the dataset's root if there is one, else by absolute path or URL."""
    order: RowOrder


def mixture_parts(config: OrderConfig, snapshot: Snapshot | None = None) -> list[MixturePart]:
    """The other datasets of a mix, read through ``snapshot`` if given. ConfigError if one does not exist."""
    snapshot = snapshot or Snapshot()
    return [
        MixturePart(url, snapshot.dataset(url, "shard, or sample"), weight)
        for url, weight in config.mixture.items()
        if url != MAIN
    ]


def check_mixture(
    parts: Sequence[MixturePart], split: Split, spec: ImageSpec, class_names: tuple[str, ...]
) -> None:
    """Whether datasets can be mixed.

    Args:
        parts: to look at.
        split: that is read.
        spec: of the recipe's own dataset.
        class_names: of the recipe's own dataset.

    Raises:
        ConfigError: one has other images or classes, no rows, or is there twice.
    """
    seen = dict[str, str]()
    for part in parts:
        theirs = part.manifest
        got, wanted = str(theirs.spec), str(spec)
        if theirs.spec == spec:
            got, wanted = str(list(theirs.class_names)), str(list(class_names))
        if got != wanted:
            raise ConfigError(
                f"train.order.mixture: {part.root} has {got}, the recipe's dataset {wanted}; "
                "mix datasets of the same images and classes"
            )
        if part.weight and not theirs.rows(split):
            raise ConfigError(f"train.order.mixture: {part.root} has no rows in its {split} split")
        if theirs.digest in seen:
            raise ConfigError(
                f"train.order.mixture: {part.root} and {seen[theirs.digest]} are the same dataset; "
                "name it once and add the weights"
            )
        seen[theirs.digest] = part.root


def check_order(
    config: OrderConfig,
    split: Split,
    spec: ImageSpec,
    class_names: tuple[str, ...],
    snapshot: Snapshot | None = None,
) -> list[MixturePart]:
    """Check that a dataset, existing or planned, can be read in this order.

    Args:
        config: the order.
        split: that is read.
        spec: of the recipe's own dataset.
        class_names: of the recipe's own dataset.
        snapshot: the manifests that the command has read; new ones are read where it is not given.

    Returns:
        The other datasets of the mix.

    Raises:
        ConfigError: classes are to be balanced where there are none, or datasets cannot be mixed.
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
    """The shards of a training stream and its order.

    Memory is O(shards), with balanced classes O(shards x classes). The order of a mix depends on which
    datasets it has and their weights, not on where they lie or are named.

    Args:
        parts: at least one, the recipe's own first; of several, those with weight 0 are left out.
        split: e.g. ``train``.
        config: ``mixture`` is not looked at, ``parts`` says it.
        seed: of the run.
        global_batch: images of a step.

    Raises:
        ConfigError: the datasets cannot be mixed or balanced.
        DataError: with ``balance``, an index is not what the manifest says.
    """
    first = parts[0].manifest
    check_order(config.model_copy(update={"mixture": {}}), split, first.spec, first.class_names)
    if len(parts) == 1:
        (part,) = parts
        order = _Arranger(split, config, seed, global_batch).order(part, "order")
        return TrainingOrder(part.manifest.of_split(split), order)
    check_mixture(parts, split, first.spec, first.class_names)
    whole = integer_weights([part.weight for part in parts])
    weighted = [(part, weight) for part, weight in zip(parts, whole, strict=True) if weight]
    weighted.sort(key=lambda pair: pair[0].manifest.digest)
    arranger = _Arranger(split, config, seed, global_batch)
    orders = [arranger.order(part, f"order/{part.manifest.digest}") for part, _ in weighted]
    rows = [part.manifest.rows(split) for part, _ in weighted]
    shards = tuple(shard for part, _ in weighted for shard in _absolute_shards(part, split))
    return TrainingOrder(shards, MixedOrder(orders, rows, [weight for _, weight in weighted]))


@dataclass(frozen=True)
class _Arranger:
    """Makes the order of one dataset."""

    split: Split
    config: OrderConfig
    seed: int
    global_batch: int

    def order(self, part: MixturePart, purpose: str) -> RowOrder:
        """Of its split's rows."""
        rows_S = [shard.rows for shard in part.manifest.of_split(self.split)]
        rows = sum(rows_S)
        if rows == 0:
            return UniformOrder.of(part.manifest, self.split, self.seed)  # refuses
        if self.config.balance == "classes":
            return BalancedOrder(self._class_index(part), self.seed, purpose)
        epoch = epoch_rows(rows, self.global_batch, self.config.last_batch)
        if self.config.shuffle_window_shards:
            return WindowOrder(rows_S, self.config.shuffle_window_shards, self.seed, purpose, epoch)
        return UniformOrder(rows, self.seed, purpose, epoch)

    def _class_index(self, part: MixturePart) -> ClassIndex:
        shards, spec = part.manifest.of_split(self.split), part.manifest.spec
        labels = shard_labels(partial(storage.join, part.root), shards)
        index = ClassIndex([shard.rows for shard in shards], spec.classes, labels)
        if empty := (index.rows_K == 0).nonzero()[0].tolist():
            names = part.manifest.class_names
            name = names[empty[0]] if names else empty[0]
            raise ConfigError(
                f"train.order.balance is classes, but class {name} of {part.root} has no rows in its "
                f"{self.split} split; shard more data"
            )
        return index


def _absolute_shards(part: MixturePart, split: Split) -> list[ShardEntry]:
    def absolute(entry: FileEntry) -> FileEntry:
        path = storage.join(storage.resolve(part.root), entry.path)
        return entry.model_copy(update={"path": path})

    return [
        shard.model_copy(update={"tar": absolute(shard.tar), "index": absolute(shard.index)})
        for shard in part.manifest.of_split(split)
    ]
