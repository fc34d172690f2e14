"""Channels and sizes of a sample of a source's images, from which the dataset's are decided.

Letters: C channels, H height, W width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from genmod.config import Config
from genmod.data.format.foreign import Rejected, probe_foreign
from genmod.data.sharding.row_sample import SampledRow
from genmod.data.sources.config import DataConfig
from genmod.data.sources.source import Image, Scan, Source, pixels_of
from genmod.errors import ConfigError
from genmod.manifest import ImageSpec

_DECODED_PIXELS = 1 << 26
"""Pixels of a sample that are decoded; of further images only the headers are read."""

_FETCHED_BYTES = 1 << 29
"""Bytes after which no more images of a sample are fetched."""

_LISTED_SIZES = 5


class SizeCount(Config):
    """Number of sampled images of one size."""

    height: int
    width: int
    images: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


class ImageSample(Config):
    """What a sample of images has in common."""

    images: int = 0
    """Sampled images that are readable."""
    unreadable: int = 0
    reason: str = ""
    """Why the first unreadable image is."""
    grey: int = 0
    """Images with one channel."""
    equal: int = 0
    """RGB images whose channels are equal, of those that were decoded."""
    sizes: tuple[SizeCount, ...] = ()
    """The most common sizes, the most common first; of equally common ones the larger first."""
    other_sizes: int = 0
    """Images of sizes that are not listed."""
    is_whole: bool = False
    """Whether every input of the source is in the sample."""

    @property
    def rgb(self) -> int:
        """Images with three channels."""
        return self.images - self.grey

    def of_size(self, height: int, width: int) -> int:
        """Images of one of the listed sizes; 0 if it is not listed."""
        return sum(s.images for s in self.sizes if (s.height, s.width) == (height, width))


def sample_images(
    source: Source, scan: Scan, rows: Sequence[SampledRow], inputs: int
) -> ImageSample:
    """Fetch and examine sampled rows.

    Args:
        source: the source.
        scan: of its listing.
        rows: sampled rows.
        inputs: number of rows of the whole source.
    """
    blocks = source.block_fields
    rows = sorted(rows, key=lambda row: (tuple(row.ref[:blocks]) if blocks else (), row.digest))
    shapes = Counter[tuple[int, int, int]]()
    equal = unreadable = pixels = fetched_bytes = 0
    reason = ""
    for image in source.fetch([row.ref for row in rows], scan.fingerprint):
        fetched_bytes += (
            0
            if isinstance(image, Rejected)
            else len(image)
            if isinstance(image, bytes)
            else image.nbytes
        )
        try:
            shape, is_equal = _examine(image, decode=pixels < _DECODED_PIXELS)
        except Rejected as error:
            unreadable, reason = unreadable + 1, reason or str(error)
        else:
            shapes[shape] += 1
            equal += is_equal
            pixels += shape[0] * shape[1]
        if fetched_bytes > _FETCHED_BYTES:
            break
    sizes = Counter[tuple[int, int]]()
    for (height, width, _), count in shapes.items():
        sizes[height, width] += count
    listed = sorted(sizes.items(), key=lambda item: (-item[1], -item[0][0] * item[0][1], item[0]))
    return ImageSample(
        images=shapes.total(),
        unreadable=unreadable,
        reason=reason[:200],
        grey=sum(count for (_, _, channels), count in shapes.items() if channels == 1),
        equal=equal,
        sizes=tuple(
            SizeCount(height=height, width=width, images=count)
            for (height, width), count in listed[:_LISTED_SIZES]
        ),
        other_sizes=sum(count for _, count in listed[_LISTED_SIZES:]),
        is_whole=shapes.total() + unreadable == inputs,
    )


def _examine(image: Image, *, decode: bool) -> tuple[tuple[int, int, int], bool]:
    """(H, W, C) of an image, and whether it is RGB with equal channels. Raises Rejected."""
    if isinstance(image, bytes) and not decode:
        return probe_foreign(image), False
    pixels = pixels_of(image)
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 or pixels.shape[2] == 1 else 3
    is_equal = channels == 3 and bool(np.all(pixels[:, :, :1] == pixels[:, :, 1:3]))
    return (height, width, channels), is_equal


def channels_text(data: DataConfig, spec: ImageSpec, sample: ImageSample) -> str:
    """How the number of channels was decided, if it could be meant otherwise; else empty."""
    of_all = f"of {sample.images} sampled images"
    if spec.channels == 1 and sample.rgb:
        return f"1 channel: {sample.rgb} {of_all} are RGB and become grey; data.channels=3 keeps colour"
    if spec.channels == 1 or data.channels is not None:
        return ""
    if sample.grey and sample.rgb:
        return (
            f"3 channels: {sample.rgb} {of_all} are RGB, {sample.grey} "
            f"{'is' if sample.grey == 1 else 'are'} grey and repeated; data.channels=1 makes all grey"
        )
    if sample.equal:
        return (
            f"3 channels: {sample.equal} {of_all} are grey stored as RGB with equal channels; "
            "data.channels=1 stores one channel"
        )
    return ""


def sizes_text(data: DataConfig, spec: ImageSpec, sample: ImageSample) -> str:
    """How images of other sizes are treated, if there are any; else empty."""
    others = _other_sizes(spec, sample)
    if not others:
        return ""
    same = sample.of_size(spec.height, spec.width)
    effect = (
        "are rejected; data.resize=fit, crop or pad scales them"
        if data.resize == "none"
        else f"are scaled (data.resize={data.resize})"
    )
    return (
        f"{spec.height}x{spec.width} pixels: {same} of {sample.images} sampled images have this size, "
        f"others ({others}) {effect}"
    )


def _other_sizes(spec: ImageSpec, sample: ImageSample) -> str:
    others = [
        f"{size.images} of {size}"
        for size in sample.sizes
        if (size.height, size.width) != (spec.height, spec.width)
    ]
    if sample.other_sizes:
        others.append(f"{sample.other_sizes} of further sizes")
    return ", ".join(others)


def check_sizes(data: DataConfig, spec: ImageSpec, sample: ImageSample) -> None:
    """ConfigError if more images than ``data.max_quarantined`` would be rejected for their size.

    A sample of a larger source may have more of them by chance, up to three standard deviations.
    """
    if data.resize != "none" or not sample.images:
        return
    other = sample.images - sample.of_size(spec.height, spec.width)
    allowed = data.max_quarantined * sample.images
    if not sample.is_whole:
        allowed += 3 * allowed**0.5
    if other > allowed:
        raise ConfigError(
            f"{data.source}: {other} of {sample.images} sampled images are not {spec.height}x{spec.width} "
            f"({_other_sizes(spec, sample)}), more than data.max_quarantined={data.max_quarantined:g} "
            "allows; set data.resize to fit, crop or pad, or data.image_size to another size"
        )
