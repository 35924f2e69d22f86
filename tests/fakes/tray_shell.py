"""A tray adapter without a screen: it keeps all that it is shown."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from stoker_tray.face import Face, Notice, Row

DEADLINE_S = 30.0


class RecordingShell:
    """A `face.Shell`; `faces`, `times_s` and `notices` are what was shown, in order."""

    def __init__(self) -> None:
        self.faces: list[Face] = []
        self.times_s: list[float] = []
        self.notices: list[Notice] = []
        self.on_run: Callable[[], None] = lambda: None
        self._changed = threading.Condition()
        self._stopped = threading.Event()

    def show(self, face: Face) -> None:
        with self._changed:
            self.faces.append(face)
            self.times_s.append(time.monotonic())
            self._changed.notify_all()

    def notify(self, notice: Notice) -> None:
        with self._changed:
            self.notices.append(notice)
            self._changed.notify_all()

    def run(self) -> None:
        self.on_run()
        self._stopped.wait()

    def stop(self) -> None:
        self._stopped.set()

    @property
    def face(self) -> Face:
        """The last one."""
        return self.faces[-1]

    def until(self, so: Callable[[Face], bool]) -> Face:
        """Wait until the last face is so."""
        with self._changed:
            found = self._changed.wait_for(
                lambda: bool(self.faces) and so(self.faces[-1]), DEADLINE_S
            )
        assert found, self.faces[-1:]
        return self.face

    def until_told(self, so: Callable[[Notice], bool]) -> Notice:
        """Wait for such a notification."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: any(so(notice) for notice in self.notices), DEADLINE_S
            ), self.notices
        return next(notice for notice in self.notices if so(notice))


def rows(face: Face) -> dict[str, Row]:
    """All rows of a menu by their keys, those of submenus as ``parent/key``."""
    return dict(_walk(face.rows, ""))


def _walk(level: tuple[Row, ...], above: str) -> Iterator[tuple[str, Row]]:
    for row in level:
        yield above + row.key, row
        yield from _walk(row.children, f"{above}{row.key}/")
