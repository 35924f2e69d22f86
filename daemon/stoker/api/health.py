"""`/health` and `/metrics`: is it there, and what has it done."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from stoker import __version__
from stoker.metrics import CONTENT_TYPE, Metrics


def health_routes(metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    @router.get("/metrics", response_model=None)
    async def render() -> Response:
        return Response(metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    return router
