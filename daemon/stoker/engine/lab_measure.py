"""How fast one loaded model is with one setting: prompts, one stream, several streams.

Runs in the lab's process only. The sampling of tokens is not part of it, because no setting
changes it: random tokens are fed in, as llama-bench does.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from stoker.engine.llama_api import Api, ApiError, Context, Model, Setting

_WARM_UP: Final = 64  # tokens; enough to touch all weights and start all threads
_SEED: Final = 20_260  # the same tokens for every trial: experts are chosen by token
_STEP: Final = 256  # cells; the engine rounds contexts up to these


class Interrupted(Exception):
    """The measurement was given up because it was paused."""


@dataclass(frozen=True, slots=True)
class Task:
    """One measurement."""

    setting: Setting  # without its cells
    prompt: int
    generate: int
    streams: int
    repeats: int

    @property
    def cells(self) -> int:
        """Room for all tokens and for one whole ubatch, or the engine would take a smaller one."""
        tokens = self.prompt + self.generate * (1 + self.streams)
        return (max(tokens, self.setting.ubatch) // _STEP + 1) * _STEP


class Bench:
    """Measures one model; keeps its last context, which trials often share."""

    def __init__(self, api: Api, model: Model) -> None:
        self._api = api
        self._model = model
        self._made: tuple[Setting, Context] | None = None
        vocabulary = api.call("llama_model_get_vocab", model.handle)
        self._tokens = api.call("llama_vocab_n_tokens", vocabulary)
        if not api.call("llama_model_has_decoder", model.handle) or self._tokens < 1:
            raise ApiError("This model does not write text, so its speed cannot be measured so.")

    def close(self) -> None:
        if self._made is not None:
            self._api.free_context(self._made[1])
            self._made = None

    def measure(self, task: Task, given_up: Callable[[], bool]) -> dict[str, float]:
        """Tokens per second: medians of the repeats. Raises Interrupted when `given_up` says so."""
        run = _Run(self._api, self._context(task), task, self._tokens, given_up)
        run.warm_up()
        rounds = [run.round() for _ in range(task.repeats)]
        names = ("prefill", "decode", "batch")
        return {
            name: statistics.median(values)
            for name, values in zip(names, zip(*rounds, strict=True), strict=True)
        }

    def _context(self, task: Task) -> Context:
        wanted = replace(task.setting, cells=task.cells, parallel=task.streams)
        like = replace(wanted, threads=1, threads_batch=1)  # threads can be changed afterwards
        if self._made is None or self._made[0] != like:
            self.close()
            self._made = (like, self._api.make_context(self._model, like))
        context = self._made[1]
        threads = (task.setting.threads, task.setting.threads_batch)
        self._api.call("llama_set_n_threads", context.handle, *threads)
        got = tuple(
            self._api.call(name, context.handle)
            for name in ("llama_n_threads", "llama_n_threads_batch")
        )
        if got != threads:
            raise ApiError(f"The engine computes with {got} threads, not with {threads}.")
        return context


class _Run:
    """The steps of one measurement in one context."""

    def __init__(
        self, api: Api, context: Context, task: Task, tokens: int, given_up: Callable[[], bool]
    ) -> None:
        self._api = api
        self._handle = context.handle
        self._task = task
        self._given_up = given_up
        self._most = api.call("llama_n_batch", context.handle)
        self._memory = api.call("llama_get_memory", context.handle)
        self._random = random.Random(_SEED)  # noqa: S311  # not a secret
        self._tokens = tokens

    def warm_up(self) -> None:
        """One pass of each kind that is not measured."""
        self._forget()
        tokens = min(_WARM_UP, self._task.prompt, self._most)
        with self._batch(tokens) as batch:
            self._prompt(batch, tokens)
            self._step(batch, [0], tokens)

    def round(self) -> tuple[float, float, float]:
        """Tokens per second of the prompt, of one stream after it, and of all streams."""
        task = self._task
        self._forget()
        self._random.seed(_SEED)
        with self._batch(max(task.streams, min(task.prompt, self._most))) as batch:
            prefill = self._timed(lambda: self._prompt(batch, task.prompt))
            decode = self._timed(lambda: self._generate(batch, 1, task.prompt))
            if task.streams == 1:
                return task.prompt / prefill, task.generate / decode, task.generate / decode
            for stream in range(1, task.streams):
                # All streams share the cells of one prompt, so the engine looks through as many
                # as if each had a short prompt of its own; and it need not be read again.
                self._api.call("llama_memory_seq_cp", self._memory, 0, stream, -1, -1)
            start = task.prompt + task.generate
            together = self._timed(lambda: self._generate(batch, task.streams, start))
        return (
            task.prompt / prefill,
            task.generate / decode,
            task.generate * task.streams / together,
        )

    def _timed(self, action: Callable[[], None]) -> float:
        start = time.perf_counter()
        action()
        self._api.call("llama_synchronize", self._handle)
        return time.perf_counter() - start

    def _prompt(self, batch: Any, count: int) -> None:
        for start in range(0, count, self._most):
            size = min(self._most, count - start)
            for index in range(size):
                self._put(batch, index, 0, start + index)
                batch.logits[index] = int(start + index == count - 1)
            self._decode(batch, size)

    def _generate(self, batch: Any, streams: int, start: int) -> None:
        for position in range(start, start + self._task.generate):
            self._step(batch, range(streams), position)

    def _step(self, batch: Any, streams: Sequence[int], position: int) -> None:
        for index, stream in enumerate(streams):
            self._put(batch, index, stream, position)
            batch.logits[index] = 1
        self._decode(batch, len(streams))
        self._api.call("llama_synchronize", self._handle)

    def _put(self, batch: Any, index: int, stream: int, position: int) -> None:
        batch.token[index] = self._random.randrange(self._tokens)
        batch.pos[index] = position
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = stream

    def _decode(self, batch: Any, size: int) -> None:
        if self._given_up():
            raise Interrupted
        batch.n_tokens = size
        status = self._api.call("llama_decode", self._handle, batch)
        if status != 0:
            raise ApiError(f"The engine could not decode a batch of {size} tokens ({status}).")

    def _forget(self) -> None:
        if self._memory:
            self._api.call("llama_memory_clear", self._memory, True)  # noqa: FBT003  # C function

    @contextlib.contextmanager
    def _batch(self, size: int) -> Iterator[Any]:
        batch = self._api.call("llama_batch_init", size, 0, 1)
        try:
            yield batch
        finally:
            self._api.call("llama_batch_free", batch)
