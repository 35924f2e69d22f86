"""`server on` and `server off`: whether clients are served."""

from __future__ import annotations

import typer

from stoker.cli import connection, progress
from stoker.cli.output import print_json

_JSON = typer.Option(False, "--json", help="Print JSON (docs/cli.md).")


def register(app: typer.Typer) -> None:
    server = typer.Typer(
        help="Switch the endpoint on or off.", no_args_is_help=True, rich_markup_mode=None
    )
    for name, command in (("on", on), ("off", off)):
        server.command(name)(command)
    app.add_typer(server, name="server")


def on(as_json: bool = _JSON) -> None:
    """Serve clients; the models that were loaded before are loaded again."""
    with connection.daemon() as client, progress.waiting("Opening the endpoint …"):
        view = client.server(enabled=True)
    print_json(view) if as_json else print(f"The server is on: {view.base_url}")


def off(as_json: bool = _JSON) -> None:
    """Close the endpoint and unload all models; running answers end first.

    It stays off when Stoker is started again, until `stoker server on`.
    """
    with connection.daemon() as client, progress.waiting("Closing the endpoint …"):
        view = client.server(enabled=False)
    if as_json:
        print_json(view)
    else:
        print("The server is off. Switch it on again with: stoker server on")
