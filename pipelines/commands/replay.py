"""``genmod replay``: log what earlier commands could not log to MLflow."""

from __future__ import annotations

from dataclasses import asdict

from genmod.errors import ConfigError
from pipelines.recipe.context import DONE, Context, Result
from pipelines.tracking.replay import Replay, ReplaySummary
from pipelines.tracking.spool import SPOOL_FOLDER, exclusive, stored_spools


def replay(context: Context) -> Result:
    """Send all spools below the command's root, and remove those that were sent whole.

    Returns:
        The command's result, with what was sent; exit code 1 if a spool stays.

    Raises:
        ConfigError: tracking is off.
        SpoolBusy: another command logs below the root.
        TrackingError: MLflow does not respond. What was sent by then is not sent again.
    """
    config = context.recipe.tracking
    if not config.enabled and config.webhook is None:
        raise ConfigError("replay: tracking is off; set tracking.enabled=true")
    summary = ReplaySummary()
    root = context.command_root
    list(map(context.progress.log, context.tracker.begin()[:1]))
    with exclusive(root):
        sender = Replay(context.tracker, summary)
        try:
            for spool in stored_spools(root):
                sender.send(spool)
        finally:
            _log(context, summary)
    return {
        "stage": "replay",
        "status": "incomplete" if summary.problems else DONE,
        "output": context.at(SPOOL_FOLDER),
        "fingerprint": None,
        **asdict(summary),
        "exit_code": 1 if summary.problems else 0,
    }


def _log(context: Context, summary: ReplaySummary) -> None:
    """Print what was sent and what was not."""
    for url in summary.obsolete:
        context.progress.log(f"replay: {url} was removed or changed since; it is not sent")
    if summary.unreadable:
        context.progress.log(f"replay: {summary.unreadable:,} lines were cut off by a kill")
    for problem in summary.problems:
        context.progress.log(f"replay: {problem}")
    context.progress.log(summary.line())
