"""HTTP with our own rules: where a request may go, what it may carry, how much it may answer.

One object per pull. Not for: what a download's answer means (`rules`) or how a file is put
together (`fetch`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final
from urllib.request import getproxies, proxy_bypass

import anyio

from stoker import __version__
from stoker.errors import RedirectRefused, SourceInvalid, SourceUnreachable
from stoker.late import late
from stoker.pull.rules import (
    REDIRECTS,
    Origin,
    allowed_address,
    check_scheme,
    next_hop,
    status_error,
)

if TYPE_CHECKING:
    import httpx2
else:
    httpx2 = late("httpx2")

CONNECT_S: Final = 15.0  # a satellite link shakes hands in two seconds
STALL_S: Final = 30.0  # without a byte; then the connection is dead
_MOST_HOPS: Final = 10
_READ_S: Final = 60.0  # for a whole small document
_SMALL_DOCUMENT: Final = 16 * 1024 * 1024  # bytes; a package index page of thousands of files

Headers = Mapping[str, str]


def default_client() -> httpx2.AsyncClient:
    """The client for downloads: the system's proxies, no redirects by itself, no HTTP/2."""
    return httpx2.AsyncClient(
        follow_redirects=False,
        headers={"User-Agent": f"stoker/{__version__}", "Accept-Encoding": "identity"},
        limits=httpx2.Limits(max_connections=64, keepalive_expiry=15),
    )


class Web:
    """Requests that start at one origin, which the user chose, and go on by redirects."""

    def __init__(self, client: httpx2.AsyncClient, *, stall_s: float = STALL_S) -> None:
        self._client = client
        self._timeout = httpx2.Timeout(stall_s, connect=CONNECT_S, pool=None)

    @asynccontextmanager
    async def open(
        self,
        url: str,
        *,
        first: Origin | None = None,
        headers: Headers | None = None,
        secret: Headers | None = None,
        form: Mapping[str, list[str] | str] | None = None,
        inspect: Callable[[Headers], None] | None = None,
    ) -> AsyncIterator[httpx2.Response]:
        """The answer at the end of all redirects, its body unread; closed on leaving.

        ``secret`` headers go to the first origin only, and never again once a redirect has left
        it. ``inspect`` sees the headers of each answer of the first origin. Raises
        SourceUnreachable, SourceInvalid, RedirectRefused.
        """
        first = first or Origin.of(url)
        trusted = True
        for _ in range(_MOST_HOPS):
            origin = Origin.of(url)
            trusted = trusted and origin == first
            check_scheme(origin, first)
            sent = {**(headers or {}), **((secret or {}) if trusted else {})}
            async with self._send(url, sent, form, origin, first) as response:
                if inspect is not None and trusted:
                    inspect(response.headers)
                if response.status_code not in REDIRECTS:
                    yield response
                    return
                url = next_hop(url, response.headers.get("location"), first)
        msg = f"the server {first.host} redirects in a circle"
        raise SourceInvalid(msg)

    async def read(
        self,
        url: str,
        *,
        headers: Headers | None = None,
        secret: Headers | None = None,
        form: Mapping[str, list[str] | str] | None = None,
    ) -> bytes:
        """A small document. Raises SourceError for any status but 200, and for a long body."""
        try:
            with anyio.fail_after(_READ_S):
                async with self.open(url, headers=headers, secret=secret, form=form) as response:
                    if response.status_code != httpx2.codes.OK:
                        raise status_error(response.status_code, response.headers)
                    return await _read_body(response)
        except TimeoutError as error:
            msg = f"{Origin.of(url).host} takes longer than {_READ_S:.0f} s to answer"
            raise SourceUnreachable(msg) from error

    @asynccontextmanager
    async def _send(
        self,
        url: str,
        headers: Headers,
        form: Mapping[str, list[str] | str] | None,
        origin: Origin,
        first: Origin,
    ) -> AsyncIterator[httpx2.Response]:
        direct = not _proxied(origin)
        if direct:
            await _check_host(origin, first)
        with transport_errors(origin.host):
            method = "GET" if form is None else "POST"
            request = self._client.build_request(
                method, url, headers=headers, data=form, timeout=self._timeout
            )
            response = await self._client.send(request, stream=True)
        try:
            if direct:
                _check_peer(response, origin, first)
            yield response
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()


@contextmanager
def transport_errors(host: str) -> Iterator[None]:
    """Turn the HTTP library's errors into ours."""
    try:
        yield
    except httpx2.TimeoutException as error:
        msg = f"no answer from {host} in time"
        raise SourceUnreachable(msg) from error
    except httpx2.TransportError as error:
        msg = f"the connection to {host} failed: {str(error)[:200] or type(error).__name__}"
        raise SourceUnreachable(msg) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
        msg = f"the answer of {host} cannot be understood: {str(error)[:200]}"
        raise SourceInvalid(msg) from error


async def _read_body(response: httpx2.Response) -> bytes:
    body = bytearray()
    with transport_errors(response.url.host):
        async for data in response.aiter_bytes():
            body += data
            if len(body) > _SMALL_DOCUMENT:
                msg = f"{response.url.host} sends more than {_SMALL_DOCUMENT:,} bytes of metadata"
                raise SourceInvalid(msg)
    return bytes(body)


def _proxied(origin: Origin) -> bool:
    """Whether a proxy makes the connection: then it resolves names, and we cannot check them."""
    proxies = getproxies()
    return bool(proxies.get(origin.scheme) or proxies.get("all")) and not proxy_bypass(origin.host)


async def _check_host(origin: Origin, first: Origin) -> None:
    """Every address of a host we were sent to must be allowed, before anything is sent there."""
    if origin.host == first.host:
        return
    if _is_address(origin.host):
        _check_address(origin.host, origin, first)
        return
    try:
        with anyio.fail_after(CONNECT_S):
            found = await anyio.getaddrinfo(origin.host, origin.port)
    except OSError as error:  # TimeoutError is one
        msg = f"the name {origin.host} cannot be resolved"
        raise SourceUnreachable(msg) from error
    for entry in found:
        _check_address(str(entry[4][0]), origin, first)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _check_peer(response: httpx2.Response, origin: Origin, first: Origin) -> None:
    """And the address we did reach too: a name may resolve differently the second time."""
    stream = response.extensions.get("network_stream")
    address = stream.get_extra_info("server_addr") if stream is not None else None
    if isinstance(address, tuple):
        _check_address(str(address[0]), origin, first)


def _check_address(address: str, origin: Origin, first: Origin) -> None:
    if not allowed_address(address, origin, first):
        msg = f"the server redirects to {origin.host}, which is not on the public internet"
        raise RedirectRefused(msg)
