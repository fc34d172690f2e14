"""``genmod inspect URL``: describes a dataset, in words and by a contact sheet."""

from __future__ import annotations

from typing import Any

from genmod import storage
from genmod.data.reading.summary import contact_sheet, dataset_summary
from genmod.errors import ConfigError, sanitize
from genmod.manifest import DatasetManifest, Split, load_manifest, missing_manifest

_LISTED_CLASSES = 20
"""Classes whose counts are printed one by one."""

SHEET = "contact-sheet.png"
"""Default file of the contact sheet, in the current folder."""


def inspect(url: str, out: str = SHEET, split: Split | None = None) -> tuple[dict[str, Any], str]:
    """Describe a dataset: as JSON values, and as text for people.

    Args:
        url: the dataset's folder.
        out: file that the contact sheet is written to; an existing file is replaced.
        split: the split on the sheet; the first with rows if not given.

    Raises:
        ConfigError: there is no dataset, or the split has no rows.
        DataError: the dataset is broken.
    """
    manifest = _open(url)
    metadata = dataset_summary(url, manifest)
    sheet = contact_sheet(url, manifest, split)
    out = storage.resolve(out)
    storage.write_bytes(out, sheet.png)
    description = f"{sheet.images} images of {sheet.split}"
    if sheet.classes:
        description += f", one row per class, 0 to {sheet.classes - 1}"
    metadata["sheet"] = out
    lines = [*_lines(url, manifest, metadata), f"sheet     {out}: {description}"]
    return metadata, "\n".join(map(sanitize, lines))


def _open(url: str) -> DatasetManifest:
    manifest = load_manifest(DatasetManifest, url, "dataset")
    if manifest is not None:
        return manifest
    below = storage.join(url, "data")
    if load_manifest(DatasetManifest, below, "dataset") is not None:
        raise ConfigError(f"no dataset at {url}, but there is one at {below}; give that URL")
    raise missing_manifest(url, "dataset", "shard")


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
        settings = ", ".join(f"{key} {value}" for key, value in metadata["sample"].items())
        lines.append(f"sampled   {settings}")
    lines.append(
        f"size      {metadata['rows']:,} images, {metadata['shards']:,} shards, "
        f"{metadata['size_bytes']:,} bytes"
    )
    for split, counts in metadata["splits"].items():
        lines += _split_lines(split, counts, manifest.class_names)
    reasons = "".join(f"; {count:,} {reason}" for reason, count in metadata["reasons"].items())
    lines.append(f"rejected  {metadata['rejected']:,}{reasons}")
    return lines


def _split_lines(split: str, summary: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    least, most = summary["rows_per_shard"]
    shards = f"{summary['shards']:,} shard{'s' * (summary['shards'] > 1)}"
    each = f"{most:,}" if least == most else f"{least:,} to {most:,}"
    lines = [
        f"{split:<9} {summary['rows']:,} images, {shards} of {each} images, "
        f"{summary['bytes_per_image']:,} bytes an image"
    ]
    for c, (mean, std) in enumerate(
        zip(summary.get("pixel_mean_C", ()), summary.get("pixel_std_C", ()), strict=True)
    ):
        lines.append(f"          channel {c}: mean {mean:.2f}, std {std:.2f} of 0..255")
    counts = summary.get("rows_by_class", [])
    for k, count in enumerate(counts[:_LISTED_CLASSES]):
        name = f"{k} ({names[k]})" if names and names[k] != str(k) else str(k)
        lines.append(f"          class {name}: {count:,}, {count / summary['rows']:.1%}")
    if len(counts) > _LISTED_CLASSES:
        rest = sorted(counts[_LISTED_CLASSES:])
        lines.append(
            f"          {len(rest):,} more classes: {rest[0]:,} to {rest[-1]:,} images each"
        )
    return lines
