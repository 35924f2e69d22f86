"""A real daemon with a real model where there is less than the machine has.

Threads follow the limits, memory that does not suffice is refused with numbers, and the kernel
never has to kill anything. Where this machine lets nobody set limits, the tests say so and skip.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from stoker.errors import MemoryShort
from stoker.hardware.probe import probe
from tests.fakes.daemon import Daemon
from tests.fakes.limits import Group, LimitsMissing, drop_cache, on_cpus, with_ulimit

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="limits are Linux's"),
]

MIB = 1024 * 1024
GIB = 1024 * MIB
ROOM = 4 * GIB  # more than the starter can use
ANSWER_S = 300.0  # a cold load, the self-test and an answer on a busy machine
TWO_CPUS = 2
RUNS = 12
LEAST, MOST = 0.4, 2.0  # of the need


@contextmanager
def running(home: Path, starter: Path, command: Any, **settings: object) -> Iterator[Daemon]:
    """A daemon started through `command`, with the starter in its store."""
    daemon = Daemon(home, log_level="debug", **settings)
    daemon.command = command(daemon.command)
    with daemon:
        daemon.add(starter, "starter")
        yield daemon


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))
    yield folder / "h"
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def limited(**limits: Any) -> Iterator[Group]:
    try:
        with Group(**limits) as group:
            yield group
    except LimitsMissing as error:
        pytest.skip(str(error))


def engine_threads(daemon: Daemon) -> set[int]:
    """What the engines themselves said that they use."""
    text = daemon.paths.log_file.read_text(encoding="utf-8", errors="replace")
    return {int(found) for found in re.findall(r"\bn_threads = (\d+)", text)}


def ask(base_url: str, words: int) -> httpx2.Response:
    body = {
        "model": "starter",
        "max_tokens": 8,
        "messages": [{"role": "user", "content": "word " * words}],
    }
    with httpx2.Client(timeout=ANSWER_S, trust_env=False) as client:
        return client.post(f"{base_url}/chat/completions", json=body)


# --- processors ------------------------------------------------------------------------------


def test_a_quota_of_one_cpu_means_one_thread(home: Path, starter_gguf: Path) -> None:
    """Two threads that share one CPU's time wait for each other at every step."""
    with (
        limited(cpus=1.0) as group,
        running(home, starter_gguf, group.command) as daemon,
    ):
        answer = ask(daemon.base_url, 5)

        assert answer.status_code == 200
        assert engine_threads(daemon) == {1}


def test_a_quota_is_rounded_down(home: Path, starter_gguf: Path) -> None:
    """1.9 CPUs are one thread that always runs, not two that are stopped in turn."""
    with (
        limited(cpus=1.9) as group,
        running(home, starter_gguf, group.command) as daemon,
    ):
        assert ask(daemon.base_url, 5).status_code == 200
        assert engine_threads(daemon) == {1}


def test_threads_follow_the_affinity_mask(home: Path, starter_gguf: Path) -> None:
    one = [min(os.sched_getaffinity(0))]
    with running(home, starter_gguf, lambda words: on_cpus(words, one)) as daemon:
        assert ask(daemon.base_url, 5).status_code == 200
        assert engine_threads(daemon) == {1}


@pytest.mark.skipif(
    hasattr(os, "sched_getaffinity") and probe().effective_cpus < TWO_CPUS,
    reason="THIS MACHINE HAS ONE CPU: what follows from limits cannot be told from what does not",
)
def test_without_limits_all_cores_are_used(home: Path, starter_gguf: Path) -> None:
    """So the three above show the limits, and not a fixed number."""
    with running(home, starter_gguf, list) as daemon:
        assert ask(daemon.base_url, 5).status_code == 200
        assert engine_threads(daemon) == {probe().effective_cpus}


# --- memory ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What came of one memory limit."""

    limit: int
    answers: tuple[httpx2.Response, ...]
    oom_kills: int
    resident_bytes: int | None

    @property
    def served(self) -> bool:
        return all(answer.status_code == httpx2.codes.OK for answer in self.answers)

    @property
    def refused_with_numbers(self) -> bool:
        """Each with what is needed and what there is, and the first is more than the second."""
        errors = [answer.json().get("error", {}) for answer in self.answers]
        return all(
            error.get("code") == MemoryShort.code
            and error["needed_bytes"] > error["free_bytes"] >= 0
            and 0 < error["reserve_bytes"] < self.limit
            for error in errors
        )


def run_with(daemon: Daemon, group: Group, limit: int) -> Run:
    """Two questions at once under this limit, with the model's file on the disk only."""
    for blob in (daemon.paths.store / "blobs").rglob("*"):
        if blob.is_file():
            drop_cache(blob)  # what the load reads is charged to the group
    before, base_url = group.oom_kills(), daemon.base_url
    group.set_memory(limit)
    try:
        with ThreadPoolExecutor(2) as pool:
            answers = tuple(pool.map(ask, (base_url, base_url), (20, 300)))
        memory = daemon.model("starter").memory
        kills = group.oom_kills() - before
    finally:
        group.set_memory(ROOM)
    with daemon.client() as client:
        client.unload("starter")
    return Run(limit, answers, kills, memory.resident_bytes if memory else None)


def least_need(daemon: Daemon, group: Group) -> int:
    """What the smallest sensible plan needs, from the refusal of a limit that is far too low."""
    refused = run_with(daemon, group, group.anonymous_bytes() + 40 * MIB)
    assert refused.refused_with_numbers, [answer.text for answer in refused.answers]
    return int(refused.answers[0].json()["error"]["needed_bytes"])


def test_memory_is_enough_or_refused_and_nothing_is_killed(home: Path, starter_gguf: Path) -> None:
    """Limits around the need: each run serves both questions or refuses both, with numbers.

    A quarter of a small machine's memory stays free, so runs are served from 4/3 of the need on.
    """
    with (
        limited(memory_bytes=ROOM) as group,
        running(home, starter_gguf, group.command) as daemon,
    ):
        assert ask(daemon.base_url, 5).status_code == 200  # the self-test is behind us
        with daemon.client() as client:
            client.unload("starter")
        need, base = least_need(daemon, group), group.anonymous_bytes()
        step = (MOST - LEAST) / (RUNS - 1)
        runs = [
            run_with(daemon, group, int(base + need * (LEAST + step * number)))
            for number in range(RUNS)
        ]

        assert [run.oom_kills for run in runs] == [0] * RUNS
        for run in runs:
            assert run.served or run.refused_with_numbers, [one.text for one in run.answers]
            assert not run.served or (run.resident_bytes or 0) < run.limit
        assert runs[-1].served
        assert not runs[0].served
        # No hole between the two: who got an answer gets one with more memory, too.
        served = [run.served for run in runs]
        assert served == sorted(served)


def test_the_self_test_is_not_run_where_it_does_not_fit(home: Path, starter_gguf: Path) -> None:
    """The first request of all, in a group that holds the daemon and a fifth of the model."""
    with (
        limited(memory_bytes=ROOM) as group,
        running(home, starter_gguf, group.command) as daemon,
    ):
        assert not daemon.paths.canary.exists()

        run = run_with(daemon, group, group.anonymous_bytes() + starter_gguf.stat().st_size // 2)

        assert run.oom_kills == 0
        assert run.refused_with_numbers, [answer.text for answer in run.answers]


def peak_bytes(daemon: Daemon) -> int:
    """The most that any engine process of it ever had in memory, mapped weights included."""
    peaks = []
    for process in daemon.workers():
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        peaks.append(int(found[1]) * 1024 if found else 0)
    return max(peaks)


def test_the_users_own_limit_is_kept(home: Path, starter_gguf: Path) -> None:
    """However much is free: what fits in it is served within it, what does not is refused."""
    roomy, tight = 500 * MIB, 150 * MIB

    with running(home, starter_gguf, list, memory_limit_bytes=roomy) as one:
        served = ask(one.base_url, 300)
        peak, view = peak_bytes(one), one.model("starter")
    with running(home.with_name("t"), starter_gguf, list, memory_limit_bytes=tight) as other:
        refused = ask(other.base_url, 5)

    assert served.status_code == 200, served.text
    assert view.memory is not None
    assert peak <= roomy
    assert view.memory.predicted_bytes <= roomy
    error = refused.json()["error"]
    assert error["code"] == MemoryShort.code
    assert "memory_limit_bytes" in error["message"]
    assert error["needed_bytes"] > error["free_bytes"]


def test_a_ulimit_is_kept(home: Path, starter_gguf: Path) -> None:
    """Where no group can be made: each process has so much address space and no more."""
    roomy, tight = 3 * GIB, 900 * MIB

    with running(home, starter_gguf, lambda words: with_ulimit(words, address_space=roomy)) as one:
        served = ask(one.base_url, 300)
    with running(
        home.with_name("t"), starter_gguf, lambda words: with_ulimit(words, address_space=tight)
    ) as other:
        refused = ask(other.base_url, 300)

    assert served.status_code == 200, served.text
    error = refused.json()["error"]
    assert error["code"] == MemoryShort.code
    assert error["needed_bytes"] > error["free_bytes"]
