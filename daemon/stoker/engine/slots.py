"""The slots of a worker: how full they are, and their contents to a file and back.

llama.cpp's own interface (`/slots`); the files lie in the folder that the plan names, and are
named to the engine without a path. Not for: which ones are worth it (`lifecycle.conversations`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, Literal

from stoker.engine.upstream import Upstream
from stoker.errors import EngineError

_OK: Final = 200
_MOST_BYTES: Final = 1024 * 1024  # of an answer; a slot takes two thousand
_MOST_SLOTS: Final = 1024
_JSON: Final = ((b"content-type", b"application/json"),)


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot that has served."""

    id: int
    tokens: int  # that its part of the cache holds
    task: int  # number of the last request it served; a later one has a higher number
    busy: bool


async def look(upstream: Upstream) -> tuple[Slot, ...]:
    """The slots that have served. Raises WorkerLost, EngineError."""
    found = await _ask(upstream, "GET", "/slots", b"")
    if not isinstance(found, list):
        raise EngineError("the engine lists no slots")
    return tuple(
        Slot(one["id"], one["n_prompt_tokens"], one["id_task"], one.get("is_processing") is True)
        for one in found[:_MOST_SLOTS]
        if isinstance(one, dict)
        and all(_is_count(one.get(name)) for name in ("id", "n_prompt_tokens", "id_task"))
    )


async def save(upstream: Upstream, slot: int, name: str) -> int:
    """Write what the slot holds to a file; how many bytes. Waits for its request, if one runs.

    Raises WorkerLost, EngineError. The file may then be there, and be half.
    """
    return await _act(upstream, slot, "save", name, "n_written")


async def restore(upstream: Upstream, slot: int, name: str) -> int:
    """Read it back; how many tokens the slot holds now. Raises WorkerLost, EngineError."""
    return await _act(upstream, slot, "restore", name, "n_restored")


async def _act(
    upstream: Upstream, slot: int, action: Literal["save", "restore"], name: str, answer: str
) -> int:
    body = json.dumps({"filename": name}).encode()
    found = await _ask(upstream, "POST", f"/slots/{slot}?action={action}", body)
    number = found.get(answer) if isinstance(found, dict) else None
    if not isinstance(number, int) or not _is_count(number):
        raise EngineError(f"the engine does not say whether it could {action} a slot")
    return number


async def _ask(upstream: Upstream, method: str, path: str, body: bytes) -> Any:
    response = await upstream.open(method, path, _JSON if body else (), body)
    try:
        content = await response.read(_MOST_BYTES)
    finally:
        await response.aclose()
    if response.status != _OK:
        raise EngineError(f"the engine refuses {method} /slots", status=response.status)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise EngineError("the engine's answer is no JSON") from error


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
