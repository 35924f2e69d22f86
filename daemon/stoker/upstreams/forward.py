"""HTTP to another server: a request out, the bytes of its answer back.

Below the level where an HTTP client keeps cookies, follows redirects, asks the environment for
proxies or unpacks bodies: a request goes to the one address in the settings, with that server's key
and nothing of our client's but the body. Not for: which server (`registry`), or what its list of
models says (`names`).
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
from anyio.to_thread import run_sync

from stoker import __version__
from stoker.errors import UpstreamDown, UpstreamError, UpstreamRefused
from stoker.late import late
from stoker.settings import UpstreamSettings
from stoker.upstreams.names import VIA, Place

if TYPE_CHECKING:
    import ssl

    import httpx2
else:
    httpx2, ssl = late("httpx2"), late("ssl")

LONGEST_LIST: Final = 4 * 1024 * 1024  # bytes; the longest that is known has 0.7 MB
LONGEST_KEY: Final = 4096
_MODELS: Final = "/v1/models"
_WRITE_S: Final = 60.0  # without taking a byte of a request
_UPLOAD_S: Final = 300.0  # for all of it; 64 MiB at 0.2 MB/s
_CLOSE_S: Final = 5.0
# Servers close idle connections after five seconds; a request must not meet that moment.
_KEEP_S: Final = 2.0
_KEPT: Final = 16
_KINDS: Final = frozenset(
    (
        b"application/json",
        b"text/event-stream",
        b"text/plain",  # transcriptions, and their subtitles
        b"text/vtt",
        b"application/x-subrip",
    )
)

Headers = Iterable[tuple[bytes, bytes]]


class RemoteResponse:
    """An answer that has begun, shaped like a worker's; ``aclose`` cancels what still runs."""

    def __init__(self, name: str, response: httpx2.Response) -> None:
        self._name = name
        self._response = response
        self._body: AsyncGenerator[bytes] = response.aiter_raw()
        self._closed = False
        self.status = response.status_code
        self.on_close: Callable[[], None] | None = None  # called once, when it is closed

    def header(self, name: bytes) -> bytes | None:
        """What is known of it: content-type, content-length, retry-after; nothing else of it."""
        value = self._response.headers.get(name.decode("ascii"), "").encode("latin-1", "replace")
        if name == b"content-type":
            return value.partition(b";")[0].strip().lower() or None
        sound = name in {b"content-length", b"retry-after"} and value.isdigit()
        return value if sound and len(value) <= 18 else None  # noqa: PLR2004  # digits

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self.chunk():
            yield chunk

    async def chunk(self) -> bytes:
        """The next body bytes; b"" at the end. Raises UpstreamError when cut."""
        with _told(self._name, begun=True):
            async for part in self._body:
                if part:
                    return part
        return b""

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises UpstreamError beyond ``limit`` bytes, and when cut."""
        parts, size = [], 0
        while part := await self.chunk():
            size += len(part)
            if size > limit:
                raise UpstreamError(
                    f"{self._name} sends more than {limit:,} bytes", upstream=self._name
                )
            parts.append(part)
        return b"".join(parts)

    async def aclose(self) -> None:
        """May be called more than once."""
        if self._closed:
            return
        self._closed = True
        try:
            # Whatever goes wrong now, the connection is gone.
            with (
                suppress(UpstreamError),
                anyio.move_on_after(_CLOSE_S, shield=True),
                _told(self._name, begun=True),
            ):
                async with aclosing(self._body):
                    await self._response.aclose()
        finally:
            if self.on_close is not None:
                self.on_close()

    def judge(self) -> None:
        """Whether it may be passed on, or read as an error. Raises UpstreamError."""
        if self.status == 401:  # noqa: PLR2004
            raise UpstreamRefused(f"{self._name} does not take our key", upstream=self._name)
        if self.status == 403:  # noqa: PLR2004
            hint = "Check its key; another Stoker wants the host of base_url in its allowed_hosts."
            msg = f"{self._name} does not let us in (status 403)"
            raise UpstreamRefused(msg, hint=hint, upstream=self._name)
        if 300 <= self.status < 400:  # noqa: PLR2004
            raise UpstreamError(
                f"{self._name} sends us elsewhere (status {self.status})",
                hint="Set base_url of this upstream to the address that it redirects to.",
                upstream=self._name,
            )
        packed = self._response.headers.get("content-encoding", "identity").lower()
        kind = self.header(b"content-type")
        if self.status == httpx2.codes.OK and (
            packed != "identity" or (kind is not None and kind not in _KINDS)
        ):
            raise UpstreamError(
                f"{self._name} answers, but not as an API does",
                hint="Check base_url of this upstream; perhaps a login page stands before it.",
                upstream=self._name,
            )


class Server:
    """The way to one server. The first use imports what it takes, in a thread."""

    def __init__(self, wishes: UpstreamSettings) -> None:
        self.name = wishes.name
        self.place = Place.of(wishes.base_url)
        self._wishes = wishes
        self._key = wishes.key
        self._transport: httpx2.AsyncHTTPTransport | None = None
        self._lock = anyio.Lock()

    async def open(
        self,
        method: str,
        path: str,
        headers: Headers,
        body: bytes,
        *,
        silence_s: float | None = None,
    ) -> RemoteResponse:
        """Send a request; return when the head of the answer is there and is that of an API.

        ``path`` is one of our own constants. Nothing is ever sent twice. Raises UpstreamDown,
        UpstreamRefused, UpstreamError.
        """
        transport = await self._ready()
        limit_s = self._wishes.connect_timeout_s + _UPLOAD_S + self._wishes.timeout_s
        with _told(self.name, begun=False), anyio.fail_after(limit_s):
            request = httpx2.Request(
                method,
                self.place.url(path),
                headers=[*self._own_headers(), *headers],
                content=body,
                extensions={"timeout": self._timeouts(silence_s)},
            )
            answer = await transport.handle_async_request(request)
        response = RemoteResponse(self.name, answer)
        try:
            response.judge()
        except BaseException:
            await response.aclose()
            raise
        return response

    async def models(self, silence_s: float) -> bytes:
        """Its list of models, as it sent it. Raises like `open`, and for a long one."""
        if self._wishes.key_file is not None:  # it may have been replaced
            self._key = await run_sync(read_key, self.name, self._wishes.key_file)
        response = await self.open("GET", _MODELS, (), b"", silence_s=silence_s)
        try:
            if response.status != httpx2.codes.OK:
                raise UpstreamError(
                    f"{self.name} does not list its models (status {response.status})",
                    hint="Check base_url of this upstream; it ends in /v1 as a rule.",
                    upstream=self.name,
                )
            return await response.read(LONGEST_LIST)
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        """Cut every exchange that still runs."""
        transport, self._transport = self._transport, None
        if transport is not None:
            with anyio.move_on_after(_CLOSE_S, shield=True):
                await transport.aclose()

    def _own_headers(self) -> Iterator[tuple[bytes, bytes]]:
        yield b"user-agent", f"stoker/{__version__}".encode()
        yield b"accept-encoding", b"identity"
        yield VIA, b"1"
        if self._key is not None:
            yield b"authorization", b"Bearer " + self._key.encode("ascii")

    def _timeouts(self, silence_s: float | None) -> dict[str, float | None]:
        return {
            "connect": self._wishes.connect_timeout_s,
            "read": self._wishes.timeout_s if silence_s is None else silence_s,
            "write": _WRITE_S,
            "pool": None,  # the number of connections is bounded by who asks
        }

    async def _ready(self) -> httpx2.AsyncHTTPTransport:
        async with self._lock:
            if self._transport is None:
                if self._key is None and self._wishes.key_file is not None:
                    self._key = await run_sync(read_key, self.name, self._wishes.key_file)
                self._transport = await run_sync(_transport, self.place.secure)
            return self._transport


def read_key(name: str, file: Path) -> str:
    """The token in a file, which may end in a line break. Raises UpstreamRefused."""
    try:
        with file.expanduser().open("rb") as stream:
            text = stream.read(LONGEST_KEY + 2).decode("ascii").strip()
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or "it holds no plain text"
        raise UpstreamRefused(f"the key file of {name} cannot be read: {why}") from error
    if not text or len(text) > LONGEST_KEY or not text.isprintable() or " " in text:
        raise UpstreamRefused(f"the key file of {name} holds no key: one word is expected")
    return text


def _transport(secure: bool) -> httpx2.AsyncHTTPTransport:  # noqa: FBT001  # for a thread
    """Blocking: imports, and certificates from the disk."""
    # The trusted certificates cost a megabyte; without TLS there is nobody to trust.
    trusted = httpx2.create_ssl_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return httpx2.AsyncHTTPTransport(
        verify=trusted,
        trust_env=False,
        limits=httpx2.Limits(
            max_connections=None, max_keepalive_connections=_KEPT, keepalive_expiry=_KEEP_S
        ),
    )


@contextmanager
def _told(name: str, *, begun: bool) -> Iterator[None]:
    """Turn the HTTP library's errors into ours; what a server said is not repeated."""
    try:
        yield
    except httpx2.ConnectTimeout as error:
        raise UpstreamDown(f"no connection to {name} in time", upstream=name) from error
    except httpx2.ConnectError as error:
        raise UpstreamDown(f"{name} cannot be reached: {_why(error)}", upstream=name) from error
    except (httpx2.TimeoutException, TimeoutError) as error:
        cls = UpstreamError if begun else UpstreamDown
        raise cls(f"{name} stopped answering", upstream=name) from error
    except httpx2.TransportError as error:
        if begun:
            msg = f"the connection to {name} was lost in the middle of its answer"
            hint = "The answer is not whole; send the request again."
            raise UpstreamError(msg, hint=hint, upstream=name) from error
        raise UpstreamDown(f"the connection to {name} was lost", upstream=name) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
        raise UpstreamError(f"{name} cannot be asked: {type(error).__name__}") from error
    except (OSError, UnicodeError) as error:  # a name that no resolver takes
        raise UpstreamDown(f"{name} cannot be reached: {_why(error)}", upstream=name) from error


def _why(error: BaseException) -> str:
    """The root of a failed connection, in our words."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "its certificate is not trusted on this machine"
        if isinstance(cause, ssl.SSLError):
            return "it does not speak TLS with us"
        if isinstance(cause, socket.gaierror):
            return "its name is not known"
        if isinstance(cause, ConnectionRefusedError):
            return "nobody listens at its address"
        cause = cause.__cause__ or cause.__context__
    roots = [one.strerror for one in seen if isinstance(one, OSError) and one.strerror]
    return str(roots[-1]) if roots else "the connection failed"
