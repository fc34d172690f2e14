"""The commands of the program and their arguments: parses words to an :class:`Invocation`.

Imports of other rooms are inside functions: help, completion and usage errors load no torch, Ray or MLflow.
"""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

from genmod.terminal import print_line, print_text
from pipelines.cli import options
from pipelines.cli.bundle_command import bundle_command
from pipelines.cli.data_commands import add_data_commands
from pipelines.cli.doctor_command import doctor_command
from pipelines.cli.export_command import export_command
from pipelines.cli.invocation import Invocation
from pipelines.cli.promotion import add_model_commands, add_promote
from pipelines.cli.run_stage import StageRequest, plan_options, run_replay, run_request
from pipelines.cli.sample_command import add_sample
from pipelines.cli.schedule_command import schedule_command
from pipelines.cli.submit_command import submit_command
from pipelines.cli.top_command import top_command

PROGRAM = "genmod"

STAGES = {
    "run": (
        "Run all stages: shard, train, distill, sample, score, evaluate.",
        "--recipe quickstart",
    ),
    "shard": (
        "Convert a data source to WebDataset shards.",
        "--recipe quickstart --set data.source=folder:photos --set root=runs/photos",
    ),
    "train": ("Train the recipe's models.", "--recipe quickstart --model vae"),
    "distill": (
        "Distill trained models, e.g. for sampling in two steps.",
        "--recipe fashion-two-steps --set data.source=idx:fashion-mnist",
    ),
    "sample": (
        "Generate a synthetic dataset with each model.",
        "--recipe quickstart --set sample.count=50000 --set sample.output=bulk",
    ),
    "score": (
        "Compute one log-likelihood per row of a split with each model.",
        "--recipe quickstart --set score.split=test --set score.output=test-scores",
    ),
    "evaluate": ("Measure each model's samples and write the report.", "--recipe quickstart"),
    "promote": (
        "Make a model the champion if it passes the recipe's rules.",
        "--recipe quickstart --model diffusion",
    ),
    "retrain": ("Shard new data, train, evaluate, promote if better.", "--recipe my.yaml"),
}
"""Stage -> its help text and an example of its options."""

_STAGES, _CHECKS, _JOBS = "Pipeline stages", "Inspect and check", "Cluster jobs"
"""Headings in the list of commands."""

_SELFTESTS = ("density", "gate")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from cluster.code_version import code_version

        print_text(f"{PROGRAM} {version(PROGRAM)} ({code_version()})\n")
        raise typer.Exit


app = typer.Typer(
    help="Train, sample and score generative models of images on a Ray cluster.",
    epilog="Example: genmod run --recipe quickstart",
    context_settings={"help_option_names": ["--help", "-h"]},
    suggest_commands=False,
)


@app.callback()
def _genmod(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    pass


def _add_stage(stage: str, purpose: str, example: str) -> None:
    def command(
        *,
        recipe: options.RequiredRecipe,
        assignments: options.Assignments = [],  # noqa: B006
        model: options.Models = [],  # noqa: B006
        address: options.RayAddress = None,
        dry_run: options.DryRun = False,
        show_recipe: options.ShowRecipe = False,
        as_json: options.AsJson = False,
        debug: options.Debug = False,
    ) -> Invocation:
        if address:
            assignments = [*assignments, f"cluster.address={address}"]
        return Invocation(
            stage,
            lambda: run_request(
                StageRequest(stage, recipe, assignments, model), plan_options(dry_run, show_recipe)
            ),
            as_json,
            debug,
        )

    example = f"Example: {PROGRAM} {stage} {example}"
    app.command(stage, help=purpose, epilog=example, rich_help_panel=_STAGES)(command)


for _name, (_purpose, _example) in STAGES.items():
    if _name == "promote":
        add_promote(app, _STAGES, _purpose)
    elif _name == "sample":
        add_sample(app, _STAGES, _purpose, _example)
    else:
        _add_stage(_name, _purpose, _example)


app.command(
    "submit",
    epilog=f"Example: {PROGRAM} submit train --recipe quickstart --address http://HOST:8265",
    rich_help_panel=_JOBS,
)(submit_command(STAGES))


@app.command("replay", epilog=f"Example: {PROGRAM} replay --recipe my.yaml", rich_help_panel=_JOBS)
def _replay(
    *,
    recipe: options.RequiredRecipe,
    assignments: options.Assignments = [],  # noqa: B006
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> Invocation:
    """Log to MLflow what earlier commands could not, e.g. because the server was down."""
    return Invocation("replay", lambda: run_replay(recipe, assignments), as_json, debug)


app.command(
    "schedule",
    epilog=f'Example: {PROGRAM} schedule --recipe my.yaml --cron "0 3 * * *" --tz Europe/Berlin',
    rich_help_panel=_JOBS,
)(schedule_command)


app.command(
    "doctor",
    epilog=f"Example: {PROGRAM} doctor --recipe quickstart",
    rich_help_panel=_JOBS,
)(doctor_command)


app.command("top", epilog=f"Example: {PROGRAM} top --once", rich_help_panel=_JOBS)(top_command)


app.command(
    "bundle",
    epilog=f"Example: {PROGRAM} bundle runs/quickstart",
    rich_help_panel=_JOBS,
)(bundle_command)


@app.command("verify", epilog=f"Example: {PROGRAM} verify runs/quickstart", rich_help_panel=_CHECKS)
def _verify(
    *,
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Folder of a dataset, model, scores or report.")
    ],
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> Invocation:
    """Check every digest below a URL. Exits with 1 if a file is missing or has changed."""

    def run() -> dict[str, Any]:
        from pipelines.commands.verify import verify

        problems = verify(url)
        for problem in problems:
            print_line(problem)
        print_line(f"problems: {len(problems)}" if problems else "whole")
        return {
            "stage": "verify",
            "status": "broken" if problems else "whole",
            "output": url,
            "fingerprint": None,
            "problems": problems,
            "exit_code": 1 if problems else 0,
        }

    return Invocation("verify", run, as_json, debug)


@app.command("inspect", epilog=f"Example: {PROGRAM} inspect folder:photos", rich_help_panel=_CHECKS)
def _inspect(
    *,
    url: Annotated[
        str,
        typer.Argument(metavar="URL", help="Folder of a dataset, or KIND:WHERE of a source."),
    ],
    out: options.SheetFile = "contact-sheet.png",
    split: options.SheetSplit = None,
    recipe: options.OptionalRecipe = None,
    assignments: options.Assignments = [],  # noqa: B006
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> Invocation:
    """Summarize a dataset, or what would be made of a source, and write a contact sheet of its images."""

    def run() -> dict[str, Any]:
        from pipelines.commands.inspect import inspect

        summary, text = inspect(url, out, cast("Any", split), recipe, assignments)
        print_text(f"{text}\n")
        return {"stage": "inspect", "status": "done", "output": url, **summary}

    return Invocation("inspect", run, as_json, debug)


@app.command("selftest", epilog=f"Example: {PROGRAM} selftest density", rich_help_panel=_CHECKS)
def _selftest(
    *,
    subject: Annotated[
        str,
        typer.Argument(
            metavar="SUBJECT",
            help="density: every estimator of log p(x); gate: bad, equal and better candidates.",
            callback=options.one_of(*_SELFTESTS),
            autocompletion=options.complete(*_SELFTESTS),
        ),
    ],
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> Invocation:
    """Check estimators or the gate against cases whose truth is known."""

    def run() -> dict[str, Any]:
        from pipelines.commands.selftest import selftest

        return {"output": None, "fingerprint": None, **selftest(subject)}

    return Invocation("selftest", run, as_json, debug)


app.command(
    "export",
    epilog=f"Example: {PROGRAM} export --recipe quickstart --model gan --format onnx "
    "--out runs/quickstart/export/gan",
    rich_help_panel=_CHECKS,
)(export_command)
add_data_commands(app, "Datasets")
add_model_commands(app, _CHECKS)
