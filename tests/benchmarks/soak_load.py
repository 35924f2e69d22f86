"""Who uses the daemon in a soak: clients of the endpoint, a user who changes models, and mishaps.

Everything that ends otherwise than it should is held against what was done to the daemon at that
time; what nothing explains is a finding.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import httpx2
import psutil

from stoker import transport
from stoker.client import StokerClient
from stoker.errors import MemoryShort, StokerError
from stoker.schemas_machine import PlanRequest
from tests.fakes.asking import question
from tests.fakes.daemon import Daemon

MODELS: Final = ("starter", "gemma")
GOOD: Final = "ok"
_ANSWER_S: Final = 120.0
# So long after a mishap may something still fail for it: a wedged worker is found after 30 s, and
# one that crashed again and again is not started for 15 s.
_REACH_S: Final = 60.0
_MOST_FINDINGS: Final = 40
_SESSION: Final = 40  # requests over one client's connections
_HELD_S: Final = 20.0  # how long somebody listens to events without reading them
_AWAY: Final = frozenset({"refused", "server_off"})

# What may become of a request or a call, and which mishap explains it.
_WORKER: Final = frozenset({"kill", "wedge", "off"})
EXPLAINED: Final[Mapping[str, frozenset[str]]] = {
    "worker_lost": _WORKER,
    "worker_failed": _WORKER,
    "cut": _WORKER,
    "server_off": frozenset({"off"}),
    "refused": frozenset({"off"}),
    "capacity": frozenset({"unload", "off"}),
    "memory_short": frozenset({"pin"}),
    "wait_timeout": frozenset({"pin", "wedge"}),
}


class Gate:
    """Everybody works inside it; from time to time it is closed, to look at an idle daemon."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._open = True
        self.ended = False

    @property
    def is_open(self) -> bool:
        return self._open and not self.ended

    @contextmanager
    def entered(self) -> Iterator[bool]:
        """Whether one may work in the block."""
        with self._changed:
            may = self.is_open
            self._inside += may
        try:
            yield may
        finally:
            with self._changed:
                self._inside -= may
                self._changed.notify_all()

    def wait(self) -> None:
        """Until it is open, or for a second."""
        with self._changed:
            self._changed.wait_for(lambda: self._open, 1)

    def close(self, timeout_s: float) -> bool:
        """Whether everybody left in that time."""
        with self._changed:
            self._open = False
            return self._changed.wait_for(lambda: not self._inside, timeout_s)

    def open(self) -> None:
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def end(self) -> None:
        """Nobody may work any more."""
        self.ended = True


@dataclass
class Journal:
    """What happened, by kind; and what should not have happened."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    told: int = 0  # findings that were printed
    _mishaps: list[tuple[str, float, float | None]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def mishap(self, kind: str) -> Iterator[None]:
        """Something is done to the daemon in the block that others may feel."""
        with self._lock:
            number = len(self._mishaps)
            self._mishaps.append((kind, time.monotonic(), None))
        try:
            yield
        finally:
            with self._lock:
                _, began, _ = self._mishaps[number]
                self._mishaps[number] = (kind, began, time.monotonic())

    def ended(self, what: str, outcome: str, began: float, detail: str = "") -> None:
        """A request or a call that began then has ended so."""
        with self._lock:
            self.counts[what, outcome] += 1
            if outcome == GOOD or self._explained(outcome, began):
                return
            if len(self.findings) < _MOST_FINDINGS:
                stamp = time.strftime("%H:%M:%S")
                took = time.monotonic() - began
                self.findings.append(f"{stamp} {what}: {outcome} after {took:.1f} s {detail:.300}")

    def _explained(self, outcome: str, began: float) -> bool:
        kinds = EXPLAINED.get(outcome, frozenset())
        return any(
            kind in kinds and (end is None or end + _REACH_S >= began)
            for kind, _, end in reversed(self._mishaps)
        )


class Load:
    """Threads that use the daemon until the gate is ended. Use it in a `with` block."""

    def __init__(self, daemon: Daemon, seed: int, clients: int, *, wedges: bool) -> None:
        self.gate = Gate()
        self.journal = Journal()
        self.events: Counter[str] = Counter()
        self._daemon = daemon
        self._base_url = daemon.base_url
        self._wedges = wedges
        roles = [(f"client {number}", self._client) for number in range(clients)]
        roles += [("user", self._user), ("mishaps", self._mishaps), ("sleeper", self._sleeper)]
        self.threads = [
            threading.Thread(target=self._play, args=(role, f"{seed} {name}"), name=name)
            for name, role in roles
        ]
        self._listener = threading.Thread(target=self._listen, name="listener", daemon=True)

    def start(self) -> None:
        self._listener.start()
        for thread in self.threads:
            thread.start()

    def end(self, timeout_s: float) -> None:
        """Nobody works any more; who does not end is a finding."""
        self.gate.end()
        self.gate.open()
        deadline = time.monotonic() + timeout_s
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self.journal.findings.append(f"{thread.name} did not end")

    def listener_ended(self) -> bool:
        """After the daemon's end: whether the stream of events ended, too."""
        self._listener.join(30)
        return not self._listener.is_alive()

    def _play(self, role: Callable[[random.Random], None], seed: str) -> None:
        try:
            role(random.Random(seed))  # noqa: S311  # not a secret
        except Exception as error:  # noqa: BLE001  # a thread's end must not go unnoticed
            self.journal.findings.append(f"{threading.current_thread().name} broke: {error!r}")

    # --- clients of the endpoint -------------------------------------------------------------

    def _client(self, dice: random.Random) -> None:
        kinds = {
            self._complete: 30,
            self._chat: 20,
            self._stream: 20,
            self._hang_up: 12,
            self._long: 5,
            self._short_lived: 4,
            self._mistake: 6,
            self._look: 6,
        }
        while not self.gate.ended:
            self.gate.wait()
            with httpx2.Client(timeout=_ANSWER_S, trust_env=False) as client:
                for _ in range(_SESSION):
                    with self.gate.entered() as may:
                        if not may:
                            break
                        (act,) = dice.choices(list(kinds), list(kinds.values()))
                        outcome = self._do(act.__name__.strip("_"), partial(act, client, dice))
                    # Who is refused asks again, but not at once.
                    time.sleep(dice.uniform(0, 2 if outcome in _AWAY else 0.3))

    def _do(self, what: str, act: Callable[[], str]) -> str:
        began, detail = time.monotonic(), ""
        try:
            outcome = act()
        except (httpx2.ConnectError, ConnectionRefusedError) as error:
            outcome, detail = "refused", str(error)
        except httpx2.TimeoutException as error:
            outcome, detail = "no answer in time", repr(error)
        except (httpx2.HTTPError, ConnectionError) as error:
            outcome, detail = "cut", repr(error)
        except StokerError as error:
            outcome, detail = error.code, error.message
        outcome, _, more = outcome.partition(": ")
        self.journal.ended(what, outcome, began, more or detail)
        return outcome

    def _complete(self, client: httpx2.Client, dice: random.Random) -> str:
        body = question(dice.choice(MODELS), dice.randint(1, 40))
        return _outcome(client.post(f"{self._base_url}/completions", json=body))

    def _chat(self, client: httpx2.Client, dice: random.Random) -> str:
        messages = [{"role": "user", "content": f"Tell me about the number {dice.random()}."}]
        body = {"model": "starter", "messages": messages, "max_tokens": dice.randint(1, 60)}
        return _outcome(client.post(f"{self._base_url}/chat/completions", json=body))

    def _stream(self, client: httpx2.Client, dice: random.Random) -> str:
        return self._read(client, dice, dice.randint(10, 150), None)

    def _hang_up(self, client: httpx2.Client, dice: random.Random) -> str:
        return self._read(client, dice, 1500, dice.randint(0, 30))

    def _read(
        self, client: httpx2.Client, dice: random.Random, tokens: int, most: int | None
    ) -> str:
        """Stream so many tokens, and go away after some lines of it."""
        body = question(dice.choice(MODELS), tokens, stream=True)
        seen, whole = 0, False
        with client.stream("POST", f"{self._base_url}/completions", json=body) as answer:
            if answer.status_code != httpx2.codes.OK:
                answer.read()
                return _outcome(answer)
            for line in answer.iter_lines():
                if '"error"' in line[:60]:
                    return _code(line.partition(": ")[2])
                whole = whole or line == "data: [DONE]"
                seen += line.startswith("data: ")
                if most is not None and seen >= most:
                    return GOOD
        return GOOD if whole else "cut: without an end"

    def _long(self, client: httpx2.Client, dice: random.Random) -> str:
        prompt = " ".join(str(dice.randint(0, 99)) for _ in range(500))
        body = question("starter", 4, prompt=prompt)
        return _outcome(client.post(f"{self._base_url}/completions", json=body))

    def _short_lived(self, client: httpx2.Client, dice: random.Random) -> str:
        body = question(dice.choice(MODELS), 4, keep_alive=dice.choice((0, 3, "2s")))
        return _outcome(client.post(f"{self._base_url}/completions", json=body))

    def _mistake(self, client: httpx2.Client, dice: random.Random) -> str:
        body, code = dice.choice(
            (
                (question("no-such-model", 4), "model_not_found"),
                ({"model": "starter", "prompt": 7}, "bad_request"),
                (question("starter", 4, prompt="long " * 5000), "context_length_exceeded"),
            )
        )
        found = _outcome(client.post(f"{self._base_url}/completions", json=body))
        return GOOD if found.partition(": ")[0] == code else found

    def _look(self, client: httpx2.Client, dice: random.Random) -> str:
        root = self._base_url.removesuffix("/v1")
        return _outcome(client.get(root + dice.choice(("/v1/models", "/metrics", "/health"))))

    # --- the user ----------------------------------------------------------------------------

    def _user(self, dice: random.Random) -> None:
        kinds = {
            self._use: 8,
            self._load: 3,
            self._unload: 3,
            self._free: 2,
            self._pin: 2,
            self._ask: 4,
        }
        with self._daemon.client() as client:
            while not self.gate.ended:
                self.gate.wait()
                with self.gate.entered() as may:
                    if may:
                        (act,) = dice.choices(list(kinds), list(kinds.values()))
                        name = act.__name__.strip("_")
                        self._do(name, partial(act, client, dice.choice(MODELS)))
                self._rest(dice.uniform(1, 6))

    def _use(self, client: StokerClient, model: str) -> str:
        client.use(model)
        return GOOD

    def _load(self, client: StokerClient, model: str) -> str:
        client.load(model, keep_alive_s=60)
        return GOOD

    def _unload(self, client: StokerClient, model: str) -> str:
        with self.journal.mishap("unload"):
            client.unload(model)
        return GOOD

    def _free(self, client: StokerClient, model: str) -> str:
        _ = model
        client.free()
        return GOOD

    def _pin(self, client: StokerClient, model: str) -> str:
        """For a while nobody gets the other one."""
        with self.journal.mishap("pin"):
            client.pin(model, pinned=True)
            try:
                self._rest(5)
            finally:
                client.pin(model, pinned=False)
        return GOOD

    def _ask(self, client: StokerClient, model: str) -> str:
        client.status()
        client.models()
        with contextlib.suppress(MemoryShort):  # beside what is loaded now; a load would evict
            client.plan(PlanRequest(model=model))
        return GOOD

    # --- mishaps -----------------------------------------------------------------------------

    def _mishaps(self, dice: random.Random) -> None:
        kinds = {self._kill: 6, self._off: 3, self._wedge: 1 if self._wedges else 0}
        while not self.gate.ended:
            self._rest(dice.uniform(6, 25))
            self.gate.wait()
            with self.gate.entered() as may:
                if may:
                    (act,) = dice.choices(list(kinds), list(kinds.values()))
                    self._do(act.__name__.strip("_"), partial(act, dice))

    def _kill(self, dice: random.Random) -> str:
        with self.journal.mishap("kill"):
            self._signal(dice, signal.SIGKILL)
        return GOOD

    def _wedge(self, dice: random.Random) -> str:
        """Its process stands still until the daemon finds that out, and ends it."""
        with self.journal.mishap("wedge"):
            process = self._signal(dice, signal.SIGSTOP)
            if process is not None:
                psutil.wait_procs([process], timeout=_REACH_S)
        return GOOD

    def _off(self, dice: random.Random) -> str:
        with self.journal.mishap("off"), self._daemon.client() as client:
            client.server(enabled=False)
            self._rest(dice.uniform(0, 4))
            client.server(enabled=True)
        return GOOD

    def _signal(self, dice: random.Random, number: signal.Signals) -> psutil.Process | None:
        """To one of the workers, if there is one."""
        known = {process.pid: process for process in self._daemon.workers()}
        workers = [model.pid for model in self._daemon.status().models if model.pid in known]
        if not workers:
            return None
        pid = dice.choice(workers)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return known[pid]

    # --- listeners ---------------------------------------------------------------------------

    def _listen(self) -> None:
        """As a tray does that shows its menu all the time."""
        try:
            with self._daemon.client() as client:
                for event in client.events():
                    self.events[event.type] += 1
        except StokerError as error:
            self.journal.findings.append(f"the stream of events broke: {error.message}")

    def _sleeper(self, dice: random.Random) -> None:
        """Asks for events and reads none, as a suspended program does; then it goes away."""
        while not self.gate.ended:
            self.gate.wait()
            with self.gate.entered() as may:
                if may:
                    self._do("sleep", partial(self._sleep, dice))

    def _sleep(self, dice: random.Random) -> str:
        route = transport.find(self._daemon.paths.control_socket)
        extra = "".join(f"{name}: {value}\r\n" for name, value in route.headers.items())
        with route.connect(10) as peer:
            peer.sendall(f"GET /events HTTP/1.1\r\nHost: {route.host}\r\n{extra}\r\n".encode())
            self._rest(dice.uniform(0.1, _HELD_S))
        return GOOD

    def _rest(self, seconds: float) -> None:
        """Unless the gate is closed."""
        deadline = time.monotonic() + seconds
        while self.gate.is_open and time.monotonic() < deadline:
            time.sleep(0.1)


def _outcome(answer: httpx2.Response) -> str:
    if answer.status_code == httpx2.codes.OK:
        return GOOD
    return _code(answer.text)


def _code(text: str) -> str:
    """`CODE: the text that it stands in`."""
    error: Any = None
    with contextlib.suppress(ValueError, AttributeError):
        error = httpx2.Response(200, text=text).json().get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return f"{code}: {text[:200]}"
