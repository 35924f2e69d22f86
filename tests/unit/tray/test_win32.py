from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stoker_tray.face import Command, IconKey, IconState, Notice, Verb
from stoker_tray.icons import Theme, image
from stoker_tray.icons.ico import bitmap
from tests.fakes.fake_win32 import Desktop, FakeWindows, windows_desktop
from tests.fakes.tray_listener import READY, button, face, line, use

LEFT_UP, RIGHT_UP = 0x0202, 0x0205
WM_CLOSE, WM_QUERYENDSESSION, WM_SETTINGCHANGE, WM_TIMER = 0x0010, 0x0011, 0x001A, 0x0113
WM_DISPLAYCHANGE, WM_TASKBARCREATED = 0x007E, 0xC000 + len("TaskbarCreated")
CHECKED, DISABLED = 0x8, 0x3


@pytest.fixture
def windows() -> FakeWindows:
    return FakeWindows()


@pytest.fixture
def desktop(
    monkeypatch: pytest.MonkeyPatch, windows: FakeWindows, caplog: pytest.LogCaptureFixture
) -> Iterator[Desktop]:
    with windows_desktop(monkeypatch, windows) as found:
        yield found
    assert caplog.get_records("call") == []  # pystray logs what a message handler raises


@pytest.fixture
def shell(desktop: Desktop) -> Any:
    return desktop.open_shell()


def elsewhere(action: Callable[[], object]) -> None:
    """Do it on another thread."""
    thread = threading.Thread(target=action)
    thread.start()
    thread.join(10)


# --- icon ------------------------------------------------------------------------------------


def test_icon_and_title_are_shown_and_removed_at_the_end(shell: Any, desktop: Desktop) -> None:
    tips: list[str | None] = []
    shell.show(face(title="Stoker: ready"))

    desktop.windows.run(shell, lambda: tips.append(desktop.windows.tip))

    assert tips == ["Stoker: ready"]
    assert desktop.listener.sights == ["seen"]
    assert desktop.windows.icon is None
    assert desktop.windows.icon_bits == {}
    assert desktop.windows.windows == {}


def test_a_face_from_another_thread_changes_the_icon_on_the_loop_s_thread(
    shell: Any, windows: FakeWindows
) -> None:
    """The desktop refuses every call from a wrong thread."""
    seen: list[object] = []
    busy = face(icon=IconKey(IconState.BUSY), title="Stoker: busy")
    shell.show(face())

    windows.run(
        shell,
        lambda: elsewhere(lambda: shell.show(busy)),
        lambda: seen.append((windows.tip, list(windows.icon_bits.values()))),
    )

    drawn = bitmap(image(busy.icon, 16, Theme.DARK))
    assert seen == [("Stoker: busy", [(drawn, 16)])]  # and the old icon is gone


@pytest.mark.parametrize(("dpi", "side"), [(96, 16), (120, 20), (144, 24), (192, 32)])
def test_icon_is_drawn_at_the_size_of_the_taskbar(
    shell: Any, windows: FakeWindows, dpi: int, side: int
) -> None:
    seen: list[object] = []
    windows.dpi = dpi
    shell.show(face())

    windows.run(shell, lambda: seen.append(windows.icon_side))

    assert seen == [side]


def test_another_screen_or_theme_redraws_the_icon(shell: Any, windows: FakeWindows) -> None:
    seen: list[object] = []

    def change() -> None:
        windows.dpi, windows.light_taskbar = 192, 1
        windows.send(WM_SETTINGCHANGE)
        seen.append(list(windows.icon_bits.values()))
        windows.dpi = 96
        windows.send(WM_DISPLAYCHANGE)
        seen.append(list(windows.icon_bits.values()))

    shell.show(face())
    windows.run(shell, change)

    assert seen == [[(bitmap(image(READY, side, Theme.LIGHT)), side)] for side in (32, 16)]


@pytest.mark.parametrize(
    ("registry", "theme"), [(1, Theme.LIGHT), (0, Theme.DARK), (None, Theme.DARK)]
)
def test_theme_follows_the_registry(
    desktop: Desktop, windows: FakeWindows, registry: int | None, theme: Theme
) -> None:
    windows.light_taskbar = registry

    assert desktop.module.taskbar_theme() is theme


def test_process_knows_of_screens_before_it_has_a_window(
    desktop: Desktop, windows: FakeWindows
) -> None:
    desktop.open_shell()

    assert windows.awareness == [(-4, True)]


@pytest.mark.parametrize("missing", ["SetProcessDpiAwarenessContext", "GetDpiForWindow"])
def test_an_older_windows_will_do(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    seen: list[object] = []
    with windows_desktop(monkeypatch, FakeWindows(missing={missing})) as desktop:
        shell = desktop.open_shell()
        shell.show(face())
        desktop.windows.run(shell, lambda: seen.append(desktop.windows.icon_side))

    assert seen == [16]


def test_restart_of_the_taskbar_brings_the_icon_back(
    shell: Any, desktop: Desktop, windows: FakeWindows
) -> None:
    """The new one may be of another size."""
    seen: list[object] = []

    def restart() -> None:
        windows.icon, windows.dpi = None, 192
        windows.send(WM_TASKBARCREATED)
        seen.append((windows.tip, windows.icon_side))

    shell.show(face(title="Stoker: ready"))
    windows.run(shell, restart)

    assert seen == [("Stoker: ready", 32)]
    assert desktop.listener.sights == ["seen", "seen"]


def test_taskbar_that_does_not_answer_yet_is_asked_again(
    shell: Any, desktop: Desktop, windows: FakeWindows
) -> None:
    def answer() -> None:
        assert windows.timers
        windows.taskbar_answers = True
        windows.send(WM_TIMER)

    windows.taskbar_answers = False
    shell.show(face())
    windows.run(shell, answer, lambda: windows.send(WM_TIMER))

    assert desktop.listener.sights == ["unseen", "seen", "seen"]
    assert windows.timers == set()


# --- text ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [63, 127, 255])
def test_text_is_cut_to_its_room_without_breaking_a_character(desktop: Desktop, limit: int) -> None:
    cut = desktop.module.cut
    for text in ("x" * limit, "\U0001f525" * (limit // 2)):
        assert cut(text, limit) == text
    for text in ("x" * (limit + 1), "\U0001f525" * limit, "x" + "\U0001f525" * limit):
        short = cut(text, limit)
        assert limit - 1 <= len(short.encode("utf-16-le")) // 2 <= limit
        assert short[-1] == "…"
        assert text.startswith(short[:-1])


def test_hostile_text_is_shown_and_never_raises(shell: Any, windows: FakeWindows) -> None:
    """A NUL would end the text, half a character could not be encoded."""
    seen: list[object] = []
    shell.show(face(title="a\0b\udcffc\n" + "\U0001f525" * 200))

    windows.run(shell, lambda: seen.append(windows.tip))

    assert str(seen[0]).startswith("a b?c \U0001f525")


def test_notice_is_shown_from_any_thread_and_cut(shell: Any, windows: FakeWindows) -> None:
    shell.show(face())

    windows.run(
        shell,
        lambda: elsewhere(lambda: shell.notify(Notice("ready", "Ready", "qwen3 is ready"))),
        lambda: elsewhere(lambda: shell.notify(Notice("ready", "t" * 99, "x" * 999))),
        lambda: elsewhere(lambda: shell.notify(Notice("ready", "No text", ""))),
    )

    assert windows.notices == [
        ("Ready", "qwen3 is ready"),
        ("t" * 62 + "…", "x" * 254 + "…"),
        ("No text", "No text"),
    ]


# --- menu ------------------------------------------------------------------------------------


def test_menu_is_built_when_it_is_shown_and_a_click_comes_back(
    shell: Any, desktop: Desktop, windows: FakeWindows
) -> None:
    seen: list[object] = []

    def pick() -> int:
        seen.append((windows.texts(), desktop.listener.opened_count))
        models = windows.lines(windows.lines()[1].submenu)
        seen.append([(line.text, line.state) for line in models])
        return models[1].number

    models = (button("a", "Fire & Co", checked=True, radio=True), button("b"))
    shell.show(face(line("state", "Ready"), line("models", "Models", children=models)))
    windows.user = pick
    windows.run(shell, lambda: seen.append(dict(windows.menus)), lambda: windows.click(RIGHT_UP))

    assert seen == [
        {},  # nothing was built before
        (["Ready", "Models"], 1),
        [("Fire && Co", CHECKED), ("b", 0)],
    ]
    assert desktop.listener.clicks == [use("b")]
    assert desktop.listener.closed_count == 1


def test_changed_words_show_in_the_open_menu_and_clicks_mean_the_new_line(
    shell: Any, desktop: Desktop, windows: FakeWindows
) -> None:
    seen: list[object] = []
    resume = button("pull", "Resume", checked=True)
    pause = line("pull", "Pause", command=Command(Verb.PAUSE, "1"), checked=False)

    def use_menu() -> int:
        shell.show(face(line("ram", "3 GB"), line("more", children=(resume,))))
        windows.deliver_all()
        below = windows.lines(windows.lines()[1].submenu)[0]
        seen.append((windows.texts(), below.text, below.state, windows.repainted))
        return below.number

    shell.show(face(line("ram", "2 GB"), line("more", children=(pause,))))
    windows.user = use_menu
    windows.run(shell, lambda: windows.click(RIGHT_UP))

    assert seen == [(["3 GB", "more"], "Resume", CHECKED, 1)]
    assert desktop.listener.clicks == [use("pull")]


def test_menu_with_other_lines_waits_for_the_next_opening(shell: Any, windows: FakeWindows) -> None:
    """The desktop refuses to destroy a menu that stands open."""
    seen: list[object] = []

    def look() -> int:
        shell.show(face(line("a"), line("b")))
        windows.deliver_all()
        seen.append(windows.texts())
        return 0

    shell.show(face(line("a")))
    windows.user = look
    windows.run(shell, lambda: windows.click(RIGHT_UP), lambda: windows.click(RIGHT_UP))

    assert seen == [["a"], ["a", "b"]]
    assert windows.menus == {}


def test_second_click_on_the_icon_does_not_touch_the_open_menu(
    shell: Any, desktop: Desktop, windows: FakeWindows
) -> None:
    def click_again() -> int:
        windows.click(RIGHT_UP)
        return 0

    shell.show(face(line("a")))
    windows.user = click_again
    windows.run(shell, lambda: windows.click(RIGHT_UP))

    assert desktop.listener.opened_count == desktop.listener.closed_count == 1


def test_left_click_does_the_default_or_opens_the_menu(
    shell: Any, desktop: Desktop, windows: FakeWindows
) -> None:
    shell.show(face(line("a"), button("copy", default=True)))

    windows.run(
        shell,
        lambda: windows.click(LEFT_UP),
        lambda: shell.show(face(line("a"))),
        lambda: windows.click(LEFT_UP),
    )

    assert desktop.listener.clicks == [use("copy")]
    assert desktop.listener.opened_count == 1


def test_row_that_only_informs_cannot_be_clicked(shell: Any, windows: FakeWindows) -> None:
    seen: list[object] = []

    def look() -> int:
        seen.extend(line.state for line in windows.lines())
        return 0

    shell.show(face(line("state"), button("quit")))
    windows.user = look
    windows.run(shell, lambda: windows.click(RIGHT_UP))

    assert seen == [DISABLED, 0]


# --- the end ---------------------------------------------------------------------------------


def test_stop_before_run_ends_it_at_once(shell: Any, windows: FakeWindows) -> None:
    shell.stop()

    shell.run()

    assert windows.icon is None


def test_stop_from_another_thread_ends_the_loop(shell: Any, windows: FakeWindows) -> None:
    shell.show(face())
    windows.steps.append(lambda: elsewhere(shell.stop))

    shell.run()

    assert (windows.icon, windows.windows) == (None, {})


def test_request_to_close_ends_the_loop(shell: Any, windows: FakeWindows) -> None:
    shell.show(face())
    windows.steps.append(lambda: windows.send(WM_CLOSE))

    shell.run()

    assert windows.icon is None


def test_session_may_end(shell: Any, windows: FakeWindows) -> None:
    """A window that does not agree holds up the logout."""
    answers: list[int] = []
    shell.show(face())

    windows.run(shell, lambda: answers.extend(windows.send(WM_QUERYENDSESSION)))

    assert answers == [1, 1]  # both of its windows
