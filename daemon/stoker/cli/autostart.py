"""`autostart on`, `off`, `status` and `refresh`: what starts at login.

Also how `start` and `stop` find the service manager that has the daemon. Not for: how each system
is told (`stoker_service`).
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stoker import errors, paths
from stoker.cli.output import clean_line, note, pairs, print_json

if TYPE_CHECKING:
    from stoker.paths import Paths
    from stoker_service import Autostart, Part, Program, Record, Wish

_DAEMON = typer.Option(False, "--daemon", help="The daemon only.")
_TRAY = typer.Option(False, "--tray", help="The tray icon only.")


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Choose what starts at login.", no_args_is_help=True)
    for command in (on, off, status, refresh):
        group.command()(command)
    app.add_typer(group, name="autostart")


def on(
    daemon: bool = _DAEMON,
    tray: bool = _TRAY,
    on_demand: bool = typer.Option(
        False, "--on-demand", help="Start the daemon with the first request, not at login."
    ),
    linger: bool = typer.Option(
        False, "--linger", help="Start with the machine and go on after the logout."
    ),
    hardened: bool = typer.Option(
        False, "--hardened", help="Let the daemon write to its own folders only."
    ),
) -> None:
    """Start Stoker and its tray icon at login."""
    from stoker_service import Part, check_owner, choose, find

    back_end = choose()
    check_owner(back_end, find())
    parts = _parts(daemon=daemon, tray=tray)
    if Part.DAEMON not in parts and (on_demand or linger or hardened):
        msg = "--on-demand, --linger and --hardened are about the daemon, not the tray icon"
        raise errors.BadUsage(msg, hint="Leave --tray out.")
    wish = replace(
        wish_of(paths.from_environment(), find()),
        on_demand=on_demand,
        linger=linger,
        hardened=hardened,
    )
    for sentence in back_end.install(parts, wish):
        print(clean_line(sentence))
    print("To undo it: stoker autostart off")
    if Part.DAEMON in parts:
        unseen = [name for name in own_settings() if name in {"STOKER_HOST", "STOKER_PORT"}]
        if unseen:
            note(f"{' and '.join(unseen)} of this terminal is not seen at login; config.toml is.")


def off(daemon: bool = _DAEMON, tray: bool = _TRAY) -> None:
    """Start nothing at login any more; what runs goes on running."""
    from stoker_service import check_owner, choose, find

    back_end = choose()
    check_owner(back_end, find())
    done = back_end.uninstall(_parts(daemon=daemon, tray=tray))
    for sentence in done or ("Nothing of Stoker was set to start at login.",):
        print(clean_line(sentence))


def status(
    as_json: bool = typer.Option(False, "--json", help="Print JSON (docs/cli.md)."),
) -> None:
    """Show what starts at login."""
    from stoker_service import choose

    back_end = choose()
    states = back_end.status()
    if as_json:
        views: dict[str, Any] = {
            part.value: {
                "enabled": state.enabled,
                "detail": state.detail,
                "problem": state.problem,
            }
            for part, state in states.items()
        }
        print_json({"back_end": back_end.name, **views})
        return
    rows: list[tuple[str, object]] = [
        (part.value.capitalize(), ("on: " if state.enabled else "") + state.detail)
        for part, state in states.items()
    ]
    print(pairs(rows))
    for state in states.values():
        if state.problem:
            print(f"\nProblem: {clean_line(state.problem)}")


def refresh() -> None:
    """Write anew what is on, for the program and the settings of now.

    Installers do this after an upgrade. Nothing is switched on.
    """
    from stoker_service import check_owner, choose, find

    back_end = choose()
    check_owner(back_end, find())
    parts = [part for part, state in back_end.status().items() if state.enabled]
    if not parts:
        print("Nothing of Stoker starts at login.")
        return
    wish = wish_of(paths.from_environment(), find(), back_end.installed())
    for sentence in back_end.install(parts, wish):
        print(clean_line(sentence))


def _parts(*, daemon: bool, tray: bool) -> Collection[Part]:
    from stoker_service import Part

    if daemon == tray:
        return tuple(Part)
    return (Part.DAEMON,) if daemon else (Part.TRAY,)


# --- for `start` and `stop` ------------------------------------------------------------------


def manager() -> Autostart | None:
    """The service manager that knows the daemon of this home, or None."""
    from stoker_service import choose, find, same_home

    back_end = choose()
    noted = back_end.installed() if back_end.supervises else None
    if noted is None or not same_home(noted.environment, find().environment):
        return None
    return back_end


def renew(back_end: Autostart, places: Paths) -> bool:
    """Bring the daemon's entry up to the settings of now, if need be; the program in it stays.

    One that is switched off stays as it is.
    """
    from stoker_service import Part, find

    noted = back_end.installed()
    if noted is None or not noted.program or not back_end.status()[Part.DAEMON].enabled:
        return False
    program = replace(find(), daemon=noted.program, environment=noted.environment)
    wish = wish_of(places, program, noted)
    if back_end.is_current(wish):
        return False
    back_end.install((Part.DAEMON,), wish)
    return True


def wish_of(places: Paths, program: Program, noted: Record | None = None) -> Wish:
    """As the settings file says, for this terminal's variables are not seen at login.

    What the entry says besides (`noted`) is kept. Raises BadSetting.
    """
    from stoker import settings
    from stoker_service import Record, Wish

    settings.load(places.config_file)
    noted = noted or Record()
    return Wish(
        program,
        host=_of_file(places, "host"),
        port=_of_file(places, "port"),
        drain_s=_of_file(places, "drain_timeout_s"),
        on_demand=noted.on_demand,
        linger=noted.linger,
        hardened=noted.hardened,
    )


def _of_file(places: Paths, key: str) -> Any:
    """A setting as the file has it, or its default."""
    from pydantic import TypeAdapter, ValidationError

    from stoker import settings

    field = settings.Settings.model_fields[key]
    value = settings.read_file(places.config_file).get(key, field.default)
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        msg = f"{key}: {error.errors()[0]['msg']} (got {value!r:.80})"
        raise errors.BadSetting(msg, hint=f"Correct it in {places.config_file}.") from error


def own_settings() -> list[str]:
    """The variables of this terminal that are settings."""
    from stoker import settings

    known = {f"{settings.PREFIX}{key}".upper() for key in settings.Settings.model_fields}
    return sorted(name for name in os.environ if name.upper() in known)
