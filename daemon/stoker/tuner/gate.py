"""Whether somebody uses the models at this moment, for those who must not disturb."""

from __future__ import annotations

import anyio


class Gate:
    """`set` from the lifecycle's callback; everything else waits on it."""

    def __init__(self) -> None:
        self.busy = False
        self._changed = anyio.Event()

    def set(self, *, busy: bool) -> None:
        self.busy = busy
        self._changed.set()
        self._changed = anyio.Event()

    async def until_busy(self) -> None:
        while not self.busy:
            await self._changed.wait()

    async def until_quiet(self, seconds: float) -> None:
        """Return when nobody has asked anything for so long; at once when nobody ever did."""
        while True:
            while self.busy:
                await self._changed.wait()
            with anyio.move_on_after(seconds):
                await self._changed.wait()
                continue
            if not self.busy:
                return
