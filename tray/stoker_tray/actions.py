"""What a click does: for each verb a job, and the threads that jobs run in.

`job` decides, `Workers` runs. A job may block until its deadline; what came of it is handed back,
never written anywhere from here. Not for: the state and its faces (`controller`).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import quote

from stoker import errors
from stoker.types import ModelState
from stoker_tray.face import Command, Notice, Verb
from stoker_tray.state import State
from stoker_tray.wire import Hangup

if TYPE_CHECKING:
    from stoker_service.base import Autostart, Program, Wish

log = logging.getLogger(__name__)

RELEASES: Final = "https://github.com/stoker-ai/stoker/releases/latest"  # `stoker.updates.PAGE`

LOOK_S: Final = 5.0  # a status comes in milliseconds; the menu is open and wants to know
CATALOGUE_S: Final = 20.0  # it looks at the machine's free memory first
ASK_S: Final = 30.0  # to begin or to stop something
DRAIN_S: Final = 300.0  # running answers end first; the daemon's own limit is far shorter
SWITCH_S: Final = 3600.0  # the largest model from the slowest disk; the daemon's limit is 600 s
START_S: Final = 90.0  # `stoker start` gives up after 60 s
STOP_S: Final = 330.0  # `stoker stop` waits for running answers, too

_MOST_WAITING: Final = 8  # clicks; more of them are a stuck mouse
_LOADED: Final = frozenset(
    {ModelState.QUEUED, ModelState.LOADING, ModelState.READY, ModelState.DRAINING}
)


class Lane(Enum):
    """Jobs of one lane run one after the other; a slow one keeps no other lane waiting."""

    LOOK = auto()  # the daemon's status, for an open menu
    AROUND = auto()  # start at login, the catalogue
    DESK = auto()  # the clipboard and our own files
    OPEN = auto()  # programs of the desktop, which may stay in the foreground
    LOGIN = auto()  # start at login is switched
    ASK = auto()  # calls about downloads
    SERVER = auto()  # the server goes on or off, memory is freed: running answers end first
    SWITCH = auto()  # to another model or to none; a newer wish replaces the one that runs
    LIFE = auto()  # the daemon itself starts and stops


_QUEUES: Final = frozenset({Lane.DESK, Lane.OPEN, Lane.LOGIN, Lane.ASK, Lane.SERVER, Lane.LIFE})


@dataclass(frozen=True, slots=True)
class Found:
    """What a job brings back; None leaves what is known."""

    status: object = None  # the answer of GET /status
    offers: object = None  # the answer of GET /catalogue
    autostart: Mapping[str, bool] | None = None  # by part; a part without a switch is not there
    notice: Notice | None = None  # to be shown
    reach: bool = False  # the daemon may be there now
    leave: bool = False  # quit


NOTHING: Final = Found()


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    lane: Lane
    do: Callable[[], Found]
    command: Command | None = None  # None: nobody clicked for it
    busy: str | None = None  # what to say while it runs
    hangup: Hangup = field(default_factory=Hangup)
    ends_switch: bool = False  # a switch that runs makes no sense any more

    @property
    def name(self) -> str:
        return self.command.verb.value if self.command else self.lane.name.lower()


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended."""

    job: Job
    found: Found = NOTHING
    error: errors.StokerError | None = None


# --- threads ---------------------------------------------------------------------------------


class Workers:
    """Runs each lane's jobs in threads, which live only as long as there is work.

    Used from one thread; `report` is called in the jobs' own. Jobs that run at the end of the
    process end with it.
    """

    def __init__(self, report: Callable[[Ended], None]) -> None:
        self._report = report
        self._running: dict[Lane, Job] = {}
        self._waiting: dict[Lane, deque[Job]] = {lane: deque() for lane in _QUEUES}

    @property
    def busy(self) -> str | None:
        """What to say about what runs now."""
        said = [self._running[lane].busy for lane in Lane if lane in self._running]
        return next((text for text in reversed(said) if text), None)

    def is_free(self, lane: Lane) -> bool:
        return lane not in self._running

    def start(self, job: Job) -> None:
        """Run it now or later; nothing when it repeats the last one, or too many wait."""
        running = self._running.get(job.lane)
        if job.ends_switch and (switch := self._running.pop(Lane.SWITCH, None)):
            switch.hangup()
        if running is None:
            self._run(job)
        elif job.lane is Lane.SWITCH and job.command != running.command:
            running.hangup()  # nobody waits for that model any more
            self._run(job)
        elif job.lane in _QUEUES:
            waiting = self._waiting[job.lane]
            last = waiting[-1] if waiting else running
            if job.command != last.command and len(waiting) < _MOST_WAITING:
                waiting.append(job)

    def ended(self, job: Job) -> bool:
        """Take note that it has; False when another has taken its place."""
        if self._running.get(job.lane) is not job:
            return False
        del self._running[job.lane]
        if waiting := self._waiting.get(job.lane):
            self._run(waiting.popleft())
        return True

    def _run(self, job: Job) -> None:
        threading.Thread(target=self._do, args=(job,), name=job.name, daemon=True).start()
        self._running[job.lane] = job

    def _do(self, job: Job) -> None:
        try:
            ended = Ended(job, job.do())
        except errors.StokerError as error:
            ended = Ended(job, error=error)
        except Exception as error:
            log.exception("a job failed")
            fault = errors.InternalError(f"a fault in Stoker: {type(error).__name__}")
            ended = Ended(job, error=fault)
        self._report(ended)


# --- what is done ----------------------------------------------------------------------------


class Call(Protocol):
    """As `wire.call`, to a certain socket."""

    def __call__(
        self,
        method: str,
        target: str,
        body: object = None,
        timeout_s: float = ...,
        *,
        hangup: Hangup | None = None,
    ) -> object: ...


@dataclass(frozen=True, slots=True)
class Tools:
    """All that jobs touch. Every one raises StokerError, and ends by a deadline."""

    call: Call
    run: Callable[[tuple[str, ...], float], None]  # one of Stoker's own commands
    open: Callable[[str], None]
    copy: Callable[[str], None]
    save_muted: Callable[[frozenset[str]], None]
    program: Callable[[], Program]
    autostart: Callable[[], Autostart]
    wish: Callable[[], Wish]
    logs: str  # the folder


def look(tools: Tools) -> Job:
    """Ask for the status, with fresh figures of the machine."""

    def do() -> Found:
        return Found(status=tools.call("GET", "/status", None, LOOK_S))

    return Job(Lane.LOOK, do)


def look_around(tools: Tools, *, connected: bool) -> Job:
    """Look at what changes rarely and is only seen in an open menu."""

    def do() -> Found:
        offers = None
        if connected:
            try:
                offers = tools.call("GET", "/catalogue", None, CATALOGUE_S)
            except errors.StokerError as error:
                log.info("no catalogue: %s", error)
        return Found(offers=offers, autostart=_autostart(tools))

    return Job(Lane.AROUND, do)


def _autostart(tools: Tools) -> dict[str, bool] | None:
    try:
        found = tools.autostart().status()
    except errors.StokerError as error:
        log.info("nothing is known of start at login: %s", error)
        return None
    return {part.value: state.enabled for part, state in found.items()}


def job(command: Command, state: State, tools: Tools) -> Job | None:
    """The job for a click in this state; None for what is no job, such as quitting."""
    make = _JOBS.get(command.verb)
    return None if make is None else make(command, state, tools)


def _use(command: Command, _state: State, tools: Tools) -> Job:
    hangup = Hangup()

    def do() -> Found:
        tools.call("POST", "/use", {"model": command.arg}, SWITCH_S, hangup=hangup)
        return NOTHING

    return Job(Lane.SWITCH, do, command, f"Switching to {command.arg}", hangup)


def _unload_all(command: Command, state: State, tools: Tools) -> Job:
    loaded = [model.id for model in state.models if model.state in _LOADED]
    hangup = Hangup()

    def do() -> Found:
        failed: list[errors.StokerError] = []
        for model in loaded:
            try:
                tools.call("POST", "/unload", {"model": model}, DRAIN_S, hangup=hangup)
            except (errors.DaemonNotRunning, errors.DaemonNotReady):
                raise
            except errors.StokerError as error:  # the others go all the same
                failed.append(error)
        if failed:
            raise failed[0]
        return NOTHING

    return Job(Lane.SWITCH, do, command, "Unloading", hangup)


def _pull(command: Command, _state: State, tools: Tools) -> Job:
    return _ask(command, tools, "/pulls", {"reference": command.arg})


def _pull_action(command: Command, _state: State, tools: Tools) -> Job:
    pull = quote(command.arg, safe="", errors="replace")
    return _ask(command, tools, f"/pulls/{pull}/{command.verb.value}")


def _server(command: Command, _state: State, tools: Tools) -> Job:
    on = command.arg == "on"
    busy = "Switching the server on" if on else "Switching the server off"
    job = _ask(command, tools, "/server", {"enabled": on}, DRAIN_S)
    return replace(job, lane=Lane.SERVER, busy=busy, ends_switch=not on)


def _free(command: Command, _state: State, tools: Tools) -> Job:
    job = _ask(command, tools, "/free", None, DRAIN_S)
    return replace(job, lane=Lane.SERVER, busy="Freeing memory")


def _ask(
    command: Command,
    tools: Tools,
    target: str,
    body: object = None,
    timeout_s: float = ASK_S,
) -> Job:
    """One call, whose outcome the daemon's events tell."""

    def do() -> Found:
        tools.call("POST", target, body, timeout_s)
        return NOTHING

    return Job(Lane.ASK, do, command)


def _copy_url(command: Command, _state: State, tools: Tools) -> Job:
    def do() -> Found:
        try:
            tools.copy(command.arg)
        except errors.StokerError as error:
            log.info("not copied: %s", error)
            return Found(notice=Notice("url", "Stoker's endpoint", command.arg))
        return NOTHING

    return Job(Lane.DESK, do, command)


def _switch_autostart(command: Command, _state: State, tools: Tools) -> Job:
    name = "daemon" if command.verb is Verb.AUTOSTART else "tray"

    def do() -> Found:
        from stoker_service.base import Part
        from stoker_service.program import check_owner

        manager = tools.autostart()
        check_owner(manager, tools.program())
        if command.arg == "on":
            manager.install((Part(name),), tools.wish())
        else:
            manager.uninstall((Part(name),))
        return Found(autostart=_autostart(tools))

    return Job(Lane.LOGIN, do, command, "Changing what starts at login")


def muted(command: Command, state: State) -> frozenset[str]:
    """The kinds of notices that are silent after this click."""
    if command.verb is Verb.MUTE:
        return state.muted | {command.arg}
    return state.muted - {command.arg} if command.verb is Verb.UNMUTE else state.muted


def _save_muted(command: Command, state: State, tools: Tools) -> Job:
    def do() -> Found:
        tools.save_muted(state.muted)
        return NOTHING

    return Job(Lane.DESK, do, command)


def _open(command: Command, _state: State, tools: Tools) -> Job:
    target = tools.logs if command.verb is Verb.OPEN_LOGS else RELEASES

    def do() -> Found:
        tools.open(target)
        return NOTHING

    return Job(Lane.OPEN, do, command)


def _start(command: Command, _state: State, tools: Tools) -> Job:
    def do() -> Found:
        tools.run((*tools.program().cli, "start"), START_S)
        return Found(reach=True)

    return Job(Lane.LIFE, do, command, "Starting Stoker")


def _stop(command: Command, _state: State, tools: Tools) -> Job:
    def do() -> Found:
        tools.run((*tools.program().cli, "stop"), STOP_S)
        return Found(leave=True)

    return Job(Lane.LIFE, do, command, "Stopping Stoker", ends_switch=True)


_JOBS: Final[Mapping[Verb, Callable[[Command, State, Tools], Job]]] = {
    Verb.USE: _use,
    Verb.UNLOAD_ALL: _unload_all,
    Verb.PULL: _pull,
    Verb.PAUSE: _pull_action,
    Verb.RESUME: _pull_action,
    Verb.CANCEL: _pull_action,
    Verb.SERVER: _server,
    Verb.FREE: _free,
    Verb.COPY_URL: _copy_url,
    Verb.AUTOSTART: _switch_autostart,
    Verb.AUTOSTART_TRAY: _switch_autostart,
    Verb.MUTE: _save_muted,
    Verb.UNMUTE: _save_muted,
    Verb.OPEN_LOGS: _open,
    Verb.OPEN_UPDATE: _open,
    Verb.START: _start,
    Verb.STOP: _stop,
}
