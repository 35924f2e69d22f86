"""A worker that has slots and nothing else: saves and restores them as llama.cpp does.

Its contract suite is `tests/contract/test_slots.py`.
"""

from __future__ import annotations

import asyncio
import json
import struct
import tempfile
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from stoker.engine.base import Address
from stoker.engine.upstream import Upstream

_HEADER = struct.Struct("<III")
_MAGIC = 0x67677371
_VERSION = 3
_STATE_BYTES = 100  # of a token, besides its number


def state_of(tokens: Sequence[int]) -> bytes:
    """What llama.cpp writes of a slot: a head, the tokens, then what was computed of them."""
    words = array("i", tokens)
    return _HEADER.pack(_MAGIC, _VERSION, len(words)) + words.tobytes() + b"s" * _STATE_BYTES


class SlotsWorker:
    """Its slots, and what it does wrong. ``folder`` is where its files are."""

    def __init__(self, folder: Path, slots: int = 4) -> None:
        self.folder = folder
        self.slots: list[list[int]] = [[] for _ in range(slots)]
        self.tasks = [-1] * slots
        self.saved: list[int] = []
        self.restored: list[int] = []
        self.refuses = False  # whatever it is asked
        self.hangs = False  # at a save or a restore
        self.dies = False  # closes the connection instead
        self.writes_half = False  # and says it was all
        self._task = 0

    def serve(self, slot: int, tokens: Sequence[int]) -> None:
        """As if a request had left these tokens in a slot."""
        self._task += 1
        self.slots[slot], self.tasks[slot] = list(tokens), self._task

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, path, _ = head.split("\r\n", 1)[0].split(" ")
            lengths = [line for line in head.lower().split("\r\n") if "content-length" in line]
            body = await reader.readexactly(int(lengths[0].partition(":")[2]))
            if method == "POST" and self.hangs:
                await asyncio.sleep(60)
            if method == "POST" and self.dies:
                return
            status, answer = self._answer(method, path, body)
            content = json.dumps(answer).encode()
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(content)))
            writer.write(content)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client went
        finally:
            writer.close()

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if self.refuses:
            return 501, {"error": {"message": "no slots here"}}
        if (method, path) == ("GET", "/slots"):
            return 200, [self._slot(slot) for slot in range(len(self.slots))]
        where, _, action = path.removeprefix("/slots/").partition("?action=")
        slot, name = int(where), json.loads(body)["filename"]
        if "/" in name:
            return 400, {"error": {"message": "Invalid filename"}}
        if action == "save":
            return 200, self._save(slot, self.folder / name)
        return self._restore(slot, self.folder / name)

    def _slot(self, slot: int) -> dict[str, Any]:
        view: dict[str, Any] = {"id": slot, "n_ctx": 4096, "is_processing": False}
        if self.tasks[slot] >= 0:
            view |= {"id_task": self.tasks[slot], "n_prompt_tokens": len(self.slots[slot])}
        return view

    def _save(self, slot: int, path: Path) -> dict[str, Any]:
        content = state_of(self.slots[slot])
        path.write_bytes(content[: len(content) // 2] if self.writes_half else content)
        self.saved.append(slot)
        size = len(content)
        return {"id_slot": slot, "n_saved": len(self.slots[slot]), "n_written": size}

    def _restore(self, slot: int, path: Path) -> tuple[int, Any]:
        try:
            content = path.read_bytes()
            count = _HEADER.unpack(content[: _HEADER.size])[2]
        except (OSError, struct.error):
            return 400, {"error": {"message": "Unable to restore slot"}}
        words = array("i")
        words.frombytes(content[_HEADER.size : _HEADER.size + 4 * count])
        self.slots[slot] = words.tolist()
        self.restored.append(slot)
        return 200, {"id_slot": slot, "n_restored": count, "n_read": len(content)}


@asynccontextmanager
async def listening(worker: SlotsWorker) -> AsyncIterator[Upstream]:
    """The way to it."""
    with tempfile.TemporaryDirectory(prefix="st-", dir="/tmp") as folder:
        socket = Path(folder) / "w.sock"
        server = await asyncio.start_unix_server(worker.handle, socket)
        try:
            async with Upstream(Address(socket=socket), "key") as upstream:
                yield upstream
        finally:
            server.close()
