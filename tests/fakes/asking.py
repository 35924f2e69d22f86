"""A plain client of the endpoint, as light as one for many requests at once has to be."""

from __future__ import annotations

import json
import threading
from types import TracebackType
from typing import Any, Self

import httpx2

ANSWER_S = 300.0  # a cold load, the self-test and an answer on a busy machine
ENDLESS = {"ignore_eos": True}  # as `extra_body`: the answer is as long as asked, by no luck


def question(model: str, max_tokens: int, prompt: str = "Once upon a time", **more: Any) -> Any:
    """The body of a completion: the route that a base model serves as well."""
    fixed = {"temperature": 0, **ENDLESS}
    return {"model": model, "prompt": prompt, "max_tokens": max_tokens, **fixed, **more}


def complete(base_url: str, model: str, max_tokens: int = 8, **more: Any) -> httpx2.Response:
    """One answer, in one piece."""
    with httpx2.Client(timeout=ANSWER_S, trust_env=False) as client:
        return client.post(f"{base_url}/completions", json=question(model, max_tokens, **more))


class Stream:
    """``with Stream(…) as stream:`` reads a streamed completion in a thread of its own."""

    def __init__(self, base_url: str, model: str, max_tokens: int) -> None:
        self.tokens = 0
        self.finish_reason: str | None = None
        self.is_whole = False  # `[DONE]` came
        self.error: object = None
        self.began = threading.Event()
        self._url = f"{base_url}/completions"
        self._body = question(model, max_tokens, stream=True)
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self.began.wait(ANSWER_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.wait()

    @property
    def runs(self) -> bool:
        return self._thread.is_alive()

    def wait(self) -> None:
        """For its end, whatever that is."""
        self._thread.join(ANSWER_S)
        assert not self._thread.is_alive()

    def _read(self) -> None:
        try:
            with (
                httpx2.Client(timeout=ANSWER_S, trust_env=False) as client,
                client.stream("POST", self._url, json=self._body) as answer,
            ):
                for line in answer.iter_lines():
                    self._take(line)
        except httpx2.HTTPError as error:
            self.error = error
        finally:
            self.began.set()

    def _take(self, line: str) -> None:
        if line == "data: [DONE]":
            self.is_whole = True
        elif line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            self.error = event.get("error", self.error)
            for choice in event.get("choices", ()):
                self.tokens += 1
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
            self.began.set()
