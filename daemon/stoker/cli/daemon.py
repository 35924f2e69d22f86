"""`serve`, `start`, `stop`, `restart`, `status` and `logs`: the daemon from outside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from stoker import errors, paths
from stoker.cli import connection, logfile, process, progress, tables
from stoker.cli.output import clean, clean_line, duration, pairs, plural, print_json, size, table

if TYPE_CHECKING:
    from stoker.schemas import PullView, StatusView


def register(app: typer.Typer) -> None:
    for command in (start, stop, restart, status, logs, serve):
        app.command()(command)


def serve(
    log_to_stderr: bool = typer.Option(
        False, "--log-to-stderr", help="Log to stderr instead of the log file."
    ),
) -> None:
    """Run the daemon in this terminal until Ctrl-C.

    `stoker start` runs it in the background; a service manager runs this.
    """
    from stoker.entry import run_daemon

    run_daemon(log_to_stderr=log_to_stderr)


def start(
    timeout_s: float = typer.Option(
        process.START_TIMEOUT_S, "--timeout", min=1, help="How long to wait for it, in seconds."
    ),
) -> None:
    """Start the daemon in the background."""
    _start(timeout_s)


def stop() -> None:
    """Stop the daemon; running answers end first."""
    with progress.waiting("Stopping …"):
        pid = process.stop(paths.from_environment())
    print("Stoker is not running." if pid is None else f"Stoker has stopped (pid {pid}).")


def restart(
    timeout_s: float = typer.Option(
        process.START_TIMEOUT_S, "--timeout", min=1, help="How long to wait for it, in seconds."
    ),
) -> None:
    """Stop the daemon and start it again.

    The model that served last is loaded again.
    """
    with progress.waiting("Stopping …"):
        process.stop(paths.from_environment())
    _start(timeout_s)


def _start(timeout_s: float) -> None:
    from stoker import settings

    places = paths.from_environment()
    settings.load(places.config_file)  # a wrong setting is told here, not by a dead process
    with progress.waiting("Starting …"):
        view, started = process.start(places, timeout_s=timeout_s)
    verb = "has started" if started else "is already running"
    print(f"Stoker {verb} (pid {view.daemon.pid}).")
    if view.server.enabled:
        print(f"Endpoint: {view.server.base_url}")
    else:
        print("The server is off. Switch it on with: stoker server on")


def status(
    as_json: bool = typer.Option(False, "--json", help="Print JSON (docs/cli.md)."),
) -> None:
    """Show the daemon, loaded models, other servers and downloads."""
    with connection.daemon() as client:
        view = client.status()
    if as_json:
        print_json(view)
        return
    print(_headline(view))
    active = [model for model in view.models if model.state != "unloaded"]
    print()
    print(tables.summary(active) if active else "No model is loaded.")
    resting = len(view.models) - len(active)
    if resting:
        print(f"{plural(resting, 'more model')} stored; see `stoker list`.")
    if view.upstreams:
        print()
        print(tables.upstreams(view.upstreams))
    if view.pulls:
        print()
        print(_pull_table(view.pulls))
    for problem in view.problems:
        print(f"\nProblem: {clean_line(problem)}")


def _headline(view: StatusView) -> str:
    resources = view.resources
    ram = f"{size(resources.ram_used_bytes)} of {size(resources.ram_total_bytes)} used"
    rows: list[tuple[str, object]] = [
        ("Stoker", f"{view.daemon.version}, running for {duration(view.daemon.uptime_s)}"),
        ("Pid", view.daemon.pid),
        ("Home", view.daemon.home),
        ("Endpoint", view.server.base_url if view.server.enabled else "off"),
        ("Default", view.default),
        ("Network", "open to the local network" if view.server.lan else "this machine only"),
        ("CPU", f"{resources.cpu_percent:.0f} %"),
        ("Memory", ram),
    ]
    for gpu in resources.gpus:
        used = "" if gpu.vram_used_bytes is None else f", {size(gpu.vram_used_bytes)} of it used"
        total = f", {size(gpu.vram_total_bytes)}" if gpu.vram_total_bytes else ""
        rows.append(("GPU", f"{gpu.name}{total}{used}"))
    return pairs(rows)


def _pull_table(pulls: Iterable[PullView]) -> str:
    rows = [
        (
            pull.model or pull.reference,
            pull.state,
            f"{size(pull.bytes_done)} of {size(pull.bytes_total)}" if pull.bytes_total else "-",
            duration(pull.eta_s),
            (pull.error.message if pull.error else pull.note) or "",
        )
        for pull in pulls
    ]
    return table(("DOWNLOAD", "STATE", "DONE", "LEFT", "NOTE"), rows)


def logs(
    lines: int = typer.Option(50, "--lines", "-n", min=0, help="How many of the last lines."),
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on with every new line."),
) -> None:
    """Print the daemon's log; works while it is stopped."""
    log = paths.from_environment().log_file
    if not log.exists() and not follow:
        msg = f"there is no log yet at {log}"
        raise errors.StokerError(msg, hint="Start the daemon with `stoker start`.")
    recent, end = logfile.last_lines(log, lines)
    for line in recent:
        print(clean(line))
    if follow:
        with contextlib.suppress(KeyboardInterrupt):  # that is how following ends
            for line in logfile.follow(log, end):
                print(clean(line), flush=True)
