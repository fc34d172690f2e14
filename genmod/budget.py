"""Limits of everything that is read: how large a foreign file, document or image may be.

A reader checks what a file *declares* against the budget before it allocates anything, and what it *contains*
while it reads. The limits are far above ordinary data, and low enough that no file exhausts a node.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from genmod.errors import DataError


@dataclass(frozen=True)
class ReadBudget:
    """Upper limits, all inclusive. A field's name is what it counts."""

    document_bytes: int = 256 << 20
    """Bytes of a JSON document. The manifest of a billion images fits."""
    json_values: int = 20_000_000
    """Values of a JSON document; each takes up to 100 bytes of memory."""
    nesting: int = 64
    """Nesting depth of a JSON document."""
    recipe_bytes: int = 64 << 10
    """Bytes of a recipe. The largest that genmod ships has 3 KiB."""
    recipe_nodes: int = 10_000
    """Nodes of a recipe's YAML, with each alias counted as a copy."""
    recipe_nesting: int = 32
    """Nesting depth of a recipe."""
    file_bytes: int = 64 << 30
    """Bytes of a file that is read whole."""
    nimg: int = 10**12 - 1
    """Images of a training: 12 digits, as in the names of checkpoints."""
    rows: int = 1 << 40
    """Rows of a dataset."""
    shard_rows: int = 1 << 24
    """Rows of one shard, and of one table."""
    table_bytes: int = 1 << 30
    """Bytes of the decoded columns of a Parquet file."""
    array_bytes: int = 8 << 30
    """Bytes of the decoded arrays of one source; they are kept in memory."""
    image_file_bytes: int = 256 << 20
    """Bytes of an encoded image."""
    pixels: int = 1 << 26
    """Pixels of one image, before it is resized."""
    image_side: int = 1 << 15
    """Height and width of a dataset's images."""
    jpeg_scans: int = 64
    """Scans of a progressive JPEG; each costs a pass over all pixels."""
    scanned_pixels: int = 1 << 30
    """Pixels of a JPEG times its scans, which bounds the time of decoding it."""
    array_rows: int = 1 << 27
    """Rows of a source of arrays."""
    tar_members: int = 1 << 22
    """Members of one tar of a source, whose names are kept in memory."""
    label_rows: int = 1 << 22
    """Rows of a file with labels; their names are kept in memory."""
    name_chars: int = 1024
    """Characters of the name of an input or of a class."""
    brace_names: int = 1_000_000
    """Names that the braces of a pattern expand to."""
    classes: int = 1 << 20
    """Classes of a dataset."""
    net_parameters: int = 20_000_000_000
    """Parameters of a network, counted before it is allocated."""
    net_modules: int = 5_000
    """Layers of a network."""
    onnx_bytes: int = 2 << 30
    """Bytes of an ONNX file, the limit of its format."""
    onnx_fields: int = 2_000_000
    """Fields of an ONNX file, each of which is looked at."""

    def check(self, where: str, remedy: str = "", **declared: int) -> None:
        """Check what a file declares, before it is allocated.

        Args:
            where: the file, for the error.
            remedy: what the user can do.
            declared: count by field name, e.g. ``rows=13``.

        Raises:
            DataError: a count is negative, or above its limit.

        >>> BUDGET.check("data.idx", pixels=1 << 40)
        Traceback (most recent call last):
        genmod.errors.DataError: data.idx: 1,099,511,627,776 pixels, more than the limit of 67,108,864
        """
        for name, count in declared.items():
            limit: int = getattr(self, name)
            if 0 <= count <= limit:
                continue
            problem = "a negative number" if count < 0 else f"more than the limit of {limit:,}"
            end = f"; {remedy}" if remedy else ""
            raise DataError(f"{where}: {count:,} {_LABELS[name]}, {problem}{end}")


_LABELS = {
    field.name: field.name.replace("_bytes", " bytes").replace("_", " ")
    for field in fields(ReadBudget)
} | {
    "document_bytes": "bytes",
    "recipe_bytes": "bytes",
    "file_bytes": "bytes",
    "table_bytes": "bytes",
    "nimg": "images",
    "array_bytes": "bytes",
    "image_file_bytes": "bytes",
    "image_side": "pixels a side",
    "nesting": "levels of nesting",
    "recipe_nesting": "levels of nesting",
    "recipe_nodes": "values",
    "json_values": "values",
    "shard_rows": "rows",
    "array_rows": "rows",
    "tar_members": "members",
    "label_rows": "rows of labels",
    "name_chars": "characters",
    "jpeg_scans": "scans",
    "scanned_pixels": "pixels times scans",
    "brace_names": "names",
    "net_parameters": "parameters",
    "net_modules": "layers",
    "onnx_bytes": "bytes",
    "onnx_fields": "fields",
}

BUDGET = ReadBudget()
"""The limits of every reader; tests pass smaller ones."""
