"""``genmod inspect URL``: describes a dataset or a source, in words and by a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from genmod import storage
from genmod.data.reading.summary import contact_sheet, dataset_summary
from genmod.errors import ConfigError, sanitize
from genmod.manifest import DatasetManifest, Split, load_manifest
from pipelines.commands.inspect_source import inspect_source, is_source, no_dataset
from pipelines.stages.replaced import find_replaced

_LISTED_CLASSES = 20
"""Classes whose counts are printed one by one."""

SHEET = "contact-sheet.png"
"""Default file of the contact sheet, in the current folder."""


def inspect(
    url: str,
    out: str = SHEET,
    split: Split | None = None,
    recipe: str | None = None,
    assignments: Sequence[str] = (),
) -> tuple[dict[str, Any], str]:
    """Describe a dataset, or what would be made of a source: as JSON values, and as text for people.

    Args:
        url: the dataset's folder, or KIND:WHERE of a source.
        out: file that the contact sheet is written to; an existing file is replaced.
        split: the split of a dataset on the sheet; the first with rows if not given.
        recipe: recipe whose ``data`` a source is read with.
        assignments: changes of ``data``, ``data.KEY=VALUE`` each.

    Raises:
        ConfigError: there is no dataset, the split has no rows, or an option does not apply.
        DataError: the dataset or the source is broken.
    """
    if is_source(url):
        if split is not None:
            raise ConfigError("inspect: --split is for datasets; leave it out for a source")
        return inspect_source(url, out, recipe, assignments)
    if recipe is not None or assignments:
        raise ConfigError(
            f"inspect: --recipe and --set are for sources, and {url} is none; leave them out, or "
            "give KIND:WHERE, e.g. folder:photos"
        )
    manifest = _open(url)
    metadata = dataset_summary(url, manifest)
    sheet = contact_sheet(url, manifest, split)
    out = storage.resolve(out)
    storage.write_bytes(out, sheet.png)
    description = f"{sheet.images} images of {sheet.split}"
    if sheet.classes:
        description += f", one row per class, 0 to {sheet.classes - 1}"
    metadata["sheet"] = out
    lines = [*_lines(url, manifest, metadata), *_replaced(url, manifest, metadata)]
    lines.append(f"sheet     {out}: {description}")
    return metadata, "\n".join(map(sanitize, lines))


def _replaced(url: str, manifest: DatasetManifest, metadata: dict[str, Any]) -> list[str]:
    """A line if a later version replaces this dataset, e.g. because rows were removed."""
    if (found := find_replaced(url, manifest.digest)) is None:
        return []
    metadata["replaced"] = {"version": found.version, "reason": found.reason}
    return [f"replaced  by version {found.version}: {found.reason}"]


def _open(url: str) -> DatasetManifest:
    manifest = load_manifest(DatasetManifest, url, "dataset")
    if manifest is not None:
        return manifest
    below = storage.join(url, "data")
    if load_manifest(DatasetManifest, below, "dataset") is not None:
        raise ConfigError(f"no dataset at {url}, but there is one at {below}; give that URL")
    raise no_dataset(url)


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
    lines += _selected(metadata["selection"])
    lines.append(
        f"size      {metadata['rows']:,} images, {metadata['shards']:,} shards, "
        f"{metadata['size_bytes']:,} bytes"
    )
    if metadata["split_rule"]:
        lines.append(f"splits    {metadata['split_rule']}")
    for split, counts in metadata["splits"].items():
        lines += _split_lines(split, counts, manifest.class_names)
    reasons = "".join(f"; {count:,} {reason}" for reason, count in metadata["reasons"].items())
    lines.append(f"rejected  {metadata['rejected']:,}{reasons}")
    return lines


def _selected(selection: Any) -> list[str]:
    """A line about a dataset that ``genmod select`` made; nothing of others."""
    if not isinstance(selection, dict):
        return []
    values = cast("dict[str, Any]", selection)
    condition, kept, dropped = (values.get(name) for name in ("condition", "kept", "dropped"))
    return [f"selected  {condition}: {kept} rows kept, {dropped} dropped"]


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
