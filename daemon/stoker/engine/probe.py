"""Is a worker ready? Only an answered decode says so; a static OK does not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import anyio
import structlog

from stoker.engine.base import Address
from stoker.engine.upstream import Upstream
from stoker.errors import WorkerFailed, WorkerLost
from stoker.late import late
from stoker.logs import clean
from stoker.types import FailureKind

if TYPE_CHECKING:
    import httpx2
else:
    httpx2 = late("httpx2")

log = structlog.get_logger(__name__)

_RETRY_S: Final = 0.01  # between attempts while the engine does not listen yet; each takes 0.2 ms
_GOOD: Final = range(200, 300)
_STILL_LOADING: Final = 503
_MOST_BYTES: Final = 16 << 20  # of an answer; an embedding of 16,000 numbers has 400 kB
_JSON: Final = ((b"content-type", b"application/json"),)
_RANK: Final = 4  # llama.cpp's pooling type of a reranker


async def answers_decode(
    address: Address, key: str, *, embedding: bool = False, pooling: int | None = None
) -> None:
    """Return when the worker answered one small decode. Waits without end: give a deadline.

    It also takes the engine's own warm-up's place: the weights are touched, the threads started.
    Raises WorkerFailed when the engine answers, but with an error.
    """
    path, body = _request(embedding=embedding, pooling=pooling)
    async with Upstream(address, key) as upstream:
        while True:
            try:
                status, answer = await _asked(upstream, path, json.dumps(body).encode())
            except WorkerLost as error:
                log.debug("worker_not_listening", reason=error.message)
            else:
                if status in _GOOD:
                    return
                if status != _STILL_LOADING:
                    raise _refused(status, answer)
            await anyio.sleep(_RETRY_S)


async def _asked(upstream: Upstream, path: str, body: bytes) -> tuple[int, bytes]:
    """Raises WorkerLost, EngineError."""
    answer = await upstream.open("POST", path, _JSON, body)
    try:
        return answer.status, await answer.read(_MOST_BYTES)
    finally:
        await answer.aclose()


def client(address: Address, key: str) -> httpx2.AsyncClient:
    """An HTTP client to one worker, without timeouts: the caller sets a deadline for all of it."""
    socket = str(address.socket) if address.socket else None
    return httpx2.AsyncClient(
        transport=httpx2.AsyncHTTPTransport(uds=socket),
        base_url="http://worker" if socket else f"http://127.0.0.1:{address.port}",
        headers={"Authorization": f"Bearer {key}"},
        timeout=None,  # see above
        trust_env=False,
    )


def _request(*, embedding: bool, pooling: int | None) -> tuple[str, dict[str, Any]]:
    if pooling == _RANK:
        return "/v1/rerank", {"query": "a", "documents": ["b"]}
    if embedding:
        return "/v1/embeddings", {"input": "a"}
    return "/v1/completions", {"prompt": "a", "max_tokens": 1, "temperature": 0}


def _refused(status: int, answer: bytes) -> WorkerFailed:
    detail = clean(answer[:300].decode("utf-8", errors="replace"))
    msg = f"The engine loaded the model but failed its first decode (status {status})."
    return WorkerFailed(msg, kind=FailureKind.UNKNOWN.value, tail=[detail])
