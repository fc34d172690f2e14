"""``genmod inspect URL``: what a dataset is, in words and in a picture."""

from __future__ import annotations

from typing import Any

from genmod import storage
from genmod.data.reading.reader import open_dataset
from genmod.data.reading.summary import contact_sheet, dataset_summary
from genmod.errors import ConfigError, sanitize
from genmod.manifest import DatasetManifest, Split, load_manifest

CLASSES_TOLD = 20
"""Classes whose counts are printed one by one."""

SHEET = "contact-sheet.png"
"""Name of the picture, in the current folder, where no other is given."""


def inspect(url: str, out: str = SHEET, split: Split | None = None) -> tuple[dict[str, Any], str]:
    """TaskResult of a dataset as JSON values, and the same for people.

    Args:
        url: its folder.
        out: where its contact sheet is written; an existing file is replaced.
        split: that the sheet shows; the first with rows if not given.

    Raises:
        ConfigError: there is no dataset, or nothing to show.
        DataError: it is broken.
    """
    manifest = _open(url)
    metadata = dataset_summary(url, manifest)
    sheet = contact_sheet(url, manifest, split)
    out = storage.resolve(out)
    storage.write_bytes(out, sheet.png)
    what = f"{sheet.images} images of {sheet.split}"
    if sheet.classes:
        what += f", a row a class, 0 to {sheet.classes - 1}"
    metadata["sheet"] = out
    lines = [*_lines(url, manifest, metadata), f"sheet     {out}: {what}"]
    return metadata, "\n".join(map(sanitize, lines))


def _open(url: str) -> DatasetManifest:
    below = storage.join(url, "data")
    if load_manifest(DatasetManifest, url, "dataset") is None and load_manifest(
        DatasetManifest, below, "dataset"
    ):
        raise ConfigError(f"no dataset at {url}, but there is one at {below}; give that")
    return open_dataset(url)


def _lines(url: str, manifest: DatasetManifest, metadata: dict[str, Any]) -> list[str]:
    lines = [
        f"dataset   {url}",
        f"images    {manifest.spec}",
        f"version   {metadata['version']}, format {metadata['format']}, digest {metadata['digest'][:12]}, "
        f"fingerprint {metadata['fingerprint'][:12]}",
    ]
    if metadata["source"]:
        lines.append(f"source    {metadata['source']}")
    lines += [f"parent    {name} {digest[:12]}" for name, digest in metadata["parents"].items()]
    if metadata["sample"]:
        told = ", ".join(f"{key} {value}" for key, value in metadata["sample"].items())
        lines.append(f"sampled   {told}")
    lines.append(
        f"size      {metadata['rows']:,} images, {metadata['shards']:,} shards, "
        f"{metadata['size_bytes']:,} bytes"
    )
    for split, told in metadata["splits"].items():
        lines += _split_lines(split, told, manifest.class_names)
    reasons = "".join(f"; {count:,} {reason}" for reason, count in metadata["reasons"].items())
    lines.append(f"rejected  {metadata['rejected']:,}{reasons}")
    return lines


def _split_lines(split: str, told: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    least, most = told["rows_per_shard"]
    lines = [
        f"{split:<9} {told['rows']:,} images, {told['shards']:,} shards of {least:,} to {most:,} images, "
        f"{told['bytes_per_image']:,} bytes an image"
    ]
    for c, (mean, std) in enumerate(
        zip(told.get("pixel_mean_C", ()), told.get("pixel_std_C", ()), strict=True)
    ):
        lines.append(f"          channel {c}: mean {mean:.2f}, std {std:.2f} of 0..255")
    counts = told.get("rows_by_class", [])
    for k, count in enumerate(counts[:CLASSES_TOLD]):
        name = f"{k} ({names[k]})" if names and names[k] != str(k) else str(k)
        lines.append(f"          class {name}: {count:,}, {count / told['rows']:.1%}")
    if len(counts) > CLASSES_TOLD:
        rest = sorted(counts[CLASSES_TOLD:])
        lines.append(
            f"          {len(rest):,} more classes: {rest[0]:,} to {rest[-1]:,} images each"
        )
    return lines
