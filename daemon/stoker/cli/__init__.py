"""The `stoker` command: one program, commands by topic, one error boundary.

It prints and asks; it decides nothing that the daemon could decide. A command imports what it
needs when it runs, so that `stoker --help` is instant. Not for: talking HTTP (`stoker.client`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from stoker import __version__
from stoker.cli import (
    autostart,
    bench,
    boundary,
    chat,
    daemon,
    loaded,
    machine,
    models,
    plan,
    pulls,
    recommend,
    runtimes,
    server,
    settings,
    tune,
)
from stoker.entry import have_streams

__all__ = ["app", "main"]

app = typer.Typer(
    name="stoker",
    help="A private AI on your own machine.",
    add_completion=False,
    rich_markup_mode=None,  # rich costs a tenth of a second at every --help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 daemon not running, 4 refused.",
)
for topic in (
    daemon,
    server,
    autostart,
    machine,
    recommend,
    pulls,
    models,
    loaded,
    chat,
    plan,
    tune,
    bench,
    runtimes,
    settings,
):
    topic.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"stoker {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of a fault in Stoker."),
) -> None:
    _ = version, debug  # both take effect elsewhere: in the callback, and in `main`


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; whatever happens, no traceback to the user."""
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    have_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 is no reason to fail
    try:
        code = app(args=words, prog_name="stoker", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # `stoker list | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return boundary.ExitCode.FAILED
    except KeyboardInterrupt:
        return boundary.INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the boundary of the program: report and end
        return boundary.report(error, as_json="--json" in words, with_traceback="--debug" in words)
    return code if isinstance(code, int) else boundary.ExitCode.DONE
