"""What a host sees of the icon, and what clients of any kind may do to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from typing import NoReturn

import pytest
from PIL import Image

from stoker_tray import icons
from stoker_tray.adapters import open_shell
from stoker_tray.adapters.session_bus import MESSAGE_LIMIT
from stoker_tray.adapters.sni import SniShell
from stoker_tray.face import IconKey, IconState, Notice
from stoker_tray.icons import Theme
from tests.fakes.bus_services import FakeNotifications
from tests.fakes.session_bus import DBusError, PrivateBus
from tests.fakes.sni_shell import MakeShell, Show
from tests.fakes.tray_host import ITEM_PATH, MENU, PROPERTIES, SNI, TrayHost
from tests.fakes.tray_listener import READY, RecordingListener, button, face, running

LOADING = IconKey(IconState.LOADING)


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
    edge = Image.new("RGBA", (1, 1), (0, 0, 0, int(40 * 0.6)))
    drawn = Image.new("RGBA", (1, 1), (red, 20, 30, 40))
    r, g, b, a = Image.alpha_composite(edge, drawn).tobytes()
    middles = [argb[(h // 2 * w + w // 2) * 4 :][:4] for w, h, argb in pixmaps]
    assert [(w, h, len(argb)) for w, h, argb in pixmaps] == [
        (size, size, size * size * 4) for size in (22, 24, 32, 48, 64)
    ]
    assert middles == [bytes((a, r, g, b))] * 5


@pytest.mark.parametrize("state", IconState)
def test_the_real_icons_reach_the_host(
    state: IconState, make_shell: MakeShell, host: TrayHost
) -> None:
    shell = make_shell(draw=icons.image)

    with running(shell):
        shell.show(face(icon=IconKey(state)))
        host.wait_for_item()
        pixmaps = host.properties()["IconPixmap"]

    glyph = icons.image(IconKey(state), 30, Theme.DARK).tobytes()
    argb = next(argb for width, _, argb in pixmaps if width == 32)
    pixels = [tuple(argb[at : at + 4]) for at in range(0, len(argb), 4)]
    full = [n for n in range(30 * 30) if glyph[n * 4 + 3] == 255]
    there = [pixels[(n // 30 + 1) * 32 + n % 30 + 1] for n in full]
    assert full
    assert there == [(255, *glyph[n * 4 : n * 4 + 3]) for n in full]
    dark = [alpha for alpha, *rgb in pixels if rgb == [0, 0, 0]]
    assert max(dark) > 90, "an edge, for a panel that is light after all"


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
