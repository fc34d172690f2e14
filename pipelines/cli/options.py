"""Options that several commands share, with their help texts and completions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from genmod.errors import did_you_mean

_RECIPE, _OUTPUT, _JOB = "Recipe", "Output", "Manage a submitted job"
"""Headings in the help of a command."""

SPLIT_NAMES = ("train", "val", "test")
"""Splits of a dataset."""

_RECIPE_FILES = Path(__file__).parents[1] / "recipes"


def one_of(*names: str) -> Callable[[str | None], str | None]:
    """A callback of an option that accepts only some words."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in names:
            raise typer.BadParameter(f"got {value!r}; {did_you_mean(value, names)}")
        return value

    return check


def complete(*names: str) -> Callable[[str], list[str]]:
    """Completions of an option that accepts only some words."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def complete_recipe(incomplete: str) -> list[str]:
    """Shipped recipes and YAML files of the current folder whose names start like this."""
    shipped = [path.stem for path in _RECIPE_FILES.glob("*.yaml")]
    files = [path.name for path in Path().glob("*.yaml")]
    return sorted(name for name in [*shipped, *files] if name.startswith(incomplete))


_recipe = typer.Option(
    "--recipe",
    metavar="NAME|FILE",
    help="A shipped recipe's name, or a YAML file.",
    autocompletion=complete_recipe,
    rich_help_panel=_RECIPE,
)
RequiredRecipe = Annotated[str, _recipe]
OptionalRecipe = Annotated[str | None, _recipe]

Assignments = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="A.B=C",
        help="Change a key of the recipe, e.g. train.batch=64. Repeatable.",
        rich_help_panel=_RECIPE,
    ),
]
Models = Annotated[
    list[str],
    typer.Option(
        "--model",
        metavar="NAME",
        help="Only this model of the recipe. Repeatable. Default: all models.",
        rich_help_panel=_RECIPE,
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="auto, local, or a Ray cluster's address. Default: cluster.address of the recipe.",
        rich_help_panel=_RECIPE,
    ),
]
SheetFile = Annotated[
    str, typer.Option(metavar="FILE", help="The contact sheet; an existing file is replaced.")
]
SheetSplit = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(SPLIT_NAMES),
        help="Split of a dataset's contact sheet. Default: the first that has rows.",
        callback=one_of(*SPLIT_NAMES),
        autocompletion=complete(*SPLIT_NAMES),
    ),
]
JobServer = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="The head's job server, e.g. http://HOST:8265. Default: RAY_API_SERVER_ADDRESS.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the plan and start nothing.", rich_help_panel=_OUTPUT),
]
ShowRecipe = Annotated[
    bool,
    typer.Option(
        "--show-recipe",
        help="With --dry-run: also print the resolved recipe.",
        rich_help_panel=_OUTPUT,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print the result as one JSON object, the last line of stdout.",
        rich_help_panel=_OUTPUT,
    ),
]
Debug = Annotated[
    bool,
    typer.Option("--debug", help="Print the traceback of an error.", rich_help_panel=_OUTPUT),
]


def job_option(action: str, purpose: str) -> object:
    """An option of ``submit`` that manages a job instead of submitting one."""
    return typer.Option(f"--{action}", metavar="ID", help=purpose, rich_help_panel=_JOB)
