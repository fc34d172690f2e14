"""Prints the requirements of a project with some of its extras: requirements.py FILE EXTRA,EXTRA."""

import sys
import tomllib
from pathlib import Path


def main() -> None:
    """Print one requirement a line, in order."""
    project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
    extras = project["optional-dependencies"]
    unknown = set(filter(None, sys.argv[2].split(","))) - set(extras)
    if unknown:
        sys.exit(f"requirements.py: unknown extras {sorted(unknown)}, expected some of {[*extras]}")
    wanted = {*project["dependencies"]}
    for name in filter(None, sys.argv[2].split(",")):
        wanted |= {*extras[name]}
    print(*sorted(wanted), sep="\n")


main()
