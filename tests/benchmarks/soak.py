"""Does the daemon stay as it was under hours of mixed use? Leaks of all kinds, and wrong answers.

    python -m tests.benchmarks.soak [--minutes N] [--clients N] [--seed N] [--json FILE]

Two real models of which one fits. Clients chat, stream, hang up and make mistakes; a user changes
models, unloads and pins; workers are killed and stopped; the server goes off and on; one program
listens to every event, another one never reads its own. From time to time everybody pauses, all
models are unloaded, and what is left is counted: processes, file descriptors, sockets, threads,
memory. Exits 1 when something grew, when an answer was wrong without a reason, or when the daemon
logged a fault. Linux only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Final

import psutil

from tests.benchmarks.soak_load import MODELS, Load
from tests.fakes.daemon import Daemon
from tests.fakes.gemma import gemma_path
from tests.fakes.starter import starter_path
from tests.fakes.two_models import SHAPE, room_for_one, stored

MIB: Final = 1 << 20
_POINTS: Final = 20  # looks at the idle daemon
_LEAST_POINTS: Final = 4
_LEAST_APART_S: Final = 30.0
_ENOUGH_POINTS: Final = 9  # to speak of a trend of memory
_PAUSE_S: Final = 240.0  # for everybody to finish: a wedged worker is found in the meantime
_GONE_S: Final = 60.0
_SETTLE_S: Final = 4.0  # connections close, threads that nobody needs end
_SPARE: Final = 2  # descriptors: a log that rotates, a connection that is being closed
_SPARE_THREADS: Final = 6  # a pool's threads end when they are not needed for ten seconds
_KEPT: Final = 256 * MIB  # of conversations on disk: little, so that old ones must make room
_GROWTH: Final = 5 * MIB  # over the judged part of the run; more is a trend


@dataclass(frozen=True, slots=True)
class Point:
    """The daemon when nobody wants anything of it and no model is loaded."""

    at_s: float
    processes: int  # below the daemon
    descriptors: int
    sockets: int
    threads: int
    rss_bytes: int
    busiest_rss_bytes: int  # since the point before
    worker_sockets: int  # files in the run folder
    conversations_bytes: int
    requests: int  # that ended so far


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong, in words; () when nothing is."""

    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()


def judge(points: Sequence[Point]) -> Verdict:
    """The first point warms up and is left out. Pure."""
    kept = points[1:]
    if len(kept) < 2:
        return Verdict(("too few looks to judge anything",))
    problems: list[str] = []
    third = max(1, len(kept) // 3)
    first, last = kept[:third], kept[-third:]
    left = max(point.processes for point in points)
    if left:
        problems.append(f"{left} processes were left when no model was loaded")
    if max(point.worker_sockets for point in points):
        problems.append("sockets of workers were left behind")
    if max(point.conversations_bytes for point in points) > _KEPT:
        problems.append("kept conversations take more than they may")
    for name, spare in (
        ("descriptors", _SPARE),
        ("sockets", _SPARE),
        ("threads", _SPARE_THREADS),
    ):
        before = max(getattr(point, name) for point in first)
        after = max(getattr(point, name) for point in last)
        if after > before + spare:
            problems.append(f"{name} grew from {before} to {after}")
    return _with_memory(kept, problems)


def _with_memory(kept: Sequence[Point], problems: list[str]) -> Verdict:
    if len(kept) < _ENOUGH_POINTS:
        return Verdict(tuple(problems), ("too short to judge the memory",))
    judged = kept[len(kept) // 3 :]
    slope = _slope([(point.at_s, point.rss_bytes) for point in judged])
    growth = slope * (judged[-1].at_s - judged[0].at_s)
    if growth > _GROWTH:
        problems.append(f"memory grew by {growth / MIB:.1f} MiB")
    note = f"memory: {slope * 3600 / MIB:+.2f} MiB an hour over the last {len(judged)} looks"
    return Verdict(tuple(problems), (note,))


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """The median of the slopes between all pairs (Theil and Sen): one odd point moves nothing."""
    return statistics.median((y - v) / (x - u) for (u, v), (x, y) in combinations(points, 2))


# --- looking ---------------------------------------------------------------------------------


class Watch:
    """Looks at the daemon's process."""

    def __init__(self, daemon: Daemon, load: Load) -> None:
        self._daemon = daemon
        self._load = load
        self._process = psutil.Process(daemon.pid)
        self._began = time.monotonic()
        self._busiest = 0

    def glance(self) -> None:
        """While it is busy."""
        self._busiest = max(self._busiest, self._process.memory_info().rss)

    def look(self) -> Point:
        """When it is idle."""
        folder = Path(f"/proc/{self._daemon.pid}/fd")
        links = [_target(link) for link in folder.iterdir()]
        places = self._daemon.paths
        kept = places.conversations
        busiest, self._busiest = self._busiest, 0
        return Point(
            at_s=round(time.monotonic() - self._began, 1),
            processes=len(self._daemon.workers()),
            descriptors=len(links),
            sockets=sum(link.startswith("socket:") for link in links),
            threads=self._process.num_threads(),
            rss_bytes=self._process.memory_info().rss,
            busiest_rss_bytes=busiest,
            worker_sockets=sum(1 for _ in places.run.glob("w-*.sock")),
            conversations_bytes=sum(f.stat().st_size for f in kept.rglob("*") if f.is_file()),
            requests=sum(self._load.journal.counts.values()),
        )


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""  # it was closed meanwhile


def calm(daemon: Daemon, load: Load) -> None:
    """Let everybody finish, and unload everything; what does not work is a finding."""
    if not load.gate.close(_PAUSE_S):
        load.journal.findings.append("not all requests ended when everybody should pause")
    with daemon.client() as client:
        client.server(enabled=True)
        for model in MODELS:
            client.pin(model, pinned=False)
            client.unload(model)
    deadline = time.monotonic() + _GONE_S
    while daemon.workers() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(_SETTLE_S)


def faults(daemon: Daemon) -> list[str]:
    """What the daemon logged that must never happen."""
    found = []
    for file in sorted(daemon.paths.log_file.parent.glob(f"{daemon.paths.log_file.name}*")):
        text = file.read_text(encoding="utf-8", errors="replace")
        found += [
            line for line in text.splitlines() if "level='error'" in line or "Traceback" in line
        ]
    return found


def left_of(home: Path) -> list[psutil.Process]:
    """Processes of this home, whoever their parent is now."""
    found = []
    for process in psutil.process_iter(["cwd", "environ"]):
        cwd, environ = process.info["cwd"] or "", process.info["environ"] or {}
        if environ.get("STOKER_HOME") == str(home) or Path(cwd).is_relative_to(home):
            found.append(process)
    return found


# --- the run ---------------------------------------------------------------------------------


def run(minutes: float, clients: int, seed: int) -> tuple[list[Point], Load, list[str]]:
    """The points, the load with its journal, and what else is wrong."""
    with _home() as (home, limit):
        daemon = Daemon(
            home,
            memory_limit_bytes=limit,
            drain_timeout_s=5,
            wait_timeout_s=100,
            load_timeout_s=60,
            max_queue=64,
            conversations_bytes=_KEPT,
            **SHAPE,
        )
        with daemon:
            load = Load(daemon, seed, clients, wedges=minutes >= 5)
            points = list(_watched(daemon, load, minutes * 60))
        wrong = [f"the daemon logged: {line[:300]}" for line in faults(daemon)[:20]]
        if not load.listener_ended():
            wrong.append("the stream of events did not end with the daemon")
        wrong += [f"left behind: {process}" for process in left_of(home)]
    return points, load, wrong


def _watched(daemon: Daemon, load: Load, seconds: float) -> Iterator[Point]:
    watch = Watch(daemon, load)
    count = max(_LEAST_POINTS, min(_POINTS, int(seconds / _LEAST_APART_S)))
    load.start()
    try:
        for number in range(count):
            until = time.monotonic() + seconds / count
            while time.monotonic() < until:
                time.sleep(1)
                watch.glance()
            calm(daemon, load)
            point = watch.look()
            show(point, load)
            yield point
            if number < count - 1:
                load.gate.open()
    finally:
        load.end(_PAUSE_S)


@contextmanager
def _home() -> Iterator[tuple[Path, int]]:
    with tempfile.TemporaryDirectory(prefix="soak", dir="/tmp") as folder:
        home = Path(folder).resolve()
        needs = stored(home, starter_path(), gemma_path())
        yield home, room_for_one(needs.values())


def show(point: Point, load: Load) -> None:
    print(
        f"{point.at_s:7.0f} s  {point.requests:6} ended  {len(load.journal.findings):3} findings"
        f"  {point.processes:2} processes {point.descriptors:4} fds {point.sockets:3} sockets"
        f" {point.threads:3} threads {point.rss_bytes / MIB:7.1f} MiB"
        f" ({point.busiest_rss_bytes / MIB:.1f} busy)"
        f" {point.conversations_bytes / MIB:6.1f} MiB kept"
    )
    journal = load.journal
    for finding in journal.findings[journal.told :]:
        print(f"          {finding}")
        journal.told += 1
    sys.stdout.flush()


def summary(load: Load) -> None:
    """What everybody did, and what came of it."""
    counts = load.journal.counts
    print("\nwhat became of requests and calls:")
    for what in sorted({name for name, _ in counts}):
        outcomes = {outcome: n for (name, outcome), n in counts.items() if name == what}
        print(f"  {what:12} " + ", ".join(f"{k} {n}" for k, n in sorted(outcomes.items())))
    print("events: " + ", ".join(f"{kind} {n}" for kind, n in load.events.most_common()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.soak")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    points, load, wrong = run(options.minutes, options.clients, options.seed)
    verdict = judge(points)
    summary(load)
    problems = [*verdict.problems, *load.journal.findings, *wrong]
    for line in (*verdict.notes, *problems):
        print(line)
    if options.json:
        report = {
            "points": [asdict(point) for point in points],
            "counts": {" ".join(key): n for key, n in load.journal.counts.items()},
            "notes": verdict.notes,
            "problems": problems,
        }
        options.json.write_text(json.dumps(report, indent=1))
    if problems:
        raise SystemExit(f"{len(problems)} problems")
    print("nothing leaked, and every answer had its reason")


if __name__ == "__main__":
    main()
