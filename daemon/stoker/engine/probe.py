"""Is a worker ready? Only an answered decode says so; a static OK does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import anyio
import structlog

from stoker.engine.base import Address
from stoker.errors import WorkerFailed
from stoker.late import late
from stoker.types import FailureKind

if TYPE_CHECKING:
    import httpx2
else:
    httpx2 = late("httpx2")

log = structlog.get_logger(__name__)

_RETRY_S: Final = 0.02  # between attempts while the engine does not listen yet
_STILL_LOADING: Final = 503
_RANK: Final = 4  # llama.cpp's pooling type of a reranker


async def answers_decode(
    address: Address, key: str, *, embedding: bool = False, pooling: int | None = None
) -> None:
    """Return when the worker answered one small decode. Waits without end: give a deadline.

    It also takes the engine's own warm-up's place: the weights are touched, the threads started.
    Raises WorkerFailed when the engine answers, but with an error.
    """
    path, body = _request(embedding=embedding, pooling=pooling)
    async with client(address, key) as http:
        while True:
            try:
                answer = await http.post(path, json=body)
            except httpx2.TransportError as error:
                log.debug("worker_not_listening", reason=str(error))
            else:
                if answer.is_success:
                    return
                if answer.status_code != _STILL_LOADING:
                    raise _refused(answer)
            await anyio.sleep(_RETRY_S)


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


def _refused(answer: httpx2.Response) -> WorkerFailed:
    detail = answer.text[:300]
    msg = f"The engine loaded the model but failed its first decode (status {answer.status_code})."
    return WorkerFailed(msg, kind=FailureKind.UNKNOWN.value, tail=[detail])
