"""The manual pages, as the packages make them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

MAKE = Path(__file__).parents[2] / "installers" / "man" / "make_man.py"


def test_the_manual_pages_tell_every_command_and_option(tmp_path: Path) -> None:
    """They are written from the program's help, so that they cannot differ from it."""
    subprocess.run([sys.executable, MAKE, tmp_path], check=True, timeout=60)
    page = (tmp_path / "stoker.1").read_text(encoding="utf-8").replace("\\-", "-")

    missing = [word for word in _words_of_the_cli() if word not in page]

    assert missing == []
    assert (tmp_path / "stoker-tray.1").read_text(encoding="utf-8").startswith(".TH STOKER-TRAY 1")


def _words_of_the_cli() -> Iterator[str]:
    """Every command's path and every option, as the program itself knows them."""
    from stoker.cli import app

    todo: list[tuple[str, Any]] = [("stoker", typer.main.get_command(app))]
    while todo:
        path, command = todo.pop()
        yield path
        for parameter in command.params:
            yield from parameter.opts
        todo += [
            (f"{path} {name}", inner) for name, inner in getattr(command, "commands", {}).items()
        ]
