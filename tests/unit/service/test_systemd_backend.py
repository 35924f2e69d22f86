"""The systemd back end: what it asks of the manager, and what it makes of the answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stoker.errors import AutostartBlocked, AutostartFailed
from stoker_service import Part, record
from stoker_service.commands import Result
from stoker_service.systemd import SystemdAutostart, unit_entry
from stoker_service.xdg import XdgAutostart, daemon_entry
from tests.fakes.service_home import BOTH, FakeRunner, at_home, tree, wish

DAEMON = [Part.DAEMON]
TIMEOUT = Result(None)
REFUSED = Result(1, err="Failed to connect to bus: No such file or directory\n")


@pytest.fixture
def port() -> Iterator[int]:
    """One that another program listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def asked(runner: FakeRunner, part: str) -> list[str]:
    return [line for line in runner.asked if part in line]


# --- on and off ------------------------------------------------------------------------------


def test_on_tells_the_manager_and_lets_the_port_answer(
    systemd: SystemdAutostart, runner: FakeRunner
) -> None:
    done = systemd.install(BOTH, wish(port=free_port()))

    assert [line.partition(" (")[0] for line in done] == [
        "Stoker starts at login",
        "The tray icon starts at login",
    ]
    assert asked(runner, "daemon-reload")
    assert asked(runner, "restart stoker.socket")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_daemon_that_has_the_port_keeps_it(
    systemd: SystemdAutostart, runner: FakeRunner, port: int
) -> None:
    systemd.install(DAEMON, wish(port=port))

    assert not asked(runner, "restart stoker.socket")


def test_a_running_service_is_not_disturbed(systemd: SystemdAutostart, runner: FakeRunner) -> None:
    runner.answers["is-active"] = Result(0)

    systemd.install(DAEMON, wish(port=free_port()))

    assert not asked(runner, "stoker.socket")


@pytest.mark.parametrize(
    ("active", "holds"),
    [("stoker.socket", True), ("stoker.socket stoker.service", False), ("", False)],
)
def test_the_port_is_its_own_while_the_daemon_does_not_run(
    systemd: SystemdAutostart,
    runner: FakeRunner,
    active: str,
    holds: bool,  # noqa: FBT001  # pytest fills it
) -> None:
    def is_active(words: tuple[str, ...]) -> Result:
        return Result(0 if words[-1] in active.split() else 3)

    runner.answers["is-active"] = is_active

    assert systemd.holds_port() == holds


def test_a_new_port_is_listened_to_at_once(systemd: SystemdAutostart, runner: FakeRunner) -> None:
    def is_active(words: tuple[str, ...]) -> Result:
        return Result(0 if words[-1] == "stoker.socket" else 3)

    systemd.install(DAEMON, wish(port=4400))
    runner.answers["is-active"] = is_active
    runner.asked.clear()

    systemd.install(DAEMON, wish(port=4400))
    assert not asked(runner, "restart")
    systemd.install(DAEMON, wish(port=4401))
    assert asked(runner, "restart stoker.socket")
    systemd.install(DAEMON, wish(port=0))
    assert asked(runner, "stop stoker.socket")


@pytest.mark.parametrize("answer", [TIMEOUT, REFUSED])
def test_a_manager_that_does_not_listen_is_no_reason_to_fail(
    systemd: SystemdAutostart, runner: FakeRunner, answer: Result
) -> None:
    runner.answers = {"systemctl": answer}

    told = systemd.install(DAEMON, wish())
    assert "takes effect at the next login" in told[-1]
    assert systemd.status()[Part.DAEMON].enabled
    told = systemd.uninstall(DAEMON)

    assert "forgets at the next login" in told[-1]
    assert tree(systemd.folders.home) == {}


@pytest.mark.parametrize(
    ("load", "fragment", "reason"),
    [
        ("not-found", "", "does not read units in"),
        ("loaded", "/usr/lib/systemd/user/stoker.service", "does not read units in"),
        ("bad-setting", "", "does not accept"),
    ],
)
def test_a_unit_that_the_manager_does_not_take_is_taken_back(
    systemd: SystemdAutostart, runner: FakeRunner, load: str, fragment: str, reason: str
) -> None:
    runner.answers["show -p"] = Result(0, f"LoadState={load}\nFragmentPath={fragment}\n")
    runner.answers = dict(reversed(runner.answers.items()))

    with pytest.raises(AutostartFailed, match=reason):
        systemd.install(DAEMON, wish())

    assert tree(systemd.folders.home) == {}


def test_the_path_that_systemctl_escapes_is_ours(
    systemd: SystemdAutostart, runner: FakeRunner
) -> None:
    def show(words: tuple[str, ...]) -> Result:
        raw = str(unit_entry(systemd.folders).anchor).encode()
        path = "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in raw)
        return Result(0, f"LoadState=loaded\nFragmentPath={path}\n")

    runner.answers = {"show -p": show, "is-active": Result(3)}

    assert systemd.install(DAEMON, wish())


def test_on_demand_needs_a_port(systemd: SystemdAutostart) -> None:
    with pytest.raises(AutostartFailed, match="port 0"):
        systemd.install(DAEMON, wish(port=0, on_demand=True))

    assert tree(systemd.folders.home) == {}


def test_an_administrators_mask_is_respected(systemd: SystemdAutostart) -> None:
    (folder,) = systemd.mask_folders
    folder.mkdir()
    (folder / "stoker.service").symlink_to("/dev/null")

    with pytest.raises(AutostartBlocked, match="is masked"):
        systemd.install(DAEMON, wish())

    assert "masked" in systemd.status()[Part.DAEMON].detail
    assert systemd.start() is False


def test_the_desktops_entry_makes_way_for_the_unit_and_back(
    systemd: SystemdAutostart, xdg: XdgAutostart
) -> None:
    """Never two of them: the machine may have a manager today and none tomorrow."""
    xdg.install(DAEMON, wish())
    assert systemd.status()[Part.DAEMON].enabled

    systemd.install(DAEMON, wish())
    assert not daemon_entry(xdg.folders).anchor.exists()
    xdg.install(DAEMON, wish())

    assert not unit_entry(xdg.folders).anchor.exists()
    systemd.uninstall(DAEMON)
    assert tree(xdg.folders.home) == {}


def test_off_takes_the_socket_and_leaves_the_daemon(
    systemd: SystemdAutostart, runner: FakeRunner
) -> None:
    systemd.install(DAEMON, wish())
    runner.asked.clear()

    assert systemd.uninstall(DAEMON) == ("Stoker does not start at login any more.",)

    assert runner.asked[0].endswith("stop stoker.socket")
    assert runner.asked[-1].endswith("daemon-reload")


# --- state -----------------------------------------------------------------------------------


def test_what_systemctl_disabled_is_off(systemd: SystemdAutostart) -> None:
    systemd.install(DAEMON, wish())
    for link in unit_entry(systemd.folders).links:
        link.unlink()

    state = systemd.status()[Part.DAEMON]

    assert (state.enabled, "systemctl" in state.detail) == (False, True)
    assert systemd.start() is False
    assert systemd.stop() is True  # it may run, and its socket may listen, all the same
    noted = systemd.installed()
    assert noted is not None
    assert not noted.on_demand


@pytest.mark.parametrize(("on_demand", "words"), [(False, "at login"), (True, "first request")])
def test_the_state_says_when_it_starts(
    systemd: SystemdAutostart, *, on_demand: bool, words: str
) -> None:
    systemd.install(DAEMON, wish(on_demand=on_demand))

    noted = systemd.installed()

    assert words in systemd.status()[Part.DAEMON].detail
    assert noted is not None
    assert noted.on_demand is on_demand


def test_looking_asks_nobody(systemd: SystemdAutostart, runner: FakeRunner) -> None:
    """The tray looks at every opening of its menu."""
    systemd.install(BOTH, wish())
    runner.asked.clear()

    systemd.status()
    systemd.installed()

    assert runner.asked == []


@pytest.mark.parametrize(
    ("changes", "current"),
    [
        ({}, True),
        ({"port": 4400}, False),
        ({"port": 0}, False),
        ({"drain_s": 99.0}, False),
        ({"hardened": True}, False),
        ({"program": at_home("/other")}, False),
    ],
)
def test_a_change_of_the_settings_is_seen(
    systemd: SystemdAutostart, *, changes: dict[str, Any], current: bool
) -> None:
    systemd.install(DAEMON, wish())

    assert systemd.is_current(wish(**changes)) is current


# --- start and stop --------------------------------------------------------------------------


def test_start_forgets_failures_and_starts_both_units(
    systemd: SystemdAutostart, runner: FakeRunner
) -> None:
    systemd.install(DAEMON, wish())
    runner.asked.clear()
    runner.answers["is-active"] = Result(0)

    assert systemd.start() is True

    verbs = [line.partition("--no-ask-password ")[2] for line in runner.asked]
    assert verbs[:2] == [
        "reset-failed stoker.socket stoker.service",
        "start stoker.socket stoker.service",
    ]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Result(1, err="Job for stoker.service failed.\nSee more.\n"), "Job for stoker.service"),
        (TIMEOUT, "within 5 s"),
        (Result(0), "is gone"),  # a condition of the unit is not met: systemctl is content
    ],
)
def test_a_start_that_fails_says_why(
    systemd: SystemdAutostart, runner: FakeRunner, answer: Result, reason: str
) -> None:
    systemd.install(DAEMON, wish())
    if reason != "is gone":
        program = systemd.folders.home / "stoker"
        program.touch()
        text = unit_entry(systemd.folders).anchor.read_text()
        unit_entry(systemd.folders).anchor.write_text(
            text.replace('"/opt/stoker/bin/stoker"', f'"{program}"')
        )
    runner.answers |= {" start ": answer}

    with pytest.raises(AutostartFailed, match=reason) as raised:
        systemd.start(5)

    assert bool(raised.value.facts.get("timed_out")) is (answer is TIMEOUT)


def test_what_is_not_installed_is_not_managed(
    systemd: SystemdAutostart, runner: FakeRunner
) -> None:
    assert (systemd.start(), systemd.stop(), runner.asked) == (False, False, [])


def test_a_stop_that_fails_is_told(systemd: SystemdAutostart, runner: FakeRunner) -> None:
    systemd.install(DAEMON, wish())
    assert systemd.stop() is True
    runner.answers |= {" stop ": TIMEOUT, "is-active": Result(0)}

    with pytest.raises(AutostartFailed, match="could not stop"):
        systemd.stop()


# --- lingering -------------------------------------------------------------------------------


@pytest.fixture
def loginctl(systemd: SystemdAutostart, runner: FakeRunner) -> FakeRunner:
    """A loginctl that does what it is told."""
    systemd.linger_folder.mkdir()
    mark = systemd.linger_folder / "me"

    def linger(words: tuple[str, ...]) -> Result:
        mark.touch() if "enable-linger" in words else mark.unlink()
        return Result(0)

    runner.answers["loginctl"] = linger
    return runner


def test_lingering_that_we_switched_on_goes_with_us(
    systemd: SystemdAutostart, loginctl: FakeRunner
) -> None:
    told = systemd.install(DAEMON, wish(linger=True))
    assert "goes on after a logout" in told[-1]
    assert (systemd.linger_folder / "me").exists()
    systemd.install(DAEMON, wish(linger=True))

    systemd.uninstall(DAEMON)

    assert not (systemd.linger_folder / "me").exists()
    assert asked(loginctl, "loginctl") == [
        "loginctl --no-ask-password enable-linger me",
        "loginctl --no-ask-password disable-linger me",
    ]


def test_on_without_lingering_takes_ours_back(
    systemd: SystemdAutostart, loginctl: FakeRunner
) -> None:
    systemd.install(DAEMON, wish(linger=True))

    systemd.install(DAEMON, wish())

    assert not (systemd.linger_folder / "me").exists()


def test_lingering_that_was_on_before_stays(
    systemd: SystemdAutostart, loginctl: FakeRunner
) -> None:
    (systemd.linger_folder / "me").touch()
    systemd.install(DAEMON, wish(linger=True))

    systemd.uninstall(DAEMON)

    assert (systemd.linger_folder / "me").exists()
    assert asked(loginctl, "loginctl") == []


def test_lingering_that_is_forbidden_is_told_and_not_noted_as_ours(
    systemd: SystemdAutostart, runner: FakeRunner
) -> None:
    runner.answers["loginctl"] = Result(1, err="Could not enable linger: Access denied\n")

    with pytest.raises(AutostartFailed, match="Access denied") as raised:
        systemd.install(DAEMON, wish(linger=True))

    noted = record.read(unit_entry(systemd.folders).anchor)
    assert "loginctl enable-linger me" in raised.value.hint
    assert noted is not None
    assert not noted.linger
    assert systemd.status()[Part.DAEMON].enabled


def test_lingering_that_cannot_be_taken_back_is_told_and_tried_again(
    systemd: SystemdAutostart, loginctl: FakeRunner
) -> None:
    systemd.install(DAEMON, wish(linger=True))
    works = loginctl.answers["loginctl"]
    loginctl.answers["loginctl"] = TIMEOUT
    told = systemd.install(DAEMON, wish())
    assert "Lingering could not be switched off" in told[-1]

    loginctl.answers["loginctl"] = works
    systemd.uninstall(DAEMON)

    assert not (systemd.linger_folder / "me").exists()


# --- confinement -----------------------------------------------------------------------------


def test_the_confinement_is_tried_before_it_is_written(
    systemd: SystemdAutostart, runner: FakeRunner, stoker_home: Path
) -> None:
    own = stoker_home / "own"
    chosen = wish(at_home(str(own)), hardened=True)
    drop_in = unit_entry(systemd.folders).files[-1]

    told = systemd.install(DAEMON, chosen)
    assert "start Stoker once" in told[0]
    for folder in (own, own / "state", own / "run"):
        folder.mkdir()
    runner.answers["systemd-run"] = Result(1, err="Failed: 217/USER")
    told = systemd.install(DAEMON, chosen)
    assert "needs user namespaces (Failed: 217/USER)" in told[0]
    assert not drop_in.exists()

    runner.answers["systemd-run"] = Result(0)
    systemd.install(DAEMON, chosen)

    assert str(own) in drop_in.read_text()
    systemd.install(DAEMON, wish(at_home(str(own))))
    assert not drop_in.parent.exists()
