"""From an exception to two lines on stderr and an exit code. The only place that does this."""

from __future__ import annotations

import errno
import json
import sys
import traceback
from datetime import UTC, datetime
from enum import IntEnum
from typing import Final

import typer

from stoker import errors, paths
from stoker.cli.output import clean_line, paint

# Typer keeps click's exceptions in a place that differs between its versions.
_UsageError: Final[type[BaseException]] = typer.BadParameter.__mro__[1]

INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it
# What a disk or its owner says no with: nothing that a report to us would mend.
_MACHINE_FAULTS: Final = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EEXIST,
        errno.ENOTDIR,
        errno.EIO,
    }
)
_CRASH_LOG_BYTES: Final = 1024 * 1024  # then it starts again


class ExitCode(IntEnum):
    """What `stoker` answers to the shell (docs/cli.md)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    REFUSED = 4


_WRONG_USAGE: Final = (errors.BadUsage, errors.BadReference, errors.BadSetting)


def exit_code(error: errors.StokerError) -> ExitCode:
    if isinstance(error, errors.DaemonNotRunning):
        return ExitCode.NOT_RUNNING
    if isinstance(error, errors.RefusedError):
        return ExitCode.REFUSED
    if isinstance(error, _WRONG_USAGE):
        return ExitCode.USAGE
    return ExitCode.FAILED


def report(error: BaseException, *, as_json: bool = False, with_traceback: bool = False) -> int:
    """Tell the user; return the exit code. Our own faults leave their traceback in a file."""
    known = _known(error)
    if known is None:
        known = errors.InternalError(f"a fault in Stoker: {type(error).__name__}: {error}")
        known.hint = f"Please report it with the traceback in {_keep(error)}."
        if with_traceback:
            traceback.print_exception(error)
    if as_json:
        print(json.dumps({"error": _view(known)}, indent=2))
    for line in two_lines(known):
        print(line, file=sys.stderr)
    return exit_code(known)


def two_lines(error: errors.StokerError) -> tuple[str, str]:
    """What happened, and what to do next. The words may come from a server: one line, no codes."""
    label = paint("error:", "red", sys.stderr)
    return f"{label} {clean_line(error.message)}", f"hint:  {clean_line(error.hint)}"


def _known(error: BaseException) -> errors.StokerError | None:
    """The error as one that Stoker raises on purpose; None when it is a fault."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]  # a task group wraps even a single error
    if isinstance(error, errors.StokerError):
        return error
    if isinstance(error, typer.Abort):
        return errors.StokerError("stopped; nothing was changed", hint="Run it again to go on.")
    if isinstance(error, _UsageError):
        return _bad_usage(error)
    if isinstance(error, OSError) and error.errno in _MACHINE_FAULTS and error.filename:
        hint = "`stoker doctor` checks the folders and the free space."
        return errors.StokerError(f"{error.filename}: {error.strerror}", hint=hint)
    return None


def _bad_usage(error: BaseException) -> errors.BadUsage:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "stoker"
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the whole help page
        text = "a command is missing"
    text = text[:1].lower() + text[1:].rstrip(".")
    return errors.BadUsage(text, hint=f"See `{command} --help`.")


def _view(error: errors.StokerError) -> dict[str, object]:
    """The shape of `schemas.ErrorView`, without the price of importing it."""
    facts = json.loads(json.dumps(error.facts, default=str))
    return {"code": error.code, "message": error.message, "hint": error.hint, "facts": facts}


def _keep(error: BaseException) -> str:
    """Append the traceback to the crash log; the file's name, or where it could not go."""
    lines = "".join(traceback.format_exception(error))
    try:
        folder = paths.from_environment().logs
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = folder / "cli-crash.log"
        big = target.exists() and target.stat().st_size > _CRASH_LOG_BYTES
        with target.open("w" if big else "a", encoding="utf-8") as stream:
            stream.write(f"--- {datetime.now(UTC).isoformat(timespec='seconds')}\n{lines}")
    except OSError:
        return "`stoker --debug …` (the log folder cannot be written)"
    return str(target)
