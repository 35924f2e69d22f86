"""Whether a newer version is there: what is asked, what is believed, what is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker import updates
from stoker.errors import (
    BadSetting,
    SourceError,
    SourceInvalid,
    SourceNotFound,
    SourceUnreachable,
)
from tests.fakes.releases import Releases, release

DEADLINE_S = 20


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Releases]:
    with Releases() as found:
        monkeypatch.setenv(updates.OVERRIDE, found.url)
        yield found


async def look(**options: Any) -> str | None:
    with anyio.fail_after(DEADLINE_S):
        return await updates.look("0.1.0", **options)


# --- decisions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("current", "found", "expected"),
    [
        ("0.1.0", "0.1.1", True),
        ("0.9.0", "0.10.0", True),
        ("0.9.9", "1.0.0", True),
        ("1.0.0", "1.0.0", False),
        ("1.2.0", "1.1.9", False),
        ("0.2.0rc1", "0.2.0", True),
        ("0.2.0.dev3", "0.2.0", True),
        ("0.2.0.post1", "0.2.0", False),
        ("0.2.0rc1", "0.1.9", False),
        ("unknown", "9.9.9", False),
        ("0.1.0", "9.9.9rc1", False),
        ("0.1.0", "nothing", False),
        ("0.1.0", "", False),
        ("0.1.0", "1.0.0\n", False),
    ],
)
def test_a_version_is_newer_or_it_is_not(current: str, found: str, *, expected: bool) -> None:
    assert updates.newer(current, found) is expected


versions = st.builds("{}.{}.{}".format, *[st.integers(0, 99999)] * 3)


@given(versions, versions)
def test_of_two_versions_at_most_one_is_newer(one: str, other: str) -> None:
    assert updates.newer(one, other) + updates.newer(other, one) == (one != other)


@given(versions)
def test_a_release_is_its_tag(version: str) -> None:
    assert updates.parse_release(release(f"v{version}")) == version


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"{}",
        b"[" * 100_000,
        b"<html>Please log in</html>",
        release(None),
        release(1),
        release("1.0.0"),
        release("v1.0"),
        release("v1.0.0-rc1"),
        release("v1.0.0\n"),
        release("v01.0.0"),
        release("v1.0.0; rm -rf"),
        release("v999999.0.0"),
        release("v\u0661.0.0"),
        release("v1.0.0", prerelease=True),
        release("v1.0.0", draft=True),
    ],
)
def test_what_is_no_release_is_an_error(body: bytes) -> None:
    with pytest.raises(SourceInvalid) as caught:
        updates.parse_release(body)

    assert updates.PAGE in caught.value.hint


def test_without_an_override_the_release_page_is_asked() -> None:
    assert updates.address({}) == "https://api.github.com/repos/stoker-ai/stoker/releases/latest"


@pytest.mark.parametrize(
    "url",
    ["https://evil.example/", "http://127.0.0.1.evil.example", "http://[", "", "file:///x", "x"],
)
def test_an_override_never_leaves_this_machine(url: str) -> None:
    with pytest.raises(BadSetting, match="STOKER_TEST_UPDATE_URL"):
        updates.address({updates.OVERRIDE: url})


# --- asking ----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_newer_version_is_found(page: Releases) -> None:
    assert await look() == "99.0.0"


@pytest.mark.anyio
@pytest.mark.parametrize("tag", ["v0.1.0", "v0.0.9"])
async def test_a_version_that_is_not_newer_is_none(page: Releases, tag: str) -> None:
    page.body = release(tag)

    assert await look() is None


@pytest.mark.anyio
async def test_the_question_says_nothing_about_who_asks(page: Releases) -> None:
    page.headers = {"Set-Cookie": "id=7; Path=/"}

    await look()
    await look()

    path, headers = page.asked[1]
    assert path == "/repos/stoker-ai/stoker/releases/latest"
    assert headers == {
        "host": page.origin.removeprefix("http://"),
        "user-agent": "stoker",
        "accept": "application/json",
        "accept-encoding": "identity",
    }


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (404, SourceNotFound),
        (403, SourceUnreachable),
        (429, SourceUnreachable),
        (500, SourceUnreachable),
        (204, SourceUnreachable),
        (304, SourceUnreachable),
    ],
)
async def test_any_other_answer_is_an_error(
    page: Releases, status: int, expected: type[SourceError]
) -> None:
    page.status, page.body = status, b""

    with pytest.raises(expected) as caught:
        await look()

    assert updates.PAGE in caught.value.hint


@pytest.mark.anyio
async def test_an_answer_without_an_end_is_cut(page: Releases) -> None:
    page.endless = True

    with pytest.raises(SourceInvalid, match="more than"):
        await look()


@pytest.mark.anyio
async def test_a_packed_answer_is_not_unpacked(page: Releases) -> None:
    page.headers = {"Content-Encoding": "gzip"}

    with pytest.raises(SourceInvalid, match="packs"):
        await look()


@pytest.mark.anyio
async def test_silence_ends_at_the_deadline(page: Releases) -> None:
    page.silent = True

    with pytest.raises(SourceUnreachable, match="no answer"):
        await look(deadline_s=0.05)


@pytest.mark.anyio
async def test_nobody_there_is_an_error(page: Releases) -> None:
    with pytest.raises(SourceUnreachable, match="failed"):
        await look(url="http://127.0.0.1:9/")


@pytest.mark.anyio
async def test_a_project_that_moved_is_followed_on_the_same_server(page: Releases) -> None:
    page.redirects = {"/repos/stoker-ai/stoker/releases/latest": "/repositories/7/latest"}

    assert await look() == "99.0.0"
    assert [path for path, _ in page.asked][-1] == "/repositories/7/latest"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "location", ["https://evil.example/", "http://localhost/", "//evil.example/x", "http://["]
)
async def test_a_redirect_to_elsewhere_is_not_followed(page: Releases, location: str) -> None:
    page.redirects = {"/repos/stoker-ai/stoker/releases/latest": location}

    with pytest.raises(SourceInvalid):
        await look()

    assert len(page.asked) == 1


@pytest.mark.anyio
async def test_redirects_in_a_circle_end(page: Releases) -> None:
    page.redirects = {"/repos/stoker-ai/stoker/releases/latest": page.url}

    with pytest.raises(SourceInvalid, match="circle"):
        await look()

    assert len(page.asked) == 3
