"""Errors as HTTP: a status for every class, and the two body shapes.

The endpoint answers in OpenAI's shape, the control plane with `schemas.ErrorView`. Not for: what
went wrong (the error says it) or logging prompts (nothing here sees one).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stoker import errors
from stoker.errors import InternalError, MethodNotAllowed, StokerError, UnknownRoute
from stoker.schemas import ErrorView

log = structlog.get_logger(__name__)

# The nearest class in an error's ancestry decides.
STATUS: Final[dict[type[StokerError], int]] = {
    errors.StokerError: 500,
    errors.InputError: 400,
    errors.BodyTooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.UnknownModel: 404,
    errors.UnknownPull: 404,
    errors.UnknownRuntime: 404,
    errors.BadTuningFile: 422,
    errors.UnknownRoute: 404,
    errors.MethodNotAllowed: 405,
    errors.RefusedError: 403,
    errors.SourceError: 502,
    errors.SourceNotFound: 404,
    errors.SourceGated: 403,
    errors.SourceRateLimited: 429,
    errors.SourceOffline: 503,
    errors.VerificationError: 422,  # a client must not try it again by itself
    errors.StoreError: 500,
    errors.DiskFull: 507,
    errors.ModelInUse: 409,
    errors.EngineError: 502,
    errors.WorkerTimeout: 504,
    errors.UpstreamError: 502,
    errors.UpstreamDown: 503,
    errors.RuntimeRejected: 409,
    errors.CompilerMissing: 424,  # something else has to be there first
    errors.CapacityError: 503,
    errors.MemoryShort: 507,
    errors.MachineBusy: 409,
    errors.Overtaken: 409,
    errors.DaemonError: 500,
    errors.DaemonNotRunning: 503,
    errors.DaemonNotReady: 503,
}
_TYPES: Final[dict[type[StokerError], str]] = {
    errors.InputError: "invalid_request_error",
    errors.RefusedError: "permission_error",
    errors.StokerError: "server_error",
}
_RETRY_AFTER_S: Final = 2  # a load from a warm disk takes about that long
_LONGEST_RETRY_S: Final = 600

Render = Callable[[StokerError], dict[str, Any]]


def status_of(error: StokerError) -> int:
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def headers_of(error: StokerError) -> dict[str, str]:
    """What a client should know beside the body: whether to come back."""
    if status_of(error) != STATUS[errors.CapacityError]:
        return {}
    wait_s = error.facts.get("retry_after_s")  # who refused it may know when it would be its turn
    if not isinstance(wait_s, int | float) or not 0 < wait_s <= _LONGEST_RETRY_S:
        wait_s = _RETRY_AFTER_S
    return {"Retry-After": str(math.ceil(wait_s))}


def openai_body(error: StokerError) -> dict[str, Any]:
    """``{"error": {...}}`` as OpenAI's clients read it, with our hint and facts beside it."""
    facts = dict(error.facts)
    param = facts.pop("param", None)
    return {
        "error": {
            **facts,
            "message": f"{error.message.rstrip('.')}. {error.hint}",
            "type": next(_TYPES[cls] for cls in type(error).__mro__ if cls in _TYPES),
            "param": param,
            "code": error.code,
            "hint": error.hint,
        }
    }


def error_view(error: StokerError) -> ErrorView:
    return ErrorView(
        code=error.code, message=error.message, hint=error.hint, facts=dict(error.facts)
    )


def control_body(error: StokerError) -> dict[str, Any]:
    """`ErrorView` as JSON, for the control plane."""
    return error_view(error).model_dump(mode="json")


def install_handlers(app: FastAPI, render: Render = openai_body) -> None:
    """Make every failure of ``app`` an error of ours: unknown paths and crashes included."""

    def answer(error: StokerError, **headers: str) -> Response:
        return JSONResponse(
            render(error), status_of(error), headers={**headers_of(error), **headers}
        )

    async def ours(_: Request, error: Exception) -> Response:
        if not isinstance(error, StokerError):
            raise error
        return answer(error)

    async def invalid(_: Request, error: Exception) -> Response:
        if not isinstance(error, RequestValidationError):
            raise error
        return answer(_first_problem(error))

    async def by_status(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        return answer(_from_status(request, error), **dict(error.headers or {}))

    async def crashed(request: Request, error: Exception) -> Response:
        # The server logs the traceback; the client learns only that it is our fault.
        log.error("request_crashed", path=request.url.path, kind=type(error).__name__)
        return answer(InternalError("Stoker failed to answer this request"))

    app.add_exception_handler(StokerError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, by_status)
    app.add_exception_handler(Exception, crashed)


def _first_problem(error: RequestValidationError) -> StokerError:
    problem: dict[str, Any] = next(iter(error.errors()), {})
    param = ".".join(str(part) for part in problem.get("loc", ())[1:])
    message = problem.get("msg", "the request cannot be read")
    return errors.BadRequest(f"{param}: {message}" if param else message, param=param or None)


def _from_status(request: Request, error: HTTPException) -> StokerError:
    match error.status_code:
        case 404:
            return UnknownRoute(f"no such path: {request.url.path[:200]}")
        case 405:
            return MethodNotAllowed(f"{request.method} is not offered at {request.url.path[:200]}")
        case 413:
            return errors.BodyTooLarge(str(error.detail))
        case status if status < STATUS[StokerError]:
            return errors.BadRequest(str(error.detail))
    return InternalError(str(error.detail))
