"""One timed completion over the endpoint, as any client would see it. For `bench`."""

from __future__ import annotations

import itertools
import json
import math
import random
import string
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from stoker import errors
from stoker.cli.completion import wire_error

_CONNECT_S: Final = 5.0
_SILENCE_S: Final = 900.0  # a long prompt on a slow machine is read for minutes before a token
_LEAST_FIGURE: Final = 1e-9  # of the engine's timings: zero of anything was not measured
_MOST_FIGURE: Final = 1e12
_LEAST_WORDS: Final = 16  # different tokens in a prompt; a vocabulary with fewer is none


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer: what the engine counted itself, and what arrived here when."""

    prompt_tokens: int  # that were really read, not remembered
    written: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float | None  # of the engine's own clock; None for a single token
    first_s: float  # from the question to the first token
    total_s: float
    seen_tokens_per_s: float | None  # by this program's clock, after the first token


class Stopped(Exception):
    """`Endpoint.stop` was set; nobody waits for the rest."""


class Endpoint:
    """Asks one model. Used from one thread; several share a `stop`."""

    def __init__(self, base_url: str, model: str, stop: threading.Event | None = None) -> None:
        import httpx2

        self.base_url = base_url
        self.model = model
        self.stop = stop or threading.Event()
        timeout = httpx2.Timeout(_SILENCE_S, connect=_CONNECT_S)
        # No proxy of the environment, and no certificates for a plain http address: see completion.
        secure = base_url.startswith("https:")
        self._client = httpx2.Client(timeout=timeout, trust_env=False, verify=secure)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def another(self) -> Endpoint:
        """For one more thread."""
        return Endpoint(self.base_url, self.model, self.stop)

    def vocabulary(self) -> tuple[int, ...]:
        """Token numbers that are valid for this model and mean ordinary text. Raises StokerError.

        From the model's own tokenizer: every pair of letters, as a word.
        """
        words = " ".join(map("".join, itertools.product(string.ascii_lowercase, repeat=2)))
        url = f"{self.base_url.removesuffix('/v1')}/tokenize"
        found = self._json(url, {"model": self.model, "content": words}).get("tokens")
        listed = found if isinstance(found, list) else ()
        tokens = {one for one in listed if isinstance(one, int) and not isinstance(one, bool)}
        if len(tokens) < _LEAST_WORDS:
            msg = f"{self.model} knows too few words to be measured"
            raise errors.StokerError(msg)
        return tuple(sorted(tokens))

    def complete(self, prompt: list[int], tokens: int, *, remember: bool = False) -> Timed:
        """Write exactly `tokens` after a prompt; `remember` may use what was read before.

        Raises StokerError, or Stopped.
        """
        import httpx2

        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": remember,
            "stream": True,
        }
        clock = _Clock(time.monotonic())
        url = f"{self.base_url}/completions"
        try:
            with self._client.stream("POST", url, json=body) as response:
                if response.status_code != httpx2.codes.OK:
                    response.read()
                    raise wire_error(_parsed(response.text))
                for event in _events(response.iter_lines()):
                    if self.stop.is_set():
                        raise Stopped
                    clock.take(event)
        except httpx2.HTTPError as error:
            msg = f"the endpoint {self.base_url} broke off: {error}"
            raise errors.WorkerLost(msg) from error
        return clock.timed()

    def _json(self, url: str, body: Mapping[str, object]) -> dict[str, Any]:
        import httpx2

        try:
            response = self._client.post(url, json=body)
        except httpx2.HTTPError as error:
            msg = f"the endpoint {self.base_url} broke off: {error}"
            raise errors.WorkerLost(msg) from error
        answer = _parsed(response.text)
        if response.status_code != httpx2.codes.OK or not isinstance(answer, dict):
            raise wire_error(answer)
        return answer


def random_prompt(vocabulary: tuple[int, ...], length: int, seed: int) -> list[int]:
    """The same for the same seed, on every machine."""
    chosen = random.Random(seed)  # noqa: S311  # text to measure with, no secret
    return [vocabulary[int(chosen.random() * len(vocabulary))] for _ in range(length)]


class _Clock:
    """Notes when pieces arrive, and the engine's own figures at the end."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._first: float | None = None
        self._last = started
        self._timings: Mapping[str, Any] = {}

    def take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            raise wire_error(event)
        if event.get("choices"):
            self._last = time.monotonic()
            self._first = self._first or self._last
        timings = event.get("timings")
        if isinstance(timings, dict):
            self._timings = timings

    def timed(self) -> Timed:
        """Raises WorkerLost when the answer has no figures."""
        if self._first is None or not self._timings:
            raise errors.WorkerLost("the answer came without the engine's timings")
        # The engine's clock for writing starts with the first token, so it timed one less.
        written = int(self._figure("predicted_n"))
        writing_s = self._figure("predicted_ms") / 1000
        seen_s = self._last - self._first
        return Timed(
            prompt_tokens=int(self._figure("prompt_n", least=0)),
            written=written,
            prefill_tokens_per_s=self._figure("prompt_per_second"),
            decode_tokens_per_s=(written - 1) / writing_s if written > 1 else None,
            first_s=self._first - self._started,
            total_s=self._last - self._started,
            seen_tokens_per_s=(written - 1) / seen_s if written > 1 and seen_s > 0 else None,
        )

    def _figure(self, name: str, least: float = _LEAST_FIGURE) -> float:
        """One of the engine's numbers. Raises WorkerLost for what cannot be one."""
        value = self._timings.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            value = math.nan
        if not least <= value <= _MOST_FIGURE:  # nan is not
            raise errors.WorkerLost(f"the engine's timings make no sense: {name} is {value}")
        return float(value)


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        name, _, value = line.partition(":")
        value = value.strip()
        if name not in {"data", "error"} or not value:
            continue  # an empty line, or a comment that keeps the connection alive
        if value == "[DONE]":
            return
        event = _parsed(value)
        if not isinstance(event, dict):
            raise errors.WorkerLost("the endpoint sent an event that is not an object")
        yield {"error": event} if name == "error" else event
    raise errors.WorkerLost("the answer broke off")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise errors.WorkerLost("the endpoint sent something that is not JSON") from error
