"""The model that served last, in a small file that is replaced whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import anyio
import structlog
from anyio.to_thread import run_sync

from stoker.errors import BadReference
from stoker.types import ModelId

log = structlog.get_logger(__name__)


class LastServed:
    """The model that served last: in memory at once, in the file a moment later."""

    def __init__(self, path: Path, start: Callable[..., None]) -> None:
        """``start`` runs a coroutine function beside everything else."""
        self._path = path
        self._start = start
        self._model: ModelId | None = None
        self._lock = anyio.Lock()

    @property
    def model(self) -> ModelId | None:
        return self._model

    async def recall(self) -> None:
        """What the file says."""
        self._model = await run_sync(read, self._path)

    def remember(self, model: ModelId) -> None:
        """From a request: costs nothing when it is the same as before."""
        if model != self._model:
            self._model = model
            self._start(self._write)

    def forget(self, model: ModelId) -> None:
        """It does not come back at the next start."""
        if self._model == model:
            self._model = None
            self._start(self._write)

    async def _write(self) -> None:
        async with self._lock:
            try:
                await run_sync(write, self._path, self._model)
            except OSError as error:
                log.warning("last_served_not_written", reason=str(error))


def read(path: Path) -> ModelId | None:
    """None when there is no file, or nothing usable in it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return ModelId.parse(value.get("model") if isinstance(value, dict) else None)
    except (OSError, ValueError, BadReference):
        return None


def write(path: Path, model: ModelId | None) -> None:
    """Remember ``model``; None forgets. Raises OSError; the old content is then still there."""
    if model is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        with part.open("w", encoding="utf-8") as stream:
            json.dump({"model": str(model)}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
