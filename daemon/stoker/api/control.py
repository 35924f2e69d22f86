"""The control plane: everything that changes state, for this user's own programs.

Parse, call one service method, render. Reached through the UNIX socket only (`peer` guards it);
the routes and shapes are documented in docs/control-api.md.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Final

import structlog
from anyio.to_thread import run_sync
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stoker import __version__
from stoker.api import machine, offers
from stoker.api.errors import control_body, install_handlers, status_of
from stoker.api.hangup import unless_gone
from stoker.api.services import Services
from stoker.api.stream import event_stream, verify_stream
from stoker.errors import ModelInUse, OriginNotAllowed
from stoker.history import Kind
from stoker.schemas import (
    DoneView,
    FreedView,
    LoadRequest,
    ModelRequest,
    ModelView,
    OfferView,
    PinRequest,
    PullRequest,
    PullView,
    RemovedView,
    ServerRequest,
    ServerView,
    StatusView,
    StoreChanged,
    StoredModelView,
    VerifyRequest,
)

log = structlog.get_logger(__name__)

_VERSION: Final = (b"x-stoker-version", __version__.encode())
_BROWSER_HEADERS: Final = frozenset({b"origin", b"referer"})


def create_control_app(services: Services) -> ASGIApp:
    """The control plane of these services, as an ASGI app."""
    app = FastAPI(title="Stoker control", openapi_url=None, docs_url=None, redoc_url=None)
    for router in (
        _daemon_routes(services),
        _model_routes(services),
        _memory_routes(services),
        _pull_routes(services),
        machine.plan_routes(services),
        machine.tune_routes(services),
        machine.runtime_routes(services),
    ):
        app.include_router(router)
    install_handlers(app, control_body)
    return _Guard(app)


def _daemon_routes(services: Services) -> APIRouter:
    router = APIRouter()

    @router.get("/status")
    async def status() -> StatusView:
        return services.status()

    @router.get("/events", response_model=None)
    async def events(*, resources: bool = True) -> Response:
        return event_stream(services, resources=resources)

    @router.get("/history")
    async def history(
        kind: Kind | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> list[dict[str, Any]]:
        return [asdict(run) for run in await services.history.recent(kind, limit)]

    @router.post("/server")
    async def server(request: ServerRequest) -> ServerView:
        return await services.server.turn(on=request.enabled)

    @router.post("/stop")
    async def stop() -> DoneView:
        log.info("stop_requested")
        services.request_stop()
        return DoneView()

    return router


def _model_routes(services: Services) -> APIRouter:
    router = APIRouter()
    store, lifecycle = services.store, services.lifecycle

    @router.get("/models")
    async def models() -> list[StoredModelView]:
        return [manifest.view() for manifest in await run_sync(store.list)]

    @router.get("/catalogue")
    async def offered() -> list[OfferView]:
        return await run_sync(
            offers.from_machine, services.store, services.settings, services.profiles
        )

    @router.get("/models/{name:path}")
    async def model(name: str) -> StoredModelView:
        return (await run_sync(store.find, name)).view()

    @router.delete("/models/{name:path}")
    async def remove(name: str) -> RemovedView:
        found = (await run_sync(store.find, name)).id
        if services.puller.in_use(found):
            msg = f"{found} is being pulled"
            hint = "Wait for the pull to end, or cancel it."
            raise ModelInUse(msg, hint=hint, model=str(found))
        await lifecycle.forget(found)
        freed = await run_sync(store.remove, found)
        await lifecycle.forget(found)  # a request may have loaded it again just before
        services.bus.publish(StoreChanged(id=str(found), change="removed"))
        return RemovedView(id=str(found), bytes_freed=freed)

    @router.post("/verify", response_model=None)
    async def verify(request: VerifyRequest) -> Response:
        if request.models:
            manifests = [await run_sync(store.find, name) for name in request.models]
        else:
            manifests = await run_sync(store.list)
        return verify_stream(services, manifests)

    return router


def _memory_routes(services: Services) -> APIRouter:
    """Which models are loaded. What no one waits for any more is not loaded."""
    router = APIRouter()
    lifecycle = services.lifecycle

    @router.post("/load", response_model=None)
    async def load(wanted: LoadRequest, request: Request) -> ModelView | Response:
        if wanted.pin is not None:
            await lifecycle.pin(wanted.model, pinned=wanted.pin)
        load = lifecycle.load(wanted.model, keep_alive_s=wanted.keep_alive_s)
        return await unless_gone(request.receive, load)

    @router.post("/use", response_model=None)
    async def use(wanted: ModelRequest, request: Request) -> ModelView | Response:
        return await unless_gone(request.receive, lifecycle.use(wanted.model))

    @router.post("/pin")
    async def pin(request: PinRequest) -> ModelView:
        return await lifecycle.pin(request.model, pinned=request.pinned)

    @router.post("/free")
    async def free() -> FreedView:
        return await lifecycle.free()

    @router.post("/unload")
    async def unload(request: ModelRequest) -> ModelView:
        return await lifecycle.unload(request.model)

    return router


def _pull_routes(services: Services) -> APIRouter:
    router = APIRouter()
    puller = services.puller

    @router.get("/pulls")
    async def pulls() -> list[PullView]:
        return puller.list()

    @router.post("/pulls", status_code=202)
    async def pull(request: PullRequest) -> PullView:
        return await puller.start(request.reference, name=request.name)

    @router.get("/pulls/{pull_id}")
    async def one(pull_id: str) -> PullView:
        return puller.get(pull_id)

    @router.post("/pulls/{pull_id}/pause")
    async def pause(pull_id: str) -> PullView:
        return await puller.pause(pull_id)

    @router.post("/pulls/{pull_id}/resume")
    async def resume(pull_id: str) -> PullView:
        return await puller.resume(pull_id)

    @router.post("/pulls/{pull_id}/cancel")
    async def cancel(pull_id: str) -> PullView:
        return await puller.cancel(pull_id)

    return router


# --- the guard -------------------------------------------------------------------------------


class _Guard:
    """Outermost: no browser, and the daemon's version on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_version(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), _VERSION]
            await send(message)

        if any(name in _BROWSER_HEADERS for name, _ in scope.get("headers", ())):
            msg = "a web page may not control Stoker"
            refusal = OriginNotAllowed(msg, hint="Use the `stoker` command or the tray.")
            answer = JSONResponse(control_body(refusal), status_of(refusal))
            await answer(scope, receive, send_with_version)
            return
        await self._app(scope, receive, send_with_version)
