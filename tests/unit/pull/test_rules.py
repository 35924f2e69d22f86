"""What answers of a download server mean, and where a redirect may lead."""

from __future__ import annotations

import pytest

from stoker.errors import RedirectRefused, SourceError, StokerError
from stoker.pull.rules import (
    Answer,
    Origin,
    allowed_address,
    judge,
    next_hop,
    status_error,
    wait_s,
)

HUB = Origin.of("https://hub.example/x")
LOCAL = Origin.of("http://127.0.0.1:1234/x")
OTHER = Origin("https", "cdn.example", 443)


@pytest.mark.parametrize(
    ("address", "first", "allowed"),
    [
        ("93.184.216.34", HUB, True),
        ("2606:2800:220:1::1", HUB, True),
        ("127.0.0.1", HUB, False),
        ("10.1.2.3", HUB, False),
        ("192.168.1.1", HUB, False),
        ("169.254.169.254", HUB, False),
        ("100.64.0.1", HUB, False),
        ("0.0.0.0", HUB, False),
        ("224.0.0.1", HUB, False),
        ("::1", HUB, False),
        ("::ffff:10.0.0.1", HUB, False),
        ("fe80::1%eth0", HUB, False),
        ("fd00::1", HUB, False),
        ("nonsense", HUB, False),
        ("127.0.0.1", LOCAL, True),
        ("::1", LOCAL, True),
        ("10.1.2.3", LOCAL, False),
        ("169.254.169.254", LOCAL, False),
    ],
)
def test_a_redirect_leads_to_the_public_internet(
    address: str, first: Origin, *, allowed: bool
) -> None:
    """Nothing inside the user's network can be reached by a server's word."""
    assert allowed_address(address, OTHER, first) is allowed


def test_the_user_s_own_choice_may_be_anywhere() -> None:
    """A mirror in the company's network is the user's decision."""
    assert allowed_address("10.1.2.3", HUB, HUB)


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://cdn.example/y?z=1", "https://cdn.example/y?z=1"),
        ("/other", "https://hub.example/other"),
        ("other", "https://hub.example/a/other"),
        ("//cdn.example/y", "https://cdn.example/y"),
    ],
)
def test_a_redirect_is_resolved(location: str, target: str) -> None:
    """Relative and absolute."""
    assert next_hop("https://hub.example/a/b", location, HUB) == target


@pytest.mark.parametrize(
    "location",
    [
        "http://cdn.example/y",
        "ftp://cdn.example/y",
        "file:///etc/passwd",
        "https://user:pass@cdn.example/",
        "https://[broken/",
        "https://cdn.example:99999/",
        "javascript:1",
    ],
)
def test_a_redirect_elsewhere_is_refused(location: str) -> None:
    """Plain http, other schemes, secrets in addresses, nonsense."""
    with pytest.raises(RedirectRefused):
        next_hop("https://hub.example/a", location, HUB)


def test_origins_are_compared_with_their_ports() -> None:
    """A different port of the same host is another origin."""
    assert Origin.of("https://HUB.example:443/") == HUB
    assert Origin.of("https://hub.example:8443/") != HUB


RANGE = {"content-range": "bytes 10-19/100", "content-length": "10"}


@pytest.mark.parametrize(
    ("status", "headers", "answer"),
    [
        (206, RANGE, Answer.RANGE),
        (206, {"content-range": "bytes 10-14/100"}, Answer.RANGE),
        (200, {"content-length": "100"}, Answer.WHOLE),
        (200, {}, Answer.WHOLE),
        (403, {}, Answer.RELOCATE),
        (404, {}, Answer.RELOCATE),
        (500, {}, Answer.LATER),
        (503, {}, Answer.LATER),
        (408, {}, Answer.LATER),
        (206, {**RANGE, "content-range": "bytes 11-19/100"}, "source_invalid"),
        (206, {**RANGE, "content-range": "bytes 10-20/100"}, "source_invalid"),
        (206, {**RANGE, "content-range": "bytes 10-19/*"}, "source_invalid"),
        (206, {**RANGE, "content-range": "bytes 10-19/101"}, "size_mismatch"),
        (206, {**RANGE, "content-length": "9"}, "source_invalid"),
        (206, {}, "source_invalid"),
        (206, {**RANGE, "content-encoding": "zstd"}, "source_invalid"),
        (206, {**RANGE, "content-encoding": "identity"}, Answer.RANGE),
        (200, {"content-length": "99"}, "size_mismatch"),
        (200, {"content-type": "text/html; charset=utf-8"}, "source_invalid"),
        (416, {"content-range": "bytes */100"}, "source_invalid"),
        (416, {"content-range": "bytes */7"}, "size_mismatch"),
        (429, {}, "source_rate_limited"),
        (301, {}, "source_invalid"),
    ],
)
def test_an_answer_to_a_range(status: int, headers: dict[str, str], answer: Answer | str) -> None:
    """Only exactly what was asked for is taken."""
    try:
        found: Answer | str = judge(status, headers, (10, 20), 100, at_origin=False)
    except StokerError as error:
        found = error.code

    assert found == answer


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (401, "GatedRepo", "source_gated"),
        (403, "", "source_gated"),
        (401, "RepoNotFound", "source_not_found"),
        (404, "RevisionNotFound", "source_not_found"),
        (410, "", "source_not_found"),
        (429, "", "source_rate_limited"),
        (502, "", "source_unreachable"),
        (418, "", "source_invalid"),
    ],
)
def test_a_status_has_its_error(status: int, code: str, error: str) -> None:
    """The Hub says in a header what its status does not."""
    found: SourceError = status_error(status, {"x-error-code": code})

    assert found.code == error


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"ratelimit": '"resolvers";r=0;t=55'}, 55.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"retry-after": "-5"}, None),
        ({}, None),
    ],
)
def test_how_long_to_wait(headers: dict[str, str], wait: float | None) -> None:
    """In either of the two ways to say it."""
    assert wait_s(headers) == wait
