"""Where requests go that name no model: to the one that the user changed to.

Without such a choice it is the model that served last, and when none ever did, the only one that
is stored. While a change is on its way, requests already go to the new model; when it fails, to
the one before. Not for: what is loaded when the daemon starts (`last_served`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import structlog
from anyio.to_thread import run_sync

from stoker.lifecycle import last_served
from stoker.types import ModelId

log = structlog.get_logger(__name__)


class DefaultModel:
    """One per lifecycle; used from the event loop's thread only."""

    def __init__(
        self,
        path: Path,
        *,
        served: Callable[[], ModelId | None],
        knows: Callable[[ModelId], bool],
        only: Callable[[], ModelId | None],
        start: Callable[..., None],
    ) -> None:
        """``knows`` says whether a model is stored, ``only`` which one when there is just one.

        ``start`` runs a coroutine function beside everything else.
        """
        self._path = path
        self._served = served
        self._knows = knows
        self._only = only
        self._start = start
        self._chosen: ModelId | None = None
        self._coming: list[ModelId] = []  # changes on their way, the newest last
        self._lock = anyio.Lock()

    async def recall(self) -> None:
        """What the file says."""
        self._chosen = await run_sync(last_served.read, self._path)

    def get(self) -> ModelId | None:
        """None when nothing says which of several models is meant."""
        coming = self._coming[-1] if self._coming else None
        for found in (coming, self._chosen, self._served()):
            if found is not None and self._knows(found):
                return found
        return self._only()

    @contextmanager
    def changing(self, model: ModelId) -> Iterator[None]:
        """It is the default inside, and stays it when nothing is raised."""
        self._coming.append(model)
        try:
            yield
            self._choose(model)
        finally:
            self._coming.remove(model)

    def _choose(self, model: ModelId) -> None:
        if model != self._chosen:
            self._chosen = model
            self._start(self._write)

    async def _write(self) -> None:
        async with self._lock:
            try:
                await run_sync(last_served.write, self._path, self._chosen)
            except OSError as error:
                log.warning("default_not_written", reason=str(error))
