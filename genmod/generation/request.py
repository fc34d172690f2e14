"""What a recipe requests of a model, resolved against the model's classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from genmod.config import fingerprint
from genmod.errors import ConfigError
from genmod.generation.config import SampleConfig
from genmod.generation.labels import LabelRequest, known_class, label_request, named
from genmod.generation.lanes import LaneRange, Lanes, joined
from genmod.manifest import ImageSpec

_KEY = "recipe: sample.request"


@dataclass(frozen=True)
class SampleRequest:
    """Images of a stream."""

    labels: LabelRequest
    intervals: tuple[LaneRange, ...]
    """The images; with filters, those from which the accepted ones are taken."""
    quotas: Mapping[int, int] | None = None
    """With filters: accepted images of each lane. None: all of ``intervals``, or all that are accepted."""

    @property
    def lanes(self) -> Lanes:
        """The lanes of the stream."""
        return self.labels.lanes

    @property
    def rows(self) -> int:
        """Number of images; with filters and ranges of indices, at most."""
        if self.quotas is not None:
            return sum(self.quotas.values())
        return sum(interval.rows for interval in self.intervals)

    def label_text(self, class_names: Sequence[str] = (), most: int = 20) -> str:
        """The labels for people: the rule, or the number of images of each class.

        Args:
            class_names: names of the model's classes, if they have names.
            most: classes that are listed.
        """
        if not self.labels.block:
            return self.labels.description(class_names)
        counts = Counter[int](self.quotas)
        if self.quotas is None:
            for interval in self.intervals:
                counts[interval.lane] += interval.rows
        classes = sorted(counts)
        text = ", ".join(f"{counts[k]:,} of class {named(k, class_names)}" for k in classes[:most])
        return f"{text} and {len(classes) - most} classes more" if len(classes) > most else text

    def fingerprint(self, stream: str) -> str:
        """Fingerprint of the dataset, given that of its stream."""
        asked = self.intervals if self.quotas is None else sorted(self.quotas.items())
        return fingerprint("samples", stream, asked)

    def tries(self, max_tries: float) -> dict[int, int]:
        """Images of each lane that may be generated for its quota."""
        quotas = self.quotas or {}
        return {lane: -int(-quota * max_tries // 1) for lane, quota in quotas.items()}


def resolve_request(
    config: SampleConfig,
    spec: ImageSpec,
    class_names: tuple[str, ...] = (),
    empty: tuple[int, ...] = (),
) -> SampleRequest:
    """Resolve the recipe's request for a model.

    Args:
        config: the recipe's section.
        spec: of the model's images.
        class_names: names of the model's classes, if they have names.
        empty: classes without training rows.

    Raises:
        ConfigError: a class is unknown, ranges are empty or overlap, or a filter does not fit.
    """
    labels = label_request(config.labels, spec, class_names, empty)
    request = config.count if config.request is None else config.request
    filters = config.filters
    if filters.classifier and not spec.classes:
        raise ConfigError(
            "recipe: sample.filters.classifier is on, but the model was trained without labels; turn it off"
        )
    if isinstance(request, dict):
        if config.labels not in ("auto", "balanced"):
            raise ConfigError(
                f"{_KEY} names classes, so sample.labels must be auto, got {config.labels!r}; remove it"
            )
        counts = _by_class(request, spec, class_names, empty)
        labels = LabelRequest(spec.classes, None, empty, block=config.micro_batch)
    elif isinstance(request, int):
        counts = {0: request}
        if filters.is_on and labels.classes and labels.only is None:
            # Classes keep their shares although filters accept them at different rates.
            labels = LabelRequest(spec.classes, None, empty, block=config.micro_batch)
            dealt = labels.lanes.dealt
            shares = [len(range(turn, request, len(dealt))) for turn in range(len(dealt))]
            counts = {lane: n for lane, n in zip(dealt, shares, strict=True) if n}
    elif filters.earlier_copies:
        raise ConfigError(
            f"{_KEY} has ranges of indices, but sample.filters.earlier_copies needs all images before them; "
            "request a number of images, or turn the filter off"
        )
    else:
        return SampleRequest(labels, _ranges(request))
    intervals = joined(LaneRange(lane, 0, count) for lane, count in counts.items())
    if not filters.is_on:
        return SampleRequest(labels, intervals)
    tries = SampleRequest(labels, (), counts).tries(config.max_tries)
    candidates = joined(LaneRange(lane, 0, most) for lane, most in tries.items())
    return SampleRequest(labels, candidates, counts)


def size_bytes_at_most(rows: int, shards: int, spec: ImageSpec) -> int:
    """Upper bound of the size of tars: incompressible images, three members each."""
    png = spec.dims + spec.height + 256
    members = sum(512 + -(-content // 512) * 512 for content in (png, 8, 400))
    return rows * members + shards * 10_240


def _by_class(
    request: Mapping[int | str, int],
    spec: ImageSpec,
    class_names: tuple[str, ...],
    empty: tuple[int, ...],
) -> dict[int, int]:
    """Images of each class, by its number."""
    if not spec.classes:
        raise ConfigError(
            f"{_KEY} names classes, but the model was trained without labels; request a number of images"
        )
    counts: dict[int, int] = {}
    for asked, count in request.items():
        number = known_class(asked, spec, class_names, empty, _KEY)
        if number in counts:
            raise ConfigError(f"{_KEY} names class {asked!r} twice; keep one of them")
        counts[number] = count
    return dict(sorted(counts.items()))


def _ranges(ranges: list[tuple[int, int]]) -> tuple[LaneRange, ...]:
    """Ranges of indices as intervals of the only lane."""
    intervals = sorted(LaneRange(0, start, stop) for start, stop in ranges)
    for interval in intervals:
        if interval.rows <= 0:
            raise ConfigError(
                f"{_KEY}: the range [{interval.start}, {interval.stop}] is empty; give [START, STOP] with "
                "START < STOP"
            )
    for first, second in pairwise(intervals):
        if second.start < first.stop:
            raise ConfigError(
                f"{_KEY}: the ranges [{first.start}, {first.stop}] and [{second.start}, {second.stop}] "
                "overlap; give each index once"
            )
    return joined(intervals)
