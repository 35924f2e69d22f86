"""What a request feels of a tuning that runs: its time to the first token, against an idle daemon.

    python -m tests.benchmarks.latency_tuning [--pairs N] [--json FILE]

A real daemon with the starter model, asked before, during and after a search. Requests come at
random moments of it; each time the search must have gone on since the last one. Exits 1 when the
median of the requests during the search is more than 100 ms above that of the others.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final
from urllib.parse import urlsplit

from stoker.client import StokerClient
from stoker.schemas import TuneView
from stoker.schemas_machine import TuneRequest
from tests.benchmarks.streams import Target, ask
from tests.fakes.daemon import Daemon
from tests.fakes.starter import starter_path

BOUND_MS: Final = 100
_MODEL: Final = "starter"
_TOKENS: Final = 16
_SEARCH_S: Final = 3000  # of measuring: longer than we ask
_GOES_ON_S: Final = 120  # a busy machine opens a lab slowly
_LOOK_S: Final = 0.05
_MOST_WAIT_S: Final = 3.0  # at most so long into a measurement


@dataclass(frozen=True, slots=True)
class Report:
    """Milliseconds to the first token, and tokens per second, of each request."""

    idle_ms: list[float]
    tuning_ms: list[float]
    idle_tokens_per_s: list[float]
    tuning_tokens_per_s: list[float]

    @property
    def more_ms(self) -> float:
        return median(self.tuning_ms) - median(self.idle_ms)


def compare(daemon: Daemon, pairs: int) -> Report:
    url = urlsplit(daemon.base_url)
    target = Target((str(url.hostname), int(url.port or 80)), _MODEL)
    report = Report([], [], [], [])

    def one(first_ms: list[float], tokens_per_s: list[float], number: int) -> None:
        result = ask(target, f"Say hello to number {number}.", _TOKENS)
        first_ms.append(result.first_s * 1000)
        tokens_per_s.append((result.tokens - 1) / (result.total_s - result.first_s))

    dice = random.Random(pairs)  # noqa: S311  # not a secret
    ask(target, "Say hello.", _TOKENS)
    with daemon.client() as client:
        for number in range(pairs):
            if number == pairs // 2:
                _during(
                    client,
                    pairs,
                    dice,
                    lambda n: one(report.tuning_ms, report.tuning_tokens_per_s, n),
                )
            time.sleep(0.2)
            one(report.idle_ms, report.idle_tokens_per_s, number)
    return report


def _during(
    client: StokerClient, count: int, dice: random.Random, request: Callable[[int], None]
) -> None:
    client.tune(TuneRequest(model=_MODEL, seconds=_SEARCH_S, again=True))
    for number in range(count):
        _until_measuring(client)
        time.sleep(dice.uniform(0, _MOST_WAIT_S))
        if _standing(client).state != "running":
            raise SystemExit("the search ended by itself; ask for fewer pairs")
        request(1000 + number)
        print(f"request {number + 1} of {count} during the search", file=sys.stderr)
    client.tune_cancel(_MODEL)


def _until_measuring(client: StokerClient) -> None:
    """The search has started, or gone on after the last request."""
    deadline = time.monotonic() + _GOES_ON_S
    while (view := _standing(client)).state != "running":
        if view.state not in {"waiting", "paused"} or time.monotonic() > deadline:
            raise SystemExit(f"the search does not go on: {view}")
        time.sleep(_LOOK_S)


def _standing(client: StokerClient) -> TuneView:
    return next(view for view in client.tunes() if view.model == _MODEL)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.latency_tuning")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = starter_path()
    with tempfile.TemporaryDirectory(prefix="sb") as home, Daemon(Path(home)) as daemon:
        daemon.add(model, _MODEL)
        with daemon.client() as client:
            client.load(_MODEL)
        report = compare(daemon, options.pairs)
    print(f"{'':24} {'idle':>8} {'tuning':>8} {'':>9}")
    print(
        f"{'first token, median':24} {median(report.idle_ms):8.1f} {median(report.tuning_ms):8.1f}"
        f" {report.more_ms:+9.1f} ms"
    )
    print(f"{'slowest':24} {max(report.idle_ms):8.1f} {max(report.tuning_ms):8.1f} {'':9} ms")
    print(
        f"{'writes, median':24} {median(report.idle_tokens_per_s):8.1f}"
        f" {median(report.tuning_tokens_per_s):8.1f} {'':9} tokens/s"
    )
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=1))
    if report.more_ms > BOUND_MS:
        raise SystemExit(f"more than {BOUND_MS} ms later than on an idle daemon")


if __name__ == "__main__":
    main()
