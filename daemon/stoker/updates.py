"""Whether a newer version of Stoker is there: one question to the release page, when asked to.

Off unless the user turned `update_check` on. The request says nothing about this machine or its
user, the answer gives a version number and nothing else: where a user finds it is a constant, and
nothing is ever downloaded. Not for: when to ask (`jobs`), whom to tell (`api`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin, urlsplit

import anyio

from stoker import __version__
from stoker.errors import BadSetting, SourceInvalid, SourceNotFound, SourceUnreachable
from stoker.late import late

if TYPE_CHECKING:
    import httpx2
else:
    httpx2 = late("httpx2")

LATEST: Final = "https://api.github.com/repos/stoker-ai/stoker/releases/latest"
PAGE: Final = "https://github.com/stoker-ai/stoker/releases/latest"  # for people
OVERRIDE: Final = "STOKER_TEST_UPDATE_URL"  # for tests; loopback only

DEADLINE_S: Final = 30.0  # in the background nobody waits for it
_LARGEST: Final = 2 * 1024 * 1024  # bytes; long release notes and many files are a tenth of it
_MOST_HOPS: Final = 3  # the API redirects once when a project moved
_TAG: Final = re.compile(r"v((?:0|[1-9][0-9]{0,4})(?:\.(?:0|[1-9][0-9]{0,4})){2})")
_VERSION: Final = re.compile(r"([0-9]{1,5})\.([0-9]{1,5})\.([0-9]{1,5})(.*)", re.DOTALL)
_HINT: Final = f"Try again later, or look at {PAGE}."
_HEADERS: Final = {
    "User-Agent": "stoker",  # the API asks for a name; no version, no system
    "Accept": "application/json",
    "Accept-Encoding": "identity",
}


def newer(current: str, found: str) -> bool:
    """Whether `found` is a later version. A version that cannot be read is never one."""
    ours, theirs = _VERSION.fullmatch(current), _VERSION.fullmatch(found)
    if ours is None or theirs is None or theirs[4]:
        return False
    numbers = [tuple(map(int, one.groups()[:3])) for one in (ours, theirs)]
    is_early = ours[4].startswith((".dev", "a", "b", "rc"))  # 0.2.0rc1 comes before 0.2.0
    return numbers[1] > numbers[0] or (numbers[1] == numbers[0] and is_early)


def parse_release(body: bytes) -> str:
    """The version of a release, from its tag ``vX.Y.Z``. Raises SourceInvalid."""
    try:
        release: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        msg = "the list of releases cannot be read"
        raise SourceInvalid(msg, hint=_HINT) from error
    tag = release.get("tag_name") if isinstance(release, dict) else None
    match = _TAG.fullmatch(tag) if isinstance(tag, str) else None
    if match is None or release.get("draft") is True or release.get("prerelease") is True:
        msg = f"the newest release has no version: {str(tag)[:40]!r}"
        raise SourceInvalid(msg, hint=_HINT)
    return match[1]


def address(environ: Mapping[str, str] = os.environ) -> str:
    """Where to ask. Raises BadSetting for an override that leaves this machine."""
    url = environ.get(OVERRIDE)
    if url is None:
        return LATEST
    try:
        parts = urlsplit(url)
        is_local = (parts.scheme, parts.hostname) in {("http", "127.0.0.1"), ("http", "::1")}
    except ValueError:
        is_local = False
    if not is_local:
        msg = f"{OVERRIDE} is not a loopback address: {url[:80]!r}"
        raise BadSetting(msg, hint=f"Unset {OVERRIDE}.")
    return url


async def look(
    current: str = __version__, *, url: str | None = None, deadline_s: float = DEADLINE_S
) -> str | None:
    """The version that is newer than this one, or None. Raises SourceError, BadSetting."""
    url = url or address()
    host = urlsplit(url).hostname or ""
    try:
        with anyio.fail_after(deadline_s):
            body = await _read(url)
    except (TimeoutError, httpx2.TimeoutException) as error:
        msg = f"no answer from {host} in {deadline_s:.0f} s"
        raise SourceUnreachable(msg, hint=_HINT) from error
    except httpx2.TransportError as error:
        msg = f"the connection to {host} failed: {str(error)[:200] or type(error).__name__}"
        raise SourceUnreachable(msg, hint=_HINT) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
        msg = f"the answer of {host} cannot be understood: {str(error)[:200]}"
        raise SourceInvalid(msg, hint=_HINT) from error
    found = parse_release(body)
    return found if newer(current, found) else None


async def _read(url: str) -> bytes:
    # The caller's deadline holds for all of it.
    async with httpx2.AsyncClient(follow_redirects=False, timeout=None) as client:
        for _ in range(_MOST_HOPS):
            request = client.build_request("GET", url)
            request.headers = httpx2.Headers({**_HEADERS, "Host": request.headers["Host"]})
            response = await client.send(request, stream=True)
            try:
                if not response.has_redirect_location:
                    return await _body(response)
                url = _next(url, response.headers["Location"])
            finally:
                await response.aclose()
    msg = f"{urlsplit(url).hostname} redirects in a circle"
    raise SourceInvalid(msg, hint=_HINT)


def _next(url: str, location: str) -> str:
    """A redirect stays where it was asked. Raises SourceInvalid."""
    before = urlsplit(url)
    try:
        there = urljoin(url, location)
        after = urlsplit(there)
    except ValueError:
        there, after = "", urlsplit("")
    if (before.scheme, before.netloc) != (after.scheme, after.netloc):
        msg = f"{before.hostname} redirects to another place"
        raise SourceInvalid(msg, hint=_HINT)
    return there


async def _body(response: httpx2.Response) -> bytes:
    host, status = response.url.host, response.status_code
    if status == httpx2.codes.NOT_FOUND:
        msg = f"{host} knows no release of Stoker"
        raise SourceNotFound(msg, hint=_HINT)
    if status != httpx2.codes.OK:
        msg = f"{host} answers with status {status}"
        raise SourceUnreachable(msg, hint=_HINT)
    if response.headers.get("Content-Encoding", "identity") != "identity":
        msg = f"{host} packs its answer, although it was asked not to"
        raise SourceInvalid(msg, hint=_HINT)
    body = bytearray()
    async for data in response.aiter_raw():
        body += data
        if len(body) > _LARGEST:
            msg = f"{host} sends more than {_LARGEST:,} bytes about one release"
            raise SourceInvalid(msg, hint=_HINT)
    return bytes(body)
