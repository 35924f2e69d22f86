"""`load`, `unload`, `use` and `ps`: which models are in memory."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import typer

from stoker import errors
from stoker.cli import connection, progress
from stoker.cli.daemon import model_table
from stoker.cli.output import print_json, size

if TYPE_CHECKING:
    from stoker.schemas import ModelView

_MODEL = typer.Argument(help="A model of `stoker list`.")
_JSON = typer.Option(False, "--json", help="Print JSON (docs/cli.md).")
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d|)")
_UNIT_S: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_FOREVER_S: Final = -1.0


def register(app: typer.Typer) -> None:
    for command in (load, unload, use, ps):
        app.command()(command)


def load(
    model: str = _MODEL,
    keep_alive: str | None = typer.Option(
        None, "--keep-alive", help="Unload after this idle time: 90s, 30m, 2h, or `forever`."
    ),
    as_json: bool = _JSON,
) -> None:
    """Load a model now, before its first request."""
    keep_alive_s = None if keep_alive is None else seconds(keep_alive)
    with connection.daemon() as client, progress.waiting(f"Loading {model} …"):
        view = client.load(model, keep_alive_s=keep_alive_s)
    print_json(view) if as_json else print(_ready(view))


def use(model: str = _MODEL, as_json: bool = _JSON) -> None:
    """Change to a model: load it and unload the others.

    Running answers of the others end first. It is loaded again when Stoker starts.
    """
    with connection.daemon() as client, progress.waiting(f"Loading {model} …"):
        view = client.use(model)
    if as_json:
        print_json(view)
    else:
        print(_ready(view))
        print("It will be loaded again when Stoker starts.")


def _ready(view: ModelView) -> str:
    context = f", context {view.context} tokens" if view.context else ""
    memory = f", {size(view.memory.predicted_bytes)}" if view.memory else ""
    return f"{view.id} is {view.state}{context}{memory}."


def unload(model: str = _MODEL, as_json: bool = _JSON) -> None:
    """Unload a model and free its memory."""
    with connection.daemon() as client, progress.waiting(f"Unloading {model} …"):
        view = client.unload(model)
    print_json(view) if as_json else print(f"{view.id} is {view.state}.")


def ps(as_json: bool = _JSON) -> None:
    """List the models that are loaded, loading or failed."""
    with connection.daemon() as client:
        models = [model for model in client.status().models if model.state != "unloaded"]
    if as_json:
        print_json(models)
    else:
        print(model_table(models) if models else "No model is loaded.")


def seconds(text: str) -> float:
    """A duration as typed: ``90``, ``90s``, ``30m``, ``2h``, ``forever``. Raises BadUsage."""
    if text == "forever":
        return _FOREVER_S
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        msg = f"not a duration: {text!r}"
        raise errors.BadUsage(msg, hint="Write 90s, 30m, 2h or forever.")
    return float(match[1]) * _UNIT_S[match[2]]
