"""What `bench` measures, in which order, and what it leaves out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from stoker.cli.bench_endpoint import Endpoint, Timed, random_prompt

PAGE: Final = 512  # tokens; what llama-bench reads, too
QUESTION: Final = 32  # tokens; a short question
SEED: Final = 20260101

_WARM_UP: Final = 16  # tokens
_LEAST: Final = 16  # tokens; fewer say little
_RUN_S: Final = 20.0  # a slow model writes fewer tokens, so that one run takes no longer
_START_S: Final = 30.0  # for all threads to be there
_DEEP_S: Final = 180.0  # a depth that takes longer to reach is left out, unless asked for


@dataclass(frozen=True, slots=True)
class Effort:
    """How thoroughly."""

    repeats: int
    first_repeats: int  # of the wait for the first token
    tokens: int  # to write in one run
    stream_tokens: int  # in each of several streams


FULL: Final = Effort(repeats=3, first_repeats=5, tokens=128, stream_tokens=64)
QUICK: Final = Effort(repeats=1, first_repeats=3, tokens=32, stream_tokens=32)


@dataclass(frozen=True, slots=True)
class Task:
    """One bench. The depths may be the user's own, who then waits as long as they take."""

    context: int
    parallel: int
    effort: Effort
    depths: tuple[int, ...]
    streams: tuple[int, ...]
    patient: bool = False


@dataclass(slots=True)
class Prefill:
    prompt_tokens: int
    tokens_per_s: float
    runs: list[float]


@dataclass(slots=True)
class Decode:
    depth: int
    tokens: int
    tokens_per_s: float  # by the engine's clock
    seen_tokens_per_s: float  # by ours: with the way through Stoker
    runs: list[float]


@dataclass(slots=True)
class FirstToken:
    prompt_tokens: int
    p50_s: float
    runs: list[float]


@dataclass(slots=True)
class Streams:
    streams: int
    tokens_each: int
    tokens_per_s: float  # of all together
    first_p50_s: float


@dataclass(slots=True)
class Results:
    """What was measured so far; `complete` when nothing was cut short."""

    prefill: list[Prefill] = field(default_factory=list)
    decode: list[Decode] = field(default_factory=list)
    first_token: list[FirstToken] = field(default_factory=list)
    streams: list[Streams] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    complete: bool = False


class Bench:
    """Runs a task step by step. Raises StokerError; what was measured until then is kept."""

    def __init__(self, endpoint: Endpoint, task: Task, say: Callable[[str], None]) -> None:
        self._endpoint = endpoint
        self._task = task
        self._say = say
        self._seed = SEED
        self._vocabulary: tuple[int, ...] = ()
        self._reads = 0.0  # tokens/s, as far as known
        self._writes = 0.0
        self.results = Results()

    def run(self) -> Results:
        """Everything, the cheap things first."""
        self._warm_up()
        self._prefill()
        self._short_question()
        for depth in self._task.depths:
            self._decode(depth)
        for count in self._task.streams:
            self._several(count)
        self.results.complete = True
        return self.results

    # --- one answer at a time ----------------------------------------------------------------

    def _warm_up(self) -> None:
        """Also learns about how fast it is, to choose how much to ask for."""
        self._say("Warming up …")
        self._vocabulary = self._endpoint.vocabulary()
        timed = self._endpoint.complete(self._prompt(QUESTION), _WARM_UP)
        self._reads = timed.prefill_tokens_per_s
        self._writes = timed.decode_tokens_per_s or 0.0

    def _prefill(self) -> None:
        length = min(PAGE, self._task.context - _LEAST)
        runs = []
        for number in range(self._task.effort.repeats):
            self._say(f"Reading {length} tokens ({number + 1} of {self._task.effort.repeats}) …")
            runs.append(self._endpoint.complete(self._prompt(length), 1))
        speeds = [one.prefill_tokens_per_s for one in runs]
        self._reads = median(speeds)
        self.results.prefill.append(Prefill(length, self._reads, speeds))
        self._note_first(length, runs)

    def _short_question(self) -> None:
        self._say("Waiting for first words …")
        repeats = range(self._task.effort.first_repeats)
        runs = [self._endpoint.complete(self._prompt(QUESTION), 1) for _ in repeats]
        self._note_first(QUESTION, runs)

    def _note_first(self, length: int, runs: Sequence[Timed]) -> None:
        waits = [one.first_s for one in runs]
        self.results.first_token.append(FirstToken(length, median(waits), waits))
        self.results.first_token.sort(key=lambda one: one.prompt_tokens)

    def _decode(self, depth: int) -> None:
        """Write after `depth` tokens; they are read once and remembered for the repeats."""
        tokens = self._affordable(self._task.effort.tokens)
        if not self._reachable(depth, tokens):
            return
        prompt, runs = self._prompt(max(1, depth)), []
        for number in range(self._task.effort.repeats):
            self._say(
                f"Writing after {depth} tokens ({number + 1} of {self._task.effort.repeats}) …"
            )
            runs.append(self._endpoint.complete(prompt, tokens, remember=bool(number)))
        speeds = [one.decode_tokens_per_s for one in runs if one.decode_tokens_per_s]
        seen = [one.seen_tokens_per_s for one in runs if one.seen_tokens_per_s]
        if not speeds or not seen:
            self.results.remarks.append(f"depth {depth} left out: the engine wrote one token only")
            return
        self.results.decode.append(Decode(depth, tokens, median(speeds), median(seen), speeds))

    def _reachable(self, depth: int, tokens: int) -> bool:
        remark = self.results.remarks.append
        if max(1, depth) + tokens > self._task.context:
            remark(f"depth {depth} left out: the model's context holds {self._task.context} tokens")
            return False
        reading_s = depth / self._reads if self._reads else 0.0
        if reading_s > _DEEP_S and not self._task.patient:
            minutes = f"{reading_s / 60:.0f} minutes"
            remark(f"depth {depth} left out: reading so much takes {minutes}; ask with --depths")
            return False
        return True

    # --- several at once ---------------------------------------------------------------------

    def _several(self, count: int) -> None:
        at_once = min(count, self._task.parallel)
        tokens = self._affordable(self._task.effort.stream_tokens)
        if at_once * (QUESTION + tokens) > self._task.context:
            room = f"a context of {self._task.context} tokens has no room for them"
            self.results.remarks.append(f"{count} streams left out: {room}")
            return
        self._say(f"{count} at once …" if count > 1 else "One at a time …")
        runs = self._together([self._prompt(QUESTION) for _ in range(count)], tokens)
        wall_s = max(one.total_s for one in runs)
        written = sum(one.written for one in runs)
        first = median(one.first_s for one in runs)
        self.results.streams.append(Streams(count, tokens, written / max(wall_s, 1e-9), first))
        if count > self._task.parallel:
            text = f"{count} streams: this model answers {self._task.parallel} at once, others wait"
            self.results.remarks.append(text)

    def _together(self, prompts: Sequence[list[int]], tokens: int) -> list[Timed]:
        """All start at the same moment; whatever ends the wait, no thread stays behind."""
        gate = threading.Barrier(len(prompts))

        def ask(prompt: list[int]) -> Timed:
            with self._endpoint.another() as endpoint:
                gate.wait(_START_S)
                return endpoint.complete(prompt, tokens)

        with ThreadPoolExecutor(len(prompts)) as pool, _stopping(self._endpoint.stop):
            return list(pool.map(ask, prompts))

    # --- how much to ask ---------------------------------------------------------------------

    def _affordable(self, tokens: int) -> int:
        """As many as a slow model writes in a time that a person waits."""
        return max(_LEAST, min(tokens, int(self._writes * _RUN_S))) if self._writes else tokens

    def _prompt(self, length: int) -> list[int]:
        """Random, and another one each time, so that nothing can be remembered."""
        self._seed += 1
        return random_prompt(self._vocabulary, length, self._seed)


@contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C must not wait for answers that nobody wants: each thread ends at its next token."""
    try:
        yield
    except BaseException:
        stop.set()
        raise
