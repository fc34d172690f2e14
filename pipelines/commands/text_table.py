"""Tables of aligned text for the terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def text_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()
) -> list[str]:
    """Lines of a table whose columns are two spaces apart.

    Args:
        header: titles of the columns.
        rows: cells of each row, one for each column.
        right: numbers of the columns that are aligned to the right.

    >>> text_table(["model", "images"], [["vae", "1,000"], ["gan", "20"]], right=[1])
    ['model  images', 'vae     1,000', 'gan        20']
    """
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
