"""A Windows desktop with one program: just enough of user32 and shell32 for a tray icon.

pystray's own Windows modules run unchanged on it. Every function but PostMessage must be called on
the thread that runs the message loop, and a menu must not be destroyed while it stands open.
"""

# ruff: noqa: N802 - the functions have Windows' names
from __future__ import annotations

import ctypes
import importlib
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Self

import pytest

from tests.fakes.fresh_modules import forget_icons, fresh_modules
from tests.fakes.tray_listener import RecordingListener

WM_QUERYENDSESSION, WM_QUIT = 0x0011, 0x0012
TRAY_HWND, MENU_WINDOW_HWND = 11, 12  # the taskbar's window, and that of an open menu
SMALL_ICON = 49  # SM_CXSMICON


@dataclass
class MenuLine:
    number: int
    text: str | None
    state: int
    kind: int
    submenu: int | None


@dataclass
class TrayIcon:
    handle: int
    tip: str
    message: int


@dataclass
class FakeWindows:
    """The state of the desktop; a test reads it, and changes what the user or Windows would."""

    dpi: int = 96
    light_taskbar: int | None = 0  # None: the registry does not say
    taskbar_answers: bool = True
    missing: set[str] = field(default_factory=set)  # functions that this Windows does not have
    icon: TrayIcon | None = None
    icon_bits: dict[int, tuple[bytes, int]] = field(default_factory=dict)  # handle -> bits, side
    notices: list[tuple[str, str]] = field(default_factory=list)
    menus: dict[int, list[MenuLine]] = field(default_factory=dict)
    timers: set[int] = field(default_factory=set)
    awareness: list[tuple[int, bool]] = field(default_factory=list)  # context, before any window?
    repainted: int = 0
    stuck: bool = False  # the program waits for messages that will never come
    open_menu: int | None = None
    user: Callable[[], int] = lambda: 0  # what the user does with the open menu; 0: nothing
    steps: deque[Callable[[], object]] = field(default_factory=deque)
    messages: deque[tuple[int, int, int, int]] = field(default_factory=deque)
    windows: dict[int, int] = field(default_factory=dict)  # window -> its class
    classes: dict[int, Any] = field(default_factory=dict)  # class -> window procedure
    thread: int = field(default_factory=threading.get_ident)
    last_handle: int = 100

    # --- for tests ---------------------------------------------------------------------------

    def run(self, shell: Any, *steps: Callable[[], object]) -> None:
        """Run it; each step is done when all messages are handled. After the last one: stop."""
        self.steps.extend([*steps, shell.stop])
        shell.run()

    def send(self, message: int, wparam: int = 0, lparam: int = 0) -> list[int]:
        """Deliver a message to every window, as a broadcast; return their answers."""
        return [self._deliver(window, message, wparam, lparam) for window in list(self.windows)]

    def deliver_all(self) -> None:
        """Handle the messages that wait, as an open menu does."""
        while self.messages and self.messages[0][1] != WM_QUIT:
            self._deliver(*self.messages.popleft())

    def click(self, button: int) -> None:
        assert self.icon is not None, "there is no icon to click on"
        self.send(self.icon.message, 0, button)

    def lines(self, menu: int | None = None) -> list[MenuLine]:
        return self.menus[menu or self.open_menu or max(self.menus)]

    def texts(self) -> list[str | None]:
        return [line.text for line in self.lines()]

    @property
    def tip(self) -> str | None:
        return self.icon.tip if self.icon else None

    @property
    def icon_side(self) -> int:
        assert self.icon is not None
        return self.icon_bits[self.icon.handle][1]

    def _deliver(self, window: int, message: int, wparam: int, lparam: int) -> int:
        procedure = self.classes[self.windows[window]]
        return int(procedure(window, message, wparam, lparam))

    def _new(self) -> int:
        self.last_handle += 1
        return self.last_handle

    # --- kernel32, windows and messages ------------------------------------------------------

    def GetModuleHandleW(self, _name: None) -> int:
        return 1

    def RegisterWindowMessageW(self, name: str) -> int:
        return 0xC000 + len(name)

    def RegisterClassExW(self, description: Any) -> int:
        atom = self._new()
        self.classes[atom] = description.lpfnWndProc
        return atom

    def UnregisterClassW(self, atom: int, _instance: int) -> int:
        del self.classes[atom]
        return 1

    def CreateWindowExW(self, _style: int, atom: int, *_rest: object) -> int:
        window = self._new()
        self.windows[window] = atom
        return window

    def DestroyWindow(self, window: int) -> int:
        del self.windows[window]
        return 1

    def ChangeWindowMessageFilterEx(self, *_arguments: object) -> int:
        return 1

    def DefWindowProcW(self, _window: int, message: int, *_parameters: int) -> int:
        return int(message == WM_QUERYENDSESSION)  # Windows itself does not hold up a logout

    def PeekMessageW(self, *_arguments: object) -> int:
        return 0

    def GetMessageW(self, target: Any, *_filter: object) -> int:
        while not self.messages:
            if not self.steps:
                self.stuck = True
                return 0
            self.steps.popleft()()
        message = target._obj
        message.hWnd, message.message, message.wParam, message.lParam = self.messages.popleft()
        return int(message.message != WM_QUIT)

    def TranslateMessage(self, _message: Any) -> int:
        return 0

    def DispatchMessageW(self, source: Any) -> int:
        message = source._obj
        if message.hWnd in self.windows:
            self._deliver(message.hWnd, message.message, message.wParam, message.lParam)
        return 0

    def PostMessageW(self, window: int, message: int, wparam: int, lparam: int) -> int:
        self.messages.append((window, message, wparam, lparam))
        return 1

    def PostQuitMessage(self, _code: int) -> None:
        self.messages.append((0, WM_QUIT, 0, 0))

    def SetTimer(self, _window: int, timer: int, _ms: int, _procedure: None) -> int:
        self.timers.add(timer)
        return timer

    def KillTimer(self, _window: int, timer: int) -> int:
        self.timers.discard(timer)
        return 1

    # --- the screen --------------------------------------------------------------------------

    def SetProcessDpiAwarenessContext(self, context: int) -> int:
        self.awareness.append((context, not self.windows))
        return 1

    def FindWindowW(self, name: str, _title: None) -> int | None:
        if name == "#32768" and self.open_menu is not None:
            return MENU_WINDOW_HWND
        return TRAY_HWND if name == "Shell_TrayWnd" else None

    def GetDpiForWindow(self, window: int) -> int:
        return self.dpi if window == TRAY_HWND else 0

    def GetSystemMetricsForDpi(self, metric: int, dpi: int) -> int:
        return 16 * dpi // 96 if metric == SMALL_ICON else 0

    def GetSystemMetrics(self, metric: int) -> int:
        return 16 if metric == SMALL_ICON else 0

    def InvalidateRect(self, window: int, _area: None, _erase: int) -> int:
        self.repainted += window == MENU_WINDOW_HWND
        return 1

    def GetCursorPos(self, _point: Any) -> int:
        return 1

    def SetForegroundWindow(self, _window: int) -> int:
        return 1

    # --- icons -------------------------------------------------------------------------------

    def CreateIconFromResourceEx(self, bits: bytes, length: int, *rest: int) -> int:
        handle = self._new()
        self.icon_bits[handle] = (bits[:length], rest[2])
        return handle

    def LoadImageW(self, *_arguments: object) -> int:
        raise AssertionError("an icon needs no file")

    def DestroyIcon(self, handle: int) -> int:
        assert self.icon is None or self.icon.handle != handle, "the shell still shows this icon"
        del self.icon_bits[handle]
        return 1

    def Shell_NotifyIconW(self, code: int, data: Any) -> int:
        if not self.taskbar_answers:
            return 0
        add, modify = code == 0, code == 1
        if add != (self.icon is None):
            return 0  # it is there already, or not yet
        if add:
            self.icon = TrayIcon(0, "", 0)
        elif not modify:
            self.icon = None
        if self.icon is not None:
            self._change_icon(self.icon, data)
        return 1

    def _change_icon(self, icon: TrayIcon, data: Any) -> None:
        if data.uFlags & 0x01:
            icon.message = data.uCallbackMessage
        if data.uFlags & 0x02:
            assert data.hIcon in self.icon_bits, "an icon that does not exist"
            icon.handle = data.hIcon
        if data.uFlags & 0x04:
            icon.tip = data.szTip
        if data.uFlags & 0x10:
            self.notices.append((data.szInfoTitle, data.szInfo))

    # --- menus -------------------------------------------------------------------------------

    def CreatePopupMenu(self) -> int:
        handle = self._new()
        self.menus[handle] = []
        return handle

    def DestroyMenu(self, handle: int) -> int:
        assert self.open_menu is None, "a menu is destroyed while one stands open"
        for line in self.menus.pop(handle):
            if line.submenu:
                self.DestroyMenu(line.submenu)
        return 1

    def InsertMenuItemW(self, menu: int, _position: int, _by_position: int, info: Any) -> int:
        item = info._obj
        self.menus[menu].append(
            MenuLine(item.wID, item.dwTypeData, item.fState, item.fType, item.hSubMenu)
        )
        return 1

    def SetMenuItemInfoW(self, menu: int, number: int, _by_position: int, info: Any) -> int:
        for line in self.menus[menu]:
            if line.number == number and line.text is not None:
                line.text, line.state = info._obj.dwTypeData, info._obj.fState
                return 1
            if line.submenu and self.SetMenuItemInfoW(line.submenu, number, 0, info):
                return 1
        return 0

    def TrackPopupMenuEx(self, menu: int, *_arguments: object) -> int:
        self.open_menu = menu
        try:
            return self.user()
        finally:
            self.open_menu = None


class _Function:
    """A function of a DLL: checks the arguments against its declaration, as ctypes does."""

    def __init__(self, windows: FakeWindows, name: str) -> None:
        self._call = getattr(windows, name)
        self._windows, self._name = windows, name
        self.argtypes: tuple[Any, ...] | None = None
        self.restype: Any = None
        self.errcheck: Any = None

    def __call__(self, *arguments: Any) -> Any:
        if self._name != "PostMessageW":
            assert threading.get_ident() == self._windows.thread, f"{self._name} on a wrong thread"
        if self.argtypes is not None:
            for declared, argument in zip(self.argtypes, arguments, strict=True):
                declared.from_param(argument)
        result = self._call(*arguments)
        return self.errcheck(result, self, arguments) if self.errcheck else result


class _Library:
    def __init__(self, windows: FakeWindows) -> None:
        self._windows = windows

    def __getattr__(self, name: str) -> _Function:
        if name in self._windows.missing:
            raise AttributeError(name)
        function = _Function(self._windows, name)
        setattr(self, name, function)
        return function


class _RegistryKey:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Nothing is held."""


def _registry(windows: FakeWindows) -> ModuleType:
    def query(_key: _RegistryKey, name: str) -> tuple[int, int]:
        if name != "SystemUsesLightTheme" or windows.light_taskbar is None:
            raise FileNotFoundError(name)
        return windows.light_taskbar, 4

    module: Any = ModuleType("winreg")
    module.HKEY_CURRENT_USER = 1
    module.OpenKey = lambda _root, _path: _RegistryKey()
    module.QueryValueEx = query
    return module  # type: ignore[no-any-return]


@dataclass
class Desktop:
    """The desktop, the adapter's module imported on it, and who listens to the adapter."""

    windows: FakeWindows
    module: Any
    listener: RecordingListener = field(default_factory=RecordingListener)

    def open_shell(self) -> Any:
        return self.module.open_shell(self.listener)


@contextmanager
def windows_desktop(patch: pytest.MonkeyPatch, windows: FakeWindows) -> Iterator[Desktop]:
    """Make this process believe that it runs on Windows, as far as the adapter looks."""
    ctypes_of_windows = {
        "WinDLL": lambda _name: _Library(windows),
        "WINFUNCTYPE": ctypes.CFUNCTYPE,
        "HRESULT": ctypes.c_long,
        "WinError": OSError,
    }
    for name, value in ctypes_of_windows.items():
        patch.setattr(ctypes, name, value, raising=False)
    patch.setitem(sys.modules, "winreg", _registry(windows))
    adapter = "stoker_tray.adapters.win32"
    with fresh_modules("pystray._util.win32", "pystray._win32", adapter):
        yield Desktop(windows, importlib.import_module(adapter))
        forget_icons("pystray._win32")
    assert not windows.stuck
