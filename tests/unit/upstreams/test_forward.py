"""HTTP to a server that may do anything: what is passed on, and what ends it."""

from __future__ import annotations

import gzip
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from stoker.errors import UpstreamDown, UpstreamError, UpstreamRefused
from stoker.upstreams import forward
from stoker.upstreams.forward import RemoteResponse, Server
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAiServer, Play, endless, says
from tests.fakes.upstreams import running, settled, wishes

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
HTML = {"Content-Type": "text/html"}


@asynccontextmanager
async def _server(
    *plays: Play, timeout_s: float = 10
) -> AsyncIterator[tuple[OpenAiServer, Server]]:
    """A server whose next answers are these, and the way to it."""
    async with OpenAiServer() as there:
        there.on_post.extend(plays)
        here = Server(wishes(there.base_url, timeout_s=timeout_s))
        try:
            yield there, here
        finally:
            await here.aclose()


async def _post(server: Server, body: bytes = b"{}") -> RemoteResponse:
    return await server.open("POST", CHAT, [(b"content-type", b"application/json")], body)


async def _all(response: RemoteResponse) -> bytes:
    try:
        return b"".join([chunk async for chunk in response])
    finally:
        await response.aclose()


async def test_an_answer_comes_back_byte_for_byte() -> None:
    async with _server() as (_, server):
        response = await _post(server, b'{"model": "qwen", "stream": true}')

        body = await _all(response)

        assert response.status == 200
        assert response.header(b"content-type") == b"text/event-stream"
        assert body.startswith(b'data: {"choices"')
        assert body.endswith(b"data: [DONE]\n\n")


async def test_only_known_headers_are_seen() -> None:
    """What stands in the others could steer a client."""
    more = {"Content-Type": "Application/JSON; charset=x", "Refresh": "0", "Retry-After": "soon"}
    async with _server(says(200, b"{}", more)) as (_, server):
        response = await _post(server)

        assert response.header(b"content-type") == b"application/json"
        assert response.header(b"content-length") == b"2"
        assert response.header(b"retry-after") is None
        assert response.header(b"refresh") is None
        await response.aclose()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    """The prompt and the key are for one address only."""
    async with OpenAiServer() as elsewhere:
        play = says(status, b"", {"Location": f"{elsewhere.base_url}/chat/completions"})
        async with _server(play) as (_, server):
            with pytest.raises(UpstreamError, match="elsewhere"):
                await _post(server)

        assert elsewhere.seen == []


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_has_an_error_of_its_own(status: int) -> None:
    async with _server(says(status)) as (_, server):
        with pytest.raises(UpstreamRefused):
            await _post(server)


@pytest.mark.parametrize(
    "play",
    [
        says(200, b"<html>log in</html>", HTML),
        says(200, gzip.compress(b"{}" * 1000), {**fake.JSON, "Content-Encoding": "gzip"}),
        says(200, b"{}", {"Content-Type": "application/json, text/html"}),
    ],
    ids=["a login page", "packed", "two kinds"],
)
async def test_an_answer_that_no_api_gives_is_refused(play: Play) -> None:
    """A login page, a packed body that may be a bomb."""
    async with _server(play) as (_, server):
        with pytest.raises(UpstreamError, match="not as an API does"):
            await _post(server)


@pytest.mark.parametrize("play", [fake.hangs_up, fake.speaks_nonsense, fake.sends_an_endless_head])
async def test_no_sound_head_means_down(play: Play) -> None:
    async with _server(play) as (_, server):
        with anyio.fail_after(20), pytest.raises(UpstreamDown):
            await _post(server)


async def test_a_silent_server_is_given_up() -> None:
    async with _server(fake.silence, timeout_s=0.1) as (there, server):
        with pytest.raises(UpstreamDown, match="stopped answering"):
            await _post(server)

        with anyio.fail_after(30):
            while not there.posts:  # noqa: ASYNC110  # it may have given up before it was read
                await anyio.sleep(0.01)
            await there.posts[0].gone.wait()


@pytest.mark.parametrize(
    "play",
    [fake.dies_in_a_stream, fake.goes_silent_in_a_stream, fake.lies_about_its_length],
)
async def test_an_answer_that_is_cut_is_told(play: Play) -> None:
    """Never taken for a whole one."""
    timeout_s = 3 if play is fake.goes_silent_in_a_stream else 30
    async with _server(play, timeout_s=timeout_s) as (_, server):
        response = await _post(server)

        with pytest.raises(UpstreamError):
            await _all(response)


async def test_closing_cancels_what_runs_there() -> None:
    async with _server(fake.goes_silent_in_a_stream) as (there, server):
        response = await _post(server)
        await response.chunk()

        await response.aclose()

        with anyio.fail_after(5):
            await there.posts[0].gone.wait()


async def test_an_endless_body_is_read_to_a_limit_only() -> None:
    async with _server(endless(b" " * 10_000)) as (_, server):
        response = await _post(server)

        with pytest.raises(UpstreamError, match="more than"):
            await response.read(100_000)
        await response.aclose()


async def test_a_connection_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handshake with a machine far away costs more than a token."""
    monkeypatch.setattr(forward, "_KEEP_S", 60.0)
    async with _server() as (there, server):
        for _ in range(3):
            await _all(await _post(server))

        ports = {one._writer.get_extra_info("peername")[1] for one in there.posts}
        assert len(ports) == 1


@pytest.mark.parametrize(
    ("play", "words"),
    [
        (endless(b" " * 100_000), "more than"),
        (says(200, b"[" * 50_000), "not JSON"),
        (says(200, b'{"models": []}'), "without a list"),
        (says(404, b"{}"), "status 404"),
        (says(200, b"<html>", HTML), "not as an API does"),
        (says(302, b"", {"Location": "https://evil.example"}), "elsewhere"),
        (fake.speaks_nonsense, "lost"),
        (fake.hangs_up, "lost"),
    ],
)
async def test_a_list_that_is_none_takes_a_server_down(play: Play, words: str) -> None:
    """With an error that says what to mend, and nothing of what the server said."""
    async with OpenAiServer() as there:
        there.on_models.append(play)
        async with running(wishes(there.base_url)) as upstreams:
            await settled(upstreams)

            view = upstreams.views()[0]
            assert view.state == "down"
            assert view.error is not None
            assert words in view.error.message
            assert "evil" not in view.model_dump_json()


async def test_a_list_that_does_not_come_takes_a_server_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stoker.upstreams.registry._CHECK_S", 0.1)
    async with OpenAiServer() as there:
        there.on_models.append(fake.silence)
        async with running(wishes(there.base_url, connect_timeout_s=0.1)) as upstreams:
            await settled(upstreams)

            assert upstreams.views()[0].state == "down"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (UnicodeError("label too long"), "the connection failed"),
        (socket.gaierror(-2, "Name or service not known"), "its name is not known"),
        (OSError(101, "Network is unreachable"), "Network is unreachable"),
    ],
    ids=["no name", "unknown name", "no network"],
)
async def test_a_name_that_leads_nowhere_is_down(
    monkeypatch: pytest.MonkeyPatch, fault: Exception, words: str
) -> None:
    """Whatever the resolver thinks of it."""

    async def resolve(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(anyio, "connect_tcp", resolve)
    server = Server(wishes("http://box.lan/v1"))

    with pytest.raises(UpstreamDown, match=words):
        await _post(server)
    await server.aclose()


# --- TLS -------------------------------------------------------------------------------------

_MAKE = (
    "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    " -subj /CN=box -addext subjectAltName=IP:127.0.0.1 -keyout - -out -"
)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For 127.0.0.1, signed by itself; key and certificate in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    made = subprocess.run(
        [openssl, *_MAKE.split()],
        capture_output=True,
        check=True,
    )
    file.write_bytes(made.stdout)
    return file


def _tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


async def test_a_certificate_that_nobody_vouches_for_is_refused(certificate: Path) -> None:
    async with OpenAiServer(tls=_tls(certificate)) as there:
        server = Server(wishes(there.base_url))

        with pytest.raises(UpstreamDown, match="certificate is not trusted"):
            await _post(server)

        await server.aclose()
        assert there.seen == []


async def test_a_certificate_that_the_machine_trusts_is_taken(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with OpenAiServer(tls=_tls(certificate)) as there:
        server = Server(wishes(there.base_url))

        body = await _all(await _post(server))

        await server.aclose()
        assert b"tok0" in body


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings say where a request goes."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with _server() as (there, server):
        await _all(await _post(server))

        assert len(there.posts) == 1


def test_the_longest_key_fits_into_a_head() -> None:
    """The HTTP library bounds a head at 100 KB."""
    assert forward.LONGEST_KEY < 50_000
