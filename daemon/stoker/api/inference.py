"""The endpoint: the guard outermost, then the engine's paths by relay, the rest by FastAPI."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stoker.api import upstreams as elsewhere
from stoker.api.default import means_default
from stoker.api.errors import install_handlers
from stoker.api.guard import Guard, Rules
from stoker.api.health import health_routes
from stoker.api.relay import Relay
from stoker.api.routes import ROUTES
from stoker.api.services import Services
from stoker.errors import UnknownModel
from stoker.metrics import Metrics
from stoker.store.manifest import Manifest


def create_inference_app(services: Services) -> ASGIApp:
    """The app for the TCP listener. Nothing reaches it but through the guard."""
    app = FastAPI(
        title="Stoker", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.include_router(_model_routes(services))
    app.include_router(health_routes(services.metrics))
    install_handlers(app)
    settings = services.settings
    rules = Rules.of(settings.allowed_hosts, settings.allowed_origins, settings.max_body_bytes)
    return Guard(_Switch(Relay(services), app, services.metrics), rules)


class _Switch:
    """Sends a request to the relay or to FastAPI, and counts what FastAPI answers."""

    def __init__(self, relay: Relay, app: ASGIApp, metrics: Metrics) -> None:
        self._relay = relay
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        relayed = scope["type"] == "http" and scope["path"] in ROUTES
        if relayed and scope["method"] == "POST":
            await self._relay(scope, receive, send)
        elif scope["type"] == "http":
            await self._app(_as_get(scope), receive, self._counting(scope, send))

    def _counting(self, scope: Scope, send: Send) -> Send:
        route = scope["path"] if scope["path"] in {"/v1/models", "/health", "/metrics"} else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(route, str(message["status"])).inc()
            await send(message)

        return counted


def _as_get(scope: Scope) -> Scope:
    """HEAD is GET to the app; the server leaves the body out."""
    return {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope


def _model_routes(services: Services) -> APIRouter:
    router = APIRouter()
    store, upstreams = services.store, services.upstreams

    @router.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        here = [_shown(services, one) for one in store.list()]
        if elsewhere.came_from_a_stoker(request.headers.raw):
            return {"object": "list", "data": here}  # it lists the others itself
        taken = {one["id"] for one in here}
        there = [elsewhere.listed(one) for one in upstreams.models() if one.id not in taken]
        return {"object": "list", "data": [*here, *there]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        default = services.lifecycle.default_model()
        if name and default is not None and means_default(store, name):
            name = str(default)
        try:
            return _shown(services, store.find(name))
        except UnknownModel:
            remote = upstreams.find(name)
            if remote is None:
                raise
            return elsewhere.listed(remote)

    for path in ROUTES:
        router.add_api_route(path, _never, methods=["POST"])  # so that GET is 405, not 404
    return router


def _shown(services: Services, manifest: Manifest) -> dict[str, Any]:
    view = services.lifecycle.view(manifest.id)
    return {
        "id": str(manifest.id),
        "object": "model",
        "created": int(manifest.created_at.timestamp()),
        "owned_by": "stoker",
        "stoker": {
            "state": view.state.value,
            "context": view.context or manifest.context_length,
            "capabilities": [capability.value for capability in manifest.capabilities],
            "default": manifest.id == services.lifecycle.default_model(),
        },
    }


async def _never() -> None:
    """The relay answers these."""
