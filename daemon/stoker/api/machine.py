"""The control plane's routes about this machine: plans, recommendations, tuning, runtimes.

Parse, call one service method, render; docs/control-api.md documents the shapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter

from stoker.api.services import Services
from stoker.late import late
from stoker.schemas import ModelRequest, RuntimesView, RuntimeView, TuneView
from stoker.schemas_machine import (
    HoldRequest,
    PlanRequest,
    PlanView,
    RecommendationView,
    RuntimeInstallRequest,
    RuntimeRequest,
    TakenView,
    TuneRequest,
    Use,
)

if TYPE_CHECKING:
    from stoker import recommend
else:  # asked for now and then
    recommend = late("stoker.recommend")


def plan_routes(services: Services) -> APIRouter:
    router = APIRouter()

    @router.post("/plan")
    async def plan(request: PlanRequest) -> PlanView:
        return await services.planner.plan(request)

    @router.get("/recommend")
    async def recommendations(use: Use | None = None) -> list[RecommendationView]:
        every = await run_sync(
            recommend.from_machine, services.store, services.settings, services.profiles
        )
        return [one for one in every if use is None or one.use == use]

    return router


def tune_routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/tune")
    tuner = services.tuner

    @router.get("")
    async def tunes() -> list[TuneView]:
        return list(tuner.list())

    @router.post("", status_code=202)
    async def tune(request: TuneRequest) -> TuneView:
        return await tuner.start(request)

    @router.post("/cancel")
    async def cancel(request: ModelRequest) -> TuneView:
        return await tuner.cancel(request.model)

    @router.get("/export")
    async def exported() -> dict[str, Any]:
        return await run_sync(tuner.export)

    @router.post("/import")
    async def imported(document: dict[str, Any]) -> TakenView:
        return TakenView(taken=await run_sync(tuner.take, document))

    return router


def runtime_routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/runtimes")
    runtimes = services.runtimes

    @router.get("")
    async def listed() -> RuntimesView:
        return runtimes.view()

    @router.post("", status_code=202)
    async def install(request: RuntimeInstallRequest) -> RuntimeView:
        return await runtimes.install(request)

    @router.post("/cancel")
    async def cancel() -> RuntimesView:
        return await runtimes.cancel()

    @router.post("/use")
    async def use(request: RuntimeRequest) -> RuntimesView:
        return await runtimes.use(request.name)

    @router.post("/rollback")
    async def rollback() -> RuntimesView:
        return await runtimes.rollback()

    @router.post("/hold")
    async def hold(request: HoldRequest) -> RuntimesView:
        return await runtimes.hold(request.held)

    @router.delete("/{name}")
    async def remove(name: str) -> RuntimesView:
        return await runtimes.remove(name)

    return router
