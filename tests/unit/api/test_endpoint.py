"""The port itself, with real sockets, on both event loops."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.to_thread import run_sync
from starlette.responses import PlainTextResponse

from stoker.api.endpoint import Endpoint
from stoker.errors import BadSetting, PortTaken, ShuttingDown

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="ports are shared otherwise there"),
]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")

APP = PlainTextResponse("hello")
HOST = "127.0.0.1"


@pytest.fixture(params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def port() -> int:
    """One that is free."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def given(port: int) -> Iterator[socket.socket]:
    """What systemd holds: a listening socket."""
    with socket.create_server((HOST, port)) as held:
        yield held


@asynccontextmanager
async def running(endpoint: Endpoint) -> AsyncIterator[Endpoint]:
    """As the daemon has it when it told that it is ready."""
    with endpoint:
        async with endpoint.running(APP):
            endpoint.may_refuse()
            yield endpoint


async def ask(port: int, after_s: float = 0) -> str:
    """What the port says: `hello`, `refused`, or `reset` when it took us and cut us off."""

    def talk() -> str:
        try:
            with socket.create_connection((HOST, port), 5) as peer:
                time.sleep(after_s)
                peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                return "hello" if b"hello" in b"".join(iter(lambda: peer.recv(4096), b"")) else "?"
        except ConnectionRefusedError:
            return "refused"
        except ConnectionResetError:
            return "reset"

    return await run_sync(talk)


def listens(held: socket.socket) -> bool:
    return bool(held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


# --- a port of our own -----------------------------------------------------------------------


async def test_it_opens_and_closes_again_and_again(port: int) -> None:
    async with running(Endpoint(HOST, port)) as endpoint:
        for _ in range(3):
            await endpoint.open()
            await endpoint.open()
            assert await ask(port) == "hello"
            await endpoint.close()
            await endpoint.close()
            assert await ask(port) == "refused"


async def test_a_port_that_was_found_stays(port: int) -> None:
    """With port 0 the system chooses, once."""
    async with running(Endpoint(HOST, 0)) as endpoint:
        await endpoint.open()
        address = endpoint.base_url
        await endpoint.close()
        await endpoint.open()

        assert endpoint.base_url == address
        assert await ask(int(address.rsplit(":", 1)[1].removesuffix("/v1"))) == "hello"


async def test_who_connects_to_a_claimed_port_waits(port: int) -> None:
    """Until it is opened; nobody else can take it."""
    async with running(Endpoint(HOST, port)) as endpoint:
        endpoint.claim()
        answers: list[str] = []

        async def client() -> None:
            answers.append(await ask(port))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client)
            with pytest.raises(PortTaken):
                Endpoint(HOST, port).claim()
            await endpoint.open()

        assert answers == ["hello"]


async def test_a_taken_port_is_told_and_can_be_tried_again(port: int) -> None:
    async with running(Endpoint(HOST, port)) as endpoint:
        with socket.create_server((HOST, port)), pytest.raises(PortTaken):
            await endpoint.open()

        await endpoint.open()

        assert await ask(port) == "hello"


async def test_two_that_bound_the_port_are_told_apart(port: int) -> None:
    """The system lets two programs bind it, but only one listen."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((HOST, port))
        async with running(Endpoint(HOST, port)) as endpoint:
            endpoint.claim()
            with pytest.raises(OSError, match="in use"):
                other.listen()


async def test_after_the_end_nothing_is_opened(port: int) -> None:
    async with running(Endpoint(HOST, port)) as endpoint:
        await endpoint.open()

    assert await ask(port) == "refused"
    with pytest.raises(ShuttingDown):
        await endpoint.open()


async def test_an_address_that_this_machine_lacks_is_a_wrong_setting() -> None:
    with pytest.raises(BadSetting):
        Endpoint("192.0.2.1", 0).claim()


def test_an_address_of_numbers_and_colons_is_bracketed() -> None:
    assert Endpoint("::1", 4328).base_url == "http://[::1]:4328/v1"
    assert Endpoint("localhost", 4328).base_url == "http://localhost:4328/v1"


# --- a socket of systemd's -------------------------------------------------------------------


@linux_only
@pytest.mark.parametrize("host", [HOST, "localhost"])
async def test_an_inherited_socket_is_served(port: int, given: socket.socket, host: str) -> None:
    async with running(Endpoint(host, port, [given.dup()])) as endpoint:
        await endpoint.open()

        assert await ask(port) == "hello"
        assert endpoint.problems() == ()


@linux_only
async def test_port_0_takes_what_is_inherited(port: int, given: socket.socket) -> None:
    async with running(Endpoint(HOST, 0, [given.dup()])) as endpoint:
        assert endpoint.base_url == f"http://{HOST}:{port}/v1"


@linux_only
async def test_an_inherited_socket_refuses_and_serves_again(
    port: int, given: socket.socket
) -> None:
    """It cannot be closed; while it refuses nobody else gets its port by accident."""
    async with running(Endpoint(HOST, port, [given.dup()])) as endpoint:
        for _ in range(3):
            await endpoint.open()
            assert await ask(port) == "hello"
            await endpoint.close()
            assert await ask(port) == "refused"
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind((HOST, port))


@linux_only
async def test_who_takes_a_moment_to_ask_is_heard_after_it_refused(
    port: int, given: socket.socket
) -> None:
    """Linux hands the mark of a socket that was shut twice on to the connections it accepts."""
    async with running(Endpoint(HOST, port, [given.dup()])) as endpoint:
        await endpoint.open()
        await endpoint.close()
        await endpoint.close()
        endpoint.may_refuse()
        await endpoint.open()

        assert await ask(port, after_s=0.1) == "hello"


@linux_only
async def test_a_port_that_systemd_did_not_name_stays_too() -> None:
    """The system forgets a port of its own choice when the socket is shut."""
    with socket.create_server((HOST, 0)) as held:
        port = held.getsockname()[1]
        async with running(Endpoint(HOST, port, [held.dup()])) as endpoint:
            await endpoint.open()
            assert await ask(port) == "hello"

        assert (listens(held), held.getsockname()[1]) == (True, port)


@linux_only
@pytest.mark.parametrize("last", ["open", "close", "claim"])
async def test_systemd_gets_back_a_socket_that_listens(
    port: int, given: socket.socket, last: str
) -> None:
    """However the daemon ends: a socket that does not listen would fail systemd's unit."""
    async with running(Endpoint(HOST, port, [given.dup()])) as endpoint:
        endpoint.claim()
        if last != "claim":
            await endpoint.open()
        if last == "close":
            await endpoint.close()
            assert not listens(given)

    assert listens(given)


@linux_only
async def test_systemd_gets_it_back_when_the_daemon_fails(port: int, given: socket.socket) -> None:
    """Also before anything was served."""
    endpoint = Endpoint(HOST, port, [given.dup()])
    endpoint.may_refuse()
    was_shut = not listens(given)
    with pytest.raises(KeyError), endpoint:
        raise KeyError

    assert was_shut
    assert listens(given)


@linux_only
async def test_until_the_manager_knows_nothing_is_refused(port: int, given: socket.socket) -> None:
    """Until then it listens itself, and would take the socket for a broken one."""
    with Endpoint(HOST, port, [given.dup()]) as endpoint:
        assert endpoint.inherits
        async with endpoint.running(APP):
            await endpoint.open()
            await endpoint.close()
            assert listens(given)

            endpoint.may_refuse()

            assert await ask(port) == "refused"


@linux_only
async def test_who_waited_for_an_endpoint_that_is_off_is_cut_off(
    port: int, given: socket.socket
) -> None:
    """The one whose connection made systemd start the daemon learns that nothing is served."""
    with (
        Endpoint(HOST, port, [given.dup()]) as endpoint,
        socket.create_connection((HOST, port), 5) as waiting,
    ):
        endpoint.may_refuse()

        with pytest.raises(ConnectionResetError):
            waiting.recv(1)


@linux_only
async def test_a_port_lost_while_it_was_shut_is_told(port: int, given: socket.socket) -> None:
    """Another program may insist on it; when that ends, all is well again."""
    given.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    async with running(Endpoint(HOST, port, [given.dup()])) as endpoint:
        with socket.create_server((HOST, port)), pytest.raises(PortTaken):
            await endpoint.open()

        await endpoint.open()

        assert await ask(port) == "hello"


@linux_only
async def test_the_settings_win_over_an_inherited_address(given: socket.socket) -> None:
    """Ours is opened and systemd's refuses, which is a problem that somebody should mend."""
    async with running(Endpoint(HOST, 0)) as free:
        free.claim()
        other = int(free.base_url.rsplit(":", 1)[1].removesuffix("/v1"))
    stray = given.getsockname()[1]

    async with running(Endpoint(HOST, other, [given.dup()])) as endpoint:
        await endpoint.open()

        assert await ask(other) == "hello"
        assert await ask(stray) == "refused"
        (problem,) = endpoint.problems()
        assert str(stray) in problem
        assert str(other) in problem
        assert "stoker autostart on" in problem
    assert listens(given)


@linux_only
async def test_of_two_inherited_sockets_the_right_one_is_served(
    port: int, given: socket.socket
) -> None:
    with socket.create_server((HOST, 0)) as second:
        inherited = [second.dup(), given.dup()]
        async with running(Endpoint(HOST, port, inherited)) as endpoint:
            await endpoint.open()

            assert await ask(port) == "hello"
            assert await ask(second.getsockname()[1]) == "refused"
            assert len(endpoint.problems()) == 1
        assert listens(second)
