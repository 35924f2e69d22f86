"""What an HTTP answer to a download request means. Pure: status and headers in, a decision out."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final
from urllib.parse import urljoin, urlsplit

from stoker.errors import (
    RedirectRefused,
    SizeMismatch,
    SourceError,
    SourceGated,
    SourceInvalid,
    SourceNotFound,
    SourceRateLimited,
    SourceUnreachable,
)

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
LONGEST_WAIT_S: Final = 120.0  # a server may ask for more; then the pull stops and says so
_DEFAULT_WAIT_S: Final = 10.0
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_UNSATISFIED: Final = re.compile(r"bytes \*/(\d{1,19})")
_RESET_AFTER: Final = re.compile(r";\s*t=(\d{1,9})\b")


class Answer(Enum):
    """What to do with a body."""

    RANGE = "range"  # the bytes that were asked for
    WHOLE = "whole"  # the whole file from its start, though a range was asked for
    RELOCATE = "relocate"  # a signed address has expired: ask the origin again
    LATER = "later"  # the server is busy or ill: try again


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port: what a secret may be sent to."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """Raises RedirectRefused for what is not an http(s) URL with a host."""
        try:
            parts = urlsplit(url)
            port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
            host = (parts.hostname or "").rstrip(".").lower()
        except ValueError:
            host, port = "", 0
        if not host or not port or parts.scheme not in {"http", "https"} or parts.username:
            msg = "the server redirects to something that is not a web address"
            raise RedirectRefused(msg)
        return cls(parts.scheme, host, port)

    @property
    def loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def next_hop(current: str, location: str | None, first: Origin) -> str:
    """The address that a redirect leads to.

    Raises RedirectRefused for plain http (unless all is loopback) and SourceInvalid without a
    target. Whether the host's addresses are allowed is `allowed_address`'s to say.
    """
    if not location:
        msg = "the server redirects without saying where to"
        raise SourceInvalid(msg)
    try:
        url = urljoin(current, location)
    except ValueError as error:
        msg = "the server redirects to something that is not a web address"
        raise RedirectRefused(msg) from error
    check_scheme(Origin.of(url), first)
    return url


def check_scheme(origin: Origin, first: Origin) -> None:
    """Plain http is for loopback, reached from loopback. Raises RedirectRefused."""
    if origin.scheme == "https" or (origin.loopback and first.loopback):
        return
    msg = f"{origin.host} is offered over plain http"
    raise RedirectRefused(msg, hint="Only https is used, except on this machine itself.")


def allowed_address(address: str, origin: Origin, first: Origin) -> bool:
    """Whether a connection to this IP address is allowed.

    The host that the user configured may be anywhere; another one must be on the public
    internet, except that loopback may lead to loopback (a local mirror, a test).
    """
    if origin.host == first.host:
        return True
    try:
        ip = ipaddress.ip_address(address.split("%", maxsplit=1)[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_loopback:
        return first.loopback
    return ip.is_global and not ip.is_multicast


def judge(
    status: int, headers: Mapping[str, str], want: tuple[int, int], size: int, *, at_origin: bool
) -> Answer:
    """What an answer to ``Range: bytes=start-(end-1)`` of a file of this size means.

    Raises SizeMismatch when the server has a file of another size, SourceInvalid when it breaks
    the protocol, and the error for the status otherwise.
    """
    if status in {200, 206}:
        _check_body(headers)
        return _partial(headers, want, size) if status == 206 else _whole(headers, size)  # noqa: PLR2004
    if status == 416:  # noqa: PLR2004
        match = _UNSATISFIED.fullmatch(headers.get("content-range", ""))
        if match and int(match[1]) != size:
            raise _wrong_size(int(match[1]), size)
        msg = "the server refuses a range that lies inside the file"
        raise SourceInvalid(msg)
    if status in {400, 401, 403, 404, 410} and not at_origin:
        return Answer.RELOCATE
    if status == 408 or status >= 500:  # noqa: PLR2004
        return Answer.LATER
    raise status_error(status, headers)


def status_error(status: int, headers: Mapping[str, str]) -> SourceError:
    """The error that an unwelcome status of a hub or web server stands for."""
    code = headers.get("x-error-code", "")
    said = f" ({code})" if re.fullmatch(r"[A-Za-z]{1,40}", code) else ""
    if status == 429:  # noqa: PLR2004
        wait = wait_s(headers)
        wait = _DEFAULT_WAIT_S if wait is None else wait
        return SourceRateLimited("the server says: too many requests", wait_s=wait)
    if status == 404 or status == 410 or code in {"RepoNotFound", "EntryNotFound"}:  # noqa: PLR1714, PLR2004
        return SourceNotFound(f"the server has no such file{said}")
    if status in {401, 403}:
        return SourceGated(f"the server refuses access{said}")
    if status >= 500:  # noqa: PLR2004
        return SourceUnreachable(f"the server answers with status {status}")
    return SourceInvalid(f"the server answers with status {status}")


def wait_s(headers: Mapping[str, str]) -> float | None:
    """How long the server asks to wait, from ``Retry-After`` or ``RateLimit``; None: no word."""
    after = headers.get("retry-after", "")
    if after.isdecimal() and len(after) < 10:  # noqa: PLR2004
        return float(after)
    reset = _RESET_AFTER.search(headers.get("ratelimit", ""))
    return float(reset[1]) if reset else None


def _check_body(headers: Mapping[str, str]) -> None:
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        msg = f"the server packs the file with {encoding[:20]!r}, although it was asked not to"
        raise SourceInvalid(msg)
    kind = headers.get("content-type", "").split(";")[0].strip().lower()
    if kind in {"text/html", "application/xhtml+xml"}:
        msg = "the server sends a web page instead of the file"
        raise SourceInvalid(msg, hint="Is there a login page? Open any web site, then pull again.")


def _partial(headers: Mapping[str, str], want: tuple[int, int], size: int) -> Answer:
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
    if match is None:
        msg = "the server sends a part of the file without saying which"
        raise SourceInvalid(msg)
    start, last, total = (int(number) for number in match.groups())
    if total != size:
        raise _wrong_size(total, size)
    length = headers.get("content-length")
    if (
        start != want[0]
        or not start <= last < want[1]
        or (length is not None and length != str(last + 1 - start))
    ):
        msg = f"asked for bytes {want[0]}-{want[1] - 1}, the server sends {start}-{last}"
        raise SourceInvalid(msg)
    return Answer.RANGE


def _whole(headers: Mapping[str, str], size: int) -> Answer:
    length = headers.get("content-length")
    if length is not None and length != str(size):
        raise _wrong_size(int(length) if length.isdecimal() else -1, size)
    return Answer.WHOLE


def _wrong_size(found: int, listed: int) -> SizeMismatch:
    msg = f"the file should have {listed:,} bytes, the server's has {found:,}"
    return SizeMismatch(msg, expected_bytes=listed, found_bytes=found)
