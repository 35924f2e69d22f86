"""`load`, `unload`, `use`, `pin` and `ps`: which models are in memory."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import typer

from stoker import errors
from stoker.cli import connection, progress, tables
from stoker.cli.output import duration, note, print_json, size
from stoker.types import ModelState

if TYPE_CHECKING:
    from stoker.schemas import ModelView, StatusView

_MODEL = typer.Argument(help="A model of `stoker list`.")
_JSON = typer.Option(False, "--json", help="Print JSON (docs/cli.md).")
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d|)")
_UNIT_S: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_FOREVER_S: Final = -1.0


def register(app: typer.Typer) -> None:
    for command in (load, unload, use, pin, ps):
        app.command()(command)


def load(
    model: str = _MODEL,
    keep_alive: str | None = typer.Option(
        None, "--keep-alive", help="Unload after this idle time: 90s, 30m, 2h, or `forever`."
    ),
    pinned: bool = typer.Option(
        False, "--pin", help="Never unload it for another one or for being idle."
    ),
    as_json: bool = _JSON,
) -> None:
    """Load a model now, before its first request."""
    keep_alive_s = None if keep_alive is None else seconds(keep_alive)
    with connection.daemon() as client:
        expected_s = _expected_s(_find(client.status(), model))
        with progress.waiting(f"Loading {model} …", expected_s):
            view = client.load(model, keep_alive_s=keep_alive_s, pin=True if pinned else None)
    print_json(view) if as_json else print(_ready(view))


def use(model: str = _MODEL, as_json: bool = _JSON) -> None:
    """Change to a model: load it, make it the default, and unload the others.

    Running answers of the others end first, and pinned ones stay. Requests that name no model go
    to the default. It is loaded again when Stoker starts. When it cannot be loaded, the one
    before is loaded again.
    """
    with connection.daemon() as client:
        status = client.status()
        known = _find(status, model)
        expected_s = _expected_s(known)
        if known is not None and not as_json:
            _announce_change(known, status.default, expected_s)
        with progress.waiting(f"Loading {model} …", expected_s):
            view = client.use(model)
    if as_json:
        print_json(view)
        return
    print(_ready(view))
    if view.default:
        instead = f", instead of {status.default}" if status.default not in {None, view.id} else ""
        print(f"Requests that name no model go to it{instead}.")
    print("It will be loaded again when Stoker starts.")


def _announce_change(model: ModelView, before: str | None, expected_s: float | None) -> None:
    """How long it will take, before it begins."""
    if expected_s is None:
        return
    change = f"Changing from {before} to {model.id}"
    what = f"Loading {model.id}" if before in {None, model.id} else change
    note(f"{what}: about {duration(expected_s)}.")


def _find(status: StatusView, name: str) -> ModelView | None:
    """By its id; None for an alias, of which only the daemon knows."""
    wanted = name.casefold()
    return next((model for model in status.models if model.id.casefold() == wanted), None)


def _expected_s(model: ModelView | None) -> float | None:
    """How much longer its load takes, about; None when nobody knows, or when it is loaded."""
    if model is None or model.state == ModelState.READY or model.expected_load_s is None:
        return None
    left_s = model.expected_load_s - (model.loading_s or 0.0)
    return max(1.0, left_s) if left_s > 0 else None


def _ready(view: ModelView) -> str:
    context = f", context {view.context} tokens" if view.context else ""
    memory = f", {size(view.memory.predicted_bytes)}" if view.memory else ""
    pinned = " It is pinned." if view.pinned else ""
    return f"{view.id} is {view.state}{context}{memory}.{pinned}"


def pin(
    model: str = _MODEL,
    off: bool = typer.Option(False, "--off", help="Take the pin off."),
    as_json: bool = _JSON,
) -> None:
    """Keep a model in memory: it leaves neither for another one nor for being idle.

    It is not loaded by this, and `stoker unload` still unloads it.
    """
    with connection.daemon() as client:
        view = client.pin(model, pinned=not off)
    if as_json:
        print_json(view)
    elif view.pinned:
        print(f"{view.id} is pinned; it is {view.state}.")
    else:
        print(f"{view.id} is not pinned.")


def unload(model: str = _MODEL, as_json: bool = _JSON) -> None:
    """Unload a model and free its memory."""
    with connection.daemon() as client, progress.waiting(f"Unloading {model} …"):
        view = client.unload(model)
    print_json(view) if as_json else print(f"{view.id} is {view.state}.")


def ps(as_json: bool = _JSON) -> None:
    """List the models that are loaded, loading or failed, with what they take and do."""
    with connection.daemon() as client:
        models = [model for model in client.status().models if model.state != "unloaded"]
    if as_json:
        print_json(models)
    else:
        print(tables.details(models) if models else "No model is loaded.")


def seconds(text: str) -> float:
    """A duration as typed: ``90``, ``90s``, ``30m``, ``2h``, ``forever``. Raises BadUsage."""
    if text == "forever":
        return _FOREVER_S
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        msg = f"not a duration: {text!r}"
        raise errors.BadUsage(msg, hint="Write 90s, 30m, 2h or forever.")
    return float(match[1]) * _UNIT_S[match[2]]
