"""The daemon's own counters, in a registry of their own. Rendered for `/metrics`.

Labels are few and bounded: routes from our table, never a client's text.
"""

from __future__ import annotations

from typing import Final

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_TTFT_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_LOAD_BUCKETS: Final = (0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)


class Metrics:
    """One per daemon; instruments are public, `render` writes them all."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "stoker_requests",
            "Answers by route and status.",
            ["route", "status"],
            registry=self.registry,
        )
        self.tokens = Counter("stoker_tokens", "Tokens, by kind.", ["kind"], registry=self.registry)
        self.ttft_seconds = Histogram(
            "stoker_ttft_seconds",
            "From the whole request to the first byte of a streamed answer.",
            buckets=_TTFT_BUCKETS,
            registry=self.registry,
        )
        self.loads = Counter("stoker_loads", "Loads by result.", ["result"], registry=self.registry)
        self.load_seconds = Histogram(
            "stoker_load_seconds",
            "From the start of a load to a ready worker.",
            buckets=_LOAD_BUCKETS,
            registry=self.registry,
        )
        self.queue = Gauge(
            "stoker_queue", "Requests that wait for a model.", registry=self.registry
        )
        self.in_flight = Gauge(
            "stoker_in_flight", "Requests that a worker serves now.", registry=self.registry
        )
        self.worker_resident_bytes = Gauge(
            "stoker_worker_resident_bytes",
            "Resident memory of a worker.",
            ["model"],
            registry=self.registry,
        )
        self._resident_bytes = Gauge(
            "stoker_resident_bytes", "Resident memory of the daemon.", registry=self.registry
        )

    def count_tokens(self, *, prompt: int, completion: int) -> None:
        self.tokens.labels("prompt").inc(prompt)
        self.tokens.labels("completion").inc(completion)

    def render(self) -> bytes:
        """In Prometheus' text format (`CONTENT_TYPE`)."""
        self._resident_bytes.set(psutil.Process().memory_info().rss)
        return generate_latest(self.registry)
