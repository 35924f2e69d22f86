"""A Mac with one program: just enough of AppKit and PyObjC for an icon in the menu bar.

pystray's own macOS module runs unchanged on it. As on a real Mac, AppKit may be touched by the
main thread only (the one that made the `FakeMac`); AppHelper is how others get there.
"""

# ruff: noqa: N802 - the methods have AppKit's names
from __future__ import annotations

import importlib
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from types import ModuleType
from typing import Any, ClassVar

import pytest
from PIL import Image

from tests.fakes.fresh_modules import forget_icons, fresh_modules
from tests.fakes.tray_listener import RecordingListener

VISIBLE = 2  # NSWindowOcclusionStateVisible


class NSObject:
    """Refuses every thread but the main one."""

    main_thread: ClassVar[int] = 0

    def __getattribute__(self, name: str) -> Any:
        assert threading.get_ident() == NSObject.main_thread, f"{name} on a wrong thread"
        return super().__getattribute__(name)

    @classmethod
    def alloc(cls) -> Any:
        return cls()

    def init(self) -> Any:
        return self


class NSWindow(NSObject):
    def __init__(self) -> None:
        self.visible, self.occlusion = True, VISIBLE

    def isVisible(self) -> bool:
        return self.visible

    def occlusionState(self) -> int:
        return self.occlusion


class NSStatusBarButton(NSObject):
    def __init__(self) -> None:
        self.the_window: NSWindow | None = NSWindow()
        self.image: NSImage | None = None
        self.tooltip = self.label = ""
        self.hidden = False

    def window(self) -> NSWindow | None:
        return self.the_window

    def setTarget_(self, target: object) -> None:
        self.target = target

    def setAction_(self, action: bytes) -> None:
        self.action = action

    def setImage_(self, image: NSImage) -> None:
        self.image = image

    def setToolTip_(self, text: str) -> None:
        self.tooltip = text

    def setAccessibilityLabel_(self, text: str) -> None:
        self.label = text

    def setHidden_(self, hidden: bool) -> None:  # noqa: FBT001 - as in AppKit
        self.hidden = hidden


class NSStatusItem(NSObject):
    def __init__(self) -> None:
        self.the_button = NSStatusBarButton()
        self.the_menu: NSMenu | None = None

    def button(self) -> NSStatusBarButton:
        return self.the_button

    def setMenu_(self, menu: NSMenu) -> None:
        self.the_menu = menu


class NSStatusBar(NSObject):
    def __init__(self) -> None:
        self.items: list[NSStatusItem] = []

    def statusItemWithLength_(self, _length: float) -> NSStatusItem:
        self.items.append(NSStatusItem())
        return self.items[-1]

    def removeStatusItem_(self, item: NSStatusItem) -> None:
        self.items.remove(item)


class NSImage(NSObject):
    def __init__(self) -> None:
        self.representations: list[NSBitmapImageRep] = []
        self.template = False

    def initWithSize_(self, size: tuple[int, int]) -> NSImage:
        self.size = size
        return self

    def addRepresentation_(self, representation: NSBitmapImageRep) -> None:
        self.representations.append(representation)

    def setTemplate_(self, template: bool) -> None:  # noqa: FBT001 - as in AppKit
        self.template = template


class NSData(NSObject):
    def __init__(self, content: bytes) -> None:
        self.content = content

    @classmethod
    def dataWithBytes_length_(cls, content: bytes, length: int) -> NSData:
        return cls(content[:length])


class NSBitmapImageRep(NSObject):
    def __init__(self, picture: Image.Image) -> None:
        self.picture = picture

    @classmethod
    def imageRepWithData_(cls, data: NSData) -> NSBitmapImageRep:
        picture = Image.open(BytesIO(data.content))
        picture.load()
        return cls(picture)

    def setSize_(self, size: tuple[int, int]) -> None:
        self.points = size


class NSMenuItem(NSObject):
    def __init__(self) -> None:
        self.enabled, self.state, self.attributed = True, 0, None
        self.the_title, self.the_tag, self.separator = "", -1, False
        self.the_menu: Any = None
        self.target: Any = None

    @classmethod
    def separatorItem(cls) -> NSMenuItem:
        item = cls()
        item.separator = True
        return item

    def initWithTitle_action_keyEquivalent_(
        self, title: str, _action: bytes, _key: str
    ) -> NSMenuItem:
        self.the_title = title
        return self

    def title(self) -> str:
        return self.the_title

    def setTitle_(self, title: str) -> None:
        assert not self.separator, "a separator has no title"
        self.the_title = title

    def setAttributedTitle_(self, title: Any) -> None:
        self.attributed = title

    def submenu(self) -> Any:
        return self.the_menu

    def setSubmenu_(self, menu: Any) -> None:
        self.the_menu = menu

    def tag(self) -> int:
        return self.the_tag

    def setTag_(self, tag: int) -> None:
        self.the_tag = tag

    def setAction_(self, _action: bytes) -> None:
        """Every item has the same."""

    def setTarget_(self, target: Any) -> None:
        self.target = target

    def setState_(self, state: int) -> None:
        self.state = state

    def setEnabled_(self, enabled: bool) -> None:  # noqa: FBT001 - as in AppKit
        self.enabled = enabled


class NSMenu(NSObject):
    def __init__(self) -> None:
        self.lines: list[NSMenuItem] = []
        self.delegate: Any = None
        self.autoenables = True

    def initWithTitle_(self, _title: str) -> NSMenu:
        return self

    def setAutoenablesItems_(self, auto: bool) -> None:  # noqa: FBT001 - as in AppKit
        self.autoenables = auto

    def setDelegate_(self, delegate: Any) -> None:
        self.delegate = delegate

    def addItem_(self, item: NSMenuItem) -> None:
        self.lines.append(item)

    def removeAllItems(self) -> None:
        self.lines = []

    def itemArray(self) -> list[NSMenuItem]:
        return list(self.lines)

    # --- what a user does ---

    def texts(self) -> list[str]:
        return ["-" if line.separator else line.the_title for line in self.lines]

    def open(self) -> None:
        self.delegate.menuNeedsUpdate_(self)
        self.delegate.menuWillOpen_(self)

    def close(self) -> None:
        self.delegate.menuDidClose_(self)


class _Font(NSObject):
    def pointSize(self) -> float:
        return 13.0


class NSFont(NSObject):
    @classmethod
    def menuFontOfSize_(cls, _size: float) -> _Font:
        return _Font()

    @classmethod
    def boldSystemFontOfSize_(cls, _size: float) -> _Font:
        return _Font()


class NSAttributedString(NSObject):
    def initWithString_attributes_(self, _text: str, _attributes: object) -> NSAttributedString:
        return self


class NSDictionary(NSObject):
    def initWithObjectsAndKeys_(self, *_pairs: object) -> NSDictionary:
        return self


class NSNotificationCenter(NSObject):
    def __init__(self) -> None:
        self.observers: list[tuple[Any, str, str]] = []

    def addObserver_selector_name_object_(
        self, observer: Any, selector: bytes, name: str, _object: object
    ) -> None:
        self.observers.append((observer, selector.decode().replace(":", "_"), name))

    def removeObserver_(self, observer: Any) -> None:
        self.observers = [found for found in self.observers if found[0] is not observer]

    def post(self, name: str) -> None:
        for observer, selector, wanted in self.observers:
            if wanted == name:
                getattr(observer, selector)(None)


class NSApplication(NSObject):
    """Its loop runs what AppHelper was given, and between that the test's steps."""

    def __init__(self, mac: FakeMac) -> None:
        self.mac = mac
        self.policy = 0
        self.stopping = False

    def setActivationPolicy_(self, policy: int) -> None:
        self.policy = policy

    def run(self) -> None:
        while not self.stopping:
            if self.mac.calls:
                self.mac.calls.popleft()()
            elif self.mac.steps:
                self.mac.steps.popleft()()
            else:
                return  # nothing will ever come: a step should have stopped it

    def stop_(self, _sender: object) -> None:
        self.woken = False

    def postEvent_atStart_(self, _event: object, _first: bool) -> None:  # noqa: FBT001
        self.stopping = True  # `stop_` alone would wait for the next event


_OTHER_EVENT = (
    "otherEventWithType_location_modifierFlags_timestamp_windowNumber_context_subtype_data1_data2_"
)
NSEvent = type("NSEvent", (NSObject,), {_OTHER_EVENT: classmethod(lambda cls, *_facts: cls())})


@dataclass
class FakeMac:
    """The state of the Mac; a test reads it, and changes what the user or macOS would."""

    calls: deque[Callable[[], object]] = field(default_factory=deque)  # for the main thread
    later: list[tuple[float, Callable[[], object]]] = field(default_factory=list)
    steps: deque[Callable[[], object]] = field(default_factory=deque)
    signals: dict[int, Callable[[int], object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        NSObject.main_thread = threading.get_ident()
        self.app, self.bar, self.center = NSApplication(self), NSStatusBar(), NSNotificationCenter()

    def run(self, shell: Any, *steps: Callable[[], object]) -> None:
        """Run it; each step is done when the loop is idle. After the last one: stop."""
        self.steps.extend([*steps, shell.stop])
        shell.run()

    def pass_time(self) -> None:
        """Let everything that waits for later happen now."""
        waiting, self.later = self.later, []
        for _delay_s, call in waiting:
            call()

    @property
    def button(self) -> NSStatusBarButton:
        return self.bar.items[0].the_button

    @property
    def menu(self) -> NSMenu:
        menu = self.bar.items[0].the_menu
        assert menu is not None
        return menu

    def choose(self, line: NSMenuItem) -> None:
        """Close the menu by a click on a line; AppKit sends the action after that."""
        self.menu.close()
        line.target.activate_menu_item(line)


def _modules(mac: FakeMac) -> dict[str, ModuleType]:
    names: dict[str, dict[str, Any]] = {
        "AppKit": {
            **{cls.__name__: cls for cls in (NSImage, NSBitmapImageRep, NSMenu, NSMenuItem)},
            **{cls.__name__: cls for cls in (NSFont, NSEvent)},
            "NSApplication": _single("sharedApplication", mac.app),
            "NSStatusBar": _single("systemStatusBar", mac.bar),
            "NSVariableStatusItemLength": -1.0,
            "NSApplicationActivationPolicyAccessory": 1,
            "NSWindowOcclusionStateVisible": VISIBLE,
            "NSWindowDidChangeOcclusionStateNotification": "occlusion changed",
            "NSFontAttributeName": "font",
            "NSOnState": 1,
            "NSOffState": 0,
            "NSApplicationDefined": 15,
            "NSPoint": lambda x, y: (x, y),
        },
        "Foundation": {
            **{cls.__name__: cls for cls in (NSObject, NSData, NSAttributedString, NSDictionary)},
            "NSNotificationCenter": _single("defaultCenter", mac.center),
        },
        "objc": {"namedSelector": lambda _name: lambda method: method},
        "PyObjCTools": {"__path__": []},
        "PyObjCTools.AppHelper": {
            "callAfter": mac.calls.append,
            "callLater": lambda delay_s, call: mac.later.append((delay_s, call)),
        },
        "PyObjCTools.MachSignals": {"signal": mac.signals.__setitem__},
    }
    return {name: _module(name, content) for name, content in names.items()}


def _single(getter: str, instance: NSObject) -> type:
    return type("_Single", (), {getter: staticmethod(lambda: instance)})


def _module(name: str, content: dict[str, Any]) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(content)
    return module


@dataclass
class MenuBar:
    """The Mac, the adapter's module imported on it, and who listens to the adapter."""

    mac: FakeMac
    module: Any
    listener: RecordingListener = field(default_factory=RecordingListener)

    def open_shell(self) -> Any:
        return self.module.open_shell(self.listener)


@contextmanager
def mac_desktop(patch: pytest.MonkeyPatch, mac: FakeMac) -> Iterator[MenuBar]:
    """Make this process believe that it runs on a Mac, as far as the adapter looks."""
    modules = _modules(mac)
    for name, module in modules.items():
        patch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    adapter = "stoker_tray.adapters.darwin"
    with fresh_modules("pystray._darwin", adapter):
        yield MenuBar(mac, importlib.import_module(adapter))
        forget_icons("pystray._darwin")
