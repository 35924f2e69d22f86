"""What `client.StokerClient` can ask about this machine: plans, tuning, runtimes.

A part of that class, for its length only. Not for: anything without a daemon.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, RootModel

from stoker.schemas import RuntimesView, RuntimeView, TuneView
from stoker.schemas_machine import (
    PlanRequest,
    PlanView,
    RecommendationView,
    TakenView,
    TuneRequest,
)

M = TypeVar("M", bound=BaseModel)

PLAN_S: Final = 120.0  # a dry run of a large file on a cold disk comes first
SWITCH_S: Final = 900.0  # every loaded model is started anew before the answer


class Document(RootModel[dict[str, Any]]):
    """Any JSON object."""


class MachineCalls(ABC):
    """The calls; what carries them is given by the class that this is a part of."""

    @abstractmethod
    def _call(
        self, kind: type[M], method: str, path: str, body: object = None, read_s: float = ...
    ) -> M: ...

    @abstractmethod
    def _call_list(self, kind: type[M], path: str) -> list[M]: ...

    # --- plans and recommendations -----------------------------------------------------------

    def plan(self, request: PlanRequest) -> PlanView:
        """The settings that a load would choose now, with reasons. Loads nothing."""
        body = request.model_dump(exclude_none=True)
        return self._call(PlanView, "POST", "/plan", body, read_s=PLAN_S)

    def recommend(self, use: str | None = None) -> list[RecommendationView]:
        """The models known by a short name, for one use or all, the best for this machine first."""
        path = f"/recommend?use={quote(use, safe='')}" if use else "/recommend"
        return self._call_list(RecommendationView, path)

    # --- tuning ------------------------------------------------------------------------------

    def tunes(self) -> list[TuneView]:
        """Every stored model that was tuned, is being tuned or waits for it."""
        return self._call_list(TuneView, "/tune")

    def tune(self, request: TuneRequest) -> TuneView:
        """Start the measured search, or find the one that runs; returns at once."""
        return self._call(TuneView, "POST", "/tune", request.model_dump())

    def tune_cancel(self, model: str) -> TuneView:
        return self._call(TuneView, "POST", "/tune/cancel", {"model": model})

    def tune_export(self) -> dict[str, Any]:
        """All tuned settings, for another machine of the same kind."""
        return self._call(Document, "GET", "/tune/export").root

    def tune_import(self, document: object) -> TakenView:
        return self._call(TakenView, "POST", "/tune/import", document)

    # --- runtimes ----------------------------------------------------------------------------

    def runtimes(self) -> RuntimesView:
        return self._call(RuntimesView, "GET", "/runtimes")

    def runtime_install(self, kind: str, *, force: bool = False) -> RuntimeView:
        """Start the installation; returns at once."""
        return self._call(RuntimeView, "POST", "/runtimes", {"kind": kind, "force": force})

    def runtime_cancel(self) -> RuntimesView:
        """Give up the installation that runs."""
        return self._call(RuntimesView, "POST", "/runtimes/cancel")

    def runtime_use(self, name: str) -> RuntimesView:
        """Switch; every loaded model has moved when this returns."""
        return self._call(RuntimesView, "POST", "/runtimes/use", {"name": name}, read_s=SWITCH_S)

    def runtime_rollback(self) -> RuntimesView:
        return self._call(RuntimesView, "POST", "/runtimes/rollback", read_s=SWITCH_S)

    def runtime_remove(self, name: str) -> RuntimesView:
        path = f"/runtimes/{quote(name, safe='')}"
        return self._call(RuntimesView, "DELETE", path, read_s=SWITCH_S)

    def runtime_hold(self, *, held: bool) -> RuntimesView:
        """Let no runtime change by itself, or let it again."""
        return self._call(RuntimesView, "POST", "/runtimes/hold", {"held": held})
