"""The tray of Windows: pystray's backend, with its known faults mended.

Everything that touches a window, a menu or the icon happens on the thread of `run`: other threads
leave what they want and post a message. The menu is built when it is about to be shown, and never
taken apart while it stands open.

To be imported on Windows only.
"""

from __future__ import annotations

import ctypes
import importlib
from collections import deque
from collections.abc import Iterator
from ctypes import c_char_p, c_int, c_void_p
from ctypes.wintypes import BOOL, DWORD, HICON, HMENU, HWND, LPCWSTR, UINT
from typing import Any, Final

from pystray import _win32
from pystray._util import win32

from stoker_tray import icons
from stoker_tray.adapters.menu import Menu, MenuItem, menu_of, plain
from stoker_tray.adapters.native import Shape, default_command, shape
from stoker_tray.face import Face, IconKey, Listener, Notice, Shell
from stoker_tray.icons import Theme
from stoker_tray.icons.ico import bitmap

TITLE_LIMIT: Final = 127  # UTF-16 units that the shell has room for, without the closing NUL
NOTICE_TITLE_LIMIT: Final = 63
NOTICE_TEXT_LIMIT: Final = 255

_WM_NULL = 0x0000
_WM_CLOSE = 0x0010
_WM_QUERYENDSESSION = 0x0011
_WM_SETTINGCHANGE = 0x001A
_WM_TIMER = 0x0113
_WM_DPICHANGED = 0x02E0
_WM_WISH = win32.WM_USER + 20  # another thread left something to do; pystray uses + 10 and + 11

_NIIF_RESPECT_QUIET_TIME = 0x80
_SM_CXSMICON = 49
_USUAL_ICON_SIZE = 16  # px; where Windows does not say
_PER_MONITOR_AWARE_V2 = -4
_ICON_VERSION = 0x00030000
_RETRY_TIMER = 1
_RETRY_MS = 5000  # at login the taskbar may take a minute to answer
_PERSONALIZE = r"Software\Microsoft\Windows\CurrentVersion\Themes\Personalize"


def _user32(name: str, result: Any, *arguments: Any) -> Any:
    """Declare a function; None where this Windows is too old to have it."""
    function = getattr(win32.windll.user32, name, None)
    if function is not None:
        function.restype, function.argtypes = result, arguments
    return function


_set_awareness = _user32("SetProcessDpiAwarenessContext", BOOL, c_void_p)
_find_window = _user32("FindWindowW", HWND, LPCWSTR, LPCWSTR)
_dpi_of_window = _user32("GetDpiForWindow", UINT, HWND)
_metric = _user32("GetSystemMetrics", c_int, c_int)
_metric_at_dpi = _user32("GetSystemMetricsForDpi", c_int, c_int, UINT)
_create_icon = _user32(
    "CreateIconFromResourceEx", HICON, c_char_p, DWORD, BOOL, DWORD, c_int, c_int, UINT
)
_set_menu_item = _user32("SetMenuItemInfoW", BOOL, HMENU, UINT, BOOL, win32.LPMENUITEMINFO)
_invalidate = _user32("InvalidateRect", BOOL, HWND, c_void_p, BOOL)
_set_timer = _user32("SetTimer", c_void_p, HWND, c_void_p, UINT, c_void_p)
_kill_timer = _user32("KillTimer", BOOL, HWND, c_void_p)


def open_shell(listener: Listener) -> Shell:
    """Make the adapter; call it before the process opens any window."""
    if _set_awareness is not None:  # it fails where a manifest has said so already
        _set_awareness(_PER_MONITOR_AWARE_V2)
    return WindowsShell(listener)


class WindowsShell(_win32.Icon):  # type: ignore[misc]  # pystray has no types
    """A `face.Shell`."""

    _icon_handle: Any

    def __init__(self, listener: Listener) -> None:
        super().__init__("stoker", title="Stoker")
        self._menu_handle: tuple[Any, list[Any]] | None = None  # pystray forgets to set it
        self._listener = listener
        self._wanted: Face | None = None  # written by any thread, read by the one of `run`
        self._notices: deque[Notice] = deque(maxlen=8)
        self._ended = False
        self._face: Face | None = None
        self._drawn: tuple[IconKey, int, Theme] | None = None
        self._items: list[MenuItem] = []  # of the menu that was built last, in order of number
        self._built: Shape = ()
        self._open = False
        self._message_handlers.update(
            {
                _WM_WISH: self._on_wish,
                _WM_TIMER: self._on_timer,
                _WM_SETTINGCHANGE: self._on_changed_look,
                _WM_DPICHANGED: self._on_changed_look,
                _WM_CLOSE: self._on_stop,
                _WM_QUERYENDSESSION: _agree,
            }
        )

    # --- face.Shell: any thread --------------------------------------------------------------

    def show(self, face: Face) -> None:
        self._wanted = face
        self._wake()

    def notify(self, notice: Notice) -> None:
        self._notices.append(notice)
        self._wake()

    def stop(self) -> None:
        self._ended = True
        self._wake()

    def run(self) -> None:
        """Without pystray's setup thread: it would touch the icon, and outlive a failed start."""
        try:
            self._run()
        finally:
            self._running = False
            self._release_icon()

    def _wake(self) -> None:
        if self._hwnd:  # else `_mark_ready` will look, once there is a window
            win32.PostMessage(self._hwnd, _WM_WISH, 0, 0)

    # --- messages: the thread of `run` -------------------------------------------------------

    def _mark_ready(self) -> None:
        super()._mark_ready()
        self._on_wish(0, 0)

    def _on_wish(self, _wparam: int, _lparam: int) -> None:
        if self._ended:
            win32.PostQuitMessage(0)
            return
        face = self._wanted
        if face is not None and face is not self._face:
            self._face = face
            self._apply(face)
        while self._notices:
            self._announce(self._notices.popleft())

    def _apply(self, face: Face) -> None:
        self._draw(face.icon)
        self.title = cut(face.title, TITLE_LIMIT)
        if self._open and shape(face.rows) == self._built:
            self._update_open_menu(face)
        self.visible = True

    def _announce(self, notice: Notice) -> None:
        self._message(
            win32.NIM_MODIFY,
            win32.NIF_INFO,
            szInfo=cut(notice.text or notice.title, NOTICE_TEXT_LIMIT),  # none would remove it
            szInfoTitle=cut(notice.title, NOTICE_TITLE_LIMIT),
            dwInfoFlags=_NIIF_RESPECT_QUIET_TIME,
        )

    def _on_timer(self, _wparam: int, _lparam: int) -> None:
        self._show()

    def _on_changed_look(self, _wparam: int, _lparam: int) -> None:
        """The taskbar may be of another colour or size now."""
        if self._face is not None:
            self._draw(self._face.icon)

    def _on_display_change(self, wparam: int, lparam: int) -> None:
        self._on_changed_look(wparam, lparam)

    def _on_taskbarcreated(self, wparam: int, lparam: int) -> None:
        """The taskbar has started again and knows nothing of this icon."""
        self._on_changed_look(wparam, lparam)
        super()._on_taskbarcreated(wparam, lparam)

    # --- icon --------------------------------------------------------------------------------

    def _show(self) -> None:
        """Add the icon. Where that fails, as in the first seconds of a login, try again."""
        self._assert_icon_handle()
        flags = win32.NIF_MESSAGE | win32.NIF_ICON | win32.NIF_TIP
        # An addition that seems to fail may have worked: then the icon can be changed.
        shown = any(
            self._message(
                code,
                flags,
                uCallbackMessage=win32.WM_NOTIFY,
                hIcon=self._icon_handle,
                szTip=self.title,
            )
            for code in (win32.NIM_ADD, win32.NIM_MODIFY)
        )
        if shown:
            _kill_timer(self._hwnd, _RETRY_TIMER)
        else:
            _set_timer(self._hwnd, _RETRY_TIMER, _RETRY_MS, None)
        self._listener.hosted(visible=shown)

    def _message(self, code: int, flags: int, **fields: Any) -> bool:
        """Tell the shell about the icon; return whether it listened."""
        size = ctypes.sizeof(win32.NOTIFYICONDATAW)
        data = win32.NOTIFYICONDATAW(cbSize=size, hWnd=self._hwnd, uFlags=flags, **fields)
        return bool(win32.Shell_NotifyIcon(code, data))

    def _draw(self, key: IconKey) -> None:
        wanted = (key, icon_size(), taskbar_theme())
        if wanted != self._drawn:
            self._drawn = wanted
            self.icon = icons.image(*wanted)

    def _update_icon(self) -> None:
        """Give the shell the new icon before the old one goes."""
        old, self._icon_handle = self._icon_handle, None
        self._assert_icon_handle()
        if self.visible:
            self._message(win32.NIM_MODIFY, win32.NIF_ICON, hIcon=self._icon_handle)
        if old:
            win32.DestroyIcon(old)
        self._icon_valid = True

    def _assert_icon_handle(self) -> None:
        """Make it from memory, at the size of the taskbar: no file, no scaling."""
        if not self._icon_handle:
            bits, side = bitmap(self.icon), self.icon.width
            self._icon_handle = _create_icon(bits, len(bits), 1, _ICON_VERSION, side, side, 0)

    # --- menu --------------------------------------------------------------------------------

    def _update_menu(self) -> None:
        """Do nothing: `_open_menu` builds the menu that is shown."""

    def _on_notify(self, wparam: int, lparam: int) -> None:
        if self._open or self._face is None:
            return
        command = default_command(self._face.rows)
        if lparam == win32.WM_LBUTTONUP and command is not None:
            self._listener.clicked(command)
        elif lparam in {win32.WM_LBUTTONUP, win32.WM_RBUTTONUP}:
            self._open_menu(wparam, self._face)

    def _open_menu(self, wparam: int, face: Face) -> None:
        """Show the menu; this returns when it is closed. Messages are handled meanwhile."""
        self._menu = menu_of(face.rows, self._listener.clicked)
        self._items, self._built = list(_lines(self._menu)), shape(face.rows)
        super()._update_menu()
        self._open = True
        self._listener.opened()
        try:
            super()._on_notify(wparam, win32.WM_RBUTTONUP)
        finally:
            self._open = False
            self._listener.closed()
            # Without another message the menu would close by itself when opened again.
            win32.PostMessage(self._hwnd, _WM_NULL, 0, 0)

    def _create_menu_item(self, descriptor: MenuItem, callbacks: list[Any]) -> Any:
        item = super()._create_menu_item(descriptor, callbacks)
        if item.fMask & win32.MIIM_STRING:
            item.dwTypeData = _label(descriptor)
        return item

    def _update_open_menu(self, face: Face) -> None:
        """Change words and ticks of the lines that stand open."""
        if self._menu_handle is None:
            return
        handle, callbacks = self._menu_handle
        items = list(_lines(menu_of(face.rows, self._listener.clicked)))
        before, self._items = self._items, items
        callbacks[:] = [self._handler(item) for item in items]
        for number, (old, new) in enumerate(zip(before, items, strict=True), start=1):
            if _look(old) != _look(new):
                _set_menu_item(handle, number, 0, ctypes.byref(_item_info(new)))
        menu_window = _find_window("#32768", None)  # the class of every menu
        if menu_window:
            _invalidate(menu_window, None, 0)


def _agree(_wparam: int, _lparam: int) -> int:
    """Let the session end; pystray's silence would hold up a logout."""
    return 1


# --- menu lines ------------------------------------------------------------------------------


def _lines(menu: Menu) -> Iterator[MenuItem]:
    """All lines in the order in which pystray numbers them."""
    for item in menu:
        yield item
        if item.submenu:
            yield from _lines(item.submenu)


def _look(item: MenuItem) -> tuple[object, ...]:
    return item.text, item.checked, item.enabled


def _label(item: MenuItem) -> str:
    """An ampersand would underline the next letter."""
    return str(item.text).replace("&", "&&")


def _item_info(item: MenuItem) -> Any:
    state = (
        (win32.MFS_DEFAULT if item.default else 0)
        | (win32.MFS_CHECKED if item.checked else 0)
        | (0 if item.enabled else win32.MFS_DISABLED)
    )
    return win32.MENUITEMINFO(
        cbSize=ctypes.sizeof(win32.MENUITEMINFO),
        fMask=win32.MIIM_STRING | win32.MIIM_STATE,
        dwTypeData=_label(item),
        fState=state,
    )


# --- what the taskbar looks like -------------------------------------------------------------


def icon_size() -> int:
    """Side of a small icon in pixels, on the screen where the taskbar is."""
    taskbar = _find_window("Shell_TrayWnd", None)
    if taskbar and _dpi_of_window is not None and _metric_at_dpi is not None:
        side = _metric_at_dpi(_SM_CXSMICON, _dpi_of_window(taskbar))
    else:
        side = _metric(_SM_CXSMICON)
    return int(side) or _USUAL_ICON_SIZE


def taskbar_theme() -> Theme:
    """Which icons can be seen on it. Windows that do not say so have a dark one."""
    winreg: Any = importlib.import_module("winreg")
    try:
        with winreg.OpenKey(winreg.HKEY_CURRENT_USER, _PERSONALIZE) as key:
            light, _kind = winreg.QueryValueEx(key, "SystemUsesLightTheme")
    except OSError:
        return Theme.DARK
    return Theme.LIGHT if light == 1 else Theme.DARK


# --- text ------------------------------------------------------------------------------------


def cut(text: str, limit: int) -> str:
    """Shorten to this many UTF-16 units, never in the middle of a character."""
    text = plain(text, limit)
    units = text.encode("utf-16-le")
    if len(units) <= 2 * limit:
        return text
    return units[: 2 * (limit - 1)].decode("utf-16-le", "ignore") + "…"
