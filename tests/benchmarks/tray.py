"""What the tray costs while nobody looks at it, connected to the real daemon and a panel.

    python -m tests.benchmarks.tray [--minutes N] [--json FILE]

A model is loaded and ready, the menu was used once and is closed. Exits 0 whatever the figures
are: budgets are read by people, not asserted on a shared machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from tests.fakes.daemon import Daemon
from tests.fakes.desktop_programs import wait_until
from tests.fakes.desktop_session import Session
from tests.fakes.starter import starter_path
from tests.fakes.tray_host import TrayHost

SETTLE_S = 15.0  # start-up work is over, and the daemon's first samples are taken
ALONE_PART = 0.2  # of the time: the daemon without a tray, to compare
LOOK_S = 5.0  # as long as a person looks at the menu
SAMPLES = 20  # of the memory, over the time


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process took over the time."""

    what: str
    cpu_percent: float
    rss_mb: float  # the highest of the samples
    unique_mb: float  # what would be free without this process, at the end
    wakeups_per_minute: float
    cpu_budget_percent: float
    rss_budget_mb: float


@dataclass(frozen=True, slots=True)
class _Subject:
    what: str
    process: psutil.Process
    cpu_budget_percent: float
    rss_budget_mb: float


def measure(subjects: list[_Subject], seconds: float) -> list[Usage]:
    """Watch all of them for so long."""
    before = [(_cpu_s(one.process), _wakeups(one.process)) for one in subjects]
    highest = [0] * len(subjects)
    start = time.monotonic()
    for _ in range(SAMPLES):
        time.sleep(seconds / SAMPLES)
        for n, one in enumerate(subjects):
            highest[n] = max(highest[n], one.process.memory_info().rss)
    elapsed = time.monotonic() - start
    return [
        Usage(
            what=one.what,
            cpu_percent=(_cpu_s(one.process) - cpu) / elapsed * 100,
            rss_mb=rss / 1e6,
            unique_mb=one.process.memory_full_info().uss / 1e6,
            wakeups_per_minute=(_wakeups(one.process) - wakeups) / elapsed * 60,
            cpu_budget_percent=one.cpu_budget_percent,
            rss_budget_mb=one.rss_budget_mb,
        )
        for one, (cpu, wakeups), rss in zip(subjects, before, highest, strict=True)
    ]


def _cpu_s(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


def _wakeups(process: psutil.Process) -> int:
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    lines = [line for task in tasks for line in (task / "status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))


def _print(rows: list[Usage], minutes: float) -> None:
    print(f"over {minutes:g} minutes, menu closed; the daemon holds a ready model")
    print(f"{'process':13} {'CPU %':>8} {'budget':>7} {'RSS MB':>8} {'budget':>7} {'unique MB':>10}"
          f" {'wake-ups/min':>13}")  # fmt: skip
    for row in rows:
        print(f"{row.what:13} {row.cpu_percent:8.4f} {row.cpu_budget_percent:7.2f}"
              f" {row.rss_mb:8.1f} {row.rss_budget_mb:7.0f} {row.unique_mb:10.1f}"
              f" {row.wakeups_per_minute:13.1f}")  # fmt: skip


def run(minutes: float) -> list[Usage]:
    """Start everything, use the menu once, let it settle, watch it."""
    with (
        tempfile.TemporaryDirectory(prefix="st") as folder,
        Session(Path(folder) / "artefacts") as session,
        Daemon(Path(folder) / "home", tune="false") as daemon,
        TrayHost(session.bus) as host,
    ):
        daemon.add(starter_path(), "starter")
        with daemon.client() as client:
            client.load("starter")
        server = psutil.Process(daemon.pid)
        time.sleep(SETTLE_S)
        alone = measure([_Subject("daemon alone", server, 0.1, 70)], minutes * 60 * ALONE_PART)
        tray = session.start_tray(daemon.home)
        host.wait_for_item()
        wait_until(lambda: "Add model" in (line.label for line in host.menu()), "a whole menu")
        host.open_menu()
        time.sleep(LOOK_S)
        host.close_menu()
        time.sleep(SETTLE_S)
        subjects = [_Subject("tray", tray, 0.1, 30), _Subject("daemon", server, 0.1, 70)]
        return alone + measure(subjects, minutes * 60)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.tray")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = run(options.minutes)
    _print(rows, options.minutes)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
