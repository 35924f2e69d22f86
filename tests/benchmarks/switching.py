"""What changing models costs: `stoker use`, against the bare engine's own start with that model.

    python -m tests.benchmarks.switching [--rounds N] [--json FILE]

Two real models, once where only one fits (the first must be gone before the second may come) and
once where both do. Before each switch the model that leaves has answered a chat, so that there is
a conversation to keep. A round is one switch to each model, and a bare start of each with the very
settings that the daemon chose, in turns. Exits 1 when a median of the ratios within rounds is
above its bound. Takes about three minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.benchmarks.bare import RecordingDaemon, start_s
from tests.fakes.asking import complete
from tests.fakes.gemma import gemma_path
from tests.fakes.starter import starter_path
from tests.fakes.two_models import SHAPE, room_for_one, stored

BOUND: Final = 1.10
_NAMES: Final = ("gemma", "starter")
_CHAT_TOKENS: Final = 16
_GONE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Switch:
    """One switch, and the bare start beside it."""

    room: str  # for "one" or for "both"
    model: str  # that came
    switch_s: float
    predicted_s: float | None  # what the user was told before
    bare_s: float

    @property
    def ratio(self) -> float:
        return self.switch_s / self.bare_s


def measure(daemon: RecordingDaemon, room: str, rounds: int) -> Iterator[Switch]:
    """The first round warms everything up and is left out."""
    base_url = daemon.base_url
    with daemon.client() as client:
        client.use(_NAMES[-1])
        for number in range(rounds + 1):
            for model, other in (_NAMES, _NAMES[::-1]):
                answer = complete(base_url, other, _CHAT_TOKENS, prompt=f"Round {number}:")
                assert answer.status_code == 200, answer.text
                predicted = daemon.model(model).expected_load_s
                start = time.perf_counter()
                client.use(model)
                switch_s = time.perf_counter() - start
                _until_gone(daemon, other)
                bare = start_s(daemon.record.read_text())
                if number:
                    yield Switch(room, model, switch_s, predicted, bare)


def _until_gone(daemon: RecordingDaemon, model: str) -> None:
    """So that the bare start has the machine to itself."""
    deadline = time.monotonic() + _GONE_S
    while daemon.model(model).pid is not None:
        assert time.monotonic() < deadline, daemon.model(model)
        time.sleep(0.01)


@contextmanager
def _home() -> Iterator[tuple[Path, int]]:
    """Both models in a store, and what memory holds one of them."""
    with tempfile.TemporaryDirectory(prefix="sb", dir="/tmp") as folder:
        home = Path(folder)
        needs = stored(home, starter_path(), gemma_path())
        yield home, room_for_one(needs.values())


def run(rounds: int) -> list[Switch]:
    found: list[Switch] = []
    with _home() as (home, limit):
        for room, settings in (("one", {"memory_limit_bytes": limit}), ("both", {})):
            with RecordingDaemon(home, restore_last="false", **SHAPE, **settings) as daemon:
                found += measure(daemon, room, rounds)
    return found


def show(found: list[Switch]) -> bool:
    """Print the medians; whether all are within the bound."""
    groups: dict[tuple[str, str], list[Switch]] = defaultdict(list)
    for one in found:
        groups[one.room, one.model].append(one)
    print(f"{'room for':9} {'to':8} {'switch s':>9} {'told s':>9} {'bare s':>9} {'ratio':>7}")
    ratios = []
    for (room, model), these in groups.items():
        told = [one.predicted_s for one in these if one.predicted_s is not None]
        ratios.append(statistics.median(one.ratio for one in these))
        print(
            f"{room:9} {model:8} {statistics.median(one.switch_s for one in these):9.3f}"
            f" {statistics.median(told) if told else float('nan'):9.3f}"
            f" {statistics.median(one.bare_s for one in these):9.3f} {ratios[-1]:7.3f}"
        )
    print(f"bound: {BOUND:.2f}; {len(found)} switches")
    return max(ratios) <= BOUND


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.switching")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = run(options.rounds)
    within = show(found)
    if options.json:
        rows = [{**asdict(one), "ratio": one.ratio} for one in found]
        options.json.write_text(json.dumps(rows, indent=1))
    if not within:
        raise SystemExit("switching costs more than the bound")


if __name__ == "__main__":
    main()
