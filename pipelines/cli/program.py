"""Runs one command. Exit codes: 0 done (also when already done), 1 failed, 2 the user changes something."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Sequence

import typer
from typer.core import TyperGroup

from cluster.environment import set_environment
from genmod.errors import ConfigError, GenmodError, did_you_mean, sanitize
from pipelines.cli.app import PROGRAM, Invocation, app


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
        return _failed(report, ConfigError(text), ConfigError.exit_code, start_s)
    if not isinstance(parsed, Invocation):  # --help and --version return an exit code
        return int(parsed or 0)
    logging.basicConfig(handlers=[_log_handler()], level=logging.WARNING)
    return _run(parsed, start_s)


def _hide_types_of_flags(group: TyperGroup) -> None:
    """Help lists flags without ``<bool>``, since they take no value."""
    names = group.context_settings["help_option_names"]
    for command in (group, *group.commands.values()):
        for parameter in command.get_params(typer.Context(command, help_option_names=names)):
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""


def _run(command: Invocation, start_s: float) -> int:
    try:
        result = command.run()
    except GenmodError as error:
        return _failed(command, error, error.exit_code, start_s)
    except KeyboardInterrupt:
        interruption = GenmodError("interrupted; run the same command again to resume")
        return _failed(command, interruption, 1, start_s)
    except PermissionError as error:
        path = error.filename or "a file or folder"
        denied = ConfigError(f"{path}: permission denied; give this user access to it")
        return _failed(command, denied, denied.exit_code, start_s)
    except Exception as error:  # one line for people; --debug prints the traceback
        return _failed(command, error, 1, start_s)
    code = int(result.pop("exit_code", 0))
    if command.as_json:
        print(json.dumps(result | {"seconds": round(time.monotonic() - start_s, 3)}), flush=True)
    return code


def _failed(command: Invocation, error: BaseException, code: int, start_s: float) -> int:
    if command.debug:
        traceback.print_exception(error)
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, GenmodError):
        text = f"{type(error).__name__}: {text} (--debug prints the traceback)"
    print(f"{PROGRAM}: error: {sanitize(text)}", file=sys.stderr, flush=True)
    if command.as_json:
        result = {
            "stage": command.stage,
            "status": "refused" if code == 2 else "failed",
            "output": None,
            "fingerprint": None,
            "error": text,
            "seconds": round(time.monotonic() - start_s, 3),
        }
        print(json.dumps(result), flush=True)
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
                print(f"{PROGRAM}: {sanitize(line)}", file=sys.stderr, flush=True)

    return Handler()
