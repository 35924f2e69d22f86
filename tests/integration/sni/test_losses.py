"""Panels and the bus come and go; the icon comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoker_tray.adapters import sni_peers
from stoker_tray.adapters.sni import SniShell
from stoker_tray.adapters.sni_wake import Wake
from stoker_tray.face import IconKey, IconState, Notice
from tests.fakes.session_bus import PrivateBus
from tests.fakes.sni_shell import SOON_S, MakeShell, Show
from tests.fakes.tray_host import TrayHost
from tests.fakes.tray_listener import RecordingListener, StandInIcons, button, face, running, use

LOADING = IconKey(IconState.LOADING)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def kill_and_restart(bus: PrivateBus, host: TrayHost) -> None:
    bus.kill()
    host.close()
    bus.start()
    host.open()
    host.wait_for_item()


# --- hosts come and go -----------------------------------------------------------------------


def test_a_panel_that_restarts_gets_the_icon_again(
    show: Show, host: TrayHost, listener: RecordingListener
) -> None:
    show(button("a"))
    before = host.find("a")
    listener.wait_until("seen")

    host.close()
    listener.wait_until("seen", "unseen")
    host.open()
    host.wait_for_item()
    listener.wait_until("seen", "unseen", "seen")

    assert host.find("a") == before


def test_a_panel_that_comes_later_gets_the_icon(
    shell: SniShell, bus: PrivateBus, listener: RecordingListener
) -> None:
    shell.show(face(button("a")))
    listener.wait_until("unseen")

    with TrayHost(bus) as host:
        host.wait_for_item()
        listener.wait_until("unseen", "seen")
        host.click("a")

    assert listener.clicks == [use("a")]


def test_a_watcher_without_a_host_shows_nothing_until_one_comes(
    shell: SniShell, bus: PrivateBus, listener: RecordingListener
) -> None:
    with TrayHost(bus, has_screen=False) as host:
        shell.show(face())
        listener.wait_until("unseen")
        host.announce_host(has_screen=True)
        listener.wait_until("unseen", "seen")
        host.announce_host(has_screen=False)
        listener.wait_until("unseen", "seen", "unseen")


def test_a_watcher_that_is_not_ready_yet_is_asked_again(
    shell: SniShell, bus: PrivateBus, listener: RecordingListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sni_peers, "FIRST_PAUSE_S", SOON_S)
    host = TrayHost(bus)
    host.refusals = 3

    with host:
        shell.show(face())
        listener.wait_until("unseen", "seen")

    assert host.calls.count("RegisterStatusNotifierItem") == 4


def test_a_watcher_that_does_not_answer_is_asked_again(
    shell: SniShell,
    bus: PrivateBus,
    listener: RecordingListener,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sni_peers, "ANSWER_S", SOON_S)
    host = TrayHost(bus)
    host.silences = 2

    with host:
        shell.show(face())
        listener.wait_until("unseen", "seen")

    assert host.calls.count("RegisterStatusNotifierItem") >= 3


def test_another_panel_takes_over(
    show: Show, host: TrayHost, bus: PrivateBus, listener: RecordingListener
) -> None:
    show(button("a"))
    listener.wait_until("seen")

    with TrayHost(bus) as second:  # the name is its when the first one gives it up
        host.close()
        second.wait_for_item()

        assert second.find("a").label == "a"


# --- the bus comes and goes ------------------------------------------------------------------


def test_the_icon_comes_back_when_the_bus_does(
    show: Show, host: TrayHost, bus: PrivateBus, listener: RecordingListener
) -> None:
    show(button("a"))
    before = host.find("a")
    listener.wait_until("seen")

    kill_and_restart(bus, host)
    listener.wait_until("seen", "unseen", "seen")

    assert host.find("a") == before


def test_a_face_shown_without_a_bus_is_there_afterwards(
    show: Show, host: TrayHost, bus: PrivateBus, shell: SniShell, listener: RecordingListener
) -> None:
    show(button("a"))
    listener.wait_until("seen")
    bus.kill()
    listener.wait_until("seen", "unseen")

    shell.show(face(button("b"), icon=LOADING, title="later"))
    kill_and_restart(bus, host)

    assert (host.properties()["Title"], host.find("b").label) == ("later", "b")


def test_losing_the_bus_again_and_again_leaves_no_descriptor_behind(
    show: Show, host: TrayHost, bus: PrivateBus
) -> None:
    show(button("a"))
    before = open_descriptors()

    for _ in range(5):
        kill_and_restart(bus, host)

    assert open_descriptors() == before


def test_a_bus_that_starts_later_is_found(
    make_shell: MakeShell, folder: Path, listener: RecordingListener
) -> None:
    with running(shell := make_shell()):
        shell.show(face(button("a")))
        listener.wait_until("unseen")

        with PrivateBus(folder) as bus, TrayHost(bus) as host:
            host.wait_for_item()
            host.click("a")

    assert listener.clicks == [use("a")]


def test_without_an_address_the_bus_of_the_runtime_folder_is_used(
    folder: Path, host: TrayHost, listener: RecordingListener, draw: StandInIcons
) -> None:
    shell = SniShell(listener, draw=draw, environ={"XDG_RUNTIME_DIR": str(folder)})

    with running(shell):
        shell.show(face())
        host.wait_for_item()


def test_without_any_address_it_waits_and_can_be_stopped(
    listener: RecordingListener, draw: StandInIcons
) -> None:
    shell = SniShell(listener, draw=draw, environ={})

    with running(shell):
        listener.wait_until("unseen")


def test_it_can_be_stopped_before_it_runs(make_shell: MakeShell) -> None:
    shell = make_shell()
    shell.stop()

    shell.run()


def test_a_stop_at_the_worst_moment_is_not_missed(
    make_shell: MakeShell, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = make_shell()
    clear = Wake.clear

    def stop_and_clear(wake: Wake) -> None:
        shell.stop()
        clear(wake)

    monkeypatch.setattr(Wake, "clear", stop_and_clear)

    shell.run()  # comes back


def test_a_stopped_one_takes_its_icon_away(make_shell: MakeShell, host: TrayHost) -> None:
    shell = make_shell()
    with running(shell):
        shell.show(face())
        name = host.wait_for_item()

    while host.ask_bus("NameHasOwner", "s", name) == (True,):
        pass  # the bus takes its time to notice


def test_a_stopped_one_may_still_be_called(make_shell: MakeShell, bus: PrivateBus) -> None:
    shell = make_shell()
    with running(shell):
        pass

    shell.show(face())
    shell.notify(Notice("ready", "too", "late"))
    shell.stop()
