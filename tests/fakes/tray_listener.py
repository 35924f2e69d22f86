"""Around an adapter under test: a listener that remembers, and icons that cost nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from PIL import Image

from stoker_tray.face import Command, Face, IconKey, IconState, Row, Shell, Verb
from stoker_tray.icons import Theme
from tests.fakes.session_bus import WAIT_S, wait_for

READY = IconKey(IconState.READY)


class RecordingListener:
    """Remembers all that an adapter reports."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.clicks: list[Command] = []
        self.opened_count = 0
        self.closed_count = 0
        self.sights: list[str] = []  # "seen" or "unseen", as `hosted` reported

    def clicked(self, command: Command) -> None:
        with self.changed:
            self.clicks.append(command)
            self.changed.notify_all()

    def opened(self) -> None:
        with self.changed:
            self.opened_count += 1
            self.changed.notify_all()

    def closed(self) -> None:
        with self.changed:
            self.closed_count += 1
            self.changed.notify_all()

    def hosted(self, *, visible: bool) -> None:
        with self.changed:
            self.sights.append("seen" if visible else "unseen")
            self.changed.notify_all()

    def wait(self, condition: Callable[[], object], what: str) -> None:
        wait_for(condition, what, self.changed)

    def wait_until(self, *sights: str) -> None:
        """Wait until these and no other sights were reported so far, or more."""
        self.wait(lambda: len(self.sights) >= len(sights), f"hosted: {sights}")
        assert self.sights[: len(sights)] == list(sights)


class StandInIcons:
    """Draws one colour, and remembers for which themes it drew."""

    def __init__(self) -> None:
        self.themes: set[Theme] = set()

    def __call__(self, key: IconKey, size: int, theme: Theme) -> Image.Image:
        self.themes.add(theme)
        red = list(IconState).index(key.state)
        return Image.new("RGBA", (size, size), (red, 20, 30, 40))


@contextmanager
def running(shell: Shell) -> Iterator[None]:
    """Run an adapter in a thread, and stop it."""
    thread = threading.Thread(target=shell.run)
    thread.start()
    try:
        yield
    finally:
        shell.stop()
        thread.join(WAIT_S)
        assert not thread.is_alive(), "the adapter did not stop"


def face(*rows: Row, icon: IconKey = READY, title: str = "Stoker") -> Face:
    return Face(icon, title, rows)


def line(key: str, text: str = "", **facts: object) -> Row:
    """A row that only informs, unless `facts` say more."""
    return Row(key, text or key, **facts)  # type: ignore[arg-type]


def button(key: str, text: str = "", **facts: object) -> Row:
    """A row that can be clicked: its command names its key."""
    return line(key, text, command=use(key), **facts)


def use(key: str) -> Command:
    """The command of `button(key)`."""
    return Command(Verb.USE, key)
