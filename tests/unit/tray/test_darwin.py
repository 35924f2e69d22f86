from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stoker_tray.face import Command, IconKey, IconState, Notice, Verb
from stoker_tray.icons import Theme, image
from tests.fakes.fake_appkit import VISIBLE, FakeMac, MenuBar, NSStatusBarButton, mac_desktop
from tests.fakes.tray_listener import READY, button, face, line, use


@pytest.fixture
def mac() -> FakeMac:
    return FakeMac()


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch, mac: FakeMac) -> Iterator[MenuBar]:
    with mac_desktop(monkeypatch, mac) as found:
        yield found


@pytest.fixture
def shell(bar: MenuBar) -> Any:
    return bar.open_shell()


def elsewhere(action: Callable[[], object]) -> None:
    """Do it on another thread."""
    thread = threading.Thread(target=action)
    thread.start()
    thread.join(10)


# --- icon ------------------------------------------------------------------------------------


def test_icon_is_a_template_that_is_sharp_on_every_screen(
    shell: Any, bar: MenuBar, mac: FakeMac
) -> None:
    seen: list[NSStatusBarButton] = []
    shell.show(face(title="Stoker: ready"))

    mac.run(shell, lambda: seen.append(mac.button))

    (shown,) = seen
    assert shown.image is not None
    assert shown.image.template
    assert [(r.points, r.picture.size) for r in shown.image.representations] == [
        ((18, 18), (18, 18)),
        ((18, 18), (36, 36)),
    ]
    assert (shown.tooltip, shown.label, shown.hidden) == ("Stoker: ready", "Stoker: ready", False)
    assert mac.bar.items == []  # it is gone at the end


def test_process_has_no_icon_in_the_dock(bar: MenuBar, mac: FakeMac) -> None:
    bar.open_shell()

    assert mac.app.policy == 1  # NSApplicationActivationPolicyAccessory


def test_a_face_from_another_thread_is_shown_by_the_main_thread(shell: Any, mac: FakeMac) -> None:
    """AppKit refuses every call from another thread, as it does on a real Mac."""
    seen: list[object] = []
    busy = face(icon=IconKey(IconState.BUSY), title="Stoker: busy")
    shell.show(face())

    mac.run(
        shell,
        lambda: elsewhere(lambda: shell.show(busy)),
        lambda: seen.append((mac.button.tooltip, _pixels(mac.button))),
    )

    assert seen == [("Stoker: busy", image(busy.icon, 36, Theme.TEMPLATE).tobytes())]


def _pixels(shown: NSStatusBarButton) -> bytes:
    assert shown.image is not None
    return shown.image.representations[-1].picture.tobytes()


def test_same_icon_is_not_drawn_again(shell: Any, mac: FakeMac) -> None:
    seen: list[object] = []
    shell.show(face())

    mac.run(
        shell,
        lambda: seen.append(mac.button.image),
        lambda: shell.show(face(title="Another title")),
        lambda: seen.append(mac.button.image),
    )

    assert seen[0] is seen[1]


# --- whether it can be seen ------------------------------------------------------------------


def occlude(mac: FakeMac, *, hidden: bool) -> None:
    """Put something over the icon, or take it away; macOS tells of both."""
    window = mac.button.the_window
    assert window is not None
    window.occlusion = 0 if hidden else VISIBLE
    mac.center.post("occlusion changed")


def test_icon_that_found_its_place_is_reported_as_seen(
    shell: Any, bar: MenuBar, mac: FakeMac
) -> None:
    mac.run(shell, mac.pass_time, lambda: occlude(mac, hidden=False))

    assert bar.listener.sights == ["seen"]


@pytest.mark.parametrize("how", ["invisible", "occluded", "no window"])
def test_hidden_icon_is_reported_once_it_had_its_time(
    shell: Any, bar: MenuBar, mac: FakeMac, how: str
) -> None:
    window = mac.button.the_window
    assert window is not None
    window.visible = how != "invisible"
    window.occlusion = 0 if how == "occluded" else VISIBLE
    if how == "no window":
        mac.button.the_window = None

    mac.run(shell, lambda: mac.center.post("occlusion changed"), mac.pass_time)

    assert bar.listener.sights == ["unseen"]


def test_icon_that_comes_back_is_reported(shell: Any, bar: MenuBar, mac: FakeMac) -> None:
    mac.run(
        shell,
        lambda: occlude(mac, hidden=True),
        mac.pass_time,
        lambda: occlude(mac, hidden=False),
    )

    assert bar.listener.sights == ["unseen", "seen"]
    assert mac.center.observers == []


def test_full_screen_over_the_icon_is_no_reason_to_complain(
    shell: Any, bar: MenuBar, mac: FakeMac
) -> None:
    mac.run(shell, mac.pass_time, lambda: occlude(mac, hidden=True))

    assert bar.listener.sights == ["seen"]


# --- menu ------------------------------------------------------------------------------------


def test_menu_is_filled_when_it_opens_and_a_click_comes_back(
    shell: Any, bar: MenuBar, mac: FakeMac
) -> None:
    seen: list[object] = []

    def use_menu() -> None:
        seen.append(mac.menu.texts())
        mac.menu.open()
        models = mac.menu.lines[2].the_menu
        seen.append((mac.menu.texts(), [(m.the_title, m.state) for m in models.lines]))
        mac.choose(models.lines[1])

    models = (button("a", checked=True, radio=True), button("b", checked=False, radio=True))
    rows = (line("state", "Ready"), line("-", separator=True), line("m", "Models", children=models))
    shell.show(face(*rows, button("quit")))
    mac.run(shell, use_menu)

    assert seen == [[], (["Ready", "-", "Models", "quit"], [("a", 1), ("b", 0)])]
    assert bar.listener.clicks == [use("b")]
    assert (bar.listener.opened_count, bar.listener.closed_count) == (1, 1)


def test_each_line_s_click_is_its_own(shell: Any, bar: MenuBar, mac: FakeMac) -> None:
    def choose_all() -> None:
        for number in (0, 2):
            mac.menu.open()
            mac.choose(mac.menu.lines[number])
        mac.menu.open()
        mac.choose(mac.menu.lines[1].the_menu.lines[0])

    shell.show(face(button("a"), line("m", children=(button("b"),)), button("c", default=True)))
    mac.run(shell, choose_all)

    assert bar.listener.clicks == [use("a"), use("c"), use("b")]


def test_row_that_only_informs_is_grey(shell: Any, mac: FakeMac) -> None:
    shell.show(face(line("state"), button("quit", default=True)))

    seen: list[tuple[str, bool, object]] = []

    def look() -> None:
        mac.menu.open()
        seen.extend((found.the_title, found.enabled, found.attributed) for found in mac.menu.lines)

    mac.run(shell, look)

    # No title is in another font, as pystray's of a default row: that would hide new words.
    assert seen == [("state", False, None), ("quit", True, None)]


def test_changed_words_show_in_the_open_menu_and_clicks_mean_the_new_line(
    shell: Any, bar: MenuBar, mac: FakeMac
) -> None:
    seen: list[object] = []
    pause = line("pull", "Pause", command=Command(Verb.PAUSE, "1"), checked=False)
    resume = button("pull", "Resume", checked=True)
    gap = line("-", separator=True)

    def look() -> None:
        below = mac.menu.lines[2].the_menu.lines[0]
        seen.append((mac.menu.texts(), below.the_title, below.state))
        mac.choose(below)

    shell.show(face(line("ram", "2 GB"), gap, line("m", children=(pause,))))
    mac.run(
        shell,
        mac.menu.open,
        lambda: shell.show(face(line("ram", "3 GB"), gap, line("m", children=(resume,)))),
        look,
    )

    assert seen == [(["3 GB", "-", "m"], "Resume", 1)]
    assert bar.listener.clicks == [use("pull")]


def test_menu_with_other_lines_waits_for_the_next_opening(shell: Any, mac: FakeMac) -> None:
    seen: list[object] = []

    def close_and_open() -> None:
        seen.append(mac.menu.texts())
        mac.menu.close()
        mac.menu.open()
        seen.append(mac.menu.texts())

    shell.show(face(line("a")))
    mac.run(shell, mac.menu.open, lambda: shell.show(face(line("a"), line("b"))), close_and_open)

    assert seen == [["a"], ["a", "b"]]


# --- notices ---------------------------------------------------------------------------------

HOSTILE = '" & (do shell script "touch /tmp/x") & "\\'


def test_text_of_a_notice_is_an_argument_and_never_part_of_the_program(
    bar: MenuBar, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_rest: ran.append(command))

    for title, text in ((HOSTILE, "-e"), ("a\0b", "two\nlines")):
        bar.module._announce(Notice("ready", title, text))

    (program, title, text), (same_program, *others) = [
        (command[:-2], *command[-2:]) for command in ran
    ]
    assert (title, text) == (HOSTILE, "-e")
    assert others == ["a b", "two lines"]
    assert program == same_program
    assert program[-1] == "notice"  # ends osascript's options, so that `-e` is text


@pytest.mark.parametrize("error", [OSError("none"), subprocess.TimeoutExpired("osascript", 10)])
def test_notice_that_cannot_be_shown_is_lost_quietly(
    bar: MenuBar, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_command: object, **_how: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", fail)

    bar.module._announce(Notice("ready", "Ready", "qwen3 is ready"))


def test_notify_does_not_wait_for_the_notification(
    shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, shown = threading.Event(), threading.Event()

    def wait(*_command: object, **_how: object) -> None:
        started.wait(10)
        shown.set()

    monkeypatch.setattr(subprocess, "run", wait)

    shell.notify(Notice("ready", "Ready", "qwen3 is ready"))
    returned_before = not shown.is_set()
    started.set()

    assert returned_before
    assert shown.wait(10)


# --- the end ---------------------------------------------------------------------------------


def test_stop_before_run_ends_it_at_once(shell: Any, mac: FakeMac) -> None:
    shell.stop()

    shell.run()

    assert mac.app.stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_loop(shell: Any, bar: MenuBar, mac: FakeMac, number: int) -> None:
    """Python's own handlers would wait for AppKit's loop to end."""
    mac.steps.append(lambda: mac.signals[number](number))

    shell.run()

    assert mac.app.stopping
    assert mac.bar.items == []


def test_stop_from_another_thread_ends_the_loop(shell: Any, mac: FakeMac) -> None:
    shell.show(face(icon=READY))
    mac.steps.append(lambda: elsewhere(shell.stop))

    shell.run()

    assert mac.app.stopping
