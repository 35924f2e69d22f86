from __future__ import annotations

from pathlib import Path

import pytest

from stoker.metrics import Metrics
from stoker.schemas import MemoryView, ModelView
from stoker.types import ModelState

_TEXT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")

READY = ModelView(
    id="a",
    state=ModelState.READY,
    pid=7,
    in_flight=2,
    queued=3,
    tokens_per_s=41.5,
    kv_used=0.25,
    memory=MemoryView(predicted_bytes=500, resident_bytes=400, peak_bytes=450),
)
UNLOADED = ModelView(id="b", state=ModelState.UNLOADED)


def lines(metrics: Metrics) -> set[str]:
    text = metrics.render().decode()
    return {line for line in text.splitlines() if not line.startswith("#")}


def about(metrics: Metrics, model: str) -> set[str]:
    return {
        line for line in lines(metrics) if f'model="{model}"' in line and "_created" not in line
    }


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    metrics.watch(lambda: (READY, UNLOADED))
    return metrics


def test_gauges_show_where_each_model_stands(metrics: Metrics) -> None:
    """As it is when somebody asks."""
    assert about(metrics, "a") == {
        'stoker_queue{model="a"} 3.0',
        'stoker_in_flight{model="a"} 2.0',
        'stoker_loaded{model="a"} 1.0',
        'stoker_tokens_per_second{model="a"} 41.5',
        'stoker_kv_used_ratio{model="a"} 0.25',
        'stoker_worker_resident_bytes{model="a"} 400.0',
        'stoker_worker_predicted_bytes{model="a"} 500.0',
        'stoker_worker_peak_bytes{model="a"} 450.0',
    }


def test_what_is_not_known_of_a_model_is_left_out(metrics: Metrics) -> None:
    assert about(metrics, "b") == {
        'stoker_queue{model="b"} 0.0',
        'stoker_in_flight{model="b"} 0.0',
        'stoker_loaded{model="b"} 0.0',
    }


def test_what_happens_is_counted_for_its_model(metrics: Metrics) -> None:
    meters = metrics.model("a")
    meters.tokens(prompt=5, completion=7)
    meters.waited(0.2)
    meters.first_byte(0.3)
    meters.load_ended("ok", 1.5)
    meters.load_ended("worker_failed")
    meters.left("room")

    assert about(metrics, "a") >= {
        'stoker_tokens_total{kind="prompt",model="a"} 5.0',
        'stoker_tokens_total{kind="completion",model="a"} 7.0',
        'stoker_wait_seconds_count{model="a"} 1.0',
        'stoker_ttft_seconds_sum{model="a"} 0.3',
        'stoker_loads_total{model="a",result="ok"} 1.0',
        'stoker_loads_total{model="a",result="worker_failed"} 1.0',
        'stoker_load_seconds_count{model="a"} 1.0',
        'stoker_unloads_total{model="a",reason="room"} 1.0',
    }
    assert not any("_total" in line for line in about(metrics, "b"))


def test_a_model_that_was_removed_takes_all_its_series_along() -> None:
    """Also those that a request made which outlived it."""
    metrics = Metrics()
    views = [READY, UNLOADED]
    metrics.watch(lambda: tuple(views))
    for name in ("a", "b"):
        metrics.model(name).load_ended("ok", 1.0)
        metrics.model(name).tokens(prompt=1, completion=1)
        metrics.model(name).waited(0.1)
    metrics.render()

    views.remove(READY)
    metrics.model("a").left("unload")

    assert about(metrics, "a") == set()
    assert 'stoker_loads_total{model="b",result="ok"} 1.0' in lines(metrics)


def test_a_model_that_comes_back_starts_at_zero() -> None:
    metrics = Metrics()
    views: list[ModelView] = []
    metrics.watch(lambda: tuple(views))
    metrics.model("a").left("idle")
    metrics.render()

    views.append(READY)
    metrics.model("a").left("idle")

    assert 'stoker_unloads_total{model="a",reason="idle"} 1.0' in lines(metrics)


def test_a_hostile_name_stays_one_label() -> None:
    """Names are the user's own, but a scraper must not be led astray by them."""
    metrics = Metrics()
    view = ModelView(id='x"}\n1', state=ModelState.UNLOADED, queued=1)
    metrics.watch(lambda: (view,))

    assert 'stoker_queue{model="x\\"}\\n1"} 1.0' in lines(metrics)


def test_other_servers_are_counted_by_name_and_status() -> None:
    metrics = Metrics()
    metrics.upstream("gpu-box", "200")
    metrics.upstream("gpu-box", "200")

    assert 'stoker_upstream_requests_total{status="200",upstream="gpu-box"} 2.0' in lines(metrics)


def test_every_metric_is_documented() -> None:
    """docs/metrics.md names each as `/metrics` shows it, and names no other."""
    shown = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in Metrics().registry.collect()
    }
    rows = [line.split("|")[1] for line in _TEXT.splitlines() if line.startswith("| `stoker_")]
    documented = {name.strip(" `") for row in rows for name in row.split(",")}

    assert documented == shown
