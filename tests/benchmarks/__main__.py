"""What the daemon costs, as ratios against the bare engine in the same run.

    python -m tests.benchmarks [--rounds N] [--idle SECONDS] [--json FILE]
    python -m tests.benchmarks tuning|memory|runtimes|… [its options]

Both sides are interleaved and medians are compared, because machines are noisy. Exits 0 whatever
the figures are: budgets are read by people, not asserted on a shared machine. The second form is
``python -m tests.benchmarks.NAME``; docs/benchmarks.md tells what each is for.
"""

from __future__ import annotations

import argparse
import json
import runpy
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import psutil

from stoker.store.store import Store
from tests.benchmarks.bare import RecordingDaemon, start_s
from tests.benchmarks.streams import ask, together
from tests.fakes.daemon import Daemon
from tests.fakes.starter import starter_path

TOKENS = 96
_OTHERS = (
    "tuning",
    "memory",
    "runtimes",
    "latency_tuning",
    "tray",
    "switching",
    "conversations",
    "soak",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report; `ratio` is ours over theirs where there is a 'theirs'."""

    what: str
    ours: float
    theirs: float | None
    unit: str
    budget: str

    @property
    def ratio(self) -> float | None:
        return self.ours / self.theirs if self.theirs else None


def throughput(daemon: RecordingDaemon, rounds: int) -> list[Row]:
    endpoint, direct = daemon.targets()
    rows = []
    for streams, budget in ((1, "≥ 0.98"), (4, "≥ 0.97"), (8, "≥ 0.97")):
        prompts = [f"Write story number {n} about the sea." for n in range(streams)]
        ours, theirs = _interleave(
            partial(together, endpoint, prompts, TOKENS),
            partial(together, direct, prompts, TOKENS),
            rounds,
        )
        rows.append(
            Row(
                f"tokens/s, {streams} streams",
                statistics.median(ours),
                statistics.median(theirs),
                "tokens/s",
                budget,
            )
        )
    return rows


def first_token(daemon: RecordingDaemon, rounds: int) -> list[Row]:
    endpoint, direct = daemon.targets()
    ours, theirs = _interleave(
        lambda: ask(endpoint, "Say hello.", 4).first_s * 1000,
        lambda: ask(direct, "Say hello.", 4).first_s * 1000,
        rounds * 8,
    )
    rows = []
    for name, at, budget in (("p50", 49, "≤ 3 ms more"), ("p95", 94, "≤ 8 ms more")):
        mine = statistics.quantiles(ours, n=100)[at]
        bare = statistics.quantiles(theirs, n=100)[at]
        rows.append(Row(f"time to first token, {name}", mine, bare, "ms", budget))
    return rows


def load_time(daemon: RecordingDaemon, rounds: int) -> list[Row]:
    record = daemon.record.read_text()

    def ours() -> float:
        with daemon.client() as client:
            client.unload("starter")
            start = time.perf_counter()
            client.load("starter")
            return time.perf_counter() - start

    mine, theirs = _interleave(ours, partial(start_s, record), rounds)
    return [
        Row("load", statistics.median(mine), statistics.median(theirs), "s", "≤ 1.10"),
    ]


def verification(daemon: RecordingDaemon, rounds: int) -> list[Row]:
    store = Store(daemon.paths.store)
    store.open()
    manifest = store.find("starter")
    blob = store.path(manifest.files[0].digest)
    megabytes = manifest.size_bytes / 1e6

    def ours() -> float:
        start = time.perf_counter()
        results = list(store.verify(manifest, lambda _: None, lambda: False))
        assert all(result.ok for result in results)
        return megabytes / (time.perf_counter() - start)

    def openssl() -> float:
        start = time.perf_counter()
        subprocess.run(
            ["openssl", "dgst", "-sha256", str(blob)], check=True, stdout=subprocess.DEVNULL
        )
        return megabytes / (time.perf_counter() - start)

    mine, theirs = _interleave(ours, openssl, rounds)
    return [
        Row("verification", statistics.median(mine), statistics.median(theirs), "MB/s", "≥ 0.90")
    ]


def idle(home: Path, seconds: float) -> list[Row]:
    start = time.perf_counter()
    with Daemon(home, restore_last="false") as daemon:
        ready = time.perf_counter() - start
        process = psutil.Process(daemon.pid)
        time.sleep(2)  # start-up work is over
        before = sum(process.cpu_times()[:2])
        time.sleep(seconds)
        percent = (sum(process.cpu_times()[:2]) - before) / seconds * 100
        memory = process.memory_info().rss / 2**20
    return [
        Row("ready after start", ready, None, "s", "≤ 1.5 s"),
        Row("idle memory, no model", memory, None, "MiB RSS", "≤ 70 MB"),
        Row(f"idle CPU over {seconds:.0f} s", percent, None, "%", "≤ 0.1 %"),
    ]


def _interleave(
    ours: Callable[[], float], theirs: Callable[[], float], rounds: int
) -> tuple[list[float], list[float]]:
    ours()  # warm both sides up
    theirs()
    pairs = [(ours(), theirs()) if n % 2 else (theirs(), ours())[::-1] for n in range(rounds)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _print(rows: list[Row]) -> None:
    print(f"{'what':34} {'stoker':>10} {'bare':>10} {'ratio':>7}  {'unit':9} budget")
    for row in rows:
        theirs = f"{row.theirs:10.3f}" if row.theirs is not None else " " * 10
        ratio = f"{row.ratio:7.3f}" if row.ratio is not None else " " * 7
        print(f"{row.what:34} {row.ours:10.3f} {theirs} {ratio}  {row.unit:9} {row.budget}")


def main() -> None:
    # Whoever ends it, also by `kill` or `timeout`, ends the servers that it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if len(sys.argv) > 1 and sys.argv[1] in _OTHERS:
        name = f"{__package__}.{sys.argv.pop(1)}"
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        return
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--idle", type=float, default=60, help="seconds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = starter_path()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="sb") as folder:
        home = Path(folder)
        with RecordingDaemon(home, tune="false") as daemon:
            daemon.add(model, "starter")
            with daemon.client() as client:
                client.load("starter")
            rows += throughput(daemon, options.rounds)
            rows += first_token(daemon, options.rounds)
            rows += load_time(daemon, options.rounds)
            rows += verification(daemon, options.rounds)
        rows += idle(home, options.idle)
    _print(rows)
    if options.json:
        report = [{**asdict(row), "ratio": row.ratio} for row in rows]
        options.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
