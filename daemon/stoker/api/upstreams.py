"""Models of other servers, as the endpoint sees them: which, how listed, what a refusal means.

Not for: sending anything there (`stoker.upstreams`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from stoker.api.routes import engine_error
from stoker.errors import (
    BadRequest,
    CapacityError,
    ContextTooLong,
    NotCapable,
    StokerError,
    UnknownModel,
    UpstreamError,
)
from stoker.store.store import Store
from stoker.upstreams import RemoteModel, Upstreams
from stoker.upstreams.names import VIA

if TYPE_CHECKING:
    from stoker.upstreams.forward import RemoteResponse

_LONGEST_ERROR: Final = 256 * 1024  # bytes; of a body
_LONGEST_MESSAGE: Final = 1000  # characters
_LONGEST_WAIT_S: Final = 600
_NOT_THERE: Final = "`stoker status` lists the models of other servers."

Headers = Iterable[tuple[bytes, bytes]]


def came_from_a_stoker(headers: Headers) -> bool:
    """Whether another Stoker asks; what it asks for is not forwarded once more.

    So two that list each other neither ask each other in circles nor list each other's lists.
    """
    return any(name == VIA for name, _ in headers)


def remote(store: Store, upstreams: Upstreams, name: str, headers: Headers) -> RemoteModel | None:
    """The remote model of this name; None when a stored one has it, or none."""
    if "/" not in name or came_from_a_stoker(headers):
        return None
    found = upstreams.find(name)
    if found is None:
        return None
    try:
        store.find(name)
    except UnknownModel:
        return found
    return None


def listed(model: RemoteModel) -> dict[str, Any]:
    """Its entry in ``/v1/models``."""
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.upstream,
        "stoker": {
            "state": "remote",
            "context": model.context,
            "capabilities": [capability.value for capability in model.capabilities],
            "default": False,
            "upstream": model.upstream,
        },
    }


async def refusal(model: RemoteModel, response: RemoteResponse) -> StokerError:
    """What an answer other than 200 means. Raises UpstreamError when it cannot be read."""
    body = await response.read(_LONGEST_ERROR)
    return _meaning(model, response.status, body, response.header(b"retry-after"))


def _meaning(
    model: RemoteModel, status: int, body: bytes, retry_after: bytes | None
) -> StokerError:
    known = engine_error(status, body)  # llama.cpp's numbers, from a llama-server
    if isinstance(known, ContextTooLong):
        return known
    said = _error_object(body)
    facts: dict[str, Any] = {"upstream": model.upstream}
    cls: type[StokerError]
    if status in {429, 503, 507, 529}:
        if retry_after:
            facts["retry_after_s"] = min(int(retry_after), _LONGEST_WAIT_S)
        cls, verb = CapacityError, " is busy"
    elif 400 <= status < 500 and status != 408:  # noqa: PLR2004
        cls, verb = _fault_of_the_request(status, said.get("code")), ""
        facts["param"] = _word(said.get("param"))
    else:
        cls, verb = UpstreamError, " failed"
    hint = _NOT_THERE if cls is UnknownModel else None
    message = _message(said) or f"status {status}"
    return cls(f"{model.upstream}{verb}: {message}", hint=hint, **facts)


def _fault_of_the_request(status: int, code: object) -> type[StokerError]:
    if code == ContextTooLong.code:
        return ContextTooLong
    if status == 404 and code == UnknownModel.code:  # noqa: PLR2004
        return UnknownModel
    return NotCapable if status in {404, 405} else BadRequest


def _error_object(body: bytes) -> dict[str, Any]:
    """OpenAI's ``{"error": {...}}``, or what older servers and frameworks send instead."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    error = value.get("error", value)
    return error if isinstance(error, dict) else {"message": error}


def _message(said: dict[str, Any]) -> str:
    """Foreign text on one line, bounded, without what could steer a terminal."""
    text = said.get("message", said.get("detail"))
    if not isinstance(text, str):
        return ""
    words = "".join(char if char.isprintable() else " " for char in text[: 4 * _LONGEST_MESSAGE])
    return " ".join(words.split())[:_LONGEST_MESSAGE]


def _word(value: object) -> str | None:
    return value[:64] if isinstance(value, str) and value.isprintable() else None
