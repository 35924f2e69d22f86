"""`stoker autostart`, and how `start` and `stop` go through what it set up."""

from __future__ import annotations

import json
import socket
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import stoker_service
from stoker import errors, paths, schemas, settings
from stoker.cli import autostart, checks, process
from stoker_service import Part, PartState, Record, Wish
from tests.fakes.service_home import PROGRAM, wish

from .conftest import Run, StubClient


@dataclass
class FakeAutostart:
    """A back end in memory."""

    name: str = "systemd"
    supervises: bool = True
    wishes: dict[Part, Wish] = field(default_factory=dict)
    noted: Record | None = None
    current: bool = True
    failure: errors.StokerError | None = None
    started: list[str] = field(default_factory=list)
    problem: str | None = None
    has_port: bool = False

    def install(self, parts: Collection[Part], wish: Wish) -> tuple[str, ...]:
        if self.failure:
            raise self.failure
        self.wishes |= dict.fromkeys(parts, wish)
        return tuple(f"{part} on." for part in parts)

    def uninstall(self, parts: Collection[Part]) -> tuple[str, ...]:
        found = [part for part in parts if self.wishes.pop(part, None)]
        return tuple(f"{part} off." for part in found)

    def status(self) -> dict[Part, PartState]:
        return {
            part: PartState(part in self.wishes, "starts at login", self.problem) for part in Part
        }

    def installed(self) -> Record | None:
        return self.noted

    def is_current(self, _wish: Wish) -> bool:
        return self.current

    def holds_port(self) -> bool:
        if self.failure:
            raise self.failure
        return self.has_port

    def start(self, _timeout_s: float = 0) -> bool:
        self.started.append("start")
        if self.failure:
            raise self.failure
        return True

    def stop(self, _drain_s: float = 0) -> bool:
        self.started.append("stop")
        if self.failure:
            raise self.failure
        return True


@pytest.fixture
def back_end(monkeypatch: pytest.MonkeyPatch) -> FakeAutostart:
    fake = FakeAutostart()
    monkeypatch.setattr(stoker_service, "choose", lambda: fake)
    return fake


@pytest.fixture
def supervised(back_end: FakeAutostart, stoker_home: Path) -> FakeAutostart:
    """The daemon of this home starts at login."""
    environment = (("STOKER_HOME", str(stoker_home)),)
    back_end.noted = Record(program=("/old/stoker", "serve"), environment=environment)
    back_end.install([Part.DAEMON], Wish(PROGRAM, "127.0.0.1", 4328))
    return back_end


# --- the commands ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], {Part.DAEMON, Part.TRAY}),
        (["--daemon"], {Part.DAEMON}),
        (["--tray"], {Part.TRAY}),
        (["--daemon", "--tray"], {Part.DAEMON, Part.TRAY}),
    ],
)
def test_each_part_has_its_own_switch(
    run: Run, back_end: FakeAutostart, words: list[str], parts: set[Part]
) -> None:
    ran = run("autostart", "on", *words)
    assert ran.code == 0
    assert set(back_end.wishes) == parts
    assert ran.out.endswith("To undo it: stoker autostart off\n")

    ran = run("autostart", "off", *words)

    assert ran.code == 0
    assert back_end.wishes == {}
    assert run("autostart", "off").out == "Nothing of Stoker was set to start at login.\n"


def test_the_settings_file_decides_the_port(
    run: Run, back_end: FakeAutostart, stoker_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The terminal's variables are not there at login, so they must not be used."""
    (stoker_home / "config.toml").write_text('port = 4400\nhost = "::1"\ndrain_timeout_s = 3\n')
    monkeypatch.setenv("STOKER_PORT", "4500")

    ran = run("autostart", "on", "--on-demand", "--linger", "--hardened")

    wish = back_end.wishes[Part.DAEMON]
    assert (wish.host, wish.port, wish.drain_s) == ("::1", 4400, 3)
    assert (wish.on_demand, wish.linger, wish.hardened) == (True, True, True)
    assert wish.program.environment == (("STOKER_HOME", str(stoker_home)),)
    assert "STOKER_PORT of this terminal is not seen" in ran.err


def test_a_wrong_setting_is_told_before_anything_is_done(
    run: Run, back_end: FakeAutostart, stoker_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that a variable of this terminal hides."""
    (stoker_home / "config.toml").write_text('port = "many"\n')
    monkeypatch.setenv("STOKER_PORT", "4500")

    ran = run("autostart", "on")

    assert ran.code == 2
    assert ran.err.startswith("error: port: ")
    assert back_end.wishes == {}


def test_wishes_for_the_daemon_need_the_daemon(run: Run, back_end: FakeAutostart) -> None:
    ran = run("autostart", "on", "--tray", "--linger")

    assert (ran.code, back_end.wishes) == (2, {})


def test_what_the_user_forbade_is_refused(run: Run, back_end: FakeAutostart) -> None:
    back_end.failure = errors.AutostartBlocked("x is masked", hint="unmask it")

    ran = run("autostart", "on")

    assert (ran.code, ran.err) == (4, "error: x is masked\nhint:  unmask it\n")


def test_the_status_in_words_and_as_json(run: Run, back_end: FakeAutostart) -> None:
    back_end.problem = "its program is gone"
    run("autostart", "on", "--daemon")

    ran = run("autostart", "status")
    view = json.loads(run("autostart", "status", "--json").out)

    assert ran.out.splitlines()[0] == "Daemon  on: starts at login"
    assert "Problem: its program is gone" in ran.out
    state = {"detail": "starts at login", "problem": "its program is gone"}
    assert view == {
        "back_end": "systemd",
        "daemon": {"enabled": True, **state},
        "tray": {"enabled": False, **state},
    }


def test_refresh_renews_what_is_on_and_keeps_its_wishes(
    run: Run, back_end: FakeAutostart, supervised: FakeAutostart
) -> None:
    assert supervised.noted is not None
    supervised.noted = replace(supervised.noted, on_demand=True, linger=True)

    assert run("autostart", "refresh").code == 0

    assert set(back_end.wishes) == {Part.DAEMON}
    wish = back_end.wishes[Part.DAEMON]
    assert (wish.on_demand, wish.linger, wish.hardened) == (True, True, False)
    assert wish.program.daemon != ("/old/stoker", "serve")
    run("autostart", "off")
    assert run("autostart", "refresh").out == "Nothing of Stoker starts at login.\n"
    assert back_end.wishes == {}


@pytest.mark.parametrize("command", ["on", "off", "refresh"])
def test_the_entry_of_another_home_is_left_alone(
    run: Run, back_end: FakeAutostart, tmp_path: Path, command: str
) -> None:
    """As long as its program is there, only that one's own command may change it."""
    other = tmp_path / "stoker"
    other.touch()
    back_end.noted = Record(program=(str(other), "serve"), environment=(("STOKER_HOME", "/else"),))
    back_end.install([Part.DAEMON], wish())

    refused = run("autostart", command)
    assert refused.code == 4
    assert f"{other} autostart off" in refused.err
    assert back_end.wishes == {Part.DAEMON: wish()}

    other.unlink()
    assert run("autostart", command).code == 0


# --- start and stop --------------------------------------------------------------------------


def test_the_manager_of_another_home_is_none_of_ours(
    back_end: FakeAutostart, stoker_home: Path
) -> None:
    back_end.noted = Record(environment=(("STOKER_HOME", "/another"),))
    assert autostart.manager() is None

    back_end.noted = Record(environment=(("STOKER_HOME", f"{stoker_home}/."),))

    assert autostart.manager() is back_end
    back_end.supervises = False
    assert autostart.manager() is None


def test_an_entry_is_renewed_only_when_the_settings_changed(
    supervised: FakeAutostart, stoker_home: Path
) -> None:
    """The program in it stays: it may be a launcher that this command knows nothing of."""
    places = paths.from_environment()
    assert not autostart.renew(supervised, places)

    supervised.current = False

    assert autostart.renew(supervised, places)
    assert supervised.wishes[Part.DAEMON].program.daemon == ("/old/stoker", "serve")
    assert supervised.wishes[Part.DAEMON].program.environment == (
        ("STOKER_HOME", str(stoker_home)),
    )


def test_an_entry_that_is_switched_off_is_not_renewed(supervised: FakeAutostart) -> None:
    supervised.current = False
    supervised.wishes.clear()

    assert not autostart.renew(supervised, paths.from_environment())
    assert supervised.wishes == {}


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch, client: StubClient) -> list[str]:
    """What was started without a manager; a daemon answers as soon as one was started."""
    made: list[str] = []

    def spawn(_places: object, _timeout_s: float) -> schemas.StatusView:
        made.append("spawned")
        return client.status()

    monkeypatch.setattr(process, "_spawn_and_wait", spawn)
    return made


@pytest.fixture
def answers_once_started(
    monkeypatch: pytest.MonkeyPatch, supervised: FakeAutostart, client: StubClient
) -> None:
    def running() -> schemas.StatusView | None:
        return client.status() if "start" in supervised.started else None

    monkeypatch.setattr(process, "running", running)


@pytest.mark.usefixtures("answers_once_started")
def test_start_goes_through_the_manager(
    run: Run, supervised: FakeAutostart, spawned: list[str]
) -> None:
    supervised.current = False

    ran = run("start")

    assert ran.out.startswith("Stoker has started (pid 7).")
    assert "brought up to date" in ran.err
    assert (supervised.started, spawned) == (["start"], [])


@pytest.mark.usefixtures("answers_once_started")
def test_settings_of_the_terminal_start_it_without_the_manager(
    run: Run, supervised: FakeAutostart, spawned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKER_LOG_LEVEL", "debug")

    ran = run("start")

    assert "STOKER_LOG_LEVEL of this terminal is not seen by systemd" in ran.err
    assert (supervised.started, spawned) == (["stop"], ["spawned"])  # its socket is in the way


@pytest.mark.usefixtures("answers_once_started")
def test_start_tells_that_the_server_is_off(
    run: Run, supervised: FakeAutostart, client: StubClient
) -> None:
    """Its address would lead nowhere."""
    client.enabled = False

    out = run("start").out

    assert out.splitlines()[1] == "The server is off. Switch it on with: stoker server on"


@pytest.mark.parametrize(
    ("has_port", "failure", "levels"),
    [
        (True, None, ["ok"]),
        (False, None, ["warn", "fail"]),
        (True, errors.AutostartFailed("no answer"), ["warn", "fail"]),
    ],
)
def test_a_port_that_the_manager_holds_is_not_taken(
    supervised: FakeAutostart,
    has_port: bool,  # noqa: FBT001  # pytest fills it
    failure: errors.StokerError | None,
    levels: list[str],
) -> None:
    """systemd listens there in the daemon's place; only if that is so."""
    supervised.has_port, supervised.failure = has_port, failure
    with socket.create_server(("127.0.0.1", 0)) as other:
        wishes = settings.Settings(port=other.getsockname()[1])

        findings = checks.check_daemon(wishes)

    assert [one.level for one in findings] == levels
    assert ("systemd starts it with the first request" in findings[0].text) == (levels == ["ok"])


def test_a_manager_that_fails_is_gone_without(
    run: Run,
    supervised: FakeAutostart,
    spawned: list[str],
    client: StubClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "running", lambda: None)
    supervised.failure = errors.AutostartFailed("systemd could not start it: no reason")

    ran = run("start")

    assert ran.code == 0
    assert "systemd could not start it: no reason. It is started without it." in ran.err
    assert spawned == ["spawned"]


def test_an_entry_that_may_not_be_renewed_is_gone_without(
    run: Run,
    supervised: FakeAutostart,
    spawned: list[str],
    client: StubClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(*_: object) -> bool:
        raise errors.AutostartBlocked("it was switched off meanwhile")

    monkeypatch.setattr(process, "running", lambda: None)
    monkeypatch.setattr(autostart, "renew", forbidden)

    ran = run("start")

    assert (ran.code, spawned) == (0, ["spawned"])
    assert "it was switched off meanwhile" in ran.err


def test_a_manager_that_takes_too_long_is_not_raced(
    run: Run,
    supervised: FakeAutostart,
    spawned: list[str],
    client: StubClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "running", lambda: None)
    supervised.failure = errors.AutostartFailed("not within 60 s", timed_out=True)

    ran = run("start")

    assert (ran.code, spawned) == (1, [])
    assert ran.err.startswith("error: not within 60 s")


def test_stop_stops_the_socket_even_when_no_daemon_runs(
    run: Run, supervised: FakeAutostart
) -> None:
    ran = run("stop")

    assert ran.out == "Stoker is not running.\n"
    assert supervised.started == ["stop"]


def test_a_stop_that_the_manager_refuses_is_told(run: Run, supervised: FakeAutostart) -> None:
    supervised.failure = errors.AutostartFailed("systemd could not stop it")

    assert "systemd could not stop it. It may be started again." in run("stop").err
