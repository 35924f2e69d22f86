"""The engine's paths that the endpoint serves, and how errors look on each. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from stoker.api.errors import openai_body
from stoker.errors import (
    BadRequest,
    CapacityError,
    ContextTooLong,
    EngineError,
    NotCapable,
    StokerError,
)
from stoker.types import Capability

_TOO_LARGE: Final = re.compile(
    r"\((\d+) tokens\) (?:is too large to process|exceeds).*?(?:size: |\()(\d+)", re.DOTALL
)
# Faults of a request that the engine finds too late to call them so.
_BAD_REQUEST: Final = re.compile(
    r"^Failed to parse (?:messages|tools)\b|_range_check|json\.exception"
)
_NOT_CAPABLE: Final = re.compile(r"not support(?:ed)?\b.*|mmproj", re.IGNORECASE)


class Flavour(Enum):
    """Whose API a path belongs to; it decides the shape of errors."""

    OPENAI = "openai"
    RESPONSES = "responses"
    ANTHROPIC = "anthropic"


@dataclass(frozen=True, slots=True)
class Route:
    """A POST path, the same on the endpoint and on the engine."""

    path: str
    capability: Capability | None
    flavour: Flavour = Flavour.OPENAI


ROUTES: Final[Mapping[str, Route]] = {
    route.path: route
    for route in (
        Route("/v1/chat/completions", Capability.CHAT),
        Route("/v1/completions", Capability.COMPLETION),
        Route("/v1/embeddings", Capability.EMBEDDING),
        Route("/v1/responses", Capability.CHAT, Flavour.RESPONSES),
        Route("/v1/messages", Capability.CHAT, Flavour.ANTHROPIC),
        Route("/v1/messages/count_tokens", Capability.CHAT, Flavour.ANTHROPIC),
        Route("/v1/rerank", Capability.RERANK),
        Route("/v1/audio/transcriptions", Capability.AUDIO),
        Route("/tokenize", None),
        Route("/detokenize", None),
        Route("/apply-template", Capability.CHAT),
    )
}


def error_body(flavour: Flavour, error: StokerError) -> dict[str, Any]:
    """The JSON body of an error answer."""
    body = openai_body(error)
    return {"type": "error", **body} if flavour is Flavour.ANTHROPIC else body


def error_event(flavour: Flavour, error: StokerError) -> bytes:
    """The error as the last event of a stream; no ``[DONE]`` follows it."""
    body = error_body(flavour, error)
    if flavour is Flavour.OPENAI:
        return b"data: " + json.dumps(body).encode() + b"\n\n"
    if flavour is Flavour.RESPONSES:
        body = {"type": "error", **body["error"], "sequence_number": 0} | {"type": "error"}
    return b"event: error\ndata: " + json.dumps(body).encode() + b"\n\n"


def engine_error(status: int, body: bytes) -> StokerError:
    """An error answer of the engine as one of ours."""
    error = _error_object(body)
    message = str(error.get("message") or f"the engine answered with status {status}")[:2000]
    too_long = _context_numbers(error, message)
    if too_long is not None:
        n_prompt, n_ctx = too_long
        return ContextTooLong(
            f"the prompt has {n_prompt} tokens and the context holds {n_ctx}",
            n_prompt_tokens=n_prompt,
            n_ctx=n_ctx,
        )
    failed = status == 500  # noqa: PLR2004  # the engine's word for any exception
    if status in {404, 501} or (failed and _NOT_CAPABLE.search(message)):
        return NotCapable(f"this model cannot do that: {message}")
    if status in {400, 413, 415, 422} or (failed and _BAD_REQUEST.search(message)):
        return BadRequest(message)
    if status in {429, 503}:
        return CapacityError(f"the engine is not ready: {message}")
    return EngineError(f"the engine failed: {message}")


def _error_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    error = value.get("error") if isinstance(value, dict) else None
    return error if isinstance(error, dict) else {}


def _context_numbers(error: dict[str, Any], message: str) -> tuple[int, int] | None:
    given = error.get("n_prompt_tokens"), error.get("n_ctx")
    if isinstance(given[0], int) and isinstance(given[1], int):
        return given[0], given[1]
    match = _TOO_LARGE.search(message)
    return (int(match[1]), int(match[2])) if match else None
