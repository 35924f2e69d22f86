"""One streamed answer from the endpoint, read as any OpenAI client would."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from stoker import errors

if TYPE_CHECKING:
    import httpx2

Message = dict[str, str]

_CONNECT_S: Final = 5.0
_SILENCE_S: Final = 900.0  # a long prompt on a slow machine is read for minutes before a token


@dataclass(slots=True)
class Answer:
    """What has arrived so far; iterate `pieces` to receive the rest."""

    pieces: Iterator[tuple[str, str]]  # ("text" | "thought", piece)
    started: float  # monotonic, before the question was sent
    text: str = ""
    tokens: int = 0
    finish: str | None = None
    first_s: float | None = None
    tokens_per_s: float | None = None

    def take(self, event: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """The pieces of one event. Raises the error that it carries."""
        if "error" in event:
            raise wire_error(event)
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            self.finish = choice.get("finish_reason") or self.finish
            for kind, name in (("thought", "reasoning_content"), ("text", "content")):
                piece = delta.get(name)
                if piece:
                    if self.first_s is None:
                        self.first_s = time.monotonic() - self.started
                    self.tokens += 1  # until the usage says it exactly
                    self.text += piece if kind == "text" else ""
                    yield kind, piece
        usage, timings = event.get("usage") or {}, event.get("timings") or {}
        self.tokens = usage.get("completion_tokens") or self.tokens
        self.tokens_per_s = timings.get("predicted_per_second") or self.tokens_per_s

    def stats(self) -> str:
        """How fast it was, in words."""
        elapsed = time.monotonic() - self.started
        writing = elapsed - (self.first_s or 0.0)
        rate = self.tokens_per_s or (self.tokens / writing if writing > 0 else 0.0)
        first = self.first_s or elapsed
        return f"{self.tokens} tokens, {rate:.1f} tokens/s, first after {first:.2f} s"


@contextmanager
def ask(
    base_url: str, model: str, messages: Sequence[Message], **options: float | None
) -> Iterator[Answer]:
    """Ask and receive; leaving the block early ends the generation. Raises StokerError."""
    import httpx2

    body = {
        "model": model,
        "messages": list(messages),
        "stream": True,
        "stream_options": {"include_usage": True},
        **{name: value for name, value in options.items() if value is not None},
    }
    timeout = httpx2.Timeout(_SILENCE_S, connect=_CONNECT_S)
    # trust_env: a proxy of the environment must not see what is said on this machine.
    # verify: reading the certificates of the system takes time and a plain http address has none.
    secure = base_url.startswith("https:")
    started = time.monotonic()
    try:
        with (
            httpx2.Client(timeout=timeout, trust_env=False, verify=secure) as client,
            client.stream("POST", f"{base_url}/chat/completions", json=body) as response,
        ):
            if response.status_code != httpx2.codes.OK:
                raise _refusal(response)
            answer = Answer(iter(()), started)
            answer.pieces = _pieces(answer, response.iter_lines())
            yield answer
    except httpx2.HTTPError as error:
        msg = f"the endpoint {base_url} broke off: {error}"
        raise errors.WorkerLost(msg) from error


def _pieces(answer: Answer, lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, _, value = line.partition(":")
        value = value.strip()
        if name not in {"data", "error"} or not value:
            continue  # an empty line, or a comment that keeps the connection alive
        if value == "[DONE]":
            return
        try:
            event = json.loads(value)
        except ValueError as error:
            msg = "the endpoint sent an event that is not JSON"
            raise errors.WorkerLost(msg) from error
        yield from answer.take({"error": event} if name == "error" else event)
    if answer.finish is None:
        raise errors.WorkerLost("the answer broke off")


def _refusal(response: httpx2.Response) -> errors.StokerError:
    response.read()
    try:
        return wire_error(response.json())
    except ValueError:
        return errors.StokerError(f"the endpoint answered {response.status_code}")


def wire_error(body: Any) -> errors.StokerError:
    """The error in an OpenAI-shaped body. The endpoint adds `hint` to what OpenAI has."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return errors.StokerError(f"the endpoint answered {str(body)[:200]!r}")
    code = str(error.get("code") or error.get("type") or "error")
    message = str(error.get("message") or "no reason given")
    kind = errors.all_errors().get(code, errors.StokerError)
    hint = str(error.get("hint") or kind.hint)
    message = message.removesuffix(hint).rstrip()  # the endpoint may have joined them
    return errors.from_wire(code, message, hint, {})
