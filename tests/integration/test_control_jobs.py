"""Jobs on the real store: the idle-time scrub and what it does about damage."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from stoker import jobs
from stoker.history import Kind
from stoker.schemas import StoreChanged
from tests.integration.control_plane import ControlPlane, control_plane, flip_a_byte

DAMAGED = StoreChanged(id="tiny", change="damaged")
OFTEN_DAYS = 1e-9  # every model is due at once


@pytest.fixture
def plane(stoker_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlPlane]:
    """On mains power, and nobody has asked for anything for an hour."""
    monkeypatch.setattr(jobs, "_on_battery", lambda: False)
    monkeypatch.setattr(jobs, "SCRUB_LOOK_S", 0.01)
    with control_plane(scrub_interval_days=OFTEN_DAYS) as plane:
        plane.add("tiny")
        plane.clock.ahead_s = 3600
        yield plane


def scrub(plane: ControlPlane) -> str | None:
    return plane.portal.call(jobs.scrub, plane.services)


def test_a_sound_model_is_verified_again(plane: ControlPlane) -> None:
    before = plane.store.find("tiny").verified_at

    told = scrub(plane)

    after = plane.store.find("tiny").verified_at
    assert told == "tiny: sound"
    assert before is not None
    assert after is not None
    assert after > before


def test_one_model_at_a_time_the_oldest_first(plane: ControlPlane) -> None:
    plane.add("second", seed=1)
    plane.clock.ahead_s += 3600

    assert [scrub(plane), scrub(plane), scrub(plane)] == [
        "tiny: sound",
        "second: sound",
        "tiny: sound",
    ]


def test_nothing_is_hashed_before_it_is_due(stoker_home: Path) -> None:
    with control_plane(scrub_interval_days=30) as plane:
        plane.add("tiny")
        plane.clock.ahead_s = 3600

        assert scrub(plane) is None


def test_a_damaged_blob_is_found_told_and_no_longer_served(plane: ControlPlane) -> None:
    with plane.client() as client:
        pid = client.load("tiny", keep_alive_s=-1).pid
    assert pid is not None
    plane.clock.ahead_s += 3600
    flip_a_byte(plane.blob("tiny"))

    with plane.client() as client:
        events = client.events()
        next(events)
        told = scrub(plane)
        changes = itertools.takewhile(lambda event: event != DAMAGED, events)
        assert len(list(changes)) < 10
        events.close()

    assert told == "tiny: damaged"
    assert plane.store.find("tiny").damaged
    assert not psutil.pid_exists(pid)
    assert scrub(plane) is None


def test_a_request_stops_the_scrub(plane: ControlPlane) -> None:
    """The hashing ends at its next chunk, and the model is still due."""
    before = plane.store.find("tiny").verified_at
    plane.store.hold = True

    def somebody_asks() -> None:
        plane.clock.ahead_s = 0

    plane.store.while_hashing = somebody_asks
    told = scrub(plane)

    assert told == "tiny: interrupted"
    assert plane.store.was_cancelled
    assert plane.store.find("tiny").verified_at == before


def test_a_battery_forbids_a_scrub(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_on_battery", lambda: True)

    assert scrub(plane) is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities per thread")
def test_the_hashing_thread_steps_back_and_only_that_one(plane: ControlPlane) -> None:
    seen: list[tuple[int, int]] = []

    def look() -> None:
        thread = threading.get_native_id()
        disk = psutil.Process(thread).ionice()
        seen.append((os.getpriority(os.PRIO_PROCESS, thread), disk.ioclass))

    plane.store.while_hashing = look
    before = os.getpriority(os.PRIO_PROCESS, 0)

    scrub(plane)

    assert seen == [(19, psutil.IOPRIO_CLASS_IDLE)]
    assert plane.portal.call(os.getpriority, os.PRIO_PROCESS, 0) == before


def test_a_scrub_by_the_scheduler_is_recorded(plane: ControlPlane) -> None:
    table = tuple(one for one in jobs.JOBS if one.name == "scrub")
    runner = jobs.Jobs(plane.services, ())

    plane.portal.call(runner.run, table[0])

    recorded = plane.portal.call(plane.services.history.recent)
    assert [(run.kind, run.name, run.result) for run in recorded] == [
        (Kind.JOB, "scrub", "tiny: sound")
    ]
