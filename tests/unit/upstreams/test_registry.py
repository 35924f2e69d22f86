"""Servers as they come, go and change; requests to them; what clients are told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from stoker.errors import (
    QueueFull,
    ServerOff,
    ShuttingDown,
    UpstreamDown,
    UpstreamError,
    UpstreamRefused,
)
from stoker.events import EventBus
from stoker.schemas import UpstreamChanged, UpstreamView
from stoker.upstreams import RemoteModel, Upstreams, health, registry
from stoker.upstreams.names import parse_models
from tests.fakes.openai_server import OpenAiServer, goes_silent_in_a_stream, says, silence
from tests.fakes.upstreams import running, settled, until, wishes

pytestmark = pytest.mark.anyio

NOBODY = "http://127.0.0.1:1/v1"  # nothing listens there
CHAT = "/v1/chat/completions"
JSON = ((b"content-type", b"application/json"),)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look again soon."""
    monkeypatch.setattr(health, "FIRST_RETRY_S", 0.02)
    monkeypatch.setattr(health, "LONGEST_RETRY_S", 0.05)
    monkeypatch.setattr(health, "APART_S", 0.0)


def _ids(upstreams: Upstreams) -> list[str]:
    return [model.id for model in upstreams.models()]


def _view(upstreams: Upstreams) -> UpstreamView:
    return upstreams.views()[0]


async def _ask(upstreams: Upstreams, remote: RemoteModel) -> bytes:
    response = await upstreams.open(remote, "POST", CHAT, JSON, b'{"model": "qwen"}')
    try:
        return await response.read(100_000)
    finally:
        await response.aclose()


def _qwen(upstreams: Upstreams) -> RemoteModel:
    found = upstreams.find("box/qwen")
    assert found is not None
    return found


# --- what there is ---------------------------------------------------------------------------


def test_without_upstreams_nothing_of_http_is_imported() -> None:
    """An idle daemon has a memory budget."""
    code = (
        "import sys; from stoker.events import EventBus; from stoker.upstreams import Upstreams;"
        "Upstreams((), EventBus());"
        "print([m for m in ('httpx2', 'stoker.upstreams.forward') if m in sys.modules])"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout.strip() == "[]"


async def test_without_upstreams_its_task_ends_at_once() -> None:
    with anyio.fail_after(5):
        await Upstreams((), EventBus()).run()


async def test_the_models_of_a_server_are_listed_below_its_name() -> None:
    async with OpenAiServer() as server, running(wishes(server.base_url)) as upstreams:
        server.models = ["qwen", "org/big"]

        await settled(upstreams)

        assert _ids(upstreams) == ["box/qwen", "box/org/big"]
        view = _view(upstreams)
        assert (view.state, view.models) == ("up", ("box/qwen", "box/org/big"))
        assert view.latency_s is not None
        assert view.error is None


async def test_a_server_that_is_down_lists_nothing_and_says_why() -> None:
    async with running(wishes(NOBODY)) as upstreams:
        await settled(upstreams)

        view = _view(upstreams)
        assert (view.state, view.models, _ids(upstreams)) == ("down", (), [])
        assert view.error is not None
        assert view.error.code == "upstream_down"
        assert "nobody listens" in view.error.message


async def test_one_broken_server_is_no_trouble_for_another() -> None:
    async with (
        OpenAiServer() as server,
        running(wishes(NOBODY, "bad"), wishes(server.base_url)) as upstreams,
    ):
        await settled(upstreams)

        assert _ids(upstreams) == ["box/qwen"]


async def test_a_server_that_crashes_our_parser_is_no_trouble_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fault of ours costs the one server, not the task of all."""

    def parse(document: bytes, name: str, patterns: tuple[str, ...]) -> tuple[RemoteModel, ...]:
        if name == "bad":
            raise KeyError(name)
        return parse_models(document, name, patterns)

    monkeypatch.setattr(registry, "parse_models", parse)
    async with OpenAiServer() as server:
        both = wishes(server.base_url, "bad"), wishes(server.base_url)
        async with running(*both) as upstreams:
            await settled(upstreams)

            assert [view.state for view in upstreams.views()] == ["down", "up"]


async def test_a_server_that_stops_and_starts_again_is_noticed() -> None:
    """It goes after the second failure, and its models are back when it is."""
    async with (
        OpenAiServer() as server,
        running(wishes(server.base_url, check_every_s=5)) as upstreams,
    ):
        await settled(upstreams)
        remote = _qwen(upstreams)

        await server.stop()
        with pytest.raises(UpstreamDown):  # a failed request makes us look
            await _ask(upstreams, remote)
        await until(lambda: _view(upstreams).state == "down")
        while_down = _ids(upstreams), upstreams.find("box/qwen")
        await server.start()
        await until(lambda: _view(upstreams).state == "up")

        assert while_down == ([], remote)
        assert _ids(upstreams) == ["box/qwen"]


async def test_a_model_that_is_new_there_is_found_soon() -> None:
    """The first to ask for it is told that it is not known, and makes us look."""
    async with OpenAiServer() as server, running(wishes(server.base_url)) as upstreams:
        await settled(upstreams)
        server.models.append("new")

        assert upstreams.find("box/new") is None
        await until(lambda: upstreams.find("box/new") is not None)


async def test_a_server_that_never_answered_may_have_any_model() -> None:
    """Whether it has this one, the request says."""
    async with running(wishes(NOBODY, models=("q*",))) as upstreams:
        await settled(upstreams)

        assert upstreams.find("box/qwen") == RemoteModel("box/qwen", "box", "qwen")
        assert upstreams.find("box/other") is None
        assert upstreams.find("box/q\x1b[2J") is None


@pytest.mark.parametrize("name", ["qwen", "box", "box/", "/qwen", "other/qwen", "BOX/qwen", ""])
async def test_only_an_exact_name_is_found(name: str) -> None:
    async with OpenAiServer() as server, running(wishes(server.base_url)) as upstreams:
        await settled(upstreams)

        assert upstreams.find(name) is None


# --- keys ------------------------------------------------------------------------------------


async def test_a_key_goes_to_its_server() -> None:
    async with (
        OpenAiServer(key="s3cret") as server,
        running(wishes(server.base_url, key="s3cret")) as upstreams,
    ):
        await settled(upstreams)

        assert b"tok0" in await _ask(upstreams, _qwen(upstreams))


async def test_a_key_that_is_refused_is_a_problem_to_solve() -> None:
    """It will not get better by itself; the key itself is never told."""
    async with (
        OpenAiServer(key="s3cret") as server,
        running(wishes(server.base_url, key="wr0ng")) as upstreams,
    ):
        await settled(upstreams)

        view = _view(upstreams)
        assert view.state == "down"
        assert view.error is not None
        assert view.error.code == "upstream_refused"
        assert "key" in upstreams.problems()[0]
        assert "wr0ng" not in view.model_dump_json() + upstreams.problems()[0]
        with pytest.raises(UpstreamRefused):
            await _ask(upstreams, RemoteModel("box/qwen", "box", "qwen"))


async def test_a_new_key_in_the_file_is_taken_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("old\n")
    async with (
        OpenAiServer(key="new") as server,
        running(wishes(server.base_url, key_file=file)) as upstreams,
    ):
        await settled(upstreams)
        before = _view(upstreams).state

        file.write_text("new\n")
        await until(lambda: _view(upstreams).state == "up")

        assert before == "down"
        assert upstreams.problems() == ()


@pytest.mark.parametrize("content", [None, b"", b"two words", b"\xff\xfe", b"x" * 5000])
async def test_a_key_file_without_a_key_is_told(tmp_path: Path, content: bytes | None) -> None:
    """And nothing is sent without it."""
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    async with (
        OpenAiServer() as server,
        running(wishes(server.base_url, key_file=file)) as upstreams,
    ):
        await settled(upstreams)

        assert "key file of box" in upstreams.problems()[0]
        assert server.seen == []


# --- requests --------------------------------------------------------------------------------


async def test_a_request_shows_nothing_but_its_body() -> None:
    """The server learns who asks for whom; nothing of our client's, and no cookie of its own."""
    cookies = {"Content-Type": "application/json", "Set-Cookie": "track=1; Path=/"}
    async with OpenAiServer() as server, running(wishes(server.base_url)) as upstreams:
        await settled(upstreams)
        server.on_post.append(says(200, b"{}", cookies))
        await _ask(upstreams, _qwen(upstreams))

        await _ask(upstreams, _qwen(upstreams))

        sent = server.posts[-1]
        assert sent.body == b'{"model": "qwen"}'
        assert sorted(sent.headers) == [
            "accept-encoding",
            "content-length",
            "content-type",
            "host",
            "user-agent",
            "x-stoker-via",
        ]


async def test_requests_in_flight_are_counted_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MOST_AT_ONCE", 2)
    async with OpenAiServer() as server, running(wishes(server.base_url)) as upstreams:
        await settled(upstreams)
        remote = _qwen(upstreams)
        first = await upstreams.open(remote, "POST", CHAT, JSON, b"{}")
        second = await upstreams.open(remote, "POST", CHAT, JSON, b"{}")

        counted = _view(upstreams).in_flight
        with pytest.raises(QueueFull):
            await upstreams.open(remote, "POST", CHAT, JSON, b"{}")
        await first.aclose()
        await first.aclose()
        await second.aclose()

        assert counted == 2
        assert _view(upstreams).in_flight == 0


async def test_a_cancelled_request_is_cancelled_there() -> None:
    """While its head is awaited."""
    async with OpenAiServer() as server, running(wishes(server.base_url)) as upstreams:
        await settled(upstreams)
        server.on_post.append(silence)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_ask, upstreams, _qwen(upstreams))
            await until(lambda: len(server.posts) == 1)
            tasks.cancel_scope.cancel()

        with anyio.fail_after(5):
            await server.posts[0].gone.wait()
        assert _view(upstreams).in_flight == 0


async def test_offline_only_this_machine_is_asked() -> None:
    """The others say why they are not."""
    async with OpenAiServer() as server:
        far = wishes("http://192.168.0.1/v1", "far", connect_timeout_s=1)
        async with running(wishes(server.base_url), far, offline=True) as upstreams:
            await settled(upstreams)

            assert _ids(upstreams) == ["box/qwen"]
            remote = upstreams.find("far/any")
            assert remote is not None
            with pytest.raises(UpstreamDown, match="offline"):
                await _ask(upstreams, remote)


async def test_a_paused_daemon_sends_nothing_until_it_resumes() -> None:
    async with OpenAiServer() as server, running(wishes(server.base_url)) as upstreams:
        await settled(upstreams)
        upstreams.pause(ServerOff("off"))

        with pytest.raises(ServerOff):
            await _ask(upstreams, _qwen(upstreams))
        upstreams.resume()

        assert b"tok0" in await _ask(upstreams, _qwen(upstreams))


async def test_a_drain_waits_for_what_runs_and_takes_nothing_new() -> None:
    async with OpenAiServer() as server, running(wishes(server.base_url)) as upstreams:
        await settled(upstreams)
        response = await upstreams.open(_qwen(upstreams), "POST", CHAT, JSON, b"{}")
        drained = anyio.Event()

        async def drain() -> None:
            await upstreams.drain(10)
            drained.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(drain)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(ShuttingDown):
                await _ask(upstreams, _qwen(upstreams))
            assert not drained.is_set()
            await response.aclose()

        assert drained.is_set()


async def test_a_drain_has_an_end() -> None:
    async with OpenAiServer() as server, running(wishes(server.base_url)) as upstreams:
        await settled(upstreams)
        response = await upstreams.open(_qwen(upstreams), "POST", CHAT, JSON, b"{}")

        with anyio.fail_after(5):
            await upstreams.drained(0.01)

        assert _view(upstreams).in_flight == 1
        await response.aclose()


async def test_at_the_end_what_still_runs_is_cut() -> None:
    """Here and there; who still reads is told."""
    async with OpenAiServer() as server:
        server.on_post.append(goes_silent_in_a_stream)
        async with running(wishes(server.base_url)) as upstreams:
            await settled(upstreams)
            response = await upstreams.open(_qwen(upstreams), "POST", CHAT, JSON, b"{}")
            await response.chunk()

        with anyio.fail_after(5):
            with pytest.raises(UpstreamError):
                await response.chunk()
            await response.aclose()
            await server.posts[0].gone.wait()


# --- what clients are told -------------------------------------------------------------------


async def test_changes_are_told() -> None:
    """Its state at once; requests that come and go, together."""
    bus = EventBus()
    with bus.subscribe() as events:
        async with OpenAiServer() as server, running(wishes(server.base_url), bus=bus) as upstreams:
            told = aiter(events)
            with anyio.fail_after(10):
                first = await anext(told)
                response = await upstreams.open(_qwen(upstreams), "POST", CHAT, JSON, b"{}")
                second = await anext(told)
                await response.aclose()
                third = await anext(told)

    views = [one.upstream for one in (first, second, third) if isinstance(one, UpstreamChanged)]
    assert [view.state for view in views] == ["up"] * 3
    assert [view.in_flight for view in views] == [0, 1, 0]


async def test_a_look_that_changes_nothing_to_see_is_not_told_at_length() -> None:
    """A server that stays down is told once, not at every look."""
    bus = EventBus()
    with bus.subscribe() as events:
        async with running(wishes(NOBODY), bus=bus) as upstreams:
            await settled(upstreams)
            await anyio.sleep(0.3)  # several looks

        told = 0
        with anyio.move_on_after(0.05):
            async for _ in events:
                told += 1

    assert told == 1
