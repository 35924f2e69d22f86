"""What a tray shows and what a click means: the types between the view and the adapters.

Pure values. The view makes a `Face`, an adapter shows it, a click comes back as a `Command`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class IconState(StrEnum):
    """One shape each; colour never tells alone."""

    OFF = "off"  # the daemon does not run, or the endpoint is off
    IDLE = "idle"  # serving, no model in memory
    LOADING = "loading"
    READY = "ready"
    BUSY = "busy"  # a request is running
    ATTENTION = "attention"  # something is wrong and a person should look


class Badge(StrEnum):
    """A small mark in the corner of the icon."""

    DOWNLOADING = "downloading"
    EXPOSED = "exposed"  # the endpoint is open to the network


PROGRESS_STEPS = 8  # a ring that moves more often would only cost wake-ups


@dataclass(frozen=True, slots=True)
class IconKey:
    """Everything that an icon's pixels depend on, but for size and theme. Few values: cached."""

    state: IconState
    badge: Badge | None = None
    progress: int | None = None  # 0..PROGRESS_STEPS of a load or download; None: no ring


class Verb(StrEnum):
    """What a click asks for. The argument is a model, a pull, a catalogue name or a switch."""

    USE = "use"  # arg: model id
    UNLOAD_ALL = "unload-all"
    PULL = "pull"  # arg: catalogue name
    PAUSE = "pause"  # arg: pull id
    RESUME = "resume"  # arg: pull id
    CANCEL = "cancel"  # arg: pull id
    SERVER = "server"  # arg: on, off
    FREE = "free"
    COPY_URL = "copy-url"  # arg: the URL
    AUTOSTART = "autostart"  # arg: on, off (the service)
    AUTOSTART_TRAY = "autostart-tray"  # arg: on, off
    MUTE = "mute"  # arg: a notice kind that is to be silent
    UNMUTE = "unmute"
    OPEN_LOGS = "open-logs"
    OPEN_UPDATE = "open-update"
    START = "start"  # start the daemon
    STOP = "stop"  # stop the daemon, and quit
    QUIT = "quit"  # this icon only


@dataclass(frozen=True, slots=True)
class Command:
    verb: Verb
    arg: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the menu. ``key`` names its place and stays the same while its text changes.

    Keys are unique among siblings. A row without command and children only informs.
    """

    key: str
    text: str = ""
    command: Command | None = None
    checked: bool | None = None  # None: no tick
    radio: bool = False
    default: bool = False  # what a left click on the icon does; at most one row
    separator: bool = False
    children: tuple[Row, ...] = ()

    @property
    def enabled(self) -> bool:
        """Whether it can be clicked or opened."""
        return self.command is not None or bool(self.children)


@dataclass(frozen=True, slots=True)
class Face:
    """All that a tray shows. Two equal faces look the same: nothing is sent twice."""

    icon: IconKey
    title: str  # tooltip, at most 120 characters
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Notice:
    """A notification; one of the same kind replaces the one before."""

    kind: str  # a `notices.Kind`
    title: str  # at most 60 characters
    text: str  # at most 240 characters


class Listener(Protocol):
    """What an adapter reports. Called on any thread; each call returns at once."""

    def clicked(self, command: Command) -> None: ...
    def opened(self) -> None: ...
    def closed(self) -> None: ...
    def hosted(self, *, visible: bool) -> None: ...


class Shell(Protocol):
    """An adapter: one icon in one system's tray. All but `run` may be called on any thread."""

    def show(self, face: Face) -> None:
        """Show this from now on."""

    def notify(self, notice: Notice) -> None:
        """Show a notification, if the system can; never raises."""

    def run(self) -> None:
        """Run on the main thread until `stop`; survives the loss of the tray's host."""

    def stop(self) -> None:
        """Remove the icon and end `run`."""
