"""The loop between the daemon, the clicks and the icon: the only writer of the tray's state.

It sleeps in `select` until the daemon says something, somebody clicks, a job has ended or an alarm
is due. It never waits for anything else: slow things are jobs (`actions`), and an adapter's methods
return at once. Decisions are elsewhere: `state`, `view`, `notices`, `pace`.
"""

from __future__ import annotations

import contextlib
import logging
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, Protocol

from stoker import errors
from stoker_tray import actions, notices, pace, view
from stoker_tray.actions import Ended, Found, Job, Lane, Tools, Workers
from stoker_tray.face import Command, Face, Shell, Verb
from stoker_tray.pace import Alarm, Alarms
from stoker_tray.state import BadEvent, State, apply, parse_offers, parse_snapshot

log = logging.getLogger(__name__)

NOTE_S: Final = 60.0  # how long a failure stays in the menu
AGAIN_S: Final = 5.0  # between two looks at what changes rarely; some hosts open twice
_MOST_FAULTS: Final = 10  # of our own in a row; then it is better to end than to spin

QUIT_SIGNALS: Final[frozenset[signal.Signals]] = frozenset(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Stream(Protocol):
    """As `wire.EventStream`."""

    def fileno(self) -> int: ...
    def read(self) -> list[dict[str, Any]]: ...
    def close(self) -> None: ...


class Advice(Protocol):
    """Tells the user, once, why there is no icon."""

    def give(self, shell: Shell) -> None: ...
    def forget(self) -> None:
        """There is an icon now."""


class HasDescriptor(Protocol):
    def fileno(self) -> int: ...


Wait = Callable[[Sequence[HasDescriptor], float | None], Sequence[HasDescriptor]]


def readable(sources: Sequence[HasDescriptor], timeout_s: float | None) -> Sequence[HasDescriptor]:
    """Those that have something to read; waits for the first."""
    return select.select(sources, [], [], timeout_s)[0]


class Controller:
    """A `Listener`; its methods may be called on any thread, `run` on one of its own."""

    def __init__(
        self,
        *,
        tools: Tools,
        connect: Callable[[], Stream],
        advice: Advice,
        upgrade: Callable[[str], str | None],
        muted: frozenset[str] = frozenset(),
        grace_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        wait: Wait = readable,
    ) -> None:
        self.upgraded_to: str | None = None  # after `run`: start the program again for this
        self._tools, self._connect, self._advice = tools, connect, advice
        self._upgrade, self._grace_s = upgrade, grace_s
        self._clock, self._wait = clock, wait
        self._now_s = clock()  # of this turn
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake, self._bell = socket.socketpair()
        for end in (self._wake, self._bell):
            end.settimeout(0)
        self._is_rung = False  # the bell; full of our bytes, it would lose a signal's
        self._workers = Workers(lambda ended: self._post(partial(self._ended, ended)))
        self._alarms = Alarms()
        self._state = State(muted=muted)
        self._memory: notices.Memory | None = None
        self._shell: Shell
        self._stream: Stream | None = None
        self._excuse: str | None = None  # the note on a daemon that does not answer
        self._failures = 0  # to keep a connection, in a row
        self._opened_s = 0.0  # when the stream was
        self._heard = 0  # events until now
        self._heard_at_look = 0
        self._looked_around_s = float("-inf")
        self._advised = False
        self._face: Face | None = None
        self._is_stale = True  # the face, for the state
        self._read_after_s = float("-inf")
        self._show_after_s = self._now_s + pace.FACE_S  # a daemon that is there is heard by then
        self._over = False

    # --- the listener ------------------------------------------------------------------------

    def clicked(self, command: Command) -> None:
        self._post(partial(self._clicked, command))

    def opened(self) -> None:
        self._post(self._opened)

    def closed(self) -> None:
        self._post(self._closed)

    def hosted(self, *, visible: bool) -> None:
        self._post(partial(self._hosted, visible=visible))

    def quit(self) -> None:
        self._post(self._quit)

    @property
    def bell(self) -> int:
        """The descriptor for `signal.set_wakeup_fd`: a signal that ends programs ends `run`."""
        return self._bell.fileno()

    def _post(self, message: Callable[[], None]) -> None:
        self._inbox.append(message)
        if not self._is_rung:
            self._is_rung = True
            with contextlib.suppress(OSError):  # closed: it is over
                self._bell.send(b"\0")

    # --- the loop ----------------------------------------------------------------------------

    def run(self, shell: Shell) -> None:
        """Until something says quit."""
        self._shell = shell
        self._begin()
        faults = 0
        try:
            while not self._over:
                try:
                    self.turn()
                    faults = 0
                except Exception as error:  # a fault of ours must not freeze the icon
                    log.exception("a fault in the tray")
                    faults += 1
                    if faults > _MOST_FAULTS:
                        raise
                    self._lose(error)
        finally:
            self._drop_stream()

    def _begin(self) -> None:
        self._alarms.set(Alarm.CONNECT, self._now_s)
        self._alarms.set(Alarm.AROUND, self._now_s + pace.AROUND_S)

    def close(self) -> None:
        """After `run`. What is posted from now on is not heard."""
        self._bell.close()
        self._wake.close()

    def turn(self) -> None:
        """Sleep until something happens, and deal with all that has."""
        ready = self._wait(self._sources(), self._patience_s())
        self._now_s = self._clock()
        if self._wake in ready:
            self._hear_bell()
        if self._stream is not None and self._stream in ready:
            self._read(self._stream)
        while self._inbox and not self._over:
            self._inbox.popleft()()
        for alarm in self._alarms.ring(self._now_s):
            self._rang(alarm)
        self._show()

    def _sources(self) -> list[HasDescriptor]:
        """Events are let gather in their socket: a flood costs twenty wake-ups a second."""
        if self._stream is None or self._clock() < self._read_after_s:
            return [self._wake]
        return [self._wake, self._stream]

    def _patience_s(self) -> float | None:
        now_s = self._clock()
        times = [self._alarms.next_s()]
        if self._stream is not None and now_s < self._read_after_s:
            times.append(self._read_after_s)
        if self._is_stale:
            times.append(self._show_after_s)
        return min((max(0.0, at_s - now_s) for at_s in times if at_s is not None), default=None)

    def _hear_bell(self) -> None:
        with contextlib.suppress(BlockingIOError):
            rung = self._wake.recv(4096)
            self._over = self._over or not QUIT_SIGNALS.isdisjoint(rung)
        self._is_rung = False  # the inbox is emptied after this

    def _rang(self, alarm: Alarm) -> None:
        match alarm:
            case Alarm.CONNECT:
                self._reach()
            case Alarm.SILENCE:
                self._lose(errors.DaemonNotReady("the daemon says nothing"))
            case Alarm.TICK:
                self._is_stale = True
            case Alarm.LOOK:
                self._look()
            case Alarm.AROUND:
                self._look_around()
            case Alarm.MENU:
                self._closed()
            case Alarm.HOST:
                self._advised = True
                self._advice.give(self._shell)

    # --- the daemon --------------------------------------------------------------------------

    def _reach(self) -> None:
        if self._stream is not None:
            return
        try:
            self._stream = self._connect()
        except errors.StokerError as error:
            self._lose(error)
            return
        self._opened_s = self._now_s
        self._alarms.clear(Alarm.CONNECT)
        self._alarms.set(Alarm.SILENCE, self._now_s + pace.SNAPSHOT_S)

    def _lose(self, why: Exception) -> None:
        """No connection any more, or none yet: try again later."""
        if self._state.connected:
            log.info("the daemon is gone: %s", why)
            if self._now_s - self._opened_s >= pace.STEADY_S:
                self._failures = 0
        self._drop_stream()
        self._alarms.clear(Alarm.SILENCE)
        self._alarms.set(Alarm.CONNECT, self._now_s + pace.retry_s(self._failures))
        self._failures += 1
        state = self._without_excuse(State.disconnected(self._state))
        if isinstance(why, errors.DaemonNotReady):  # it is there: to start it would not help
            state = self._noted(state, why)
            self._excuse = state.note
        self._become(state, told=True)

    def _without_excuse(self, state: State) -> State:
        if state.note is None or state.note != self._excuse:
            return state
        return replace(state, note=None, note_until_s=None)

    def _drop_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _read(self, stream: Stream) -> None:
        was_connected = self._state.connected
        try:
            events = stream.read()
            for event in events:
                self._become(apply(self._state, event, self._now_s))
        except (errors.StokerError, BadEvent) as error:
            self._lose(error)
            return
        if events:
            self._heard += len(events)
            self._read_after_s = self._now_s + pace.READ_S
            if not self._state.connected:
                if was_connected:  # it left in order
                    self._failures = 0
                self._lose(errors.DaemonNotRunning("it said goodbye, or no welcome"))
                return
        if self._state.connected:
            self._alarms.set(Alarm.SILENCE, self._now_s + pace.SILENCE_S)
            if not was_connected:
                self._welcome()

    def _welcome(self) -> None:
        """The daemon is there, perhaps another one than before."""
        is_open = Alarm.MENU in self._alarms
        self._alarms.set(Alarm.AROUND, self._now_s + (0 if is_open else pace.AROUND_S))
        self._become(self._without_excuse(self._state))
        if self._state.daemon is not None:
            self.upgraded_to = self._upgrade(self._state.daemon.version)
            self._over = self._over or self.upgraded_to is not None

    # --- the menu ----------------------------------------------------------------------------

    def _opened(self) -> None:
        self._alarms.set(Alarm.MENU, self._now_s + pace.MENU_S)
        if self._stream is None:
            self._alarms.set(Alarm.CONNECT, self._now_s)
        self._look()
        if self._now_s - self._looked_around_s >= AGAIN_S:
            self._look_around()

    def _look_around(self) -> None:
        if not self._workers.is_free(Lane.AROUND):  # it may look at what was there before
            self._alarms.set(Alarm.AROUND, self._now_s + pace.AROUND_S)
            return
        self._looked_around_s = self._now_s
        self._alarms.clear(Alarm.AROUND)
        self._workers.start(actions.look_around(self._tools, connected=self._state.connected))

    def _closed(self) -> None:
        self._alarms.clear(Alarm.MENU, Alarm.LOOK)

    def _look(self) -> None:
        """Ask for fresh figures now, and again in a second."""
        self._alarms.set(Alarm.LOOK, self._now_s + pace.LOOK_S)
        if self._state.connected and self._workers.is_free(Lane.LOOK):
            self._heard_at_look = self._heard
            self._workers.start(actions.look(self._tools))

    def _hosted(self, *, visible: bool) -> None:
        if visible:
            self._alarms.clear(Alarm.HOST)
            self._advice.forget()
        elif not self._advised and Alarm.HOST not in self._alarms:
            self._alarms.set(Alarm.HOST, self._now_s + self._grace_s)

    # --- clicks and jobs ---------------------------------------------------------------------

    def _clicked(self, command: Command) -> None:
        if command.verb is Verb.QUIT:
            self._quit()
            return
        muted = actions.muted(command, self._state)
        self._become(replace(self._state, muted=muted, note=None, note_until_s=None))
        job = actions.job(command, self._state, self._tools)
        if job is not None:
            self._workers.start(job)
            self._become(replace(self._state, busy=self._workers.busy))

    def _quit(self) -> None:
        self._over = True

    def _ended(self, ended: Ended) -> None:
        if not self._workers.ended(ended.job):
            return
        if ended.error is not None:
            self._failed(ended.job, ended.error)
        self._become(self._with(replace(self._state, busy=self._workers.busy), ended.found))
        if ended.found.notice is not None:
            self._shell.notify(ended.found.notice)
        if ended.found.reach:
            self._alarms.set(Alarm.CONNECT, self._now_s)
        self._over = self._over or ended.found.leave

    def _failed(self, job: Job, error: errors.StokerError) -> None:
        log.warning("%s failed: %s", job.name, error)
        if job.command is not None:
            self._become(self._noted(self._state, error))
        elif job.lane is Lane.LOOK and isinstance(error, errors.DaemonNotReady):
            self._lose(error)  # a stopped process keeps its connections

    def _noted(self, state: State, error: errors.StokerError) -> State:
        note = f"{error.message}. {error.hint}"
        return replace(state, note=note, note_until_s=self._now_s + NOTE_S)

    def _with(self, state: State, found: Found) -> State:
        """With what a job has found; without what the daemon said that makes no sense."""
        if found.autostart is not None:
            daemon, tray = found.autostart.get("daemon"), found.autostart.get("tray")
            state = replace(state, autostart=daemon, autostart_tray=tray)
        try:
            if found.offers is not None:
                state = replace(state, offers=parse_offers(found.offers))
            if found.status is not None and state.connected:
                now = parse_snapshot(found.status, state, self._now_s)
                # Events that came meanwhile may be newer than the answer, except for its figures.
                is_newest = self._heard == self._heard_at_look
                state = now if is_newest else replace(state, resources=now.resources)
        except BadEvent as error:
            log.warning("the daemon's answer makes no sense: %s", error)
        return state

    # --- the icon ----------------------------------------------------------------------------

    def _become(self, state: State, *, told: bool = False) -> None:
        """The only place that changes the state. `told`: a new note is no news."""
        before, self._state = self._state, state
        if state == before:
            return
        self._is_stale = True
        if told:
            before = replace(before, note=state.note)
        news, self._memory = notices.notices(before, state, self._now_s, self._memory)
        for notice in news:
            self._shell.notify(notice)

    def _show(self) -> None:
        if not self._is_stale or self._now_s < self._show_after_s:
            return
        self._is_stale = False
        face = view.face(self._state, self._now_s)
        if face != self._face:
            self._face = face
            self._show_after_s = self._now_s + pace.FACE_S
            self._shell.show(face)
        next_s = view.next_look_s(self._state, self._now_s)
        self._alarms.clear(Alarm.TICK)
        if next_s is not None:
            self._alarms.set(Alarm.TICK, self._now_s + max(pace.FACE_S, next_s))
