"""A desktop on a virtual screen, with a real panel: what a person would see and click.

``with Desktop(XFCE, artefacts) as desktop:`` runs an X server without a screen, a session bus, a
window manager and the panel; everything ends with the block. Pictures go to `artefacts`.
"""

from __future__ import annotations

import os
import select
import time
from pathlib import Path
from types import TracebackType

from PIL import Image, ImageGrab

from tests.fakes.desktop_menu import Entry
from tests.fakes.desktop_panels import SCREEN, Panel
from tests.fakes.desktop_pictures import Box, appeared, changed, highlighted, middle
from tests.fakes.desktop_programs import PATIENCE_S, listens, wait_until
from tests.fakes.desktop_session import Session

SCAN_PX = 5  # less than half of any panel's row
HIGHLIGHT_S = 0.2  # three frames and a busy machine; doubled when it was too short
SCANS = 3
STALL_S = 1.0  # what a panel on a busy machine may take to draw anew
WIDEST_ICON_PX = 64  # two panels high; a menu or a whole panel is wider


class Desktop(Session):
    """See the module."""

    def __init__(self, panel: Panel, artefacts: Path) -> None:
        super().__init__(artefacts)
        self.panel = panel
        self.name = panel.name
        self.display = ""
        self.empty: Image.Image  # the screen before the tray came
        self._pictures = 0

    # --- life --------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.folder.chmod(0o711)  # sway, as another user, has a folder in it
        self._start_screen()
        self._start_bus()
        self.panel.surround(self.programs, self.folder)
        self._start_panel()
        self.empty = self._empty()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.picture("end")
        finally:
            super().__exit__(kind, error, trace)

    def restart_panel(self) -> None:
        self.programs.end("panel", hard=True)
        self._start_panel()

    def _start_panel(self) -> None:
        self.panel.run(self.programs, self.folder)
        self.programs.wait_until(self.published.has_host, "a panel with a tray")

    def _start_screen(self) -> None:
        ours, theirs = os.pipe()
        try:
            self.programs.start(
                "xvfb",
                *("Xvfb", "-displayfd", str(theirs), "-screen", "0", f"{SCREEN[0]}x{SCREEN[1]}x24"),
                *("-nolisten", "tcp", "-noreset", "-br", "-ac"),  # -ac: sway is another user
                pass_fds=(theirs,),
            )
            number = ""
            while not number.endswith("\n"):
                ready, _, _ = select.select([ours], [], [], PATIENCE_S)
                assert ready, self.programs.log_of("xvfb")
                number += os.read(ours, 16).decode()
        finally:
            os.close(ours)
            os.close(theirs)
        self.display = f":{number.strip()}"
        self.programs.environ["DISPLAY"] = self.display

    def _start_bus(self) -> None:
        """One that starts services, as xfce4-panel needs, in this session's own folders."""
        self.programs.start(
            "bus",
            *("dbus-daemon", "--session", "--nofork", "--nopidfile"),
            f"--address={self.bus_address}",
        )
        self.programs.wait_until(lambda: listens(self.folder / "bus"), "the session bus")

    # --- eyes --------------------------------------------------------------------------------

    def look(self) -> Image.Image:
        """The screen now, without the pointer."""
        return ImageGrab.grab(xdisplay=self.display).convert("RGB")

    def settled(self, still_s: float = 0.0) -> Image.Image:
        """The screen, once it stood still for so long, and in three looks in a row."""
        seen: list[bytes] = []
        since_s = 0.0

        def still() -> Image.Image | None:
            nonlocal since_s
            now = self.look()
            if not seen or now.tobytes() != seen[-1]:
                seen.clear()
                since_s = time.monotonic()
            seen.append(now.tobytes())
            return now if len(seen) > 2 and time.monotonic() - since_s >= still_s else None

        return wait_until(still, "a screen that stands still")

    def picture(self, name: str) -> Path:
        """Keep a picture of the screen."""
        self._pictures += 1
        path = self.artefacts / f"{self.panel.name}-{self._pictures:02}-{name}.png"
        self.look().save(path)
        return path

    def icon_box(self) -> Box:
        """Where the tray's icon is: what differs from the empty desktop, once no menu is open."""
        return self._icon()[1]

    def icon(self, still_s: float = 0.0) -> Image.Image:
        """The icon as the panel draws it, once it stood still for so long."""
        screen, box = self._icon(still_s)
        return screen.crop(box)

    def _icon(self, still_s: float = 0.0) -> tuple[Image.Image, Box]:
        def look() -> tuple[Image.Image, Box] | None:
            now = self.settled(still_s)
            box = changed(self.empty, now)
            return (now, box) if box and box[2] - box[0] <= WIDEST_ICON_PX else None

        return wait_until(look, "an icon in the panel, and no menu")

    def _empty(self) -> Image.Image:
        """The screen with nothing but the panel, once the panel is drawn."""
        black = Image.new("RGB", SCREEN)

        def look() -> Image.Image | None:
            now = self.settled(STALL_S)
            box = changed(black, now)
            drawn = self.panel.is_black if box is None else box[3] - box[1] < SCREEN[1] / 4
            return now if drawn else None

        return self.programs.wait_until(look, "a panel on an empty screen")

    # --- hands -------------------------------------------------------------------------------

    def point(self, x: int, y: int) -> None:
        self.programs.run("xdotool", "mousemove", str(x), str(y))

    def click(self, x: int, y: int, button: int = 1) -> None:
        self.programs.run("xdotool", "mousemove", str(x), str(y), "click", str(button))

    def open_menu(self, button: int = 3) -> Box:
        """Click the icon with a button of the mouse; where the menu has opened."""
        icon = self.icon_box()
        before = self.settled()
        self.click(*middle(icon), button=button)
        return self._opened(before, icon)

    def close_menu(self) -> None:
        """Click where nothing is, and wait until the menu has gone."""
        self.click(*self._nowhere())
        self.icon_box()

    def choose(self, *path: str, picture: str | None = None) -> None:
        """Open the menu and click the entry that this path of texts (or their beginnings) names.

        The entries that the panel draws as selectable must be those that the tray publishes.
        """
        box, level = self.open_menu(), self.published.menu()
        for depth, text in enumerate(path):
            entry = next((e for e in level.selectable if e.text.startswith(text)), None)
            assert entry is not None, f"no {text!r} to click: {level.texts()}"
            row = self._rows(box, level)[level.selectable.index(entry)]
            if depth < len(path) - 1:
                box, level = self._open_submenu(box, row), entry
        self.point(*middle(row))
        if picture is not None:
            self.settled()
            self.picture(picture)
        self.click(*middle(row))
        self.icon_box()  # the menu has gone

    def _open_submenu(self, menu: Box, row: Box) -> Box:
        self.point(*self._nowhere())
        before = self.settled()
        self.click(*middle(row))
        return self._opened(before, menu)

    def _opened(self, before: Image.Image, covered: Box) -> Box:
        """The box of the menu that has appeared, outside of what is covered."""
        wait_until(lambda: appeared(before, self.look(), covered), "a menu")
        box = appeared(before, self.settled(), covered)
        assert box is not None, "the menu has gone again"
        return box

    def _rows(self, box: Box, level: Entry) -> list[Box]:
        """The rows of an open menu that light up under the pointer, from top to bottom."""
        for attempt in range(SCANS):
            rows = self._scan(box, HIGHLIGHT_S * 2**attempt)
            if len(rows) == len(level.selectable):
                return rows
        texts = [entry.text for entry in level.selectable]
        msg = f"{len(rows)} rows can be selected in the panel, not {len(texts)}: {texts}"
        raise AssertionError(msg)

    def _scan(self, box: Box, patience_s: float) -> list[Box]:
        self.point(*self._nowhere())
        before = self.settled()
        x, y = middle(box)[0], box[1] + 2
        rows: list[Box] = []
        while y < box[3]:
            self.point(x, y)
            row = self._lit(before, box, y, patience_s)
            if row is not None:
                rows.append(row)
            y = y + SCAN_PX if row is None else row[3] + 1
        return rows

    def _lit(self, before: Image.Image, box: Box, y: int, patience_s: float) -> Box | None:
        try:
            return wait_until(lambda: highlighted(before, self.look(), box, y), "", patience_s)
        except AssertionError:
            return None

    def _nowhere(self) -> tuple[int, int]:
        """A place where the desktop shows: no panel, no menu."""
        now, width, height = self.look(), *SCREEN
        places = ((x, y) for y in range(height // 2, height, 50) for x in (width // 2, 30))
        for x, y in (*places, (30, height // 3), (width - 30, height // 3)):
            around = (x - 20, y - 20, x + 20, y + 20)
            if now.crop(around).getcolors(1) == [(40 * 40, (0, 0, 0))]:
                return x, y
        raise AssertionError("menus cover the whole desktop")
