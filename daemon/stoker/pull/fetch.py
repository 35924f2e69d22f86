"""Move one file's bytes into a sink: ranged, resumed, over several connections.

Each request asks the origin for a range at the pinned revision, so that an expired download
address heals by itself. Nothing is trusted: every byte is hashed by the sink and judged by the
store. Not for: which address or digest (`source`), nor pausing (`puller`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import anyio
from anyio import to_thread

from stoker.errors import (
    SizeMismatch,
    SourceError,
    SourceInvalid,
    SourceRateLimited,
    SourceUnreachable,
)
from stoker.late import late
from stoker.pull.groups import one_error
from stoker.pull.rules import LONGEST_WAIT_S, Answer, Origin, judge, status_error, wait_s
from stoker.pull.source import Progress, Sink
from stoker.pull.web import STALL_S, Headers, Web, transport_errors

if TYPE_CHECKING:
    import httpx2
else:
    httpx2 = late("httpx2")

MIB: Final = 1024 * 1024
_WRITE_BYTES: Final = MIB  # per write: a thread hop costs 0.1 ms, so 1 % at 100 MB/s
_WRITE_S: Final = 0.25  # at most between two writes, so that a slow line shows progress too
_TEND_S: Final = 0.25  # hashing and progress follow the transfer at this distance
_CHECKPOINT_S: Final = 5.0  # of transfer that a crash may cost
_CRAWL_BYTES: Final = 32 * 1024  # less than this per stall time: a new connection may do better
_LONGEST_SIZE: Final = 19  # digits
_INVALID_TRIES: Final = 2  # a broken answer may come from one bad node of many
_WHOLE_TRIES: Final = 4  # downloads from the start when a server cannot resume


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """How hard to try. The defaults give up after about four minutes without one byte."""

    connections: int = 4
    chunk_bytes: int = 32 * MIB  # per request: 0.3 s of handshakes against seconds of transfer
    stall_s: float = STALL_S
    tries: int = 10
    backoff_s: float = 0.5
    longest_backoff_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Target:
    """A file at a canonical address. ``secret`` headers go to that origin only."""

    url: str
    size: int
    secret: Headers = field(default_factory=dict)
    inspect: Callable[[Headers], None] | None = None


class RateLimit:
    """A cap on bytes per second, shared by all connections; 0 is no limit."""

    def __init__(self, bytes_per_s: int) -> None:
        self._rate = bytes_per_s
        self._free_at = 0.0

    async def take(self, count: int) -> None:
        """Return when so many bytes may be read."""
        if self._rate:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + count / self._rate
            await anyio.sleep(self._free_at - now)


async def look(web: Web, url: str) -> tuple[int, str]:
    """The size of the file at an address, and what changes when it is replaced; "" for nothing.

    Raises SourceError.
    """
    async with web.open(url, headers={"Range": "bytes=0-0"}) as response:
        status, headers = response.status_code, response.headers
        ranged = status == httpx2.codes.PARTIAL_CONTENT
        total = headers.get("content-range", "").rpartition("/")[2] if ranged else ""
        text = total or headers.get("content-length", "")
        size = int(text) if text.isdecimal() and len(text) <= _LONGEST_SIZE else 0
        if judge(status, headers, (0, 1), size, at_origin=True) is Answer.LATER:
            raise status_error(status, headers)
    if size == 0:
        raise SourceInvalid("the server does not say how large the file is")
    return size, headers.get("etag") or headers.get("last-modified") or ""


class Fetcher:
    """Downloads files for one pull."""

    def __init__(self, web: Web, policy: FetchPolicy, limit: RateLimit) -> None:
        self.policy = policy
        self._web = web
        self._limit = limit

    async def fetch(self, target: Target, sink: Sink, progress: Progress) -> None:
        """Fill the sink. On return no byte is missing; the bytes are not judged.

        Raises SourceError, SizeMismatch, RedirectRefused or DiskFull, and keeps what came; also
        when it is cancelled.
        """
        sink.set_size(target.size)
        transfer = _Transfer(self._web, self.policy, self._limit, target, sink)
        try:
            with one_error():
                async with anyio.create_task_group() as group:
                    group.start_soon(_tend, sink, progress)
                    await transfer.run()
                    group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(sink.checkpoint)
            progress(sink.bytes_done)


async def _tend(sink: Sink, progress: Progress) -> None:
    """Hash what has come, save what is there, tell how far it is; until cancelled."""
    saved = time.monotonic()
    while True:
        await anyio.sleep(_TEND_S)
        progress(sink.bytes_done)
        await to_thread.run_sync(sink.advance_hash)
        if time.monotonic() - saved >= _CHECKPOINT_S:
            await to_thread.run_sync(sink.checkpoint)
            saved = time.monotonic()


class _RangesIgnored(Exception):
    """The server sends whole files only."""


class _Expired(SourceUnreachable):
    """The address that a redirect gave has expired."""


@dataclass(slots=True)
class _Cursor:
    """What is left of one range."""

    start: int
    end: int


class _Transfer:
    def __init__(
        self, web: Web, policy: FetchPolicy, limit: RateLimit, target: Target, sink: Sink
    ) -> None:
        self._web = web
        self._policy = policy
        self._limit = limit
        self._target = target
        self._sink = sink
        self._first = Origin.of(target.url)
        self._located: str | None = None  # where the last redirect led; signed, so never stored
        self._todo: deque[tuple[int, int]] = deque()

    async def run(self) -> None:
        try:
            await self._by_ranges()
        except _RangesIgnored:
            await self._from_start()

    async def _by_ranges(self) -> None:
        self._todo.extend(self._sink.missing(self._policy.chunk_bytes))
        count = min(self._policy.connections, len(self._todo))
        with one_error():
            async with anyio.create_task_group() as group:
                for _ in range(count):
                    group.start_soon(self._connection)

    async def _connection(self) -> None:
        """One of several that take ranges, the lowest first so that hashing can follow."""
        while self._todo:
            cursor = _Cursor(*self._todo.popleft())
            patience = Patience(self._policy)
            while cursor.start < cursor.end:
                before = cursor.start
                try:
                    await self._attempt(cursor)
                except (SourceError, _RangesIgnored) as error:
                    self._located = None
                    await patience.wait(error, progressed=cursor.start > before)

    async def _attempt(self, cursor: _Cursor) -> None:
        """One request; moves the cursor by what came."""
        want = (cursor.start, cursor.end)
        headers = {"Range": f"bytes={want[0]}-{want[1] - 1}"}
        async with self._open(headers) as response:
            answer = self._judge(response, want)
            if answer is Answer.WHOLE and want != (0, self._target.size):
                raise _RangesIgnored
            self._located = str(response.url)
            await self._receive(response, cursor)

    async def _from_start(self) -> None:
        """The whole file in one go, as often as the policy allows."""
        patience = Patience(self._policy, tries=_WHOLE_TRIES)
        while True:
            await to_thread.run_sync(self._sink.reset)
            cursor = _Cursor(0, self._target.size)
            try:
                async with self._open({}) as response:
                    self._judge(response, (0, self._target.size))
                    await self._receive(response, cursor)
                if cursor.start < cursor.end:
                    msg = "the server ended the transfer too early"
                    raise SourceUnreachable(msg)
            except SourceError as error:
                self._located = None
                await patience.wait(error, progressed=False)
            else:
                return

    def _open(self, headers: Headers) -> AbstractAsyncContextManager[httpx2.Response]:
        target = self._target
        return self._web.open(
            self._located or target.url,
            first=self._first,
            headers=headers,
            secret=target.secret,
            inspect=target.inspect,
        )

    def _judge(self, response: httpx2.Response, want: tuple[int, int]) -> Answer:
        at_origin = Origin.of(str(response.url)) == self._first
        status, headers = response.status_code, response.headers
        answer = judge(status, headers, want, self._target.size, at_origin=at_origin)
        if answer is Answer.RELOCATE:
            msg = "the download address has expired again and again"
            raise _Expired(msg)
        if answer is Answer.LATER:
            msg = f"the server {response.url.host} answers with status {status}"
            raise SourceUnreachable(msg, wait_s=wait_s(headers))
        return answer

    async def _receive(self, response: httpx2.Response, cursor: _Cursor) -> None:
        """Write the body at the cursor. Raises SourceUnreachable when it is cut or empty."""
        buffer = bytearray()
        crawl = _CrawlWatch(self._policy.stall_s)
        began, written_at = cursor.start, time.monotonic()
        try:
            with transport_errors(response.url.host):
                async for data in response.aiter_raw():
                    if cursor.start + len(buffer) + len(data) > cursor.end:
                        msg = "the server sends more bytes than were asked for"
                        raise SizeMismatch(msg)
                    buffer += data
                    if len(buffer) >= _WRITE_BYTES or time.monotonic() - written_at > _WRITE_S:
                        written_at = time.monotonic()
                        await to_thread.run_sync(self._write, cursor, buffer)
                    await self._limit.take(len(data))
                    crawl.saw(len(data))
        finally:
            with anyio.CancelScope(shield=True):  # what came is kept, whatever ended the transfer
                await to_thread.run_sync(self._write, cursor, buffer)
        if cursor.start == began:
            msg = "the server sends nothing"
            raise SourceUnreachable(msg)

    def _write(self, cursor: _Cursor, buffer: bytearray) -> None:
        if buffer:
            data = bytes(buffer)
            buffer.clear()
            self._sink.write(cursor.start, data)
            cursor.start += len(data)


class Patience:
    """Waits between tries, longer each time, and gives up when nothing moves."""

    def __init__(self, policy: FetchPolicy, *, tries: int | None = None) -> None:
        self._policy = policy
        self._tries = tries or policy.tries
        self._count = 0

    async def wait(self, error: SourceError | _RangesIgnored, *, progressed: bool) -> None:
        """Return when it is time to try again. Raises the error when it is time to stop."""
        self._count = 1 if progressed else self._count + 1
        if self._count >= self._allowed(error):
            raise error
        asked = error.facts.get("wait_s") if isinstance(error, SourceError) else None
        backoff = self._policy.backoff_s * 2 ** (self._count - 1)
        pause = asked if isinstance(asked, float) else min(backoff, self._policy.longest_backoff_s)
        if pause > LONGEST_WAIT_S:
            raise error
        await anyio.sleep(pause)

    def _allowed(self, error: SourceError | _RangesIgnored) -> int:
        if isinstance(error, (SourceUnreachable, SourceRateLimited)):
            return self._tries
        if isinstance(error, (SourceInvalid, _RangesIgnored)):
            return _INVALID_TRIES
        return 0  # not found, gated, offline: asking again changes nothing


class _CrawlWatch:
    """Ends a connection that trickles: bytes come, but hardly any."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._since = time.monotonic()
        self._bytes = 0

    def saw(self, count: int) -> None:
        self._bytes += count
        now = time.monotonic()
        if now - self._since < self._stall_s:
            return
        if self._bytes < _CRAWL_BYTES:
            msg = f"only {self._bytes:,} bytes came in {self._stall_s:.0f} s"
            raise SourceUnreachable(msg)
        self._since, self._bytes = now, 0
