"""Reports how a command ended to the recipe's webhook."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from cluster.compat import JOB_VARIABLE
from cluster.metrics import RECORDER
from genmod.errors import GenmodError, sanitize
from pipelines.recipe.context import Context, Result
from pipelines.tracking.redact import redact

_CHARS = 500
"""Characters of a text in the report."""

_INTERRUPTED_S = 3.0
"""How long an interrupted command waits for the webhook."""


@contextmanager
def counted(context: Context, command: str) -> Generator[None]:
    """Count in Ray's metrics how the work in the body ends. An interrupted one counts as neither.

    A command of a Ray job that did not need Ray connects at its end, so that its values are not lost.
    """
    ending = ""
    try:
        yield
        ending = "genmod_done"
    except Exception:
        ending = "genmod_failed"
        raise
    finally:
        if ending:
            RECORDER.add(ending, stage=command)
        if RECORDER.has_values and JOB_VARIABLE in os.environ:
            try:
                context.connect()
            except GenmodError as error:
                context.progress.log(f"the metrics of this command are lost ({error})")


def reported(context: Context, command: str, work: Callable[[], Result]) -> Result:
    """Do a command's work and report the outcome, if the recipe has a webhook. Only the work raises.

    Args:
        context: of the command.
        command: its name.
        work: returns the command's result.
    """
    if context.recipe.tracking.webhook is None:
        return work()
    try:
        result = work()
    except Exception as error:
        refused = isinstance(error, GenmodError) and error.exit_code == 2
        status = "refused" if refused else "failed"
        _report(context, command, {"status": status, "error": _short(str(error))})
        raise
    except BaseException:
        _report(context, command, {"status": "interrupted"}, _INTERRUPTED_S)
        raise
    _report(context, command, _outcome(result))
    return result


def _report(
    context: Context, command: str, values: Mapping[str, Any], limit_s: float | None = None
) -> None:
    delivery = uuid.uuid4().hex
    report = {
        "delivery": delivery,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
        "root": context.command_root,
        **values,
    }
    context.tracker.report(delivery, json.dumps(report), limit_s)


def _outcome(result: Result) -> dict[str, Any]:
    """What a report says of a result."""
    decisions = {
        name: {
            "promote": each["promote"],
            "reasons": [_short(text) for text in each["reasons"][:5]],
        }
        for name, each in result.get("decisions", {}).items()
    }
    champions = {name: _short(each["text"]) for name, each in result.get("champions", {}).items()}
    run = {key: result.get(key) for key in ("output", "fingerprint", "version", "reason")}
    return {
        "status": result["status"],
        "run": {key: value for key, value in run.items() if value is not None},
        **({"decisions": decisions} if decisions else {}),
        **({"champions": champions} if champions else {}),
    }


def _short(text: str) -> str:
    return sanitize(redact(text)[:_CHARS])  # first: the start of a cut credential is one too
