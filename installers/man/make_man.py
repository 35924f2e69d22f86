"""Write the manual pages stoker.1 and stoker-tray.1 from the program's own help.

    python make_man.py FOLDER

Nothing is written twice: a command, option or sentence of the page is the one of `stoker --help`.
The page's date is SOURCE_DATE_EPOCH, so that the same source gives the same page.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from stoker import __version__
from stoker.cli import app
from stoker_tray.app import parse

_ENVIRONMENT = (
    ("STOKER_HOME", "Models, settings, logs and sockets are all below this one folder."),
    (
        "STOKER_NAME",
        "A setting of config.toml, e.g. STOKER_PORT; `stoker config show` lists them.",
    ),
)
_FILES = (
    ("~/.config/stoker/config.toml", "The settings."),
    ("~/.local/share/stoker/store", "The verified models."),
    ("~/.local/state/stoker", "Logs, history and the daemon's socket."),
)


def escaped(text: str) -> str:
    """The text as roff shows it: no request, no escape, and hyphens that can be copied."""
    safe = text.replace("\\", "\\e").replace("-", "\\-")
    safe = re.sub(r"`([^`\n]+)`", r"\\fB\1\\fR", safe)
    return re.sub(r"^(?=[.'])", r"\\&", safe, flags=re.MULTILINE)


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a help text as roff lines."""
    for index, part in enumerate(re.split(r"\n\s*\n", text.strip())):
        if index:
            yield ".PP"
        yield escaped(" ".join(part.split()))


def entries(rows: Iterator[tuple[str, str]]) -> Iterator[str]:
    """A list of terms, each with what it means."""
    for term, meaning in rows:
        yield ".TP"
        yield f"\\fB{escaped(term)}\\fR"
        yield escaped(" ".join(meaning.split())) or "\\&"


def options_of(command: Any, name: str) -> Iterator[tuple[str, str]]:
    """Arguments and options with their help, without the --help that every command has."""
    context = command.make_context(name, [], resilient_parsing=True)
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and "--help" not in parameter.opts:
            yield record


def usage_of(command: Any, name: str) -> str:
    context = command.make_context(name, [], resilient_parsing=True)
    return " ".join(command.collect_usage_pieces(context))


def sections_of(commands: dict[str, Any], prefix: str) -> Iterator[str]:
    """Each command below its name; a group's commands after it."""
    for name, command in commands.items():
        if command.hidden:
            continue
        path = f"{prefix} {name}"
        yield f'.SS "{escaped(f"{path} {usage_of(command, name)}")}"'
        yield from paragraphs(command.help or "")
        yield from entries(options_of(command, name))
        yield from sections_of(getattr(command, "commands", {}), path)


def heading(name: str) -> str:
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    date = time.strftime("%Y-%m-%d", time.gmtime(epoch))
    return f'.TH {name} 1 "{date}" "Stoker {__version__}" "User commands"'


def stoker_page() -> str:
    program: Any = typer.main.get_command(app)
    purpose = (program.help or "").strip()
    lines = [
        heading("STOKER"),
        ".SH NAME",
        f"stoker \\- {escaped(purpose.rstrip('.').removeprefix('A ').removeprefix('a '))}",
        ".SH SYNOPSIS",
        f".B stoker\n{escaped(usage_of(program, 'stoker'))}",
        ".SH DESCRIPTION",
        *paragraphs(
            "Stoker keeps verified models, serves them behind an OpenAI-compatible endpoint on this"
            " machine, and tunes the engine to its hardware.\n\nOptions of the program itself come"
            " before the command; every command has --help."
        ),
        ".SH OPTIONS",
        *entries(options_of(program, "stoker")),
        ".SH COMMANDS",
        *sections_of(program.commands, "stoker"),
        ".SH EXIT STATUS",
        *paragraphs((program.epilog or "").removeprefix("Exit codes: ")),
        *_ending("stoker\\-tray"),
    ]
    return "\n".join(lines) + "\n"


def tray_page() -> str:
    usage, told = (parse(["--help"]).text or "").removeprefix("Usage: ").split("\n", 1)
    name, _, options = usage.partition(" ")
    lines = [
        heading("STOKER-TRAY"),
        ".SH NAME",
        "stoker\\-tray \\- Stoker in the desktop's tray",
        ".SH SYNOPSIS",
        f".B {escaped(name)}\n{escaped(options)}",
        ".SH DESCRIPTION",
        *paragraphs(told),
        ".PP",
        *paragraphs(
            "The icon shows what Stoker does; its menu switches models and the server. `stoker"
            " autostart on` starts it at every login. Quitting it leaves the daemon running;"
            " `stoker stop` ends that."
        ),
        *_ending("stoker"),
    ]
    return "\n".join(lines) + "\n"


def _ending(other: str) -> Iterator[str]:
    yield ".SH ENVIRONMENT"
    yield from entries(iter(_ENVIRONMENT))
    yield ".SH FILES"
    yield from entries(iter(_FILES))
    yield ".SH SEE ALSO"
    yield f".BR {other} (1)"


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in (("stoker.1", stoker_page()), ("stoker-tray.1", tray_page())):
        (folder / name).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
