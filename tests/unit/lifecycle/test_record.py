from __future__ import annotations

import pytest

from stoker.history import Kind
from stoker.lifecycle.record import CANCELLED, Record
from stoker.metrics import Metrics
from stoker.types import ModelId

M = ModelId("m")


class Notes(list[tuple[Kind, str, float, str]]):
    def __call__(self, kind: Kind, name: str, seconds: float, result: str) -> None:
        self.append((kind, name, seconds, result))


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def record(metrics: Metrics, notes: Notes) -> Record:
    return Record(metrics, notes)


def test_loads_are_counted_and_written_down(record: Record, metrics: Metrics, notes: Notes) -> None:
    record.loaded(M, 1.5)
    record.not_loaded(M, 0.5, "memory_short")
    record.not_loaded(M, 0.1, CANCELLED)
    record.renewed(M)

    text = metrics.render().decode()
    for result in ("ok", "memory_short", "cancelled", "renewed"):
        assert f'stoker_loads_total{{model="m",result="{result}"}} 1.0' in text
    assert 'stoker_load_seconds_sum{model="m"} 1.5' in text
    assert notes == [
        (Kind.LOAD, "m", 1.5, "ready"),
        (Kind.LOAD, "m", 0.5, "memory_short"),
        (Kind.LOAD, "m", 0.1, "cancelled"),
    ]


def test_workers_that_end_are_told_apart(record: Record, metrics: Metrics, notes: Notes) -> None:
    """Those that were stopped by why, the others as crashes; the history has the cause."""
    record.left(M, 60.0, "room")
    record.crashed(M, 5.0, "out_of_memory")

    text = metrics.render().decode()
    assert 'stoker_unloads_total{model="m",reason="room"} 1.0' in text
    assert 'stoker_unloads_total{model="m",reason="crashed"} 1.0' in text
    assert notes == [(Kind.UNLOAD, "m", 60.0, "room"), (Kind.CRASH, "m", 5.0, "out_of_memory")]


def test_a_switch_is_written_down_however_it_ended(record: Record, notes: Notes) -> None:
    record.switched(M, 2.0, "ready")
    record.switched(M, 9.0, "worker_failed")

    assert notes == [(Kind.SWITCH, "m", 2.0, "ready"), (Kind.SWITCH, "m", 9.0, "worker_failed")]


def test_of_requests_only_the_wait_is_known(record: Record, metrics: Metrics, notes: Notes) -> None:
    record.waited(M, 0.2)

    assert 'stoker_wait_seconds_count{model="m"} 1.0' in metrics.render().decode()
    assert notes == []


def test_nobody_need_read_the_notes(metrics: Metrics) -> None:
    Record(metrics).loaded(M, 1.0)

    assert 'stoker_loads_total{model="m",result="ok"} 1.0' in metrics.render().decode()
