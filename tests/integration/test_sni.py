"""The tray's icon on a real session bus: hosts, clicks, changes, losses."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from stoker_tray import icons
from stoker_tray.adapters import open_shell, sni_peers
from stoker_tray.adapters.dbusmenu import LEVELS_AT_ONCE
from stoker_tray.adapters.session_bus import MESSAGE_LIMIT
from stoker_tray.adapters.sni import SniShell
from stoker_tray.adapters.sni_item import Draw
from stoker_tray.adapters.sni_wake import Wake
from stoker_tray.face import IconKey, IconState, Notice, Row
from stoker_tray.icons import Theme
from tests.fakes.bus_services import SETTINGS, FakeNotifications, FakePortal
from tests.fakes.session_bus import DBusError, PrivateBus, settle
from tests.fakes.tray_host import ITEM_PATH, MENU, PROPERTIES, SNI, TrayHost
from tests.fakes.tray_listener import (
    READY,
    RecordingListener,
    StandInIcons,
    button,
    face,
    line,
    running,
    use,
)

pytestmark = pytest.mark.skipif(
    not PrivateBus.is_installed(), reason="dbus-daemon is missing: install the package dbus"
)

MakeShell = Callable[..., SniShell]
Show = Callable[..., None]

LOADING = IconKey(IconState.LOADING)
SOON_S = 0.05  # between attempts, where the tray waits for seconds


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a socket's holds about 100 bytes."""
    found = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))
    yield found
    shutil.rmtree(found)


@pytest.fixture
def bus(folder: Path) -> Iterator[PrivateBus]:
    with PrivateBus(folder) as found:
        yield found


@pytest.fixture
def host(bus: PrivateBus) -> Iterator[TrayHost]:
    with TrayHost(bus) as found:
        yield found


@pytest.fixture
def notifications(bus: PrivateBus) -> Iterator[FakeNotifications]:
    with FakeNotifications(bus) as found:
        yield found


@pytest.fixture
def listener() -> RecordingListener:
    return RecordingListener()


@pytest.fixture
def draw() -> StandInIcons:
    return StandInIcons()


@pytest.fixture
def make_shell(folder: Path, listener: RecordingListener, draw: StandInIcons) -> MakeShell:
    default = draw

    def make(draw: Draw = default, **environ: str) -> SniShell:
        address = {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={folder}/bus"}
        found = {**address, **environ}
        return SniShell(listener, draw=draw, environ=found, first_pause_s=SOON_S)

    return make


@pytest.fixture
def shell(make_shell: MakeShell, bus: PrivateBus) -> Iterator[SniShell]:
    """An adapter that runs."""
    found = make_shell()
    with running(found):
        yield found


@pytest.fixture
def show(shell: SniShell, host: TrayHost) -> Show:
    """Show rows, and return when the host has been told everything about them."""

    numbers = itertools.count(1)

    def show_rows(*rows: Row, icon: IconKey = READY) -> None:
        before = len(host.heard("NewTitle"))
        number = next(numbers)
        shell.show(face(*rows, icon=icon, title=f"face {number}"))
        host.wait_for_item()
        if number > 1:
            host.wait(lambda: len(host.heard("NewTitle")) > before, "the new title")
        host.menu()  # is answered after all that belongs to the new face

    return show_rows


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def kill_and_restart(bus: PrivateBus, host: TrayHost) -> None:
    bus.kill()
    host.close()
    bus.start()
    host.open()
    host.wait_for_item()


# --- what a host sees ------------------------------------------------------------------------


def test_a_host_sees_an_active_icon_with_a_title(shell: SniShell, host: TrayHost) -> None:
    shell.show(face(title="Stoker: qwen3 is ready, 3.1 GiB"))
    host.wait_for_item()

    properties = host.properties()

    names = ("Category", "Id", "Title", "Status", "Menu")
    assert [properties[name] for name in names] == [
        "ApplicationStatus",
        "stoker",
        "Stoker: qwen3 is ready, 3.1 GiB",
        "Active",
        "/MenuBar",
    ]


def test_nothing_is_in_the_tray_before_there_is_a_face(
    shell: SniShell, host: TrayHost, notifications: FakeNotifications
) -> None:
    shell.notify(Notice("ready", "It runs", "already"))
    notifications.wait_for(1)

    assert host.items == []


def test_the_icon_has_pixels_for_every_size_of_panel(show: Show, host: TrayHost) -> None:
    show(icon=LOADING)

    pixmaps = host.properties()["IconPixmap"]

    red = list(IconState).index(IconState.LOADING)
    assert [(w, h, len(argb), argb[:4]) for w, h, argb in pixmaps] == [
        (size, size, size * size * 4, bytes((40, red, 20, 30))) for size in (22, 24, 32, 48, 64)
    ]


@pytest.mark.parametrize("state", IconState)
def test_the_real_icons_reach_the_host(
    state: IconState, make_shell: MakeShell, host: TrayHost
) -> None:
    shell = make_shell(draw=icons.image)

    with running(shell):
        shell.show(face(icon=IconKey(state)))
        host.wait_for_item()
        pixmaps = host.properties()["IconPixmap"]

    expected = icons.image(IconKey(state), 32, Theme.DARK).tobytes()
    argb = next(argb for width, _, argb in pixmaps if width == 32)
    assert argb[0::4] == expected[3::4]


def test_the_tooltip_is_the_title_with_a_picture(shell: SniShell, host: TrayHost) -> None:
    shell.show(face(title="R&D <b> is ready"))
    host.wait_for_item()

    name, pixmaps, title, text = host.properties()["ToolTip"]

    assert (name, len(pixmaps), title, text) == ("", 1, "R＆D ‹b› is ready", "")  # noqa: RUF001


def test_only_what_changed_is_told(shell: SniShell, host: TrayHost) -> None:
    shell.show(face(icon=LOADING, title="one"))
    host.wait_for_item()

    shell.show(face(icon=READY, title="one"))
    host.wait(lambda: host.heard("NewIcon"), "a new icon")
    shell.show(face(icon=READY, title="two"))
    host.wait(lambda: host.heard("NewToolTip"), "a new tooltip")
    host.properties()

    assert [signal.member for signal in host.signals] == ["NewIcon", "NewTitle", "NewToolTip"]


@pytest.mark.parametrize("path", ["/", "/StatusNotifierItem", "/MenuBar"])
def test_every_object_describes_itself(path: str, show: Show, host: TrayHost) -> None:
    show()

    (text,) = host.ask(path, "org.freedesktop.DBus.Introspectable", "Introspect")

    names = [node.get("name") for node in ET.fromstring(text)]  # noqa: S314  # our own
    assert PROPERTIES in names


def _gdbus(name: str) -> list[str]:
    return ["gdbus", "call", "-e", "-d", name, "-o", "/MenuBar", "-m"]


_GET_ALL = [f"{PROPERTIES}.GetAll", f"string:{SNI}"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["gdbus", "introspect", "-e", "-d", "NAME", "-o", "/MenuBar"], MENU),
        (["gdbus", "introspect", "-r", "-e", "-d", "NAME", "-o", "/"], SNI),
        ([*_gdbus("NAME"), f"{MENU}.GetLayout", "0", "2", "[]"], "Use qwen__3"),
        ([*_gdbus("NAME"), f"{MENU}.AboutToShowGroup", "[0]"], "@ai []"),
        (["busctl", "--address=BUS", "introspect", "NAME", ITEM_PATH, SNI], "IconPixmap"),
        (["busctl", "--address=BUS", "tree", "NAME"], "/MenuBar"),
        (
            ["dbus-send", "--print-reply", "--dest=NAME", ITEM_PATH, *_GET_ALL],
            "ApplicationStatus",
        ),
    ],
    ids=lambda each: each if isinstance(each, str) else each[0],
)
def test_a_generic_client_understands_it(
    command: list[str], expected: str, show: Show, host: TrayHost, bus: PrivateBus
) -> None:
    show(button("a", "Use qwen_3"))
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is missing")
    names = {"NAME": host.items[-1], "BUS": f"unix:path={bus.socket}"}
    for placeholder, value in names.items():
        command = [part.replace(placeholder, value) for part in command]

    environ = {**os.environ, **bus.environ}
    done = subprocess.run(command, env=environ, check=True, capture_output=True, timeout=60)

    assert expected in done.stdout.decode()


def test_it_owns_a_name_that_can_be_looked_up(show: Show, host: TrayHost) -> None:
    show()

    (owner,) = host.ask_bus("GetNameOwner", "s", "ai.stoker.Tray")

    assert owner == host.items[-1]


def test_this_system_gets_this_adapter(listener: RecordingListener) -> None:
    assert isinstance(open_shell(listener), SniShell)


# --- clicks ----------------------------------------------------------------------------------


def test_every_kind_of_row_can_be_clicked(
    show: Show, host: TrayHost, listener: RecordingListener
) -> None:
    show(
        button("acts"),
        button("tick", checked=True),
        button("radio", checked=False, radio=True),
        Row("s", separator=True),
        line("more", children=(line("deeper", children=(button("deepest"),)),)),
    )

    for labels in (["acts"], ["tick"], ["radio"], ["more", "deeper", "deepest"]):
        host.click(*labels)

    assert listener.clicks == [use("acts"), use("tick"), use("radio"), use("deepest")]


def test_rows_that_only_inform_cannot_be_clicked(
    show: Show, host: TrayHost, listener: RecordingListener
) -> None:
    show(line("informs"), line("more", children=(button("a"),)))

    host.click("informs")
    host.click("more")

    assert listener.clicks == []


def test_a_click_on_a_line_that_is_gone_is_ignored(
    show: Show, host: TrayHost, listener: RecordingListener
) -> None:
    show(button("a"), button("b"))
    stale = host.find("a")
    show(button("b"))

    host.event(stale.number, "clicked")

    assert listener.clicks == []


def test_a_left_click_does_the_default(
    show: Show, host: TrayHost, listener: RecordingListener
) -> None:
    show(button("a"), button("b", default=True))

    host.left_click()

    assert (listener.clicks, host.properties()["ItemIsMenu"]) == ([use("b")], False)


def test_a_left_click_is_for_the_menu_when_nothing_is_the_default(
    show: Show, host: TrayHost, listener: RecordingListener
) -> None:
    show(button("a"))

    host.left_click()

    assert (listener.clicks, host.properties()["ItemIsMenu"]) == ([], True)


@pytest.mark.parametrize(
    ("member", "signature", "args"),
    [("SecondaryActivate", "ii", (1, 1)), ("ContextMenu", "ii", (1, 1)), ("Scroll", "is", (1, ""))],
)
def test_other_gestures_are_taken_and_do_nothing(
    member: str,
    signature: str,
    args: tuple[object, ...],
    show: Show,
    host: TrayHost,
    listener: RecordingListener,
) -> None:
    show(button("a", default=True))

    host.ask(ITEM_PATH, SNI, member, signature, *args)

    assert listener.clicks == []


def test_a_tick_that_a_host_turned_by_itself_is_set_right(show: Show, host: TrayHost) -> None:
    show(button("server", checked=True))

    host.click("server")
    host.properties()

    ((told, gone),) = [signal.body for signal in host.heard("ItemsPropertiesUpdated")]
    assert (told, gone) == ([(host.find("server").number, {"toggle-state": ("i", 1)})], [])


def test_opening_and_closing_the_menu_is_reported(
    show: Show, host: TrayHost, listener: RecordingListener
) -> None:
    show(button("a"))

    host.open_menu()
    host.close_menu()

    assert (listener.opened_count, listener.closed_count) == (2, 1)


# --- changes ---------------------------------------------------------------------------------


def test_labels_change_while_the_menu_stands_open(show: Show, host: TrayHost) -> None:
    show(line("cpu", "CPU 6 %"), button("a"))
    host.open_menu()
    before = [each.number for each in host.menu()]

    show(line("cpu", "CPU 8 %"), button("a"))

    assert [each.number for each in host.menu()] == before
    assert host.heard("LayoutUpdated") == []
    ((told, _),) = [signal.body for signal in host.heard("ItemsPropertiesUpdated")]
    assert told == [(host.find("CPU 8 %").number, {"label": ("s", "CPU 8 %")})]


def test_a_new_model_changes_its_submenu_only(show: Show, host: TrayHost) -> None:
    more = line("more", children=(button("x"),))
    show(line("models", children=(button("a"),)), more)

    show(line("models", children=(button("a"), button("b"))), more)

    ((_, parent),) = [signal.body for signal in host.heard("LayoutUpdated")]
    assert parent == host.find("models").number


def test_five_hundred_faces_cost_one_message_each_at_most(
    show: Show, host: TrayHost, shell: SniShell
) -> None:
    show(line("cpu", "0 %"), button("a"))
    before = [each.number for each in host.menu()]

    for count in range(1, 501):
        shell.show(face(line("cpu", f"{count} %"), button("a"), title="face 1"))
    show(line("cpu", "500 %"), button("a"))

    assert [each.number for each in host.menu()] == before
    assert host.find("500 %").label == "500 %"
    assert len(host.heard("ItemsPropertiesUpdated")) <= 500
    members = {signal.member for signal in host.signals}
    assert members == {"NewTitle", "NewToolTip", "ItemsPropertiesUpdated"}


def test_two_hundred_models_in_nested_menus_are_all_there(
    show: Show, host: TrayHost, listener: RecordingListener
) -> None:
    models = tuple(
        line(f"m{n}", f"owner/model_{n}:Q4_K_M", children=(button(f"use {n}", checked=False),))
        for n in range(200)
    )
    show(line("models", children=models))

    host.click("models", "owner/model_137:Q4_K_M", "use 137")

    assert (len(list(host.menu())), listener.clicks) == (402, [use("use 137")])


@pytest.mark.parametrize(
    "name",
    [
        "نموذج_العربية",
        "דגם עברי",
        "模型_名前 モデル",
        "🤖 👩‍👩‍👧 🏴‍☠️",
        "ą̊́ é",
        "R&D __init__ <b>&amp;",
        "ไทย हिन्दी",
        "\u202eright to left\u202c",
    ],
)
def test_names_in_any_script_reach_the_menu(name: str, show: Show, host: TrayHost) -> None:
    show(button("m", name))

    assert host.find(name).label == name


@pytest.mark.parametrize("text", ["nul \0 inside", "lone \ud800 surrogate", "x" * 1_000_000])
def test_no_text_can_cut_the_connection(text: str, show: Show, host: TrayHost) -> None:
    show(button("m", text))
    show(button("m", text + "!"), button("other"))

    assert host.find("other").label == "other"
    assert len(host.items) == 1


def test_a_menu_far_too_deep_does_not_cut_the_connection(show: Show, host: TrayHost) -> None:
    rows: tuple[Row, ...] = (button("bottom"),)
    for level in range(40):
        rows = (line(f"level {level}", children=rows),)

    show(*rows)

    assert len(list(host.menu())) == 1 + LEVELS_AT_ONCE
    assert len(host.items) == 1


def test_many_threads_may_show_at_once(shell: SniShell, host: TrayHost, show: Show) -> None:
    show(button("a"))

    def work(number: int) -> None:
        for count in range(50):
            shell.show(face(line("a", f"{number} {count}"), title=f"{number} {count}"))
            shell.notify(Notice(f"kind {number}", "title", "text"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shell.show(face(line("the last"), title="the last"))
    while host.properties()["Title"] != "the last":
        pass  # each turn waits for an answer

    assert host.find("the last").label == "the last"


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


# --- hostile peers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "interface", "member", "signature", "args"),
    [
        ("/MenuBar", MENU, "GetLayout", "i", (0,)),
        ("/MenuBar", MENU, "GetLayout", "", ()),
        ("/MenuBar", MENU, "GetLayout", "iias", (404, -1, [])),
        ("/MenuBar", MENU, "Event", "s", ("clicked",)),
        ("/MenuBar", MENU, "GetProperty", "is", (0, "label")),
        ("/MenuBar", MENU, "NoSuchMethod", "", ()),
        ("/MenuBar", "no.such.Interface", "GetLayout", "iias", (0, -1, [])),
        ("/nowhere", MENU, "GetLayout", "iias", (0, -1, [])),
        (ITEM_PATH, SNI, "Activate", "ss", ("a", "b")),
        (ITEM_PATH, PROPERTIES, "Get", "ss", (SNI, "NoSuchProperty")),
        (ITEM_PATH, PROPERTIES, "Get", "ss", ("no.such.Interface", "Title")),
        (ITEM_PATH, PROPERTIES, "Set", "ssv", (SNI, "Title", ("s", "mine"))),
    ],
)
def test_a_call_that_makes_no_sense_is_refused_and_harms_nothing(
    path: str,
    interface: str,
    member: str,
    signature: str,
    args: tuple[object, ...],
    show: Show,
    host: TrayHost,
    listener: RecordingListener,
) -> None:
    show(button("a"))

    with pytest.raises(DBusError, match=r"org\.freedesktop\.DBus\.Error\."):
        host.ask(path, interface, member, signature, *args)

    assert (host.find("a").label, listener.clicks) == ("a", [])


def test_a_message_without_measure_is_dropped(show: Show, host: TrayHost) -> None:
    show(button("a"))

    huge = "x" * (MESSAGE_LIMIT + 1)
    host.shout(host.items[-1], ITEM_PATH, "org.freedesktop.DBus.Peer", "Ping", "s", huge)

    assert host.find("a").label == "a"


def test_a_hundred_calls_at_once_are_all_answered(show: Show, host: TrayHost) -> None:
    show(button("a"))
    name = host.items[-1]

    calls = [host.shout(name, ITEM_PATH, PROPERTIES, "GetAll", "s", SNI) for _ in range(100)]

    host.wait(lambda: all(host.is_answered(call) for call in calls), "all the answers")


def test_a_fault_of_our_own_is_an_error_for_the_caller_only(
    host: TrayHost, make_shell: MakeShell, caplog: pytest.LogCaptureFixture
) -> None:
    def draw(*_args: object) -> NoReturn:
        raise RuntimeError("cannot draw")

    with running(shell := make_shell(draw=draw)):
        shell.show(face(button("a")))
        host.wait_for_item()
        with pytest.raises(DBusError, match="internal error"):
            host.ask(ITEM_PATH, PROPERTIES, "Get", "ss", SNI, "IconPixmap")
        layout = host.ask("/MenuBar", MENU, "GetLayout", "iias", 0, -1, [])

    assert layout
    assert "cannot draw" in caplog.text


# --- what else the desktop has ---------------------------------------------------------------


def test_a_notification_is_shown_with_a_picture(
    shell: SniShell, notifications: FakeNotifications
) -> None:
    shell.notify(Notice("ready", "qwen3 is ready", "It took 12 s."))

    shown = notifications.wait_for(1)

    kind, (width, height, stride, has_alpha, bits, channels, pixels) = shown.hints["image-data"]
    assert (shown.replaces, shown.title, shown.text) == (0, "qwen3 is ready", "It took 12 s.")
    assert (kind, has_alpha, bits, channels) == ("(iiibiiay)", True, 8, 4)
    assert (stride, len(pixels)) == (width * 4, width * height * 4)


def test_a_notification_of_a_kind_replaces_the_one_before(
    shell: SniShell, notifications: FakeNotifications
) -> None:
    for count, kind in enumerate(["ready", "failed", "ready", "failed", "ready"], start=1):
        shell.notify(Notice(kind, "title", "text"))
        notifications.wait_for(count)

    assert [shown.replaces for shown in notifications.shown] == [0, 0, 1, 2, 1]


def test_a_burst_of_one_kind_ends_as_one_notification_with_the_last_text(
    shell: SniShell, notifications: FakeNotifications
) -> None:
    shell.notify(Notice("failed", "the first", "text"))
    notifications.wait_for(1)

    for count in range(50):
        shell.notify(Notice("ready", str(count), "text"))
    notifications.wait(lambda: notifications.shown[-1].title == "49", "the last notice")

    assert {shown.number for shown in notifications.shown} == {1, 2}


def test_notices_that_wait_for_the_server_are_all_shown_once_per_kind(
    make_shell: MakeShell, notifications: FakeNotifications
) -> None:
    shell = make_shell()
    for kind, title in (("ready", "old"), ("failed", "only"), ("ready", "new")):
        shell.notify(Notice(kind, title, "text"))

    with running(shell):
        notifications.wait_for(2)
        settle(notifications)

    assert sorted(shown.title for shown in notifications.shown) == ["new", "only"]


@pytest.mark.parametrize(
    ("capabilities", "text"),
    [
        (("body",), "R&D <b> failed"),
        (("body", "body-markup"), "R&amp;D &lt;b&gt; failed"),
    ],
)
def test_a_text_is_escaped_only_where_it_is_read_as_markup(
    capabilities: tuple[str, ...], text: str, shell: SniShell, bus: PrivateBus
) -> None:
    with FakeNotifications(bus, capabilities) as server:
        shell.notify(Notice("failed", "R&D <b>", "R&D <b> failed"))

        shown = server.wait_for(1)

    assert (shown.title, shown.text) == ("R&D <b>", text)


def test_a_new_notification_server_is_not_told_the_old_ones_numbers(
    shell: SniShell, bus: PrivateBus
) -> None:
    with FakeNotifications(bus) as old:
        for count in (1, 2):
            shell.notify(Notice("ready", "title", "<text>"))
            old.wait_for(count)
    with FakeNotifications(bus, ("body", "body-markup")) as new:
        shell.notify(Notice("ready", "title", "<text>"))

        shown = new.wait_for(1)

    assert (shown.replaces, shown.text) == (0, "&lt;text&gt;")


def test_without_a_notification_server_nothing_breaks(
    show: Show, shell: SniShell, host: TrayHost, bus: PrivateBus
) -> None:
    shell.notify(Notice("ready", "title", "text"))
    show(button("a"))

    with FakeNotifications(bus) as server:
        shell.notify(Notice("failed", "title", "text"))

        assert server.wait_for(1).title == "title"


@pytest.mark.parametrize(
    ("color_scheme", "desktop", "theme"),
    [
        (0, "XFCE", Theme.DARK),
        (1, "KDE", Theme.DARK),
        (2, "KDE", Theme.LIGHT),
        (2, "ubuntu:GNOME", Theme.DARK),
        (7, "KDE", Theme.DARK),
    ],
)
def test_the_glyph_is_made_for_the_panels_ground(
    color_scheme: int,
    desktop: str,
    theme: Theme,
    bus: PrivateBus,
    host: TrayHost,
    make_shell: MakeShell,
    draw: StandInIcons,
) -> None:
    with (
        FakePortal(bus, color_scheme) as portal,
        running(shell := make_shell(XDG_CURRENT_DESKTOP=desktop)),
    ):
        shell.show(face())
        portal.wait(lambda: "Read" in portal.calls, "the question")
        host.wait_for_item()
        host.properties()

    assert draw.themes - {Theme.COLOUR} == {theme}


def test_a_change_of_the_desktops_colours_changes_the_icon(
    show: Show, bus: PrivateBus, host: TrayHost, draw: StandInIcons
) -> None:
    show()
    with FakePortal(bus, 2) as portal:
        host.wait(lambda: len(host.heard("NewIcon")) == 1, "the icon for light")
        host.properties()
        portal.change(1)
        host.wait(lambda: len(host.heard("NewIcon")) == 2, "the icon for dark")
        host.properties()
        portal.change(0)
        portal.emit("/org/freedesktop/portal/desktop", SETTINGS, "SettingChanged", "s", "nonsense")
        show(button("a"))

    assert len(host.heard("NewIcon")) == 2
    assert draw.themes == {Theme.COLOUR, Theme.LIGHT, Theme.DARK}
