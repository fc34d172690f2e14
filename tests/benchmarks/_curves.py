"""Quality against CPU minutes, all families and their peers on one page.

    .venv/bin/python -m tests.benchmarks._curves [FAMILY LOG]

Writes the page quality-curves.md from the rows in quality-curves.jsonl. With arguments, first puts the rows
of a run in place of that family's: LOG is what its quality benchmark printed, and of its lines those count
that are JSON with ``cpu_min`` and ``fd``.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ROWS = Path(__file__).with_name("quality-curves.jsonl")
PAGE = Path(__file__).with_name("quality-curves.md")
KEPT = ("side", "seed", "sampler", "cpu_min", "nimg", "fd", "coverage")
HEAD = """# Quality against CPU minutes, every family and its peer

Fashion-MNIST. FD is the Frechet distance to all 10,000 test images in the features of one classifier, fitted
to the training images; coverage is of as many test images as there are samples. How many samples, protocol,
search and ratios: `quality-vae.md`, `quality-gan.md`, `quality-diffusion.md`; families with unlike numbers of
samples are not to be compared. The points are of one training, whose rate follows the whole of it: an early
point is not the best that its time could have given. Means of the seeds (the least to the greatest). Made by
`_curves.py` from the rows in `quality-curves.jsonl`.

| family | side | sampler, calls | seeds | CPU minutes | images | FD | coverage |
|---|---|---|---|---|---|---|---|
"""


def rows_of(family: str, log: str) -> list[dict[str, Any]]:
    """The rows that a benchmark printed."""
    found = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [
        {"family": family} | {name: row[name] for name in KEPT if name in row}
        for row in found
        if "cpu_min" in row and "fd" in row
    ]


def points(rows: list[dict[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """For each family, side, sampler and place in the order of time: the rows of the seeds."""
    places: dict[tuple[str, ...], int] = defaultdict(int)
    found: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["cpu_min"]):
        key = (row["family"], row["side"], row.get("sampler", ""))
        place = places[*key, str(row["seed"])]
        places[*key, str(row["seed"])] += 1
        found[*key, f"{place:02}"].append(row)
    return dict(sorted(found.items()))


def _line(key: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    def mean(name: str, form: str) -> str:
        return format(statistics.mean(float(row[name]) for row in rows), form)

    def spread(name: str, form: str) -> str:
        values = [float(row[name]) for row in rows if name in row]
        return (
            f"{mean(name, form)} ({min(values):{form}} to {max(values):{form}})" if values else ""
        )

    cells = (*key[:3], str(len(rows)), mean("cpu_min", ".2f"), mean("nimg", ",.0f"))
    return f"| {' | '.join(cells)} | {spread('fd', '.2f')} | {spread('coverage', '.3f')} |\n"


def page(rows: list[dict[str, Any]]) -> str:
    """The whole page."""
    return HEAD + "".join(_line(key, same) for key, same in points(rows).items())


def quick() -> None:
    """Check that the page is what the rows give."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    assert page(rows) == PAGE.read_text(), "run python -m tests.benchmarks._curves"


def main() -> None:
    """Take a run's rows if one is given, and write the page."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    if sys.argv[1:]:
        family, log = sys.argv[1:]
        rows = [row for row in rows if row["family"] != family]
        rows += rows_of(family, Path(log).read_text())
        ROWS.write_text("".join(json.dumps(row) + "\n" for row in rows))
    PAGE.write_text(page(rows))


if __name__ == "__main__":
    main()
