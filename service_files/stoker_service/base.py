"""The words of this package: parts, programs, wishes, and what every back end can do.

Pure types. Not for: choosing a back end (`stoker_service.choose`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from stoker.errors import AutostartFailed

DRAIN_S: Final = 15.0  # the setting's own default
_DELETE: Final = "\x7f"


class Part(StrEnum):
    """What can start at login; each has its own switch."""

    DAEMON = "daemon"
    TRAY = "tray"


@dataclass(frozen=True, slots=True)
class Program:
    """The command lines of Stoker, and the variables that say where its home is."""

    daemon: tuple[str, ...]
    cli: tuple[str, ...]
    tray: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Wish:
    """How Stoker shall start at login."""

    program: Program
    host: str
    port: int  # 0: a free one at each start, so nothing can listen in the daemon's place
    on_demand: bool = False  # the daemon starts with the first request
    linger: bool = False  # it starts with the machine and outlives the logout
    hardened: bool = False  # the daemon may write to its own folders only
    drain_s: float = DRAIN_S  # how long running answers may take to end at a stop


@dataclass(frozen=True, slots=True)
class PartState:
    enabled: bool
    detail: str  # one line for a person
    problem: str | None = None  # why it does not work although it should, and what to do


@dataclass(frozen=True, slots=True)
class Record:
    """What our own file remembers about itself; see `stoker_service.record`."""

    made: tuple[int, ...] = ()  # per file: how many folders above it did not exist before
    program: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    on_demand: bool = False
    linger: bool = False  # we switched lingering on, so we switch it off again
    hardened: bool = False


class Autostart(Protocol):
    """A back end. Every call has a deadline; errors are AutostartFailed or AutostartBlocked."""

    @property
    def name(self) -> str:
        """``systemd``, ``xdg``, ``launchd`` or ``windows``."""

    @property
    def supervises(self) -> bool:
        """Whether the daemon runs under this manager, which `start` and `stop` then ask."""

    def install(self, parts: Collection[Part], wish: Wish) -> tuple[str, ...]:
        """Let these parts start at login; what was done, in sentences. Repeating it is harmless.

        What an interrupted call left is mended. Nothing that Stoker did not write is changed.
        """

    def uninstall(self, parts: Collection[Part]) -> tuple[str, ...]:
        """The exact inverse: files, links and folders are as before. What runs goes on running."""

    def status(self) -> dict[Part, PartState]:
        """How it stands, from files alone where the system has files for it."""

    def installed(self) -> Record | None:
        """What the daemon's entry says, when Stoker wrote one; it may be switched off."""

    def is_current(self, wish: Wish) -> bool:
        """Whether the daemon's entry says what this wish would make it say."""

    def holds_port(self) -> bool:
        """Whether the manager has the port now, and starts the daemon with the first request."""

    def start(self, timeout_s: float = ...) -> bool:
        """Start the daemon through the manager; False: it is off or cannot, start it yourself."""

    def stop(self, drain_s: float = ...) -> bool:
        """Stop it so that nothing starts it again before the next login; False: not managed."""


def check_words(words: Collection[str]) -> None:
    """Raise AutostartFailed for a command line that a system's file cannot hold."""
    for word in words:
        if any(char < " " or char == _DELETE for char in word):
            msg = f"a path of Stoker has a control character in it: {word!r}"
            raise AutostartFailed(msg, hint="Install Stoker in a folder with a plainer name.")
        try:
            word.encode()
        except UnicodeEncodeError as error:
            msg = f"a path of Stoker is not valid UTF-8: {word!r}"
            raise AutostartFailed(
                msg, hint="Install Stoker in a folder with a plainer name."
            ) from error
