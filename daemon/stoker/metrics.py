"""The daemon's own figures, in a registry of their own. Rendered for `/metrics`.

What happens is counted as it happens; where each model stands is read from its view when somebody
asks. Labels are few and bounded: routes from our table, stored models, configured upstreams, never
a client's text. A model that was removed takes its series along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Generic, TypeVar

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from stoker.schemas import MemoryView, ModelView

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Instrument = TypeVar("Instrument", bound=MetricWrapperBase)
Views = Callable[[], Iterable[ModelView]]

_TTFT_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_LOAD_BUCKETS: Final = (0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)
_WAIT_BUCKETS: Final = (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)


def _of_memory(pick: Callable[[MemoryView], float | None]) -> Callable[[ModelView], float | None]:
    return lambda view: None if view.memory is None else pick(view.memory)


# Name, what it says, and where a view has it; None: there is nothing to say of this model.
_GAUGES: Final[tuple[tuple[str, str, Callable[[ModelView], float | None]], ...]] = (
    ("stoker_queue", "Requests that wait for the model.", lambda view: view.queued),
    ("stoker_in_flight", "Requests that its worker serves now.", lambda view: view.in_flight),
    ("stoker_loaded", "Whether it has a worker: 1 or 0.", lambda view: view.pid is not None),
    (
        "stoker_tokens_per_second",
        "Tokens written over the last seconds.",
        lambda view: view.tokens_per_s,
    ),
    (
        "stoker_kv_used_ratio",
        "Share of its conversation memory that is used, 0 to 1.",
        lambda view: view.kv_used,
    ),
    (
        "stoker_worker_resident_bytes",
        "Resident memory of its worker.",
        _of_memory(lambda memory: memory.resident_bytes),
    ),
    (
        "stoker_worker_predicted_bytes",
        "What its worker was planned to take.",
        _of_memory(lambda memory: memory.predicted_bytes),
    ),
    (
        "stoker_worker_peak_bytes",
        "The most that its worker ever took.",
        _of_memory(lambda memory: memory.peak_bytes),
    ),
)


class Metrics:
    """One per daemon; used from the event loop's thread only. `render` writes everything."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._views: Views | None = None
        self._standings = _Standings()
        self.registry.register(self._standings)
        self.requests = Counter(
            "stoker_requests",
            "Answers by route and status.",
            ["route", "status"],
            registry=self.registry,
        )
        self._upstreams = Counter(
            "stoker_upstream_requests",
            "Answers of other servers, by status.",
            ["upstream", "status"],
            registry=self.registry,
        )
        self._resident_bytes = Gauge(
            "stoker_resident_bytes", "Resident memory of the daemon.", registry=self.registry
        )
        self._meters = Meters(self.registry)

    def watch(self, views: Views) -> None:
        """Read from these views where each stored model stands; those not named are forgotten."""
        self._views = views

    def model(self, name: str) -> ModelMeters:
        """What is counted of a stored model."""
        return ModelMeters(self._meters, name)

    def upstream(self, name: str, status: str) -> None:
        """A configured upstream answered."""
        self._upstreams.labels(name, status).inc()

    def render(self) -> bytes:
        """In Prometheus' text format (`CONTENT_TYPE`)."""
        self._resident_bytes.set(psutil.Process().memory_info().rss)
        if self._views is not None:
            views = tuple(self._views())
            self._standings.views = views
            self._meters.keep_only({view.id for view in views})
        return generate_latest(self.registry)


class Meters:
    """What is counted for each model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, about: str, *more: str) -> _PerModel[Counter]:
            return _PerModel(Counter(name, about, ["model", *more], registry=registry))

        def histogram(name: str, about: str, buckets: tuple[float, ...]) -> _PerModel[Histogram]:
            return _PerModel(Histogram(name, about, ["model"], buckets=buckets, registry=registry))

        self.tokens = counter("stoker_tokens", "Tokens, by kind.", "kind")
        self.loads = counter("stoker_loads", "Loads by result.", "result")
        self.unloads = counter("stoker_unloads", "Workers that ended, by reason.", "reason")
        self.load_seconds = histogram(
            "stoker_load_seconds", "From the start of a load to a ready worker.", _LOAD_BUCKETS
        )
        self.wait_seconds = histogram(
            "stoker_wait_seconds", "From a request to its place at a worker.", _WAIT_BUCKETS
        )
        self.ttft_seconds = histogram(
            "stoker_ttft_seconds",
            "From the whole request to the first byte of a streamed answer.",
            _TTFT_BUCKETS,
        )

    def keep_only(self, models: set[str]) -> None:
        """Forget all others."""
        counters = (self.tokens, self.loads, self.unloads)
        histograms = (self.load_seconds, self.wait_seconds, self.ttft_seconds)
        for family in (*counters, *histograms):
            family.keep_only(models)


class ModelMeters:
    """The same for one model; cheap to make."""

    def __init__(self, meters: Meters, name: str) -> None:
        self._meters = meters
        self._name = name

    def waited(self, seconds: float) -> None:
        """A request has a place now."""
        self._meters.wait_seconds.of(self._name).observe(seconds)

    def first_byte(self, seconds: float) -> None:
        """A streamed answer has begun, so long after its request was there."""
        self._meters.ttft_seconds.of(self._name).observe(seconds)

    def tokens(self, *, prompt: int, completion: int) -> None:
        """An answer has ended."""
        self._meters.tokens.of(self._name, "prompt").inc(prompt)
        self._meters.tokens.of(self._name, "completion").inc(completion)

    def load_ended(self, result: str, seconds: float | None = None) -> None:
        """``seconds`` only of one that led to a ready worker."""
        self._meters.loads.of(self._name, result).inc()
        if seconds is not None:
            self._meters.load_seconds.of(self._name).observe(seconds)

    def left(self, reason: str) -> None:
        """Its worker is gone."""
        self._meters.unloads.of(self._name, reason).inc()


class _PerModel(Generic[Instrument]):
    """An instrument whose first label is a model: it knows which series each model has."""

    def __init__(self, instrument: Instrument) -> None:
        self._instrument = instrument
        self._series: dict[str, set[tuple[str, ...]]] = {}

    def of(self, model: str, *more: str) -> Instrument:
        """The series of this model, with these values of the other labels."""
        self._series.setdefault(model, set()).add(more)
        return self._instrument.labels(model, *more)

    def keep_only(self, models: set[str]) -> None:
        for model in self._series.keys() - models:
            for more in self._series.pop(model):
                self._instrument.remove(model, *more)


class _Standings(Collector):
    """Gauges of the models, as they were looked at last."""

    def __init__(self) -> None:
        self.views: tuple[ModelView, ...] = ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, about, pick in _GAUGES:
            family = GaugeMetricFamily(name, about, labels=["model"])
            for view in self.views:
                value = pick(view)
                if value is not None:
                    family.add_metric([view.id], value)
            yield family
