"""The census of a source in lines for people."""

from __future__ import annotations

from genmod.data.sharding.source_census import ClassRows, SourceCensus
from genmod.errors import sanitize
from genmod.manifest import SPLITS


def census_lines(census: SourceCensus) -> list[str]:
    """Describe what will be made of a source, one fact a line. The text is safe to print."""
    rows = sum(census.rows.values())
    by_split = ", ".join(f"{split} {census.rows[split]:,}" for split in SPLITS)
    lines = [
        f"source    {census.source}: {census.inputs:,} inputs, {rows:,} taken ({by_split})",
        f"images    {census.spec}; {_sample(census)}",
        f"splits    {census.splits}",
    ]
    if census.in_previous:
        lines.append(f"known     {census.in_previous:,} inputs are in the previous version")
    if census.rejected:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in census.rejected.items())
        lines.append(f"rejected  {reasons}")
    for part in census.passed_over:
        lines.append(f"passed    {part.count:,} {part.kind}; the first is {part.first}")
    lines += [f"decided   {decision}" for decision in census.decisions]
    lines += [f"class     {_class(part)}" for part in census.classes]
    if (more := census.spec.classes - len(census.classes)) > 0:
        least, most = census.class_range
        lines.append(
            f"class     ... and {more:,} more; of all classes {least:,} to {most:,} rows each"
        )
    lines += warnings(census)
    return [sanitize(line) for line in lines]


def warnings(census: SourceCensus) -> list[str]:
    """Lines about classes without rows, which models cannot learn."""
    lines: list[str] = []
    for title, parts, count in (
        (
            "no rows of",
            [part for part in census.empty if not any(part.rows.values())],
            census.classes_without_rows,
        ),
        (
            "no training rows of",
            [part for part in census.empty if any(part.rows.values())],
            census.classes_without_training_rows - census.classes_without_rows,
        ),
    ):
        if count:
            names = ", ".join(f"class {_name(part)}" for part in parts[:5])
            more = f" and {count - len(parts[:5]):,} more" if count > len(parts[:5]) else ""
            lines.append(f"warning   {title} {names}{more}: not dealt out to balanced samples")
    return [sanitize(line) for line in lines]


def _sample(census: SourceCensus) -> str:
    sample = census.sample
    if not sample.images:
        return f"none of {sample.unreadable} sampled images is readable ({sample.reason})"
    sizes = ", ".join(f"{size.images:,} of {size}" for size in sample.sizes)
    if sample.other_sizes:
        sizes += f", {sample.other_sizes:,} of other sizes"
    text = f"sampled {sample.images:,}: {sample.rgb:,} RGB, {sample.grey:,} grey; {sizes}"
    if sample.unreadable:
        text += f"; {sample.unreadable:,} unreadable, the first {sample.reason}"
    return text


def _class(part: ClassRows) -> str:
    rows = ", ".join(f"{split} {part.rows[split]:,}" for split in SPLITS)
    return f"{_name(part)}: {sum(part.rows.values()):,} ({rows})"


def _name(part: ClassRows) -> str:
    return (
        str(part.number)
        if part.name in (None, str(part.number))
        else f"{part.number} ({part.name})"
    )
