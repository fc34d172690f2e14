"""The command line. Exit codes: 0 done (also when already done), 1 failed, 2 something is yours to mend."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

from cluster.environment import set_environment
from genmod.errors import ConfigError, GenmodError, sanitize
from genmod.manifest import SPLITS

STAGES = {
    "run": "every stage in order: shard, train, distill, sample, score, evaluate, report",
    "shard": "turn a source into WebDataset shards",
    "train": "train the recipe's models",
    "distill": "tune trained models, e.g. for sampling in two steps",
    "sample": "make a synthetic dataset from each model",
    "score": "one log-likelihood for each row of a split",
    "evaluate": "metrics of each model's samples, and the report",
    "promote": "make a model the champion if it is better by the recipe's margins",
    "retrain": "shard what is new, train, evaluate against the champion, promote",
}

logger = logging.getLogger("genmod")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    set_environment()
    options = _parser().parse_args(argv)
    logging.basicConfig(format="genmod: %(message)s", level=logging.WARNING, stream=sys.stderr)
    start_s = time.monotonic()
    try:
        result = options.command(options)
    except GenmodError as error:
        return _failed(options, error, error.exit_code, start_s)
    except KeyboardInterrupt:
        interruption = GenmodError("interrupted; the same command goes on from here")
        return _failed(options, interruption, 1, start_s)
    except PermissionError as error:
        what = error.filename or "something there"
        denied = ConfigError(f"{what}: permission denied; let this user read or write it")
        return _failed(options, denied, denied.exit_code, start_s)
    except Exception as error:  # one line for people; the traceback is there with --debug
        return _failed(options, error, 1, start_s)
    code = int(result.pop("exit_code", 0))
    if options.json:
        print(json.dumps(result | {"seconds": round(time.monotonic() - start_s, 3)}), flush=True)
    return code


def _failed(options: argparse.Namespace, error: BaseException, code: int, start_s: float) -> int:
    if options.debug:
        traceback.print_exception(error)
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, GenmodError):
        text = f"{type(error).__name__}: {text} (--debug shows where)"
    print(f"genmod: error: {sanitize(text)}", file=sys.stderr, flush=True)
    if options.json:
        metadata = {
            "stage": options.stage,
            "status": "refused" if code == 2 else "failed",
            "output": None,
            "fingerprint": None,
            "error": text,
            "seconds": round(time.monotonic() - start_s, 3),
        }
        print(json.dumps(metadata), flush=True)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="genmod",
        description="Train, sample and score generative models of images on a Ray cluster.",
    )
    commands = parser.add_subparsers(dest="stage", required=True, metavar="COMMAND")
    for name, purpose in STAGES.items():
        stage = commands.add_parser(name, help=purpose, description=purpose)
        _add_recipe_options(stage)
        stage.set_defaults(command=_run_stage)
    submit = commands.add_parser("submit", help="run a stage as a Ray job and follow it")
    submit.add_argument("job_stage", metavar="STAGE", nargs="?", choices=sorted(STAGES))
    _add_recipe_options(submit, recipe_required=False)
    submit.add_argument("--no-wait", action="store_true", help="submit and return at once")
    for action, purpose in (
        ("status", "print a job's status"),
        ("logs", "print a job's log"),
        ("stop", "stop a job"),
    ):
        submit.add_argument(f"--{action}", metavar="ID", help=purpose)
    submit.set_defaults(command=_submit)
    verify = commands.add_parser("verify", help="check every digest below a URL")
    verify.add_argument("url", help="a folder that holds a dataset, model, scores or report")
    _add_output_options(verify)
    verify.set_defaults(command=_verify)
    inspect = commands.add_parser("inspect", help="what a dataset is, in words and a contact sheet")
    inspect.add_argument("url", help="a folder that holds a dataset")
    inspect.add_argument(
        "--out",
        default="contact-sheet.png",
        metavar="FILE",
        help="the contact sheet, replaced if it is there (default: %(default)s in the current folder)",
    )
    inspect.add_argument(
        "--split", choices=SPLITS, help="that the sheet shows (default: the first with rows)"
    )
    _add_output_options(inspect)
    inspect.set_defaults(command=_inspect)
    selftest = commands.add_parser("selftest", help="check estimators against known truths")
    selftest.add_argument(
        "subject", choices=("density",), help="density: every estimator of log p(x)"
    )
    _add_output_options(selftest)
    selftest.set_defaults(command=_selftest)
    return parser


def _add_recipe_options(parser: argparse.ArgumentParser, recipe_required: bool = True) -> None:
    parser.add_argument(
        "--recipe", required=recipe_required, help="a shipped recipe's name or a YAML file"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="change a key of the recipe"
    )
    parser.add_argument("--address", help="auto, local, or a Ray cluster's address")
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help="only this model of the recipe (repeatable)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan, start nothing")
    _add_output_options(parser)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="last line of stdout is a JSON object")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def _run_stage(options: argparse.Namespace) -> dict[str, Any]:
    from pipelines.commands.dry_run import dry_run
    from pipelines.recipe import recipe as config
    from pipelines.recipe.context import Context
    from pipelines.stages.table import STAGES as STAGES_TABLE

    assignments = list(options.set)
    if options.address:
        assignments.append(f"cluster.address={options.address}")
    recipe = config.load(options.recipe, assignments)
    context = Context(recipe, models=tuple(dict.fromkeys(options.model or recipe.model)))
    if options.dry_run:
        return dry_run(options.stage, context, show_recipe=True)
    try:
        return STAGES_TABLE[options.stage](context)
    finally:
        context.close()


def _submit(options: argparse.Namespace) -> dict[str, Any]:
    from pipelines.commands import submit
    from pipelines.commands.dry_run import dry_run
    from pipelines.recipe import recipe as config
    from pipelines.recipe.context import Context

    for action in ("status", "logs", "stop"):
        if job := getattr(options, action):
            return submit.manage(action, job, options.address)
    if not options.job_stage or not options.recipe:
        raise ConfigError(
            "submit needs a stage and a recipe: genmod submit run --recipe quickstart"
        )
    if options.dry_run:
        recipe = config.load(options.recipe, options.set)
        context = Context(recipe, tuple(options.model or recipe.model))
        return dry_run(options.job_stage, context, show_recipe=True)
    return submit.submit(
        options.job_stage,
        recipe=options.recipe,
        assignments=options.set,
        models=tuple(dict.fromkeys(options.model or ())),
        address=options.address,
        wait=not options.no_wait,
        as_json=options.json,
    )


def _verify(options: argparse.Namespace) -> dict[str, Any]:
    from pipelines.commands.verify import verify

    faults = verify(options.url)
    for fault in faults:
        print(sanitize(fault), file=sys.stderr)
    print("whole" if not faults else f"{len(faults)} faults", file=sys.stderr)
    return {
        "stage": "verify",
        "status": "whole" if not faults else "broken",
        "output": options.url,
        "fingerprint": None,
        "faults": faults,
        "exit_code": 1 if faults else 0,
    }


def _inspect(options: argparse.Namespace) -> dict[str, Any]:
    from pipelines.commands.inspect import inspect

    metadata, text = inspect(options.url, options.out, options.split)
    print(text)
    return {"stage": "inspect", "status": "done", "output": options.url, **metadata}


def _selftest(options: argparse.Namespace) -> dict[str, Any]:
    from pipelines.commands.selftest import selftest

    return {"output": None, "fingerprint": None, **selftest(options.subject)}
