"""What else the desktop has: notifications, and its colours."""

from __future__ import annotations

import pytest

from stoker_tray.adapters.sni import SniShell
from stoker_tray.face import Notice
from stoker_tray.icons import Theme
from tests.fakes.bus_services import SETTINGS, FakeNotifications, FakePortal
from tests.fakes.session_bus import PrivateBus, settle
from tests.fakes.sni_shell import MakeShell, Show
from tests.fakes.tray_host import TrayHost
from tests.fakes.tray_listener import StandInIcons, button, face, running


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
