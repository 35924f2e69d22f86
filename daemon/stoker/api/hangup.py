"""Notices that a client hung up, and gives up what was done for it alone."""

from __future__ import annotations

from collections.abc import Awaitable
from http import HTTPStatus
from typing import TypeVar

import anyio
from starlette.responses import Response
from starlette.types import Receive

T = TypeVar("T")


async def until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    """Cancel the scope when the client hangs up. The request's body was read before."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T | Response:
    """What the work returns or raises; it is cancelled when the client hangs up.

    Nobody reads the answer then.
    """
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(until_gone, receive, tasks.cancel_scope)
        try:
            return await work
        except Exception as error:  # noqa: BLE001  # raised below, outside of the group
            failure = error
        finally:
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return Response(status_code=HTTPStatus.SERVICE_UNAVAILABLE)
