"""Runs one command. Exit codes: 0 done (also when already done), 1 failed, 2 the user changes something."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress

import typer
from typer.core import TyperGroup

from cluster.environment import set_environment
from cluster.ray_log import separate_stderr
from genmod.errors import ConfigError, did_you_mean
from genmod.terminal import guarded_streams, print_json, print_line, print_log
from pipelines.cli.app import PROGRAM, Invocation, app
from pipelines.cli.explain import explain
from pipelines.cli.signals import interruptible


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    set_environment()
    words = list(sys.argv[1:] if argv is None else argv)
    start_s = time.monotonic()
    group = typer.main.get_command(app)  # unlike get_group, with the options of completion
    assert isinstance(group, TyperGroup)
    _hide_types_of_flags(group)
    try:
        parsed = group.main(words, prog_name=PROGRAM, standalone_mode=False)
    except typer.TyperException as error:
        stage, text = _usage_error(error, words, group)
        report = Invocation(stage, dict, "--json" in words, "--debug" in words)
        return _failed(report, ConfigError(text), start_s)
    if not isinstance(parsed, Invocation):  # --help and --version return an exit code
        return int(parsed or 0)
    logging.basicConfig(handlers=[_log_handler()], level=logging.WARNING)
    return _run_guarded(parsed, start_s)


def _run_guarded(command: Invocation, start_s: float) -> int:
    """Run a command so that only its own text reaches the terminal, and signals end it in order."""
    with separate_stderr(), guarded_streams(), interruptible():
        return _run(command, start_s)


def _hide_types_of_flags(group: TyperGroup) -> None:
    """Help lists flags without ``<bool>``, since they take no value."""
    names = group.context_settings["help_option_names"]
    for command in (group, *group.commands.values()):
        for parameter in command.get_params(typer.Context(command, help_option_names=names)):
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""


def _run(command: Invocation, start_s: float) -> int:
    try:
        _check_current_folder()
        result = command.run()
        code = int(result.pop("exit_code", 0))
        if command.as_json:
            print_json(result | {"seconds": round(time.monotonic() - start_s, 3)})
    except (Exception, KeyboardInterrupt) as error:  # one line; --debug prints the traceback
        return _failed(command, error, start_s)
    return code


def _check_current_folder() -> None:
    """Raise ConfigError if the current folder was removed, because no relative path means anything then."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ConfigError(
            "the current folder was removed; change to one that exists (cd) and run the command again"
        ) from None


def _failed(command: Invocation, error: BaseException, start_s: float) -> int:
    if command.debug:
        print_log("".join(traceback.format_exception(error)))
    text, code = explain(error)
    print_line(f"{PROGRAM}: error: {text}")
    if command.as_json:
        result = {
            "stage": command.stage,
            "status": "refused" if code == 2 else "failed",
            "output": None,
            "fingerprint": None,
            "error": text,
            "seconds": round(time.monotonic() - start_s, 3),
        }
        with suppress(OSError):  # nothing reads the output any more
            print_json(result)
    return code


def _usage_error(
    error: typer.TyperException, words: Sequence[str], group: TyperGroup
) -> tuple[str | None, str]:
    """The command that was called wrongly (None if it is unknown) and one line about the error."""
    name = next((word for word in words if not word.startswith("-")), None)
    if name is not None and name not in group.commands:
        hint = did_you_mean(name, group.commands)
        return None, f"no command {name!r}; {hint} (see {PROGRAM} --help)"
    command = group if name is None else group.commands[name]
    option = getattr(error, "option_name", None)
    if option and hasattr(error, "possibilities"):
        known = [flag for parameter in command.params for flag in parameter.opts]
        text = f"no option {option}; {did_you_mean(option, [*known, '--help'])}"
    else:
        text = error.format_message().rstrip(".")
        text = text[:1].lower() + text[1:]
    return name, f"{text} (see {' '.join([PROGRAM, *([name] if name else [])])} --help)"


def _log_handler() -> logging.Handler:
    """Writes warnings to the current ``sys.stderr``, which a progress display replaces for a while."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            for line in self.format(record).splitlines():
                print_line(f"{PROGRAM}: {line}")

    return Handler()
