"""`runtime`: which builds of the engine there are, and which one serves.

The daemon installs, tests and switches; this shows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import typer

from stoker import errors
from stoker.cli import boundary, connection, progress
from stoker.cli.fitting import fitted
from stoker.cli.output import clean_line, note, paint, print_json, size

if TYPE_CHECKING:
    from stoker.client import StokerClient
    from stoker.schemas import RuntimesView, RuntimeView

_POLL_S: Final = 0.5
_KINDS: Final = ("native", "cuda", "rocm", "vulkan", "metal")
_WORKING: Final = frozenset({"installing", "testing"})
_WORDS: Final = {"ready": "ready", "failed": "unusable", "offered": "could be installed"}
_THOUSAND: Final = 1000  # steps of the bar
_JSON = typer.Option(False, "--json", help="Print JSON (docs/cli.md).")
_NAME = typer.Argument(help="A name from `stoker runtime list`.")


def register(app: typer.Typer) -> None:
    runtime = typer.Typer(
        help="The builds of the engine: install, switch, go back.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    commands: dict[str, Callable[..., None]] = {
        "list": list_runtimes,
        "install": install,
        "cancel": cancel,
        "use": use,
        "rollback": rollback,
        "remove": remove,
        "hold": hold,
    }
    for name, command in commands.items():
        runtime.command(name)(command)
    app.add_typer(runtime, name="runtime")


def list_runtimes(as_json: bool = _JSON) -> None:
    """The runtimes that are here, and those that would be faster on this machine."""
    with connection.daemon() as client:
        view = client.runtimes()
    print_json(view) if as_json else print(_listing(view))


def install(
    kind: str = typer.Argument(help=f"One of {', '.join(_KINDS)}."),
    force: bool = typer.Option(False, "--force", help="Use it even if it is not faster."),
    detach: bool = typer.Option(False, "--detach", "-d", help="Do not wait for the end."),
    as_json: bool = _JSON,
) -> None:
    """Install a runtime, test it, and use it when it is faster here.

    `native` is compiled for this very processor and takes some minutes; the others are downloaded
    and use a graphics processor. The daemon does the work: Ctrl-C only stops watching. What serves
    now goes on serving, and stays installed.
    """
    if kind not in _KINDS:
        msg = f"there is no kind {kind!r}"
        raise errors.BadUsage(msg, hint=f"Choose one of {', '.join(_KINDS)}.")
    with connection.daemon() as client:
        watch = Watch(kind, {view.name for view in client.runtimes().runtimes})
        started = _started(client, kind, force=force)
        if detach:
            print_json(started) if as_json else print(_detached(kind))
            return
        view = _follow(client, watch)
    print_json(view) if as_json else print(_outcome(view))


def cancel(as_json: bool = _JSON) -> None:
    """End the install that runs; nothing of it is left."""
    with connection.daemon() as client, progress.waiting("Ending the install …"):
        view = client.runtime_cancel()
    print_json(view) if as_json else print("No install is running.")


def use(name: str = _NAME, as_json: bool = _JSON) -> None:
    """Use this runtime from now on.

    It is tested first if it never was. Loaded models change over one after another, and go on
    answering meanwhile.
    """
    with connection.daemon() as client, progress.waiting(f"Changing to {name} …"):
        view = client.runtime_use(name)
    _changed(view, as_json=as_json)


def rollback(as_json: bool = _JSON) -> None:
    """Go back to the runtime that was used before."""
    with connection.daemon() as client, progress.waiting("Changing back …"):
        view = client.runtime_rollback()
    _changed(view, as_json=as_json)


def remove(name: str = _NAME, as_json: bool = _JSON) -> None:
    """Delete a runtime; if it is in use, another one takes over first."""
    if "/" in name or not name.isprintable():  # no address of the daemon could carry it
        raise errors.UnknownRuntime(f"there is no runtime {name!r}")
    with connection.daemon() as client, progress.waiting(f"Removing {name} …"):
        view = client.runtime_remove(name)
    print_json(view) if as_json else print(f"{name} is removed.")


def hold(
    off: bool = typer.Option(False, "--off", help="Let it change by itself again."),
    as_json: bool = _JSON,
) -> None:
    """Keep the runtime that is used now: nothing is installed or switched by itself."""
    with connection.daemon() as client:
        view = client.runtime_hold(held=not off)
    if as_json:
        print_json(view)
    elif view.held:
        print("Nothing changes by itself now. Undo it with: stoker runtime hold --off")
    else:
        print("Stoker installs and switches runtimes by itself again.")


@dataclass(slots=True)
class Watch:
    """One install, from its begin to what came of it. Pure."""

    kind: str
    before: set[str]  # names that were there when it began
    name: str | None = None  # of the runtime, once it is installed

    def working(self, view: RuntimesView) -> RuntimeView | None:
        """The install's own entry while it is on its way."""
        for one in view.runtimes:
            if one.kind == self.kind and one.state in _WORKING:
                if one.state == "testing":
                    self.name = one.name
                return one
        return None

    def result(self, view: RuntimesView) -> RuntimeView | None:
        """What it led to when nothing is on its way any more; None when it was cancelled."""
        mine = [one for one in view.runtimes if one.kind == self.kind and one.state != "offered"]
        for one in mine:
            if one.name == self.name or (one.name == self.kind and one.error is not None):
                return one
        return next((one for one in mine if one.name not in self.before), None)


class Share(progress.Step):
    """A step that is counted in parts of a thousand."""

    __slots__ = ()

    @property
    def detail(self) -> str:
        return "" if not self.total else f"{100 * self.done // self.total} %"


def _started(client: StokerClient, kind: str, *, force: bool) -> RuntimeView:
    """The new install, or the one of this kind that runs already."""
    try:
        return client.runtime_install(kind, force=force)
    except errors.MachineBusy:
        running = Watch(kind, set()).working(client.runtimes())
        if running is None or force:
            raise
        return running


def _follow(
    client: StokerClient, watch: Watch, *, sleep: Callable[[float], None] = time.sleep
) -> RuntimeView:
    """Show progress until it ended. Raises what made it fail; Ctrl-C leaves it running."""
    try:
        with progress.showing() as show:
            view = client.runtimes()
            while (one := watch.working(view)) is not None:
                show(_step(one))
                sleep(_POLL_S)
                view = client.runtimes()
    except KeyboardInterrupt:
        note(_detached(watch.kind))
        raise typer.Exit(boundary.INTERRUPTED) from None
    found = watch.result(view)
    if found is None:
        msg = f"the install of {watch.kind} was ended"
        hint = f"Start it again with `stoker runtime install {watch.kind}`."
        raise errors.StokerError(msg, hint=hint)
    if found.error is not None:
        error = found.error
        raise errors.from_wire(error.code, error.message, error.hint, error.facts)
    return found


def _step(view: RuntimeView) -> Share:
    done = round(_THOUSAND * (view.progress or 0.0))
    return Share(f"{view.name}: {_without_count(view.note or view.state)}", done, _THOUSAND)


def _without_count(text: str) -> str:
    """A label that stays the same while the bar moves, so that a log gets few lines."""
    return text.partition(",")[0]


def _outcome(view: RuntimeView) -> str:
    if view.current:
        faster = f", {view.speedup:.2f} times as fast as before" if view.speedup else ""
        return f"{view.name} serves from now on{faster}.\nGo back with: stoker runtime rollback"
    why = clean_line(view.note) if view.note else "it is not tested yet"
    return (
        f"{view.name} is installed, and not used: {why}\n"
        f"Use it all the same with: stoker runtime use {view.name}"
    )


def _changed(view: RuntimesView, *, as_json: bool) -> None:
    if as_json:
        print_json(view)
        return
    current = next((one.name for one in view.runtimes if one.current), "the built-in runtime")
    print(f"{current} serves from now on; loaded models change over one after another.")


def _listing(view: RuntimesView) -> str:
    rows = [
        (
            one.name,
            _state(one),
            size(one.bytes) if one.bytes else "-",
            f"{one.speedup:.2f}x" if one.speedup else "-",
            one.error.message if one.error is not None else one.note or "",
        )
        for one in view.runtimes
    ]
    lines = [fitted(("NAME", "STATE", "SIZE", "SPEED", "NOTE"), rows, right=("SIZE", "SPEED"))]
    offers = [one.kind for one in view.runtimes if one.state == "offered"]
    if offers:
        lines.append(f"\nInstall one with: stoker runtime install {offers[0]}")
    if view.held:
        lines.append(
            paint("\nNothing changes by itself; undo it with: stoker runtime hold --off", "yellow")
        )
    return "\n".join(lines)


def _state(view: RuntimeView) -> str:
    if view.state in _WORKING:
        return f"{view.state}, {100 * (view.progress or 0):.0f} %"
    if view.current:
        return "in use"
    if view.state == "failed" and view.name == view.kind:  # an install that led to nothing
        return "not installed"
    return "ready, used before" if view.previous else _WORDS[view.state]


def _detached(kind: str) -> str:
    return (
        f"The install of {kind} goes on in the background; see `stoker runtime list`, "
        "end it with `stoker runtime cancel`."
    )
