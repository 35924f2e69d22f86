"""`pull` and `import`: getting models into the store. The work is the daemon's; this watches."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from stoker import errors
from stoker.cli import boundary, connection, progress
from stoker.cli.models import verdicts
from stoker.cli.output import clean_line, note, print_json, size

if TYPE_CHECKING:
    from stoker.client import StokerClient
    from stoker.schemas import PullView

_POLL_S: Final = 0.25
_JSON = typer.Option(False, "--json", help="Print JSON (docs/cli.md).")
_NAME = typer.Option(None, "--name", help="Name in the store; otherwise from the reference.")
_DETACH = typer.Option(False, "--detach", "-d", help="Do not wait for the end.")


def register(app: typer.Typer) -> None:
    app.command()(pull)
    app.command("import")(import_file)


def pull(
    reference: str = typer.Argument(
        help="`starter`, owner/repo[:quant-or-file][@revision], a URL or a file path."
    ),
    name: str | None = _NAME,
    detach: bool = _DETACH,
    pause: bool = typer.Option(False, "--pause", help="Pause this running pull."),
    resume: bool = typer.Option(False, "--resume", help="Go on with this paused pull."),
    cancel: bool = typer.Option(False, "--cancel", help="End this pull; drop what it fetched."),
    as_json: bool = _JSON,
) -> None:
    """Download a model, verify it and keep it.

    The daemon does the work: Ctrl-C only stops watching. With --pause, --resume or --cancel,
    REFERENCE is what was pulled, the name of the model, or the pull's id.
    """
    if pause + resume + cancel > 1:
        msg = "--pause, --resume and --cancel exclude each other"
        raise errors.BadUsage(msg, hint="Give one of them.")
    with connection.daemon() as client:
        if pause or cancel:
            found = _running(client, reference)
            steer = client.pause_pull if pause else client.cancel_pull
            view = steer(found.id)
            print_json(view) if as_json else print(f"{view.reference}: {view.state}")
            return
        view = _started(client, reference, name, must_run=resume)
        _finish(client, view, detach=detach, as_json=as_json)


def import_file(
    path: str = typer.Argument(help="A GGUF file on this machine."),
    name: str | None = _NAME,
    detach: bool = _DETACH,
    as_json: bool = _JSON,
) -> None:
    """Take a model file of this machine into the store.

    The file itself stays as it is.
    """
    with connection.daemon() as client:
        view = client.pull(_file(path), name=name)
        _finish(client, view, detach=detach, as_json=as_json)


def _started(client: StokerClient, reference: str, name: str | None, *, must_run: bool) -> PullView:
    if must_run:
        return client.resume_pull(_running(client, reference).id)
    if reference.startswith(("./", "../", "~", "/")):
        reference = _file(reference)
    view = client.pull(reference, name=name)
    return client.resume_pull(view.id) if view.state == "paused" else view


def _file(text: str) -> str:
    """The absolute path of a file; only this process knows the user's folder."""
    path = Path(text).expanduser().absolute()
    if path.is_dir():
        msg = f"{path} is a folder"
        raise errors.BadReference(msg, hint="Name the GGUF file in it.")
    if not path.is_file():
        msg = f"there is no file {path}"
        raise errors.BadReference(msg, hint="Check the spelling and the folder.")
    return str(path)


def _running(client: StokerClient, wanted: str) -> PullView:
    """The newest pull that has not ended and goes by this id, reference or model name."""
    for view in reversed(client.pulls()):
        if not view.state.ended and wanted in {view.id, view.reference, view.model}:
            return view
    msg = f"no pull of {wanted!r} is running"
    raise errors.UnknownPull(msg)


def _finish(client: StokerClient, view: PullView, *, detach: bool, as_json: bool) -> None:
    if detach and not view.state.ended:
        print_json(view) if as_json else print(_detached(view))
        return
    view = watch(client, view)
    if as_json:
        print_json(view)
    else:
        model = client.model(view.model or view.reference)
        print(f"{model.id} is in the store ({size(model.bytes)}).")
        for check, verdict in verdicts(model):
            print(f"  {check}: {verdict.verdict}, {clean_line(verdict.detail)}")
        print(f"Try it: stoker run {model.id}")


def watch(
    client: StokerClient, view: PullView, *, sleep: Callable[[float], None] = time.sleep
) -> PullView:
    """Show progress until the pull is done. Raises what made it fail; Ctrl-C leaves it running."""
    try:
        with progress.showing() as show:
            show(_step(view))
            while not view.state.ended and view.state != "paused":
                sleep(_POLL_S)
                view = client.pull_view(view.id)
                show(_step(view))
    except KeyboardInterrupt:
        note(_detached(view))
        raise typer.Exit(boundary.INTERRUPTED) from None
    if view.state == "done":
        return view
    raise _why(view)


def _step(view: PullView) -> progress.Step:
    moving = view.state == "fetching"
    return progress.Step(
        f"{view.model or view.reference}: {view.note or view.state}",
        view.bytes_done,
        view.bytes_total,
        view.bytes_per_s if moving else 0.0,
        view.eta_s if moving else None,
    )


def _why(view: PullView) -> errors.StokerError:
    if view.error is not None and view.state == "failed":
        error = view.error
        return errors.from_wire(error.code, error.message, error.hint, error.facts)
    again = f"stoker pull {view.reference}"
    if view.state == "paused":
        return errors.StokerError(
            f"the pull of {view.reference} is paused", hint=f"Go on with `{again}`."
        )
    return errors.StokerError(
        f"the pull of {view.reference} ended: {view.state}", hint=f"Start it again with `{again}`."
    )


def _detached(view: PullView) -> str:
    return (
        f"The pull of {view.reference} goes on in the background; see `stoker status`, "
        f"end it with `stoker pull {view.reference} --cancel`."
    )
