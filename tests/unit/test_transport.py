"""Which way the control plane is reached, and the file that says where."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker import errors, transport
from stoker.transport import ControlFile

TOKEN = "Ab_-" * 11
FOUND = ControlFile(4242, TOKEN, 17)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "control.json"


def put(file: Path, raw: bytes, mode: int = 0o600) -> None:
    file.write_bytes(raw)
    file.chmod(mode)


def test_only_windows_and_its_tests_go_over_tcp() -> None:
    on_windows = sys.platform == "win32"

    assert transport.over_tcp({}) is on_windows
    assert transport.over_tcp({"STOKER_TEST_CONTROL": "unix"}) is on_windows
    assert transport.over_tcp({"STOKER_TEST_CONTROL": "tcp"})


# --- the file --------------------------------------------------------------------------------


def test_what_a_daemon_writes_is_read(file: Path) -> None:
    """Also when a newer one writes more."""
    put(file, FOUND.encode())
    assert transport.read(file) == FOUND

    put(file, json.dumps({**json.loads(FOUND.encode()), "more": [1]}).encode())
    assert transport.read(file) == FOUND


def test_a_token_is_not_shown_by_accident() -> None:
    assert TOKEN not in repr(FOUND)
    assert TOKEN not in repr(transport.Route(None, 1, TOKEN))


@pytest.mark.parametrize(
    "change",
    [
        *({"port": port} for port in (0, -1, 65536, True, "1", 1.5, None)),
        *({"pid": pid} for pid in (0, -1, True, "1", None)),
        *({"token": token} for token in ("", "a" * 42, "a" * 129, 1, None)),
        {"token": "a" * 43 + "\r\nX: y"},
        {"token": "\u00e4" * 43},
    ],
    ids=str,
)
def test_what_no_daemon_writes_is_nothing(change: dict[str, object]) -> None:
    """The token goes into a header, so it can hold nothing that would begin another."""
    assert transport.parse(json.dumps({**json.loads(FOUND.encode()), **change}).encode()) is None


@given(raw=st.binary() | st.sampled_from([b"[" * 100_000, b"[]", b"null", b"{}", b"NaN"]))
def test_any_bytes_are_a_file_or_nothing(raw: bytes) -> None:
    assert transport.parse(raw) is None


def _missing(file: Path) -> None:
    file.unlink(missing_ok=True)


def _endless(file: Path) -> None:
    put(file, FOUND.encode() + b" " * 5000)


def _cut(file: Path) -> None:
    put(file, FOUND.encode()[:-9])


def _folder(file: Path) -> None:
    file.mkdir()


POSIX: list[Callable[[Path], None]] = []
if sys.platform != "win32":

    def _open_to_others(file: Path) -> None:
        put(file, FOUND.encode(), 0o644)

    def _a_link(file: Path) -> None:
        put(file.with_name("real"), FOUND.encode())
        file.symlink_to("real")

    def _a_pipe(file: Path) -> None:
        os.mkfifo(file, 0o600)

    def _of_another_user(file: Path) -> None:
        put(file, FOUND.encode())
        if os.getuid() != 0:
            pytest.skip("only root can give files away")
        os.chown(file, 65534, 65534)

    POSIX += [_open_to_others, _a_link, _a_pipe, _of_another_user]


@pytest.mark.parametrize("put_there", [_missing, _endless, _cut, _folder, *POSIX])
def test_what_cannot_be_trusted_is_no_daemon(file: Path, put_there: Callable[[Path], None]) -> None:
    put_there(file)

    assert transport.read(file) is None
    with pytest.raises(errors.DaemonNotRunning):
        transport.find(file.with_name("control.sock"))


# --- is it alive? ----------------------------------------------------------------------------


def test_a_daemon_lives_when_its_process_listens_there() -> None:
    """Not when the port went to another process, nor the number to a process without it."""
    with socket.create_server((transport.LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
            assert transport.is_alive(ControlFile(port, TOKEN, os.getpid()))
            assert not transport.is_alive(ControlFile(port, TOKEN, other.pid))
            other.kill()
    assert not transport.is_alive(ControlFile(port, TOKEN, os.getpid()))
    assert not transport.is_alive(ControlFile(port, TOKEN, other.pid))


# --- the way ---------------------------------------------------------------------------------


def test_a_socket_goes_before_the_file(file: Path) -> None:
    with socket.create_server((transport.LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
        put(file, ControlFile(port, TOKEN, os.getpid()).encode())
        over_tcp = transport.find(file.with_name("control.sock"))

    assert over_tcp.host == f"127.0.0.1:{port}"
    assert over_tcp.headers == {"Authorization": f"Bearer {TOKEN}"}
    if sys.platform != "win32":
        file.with_name("control.sock").touch()
        assert transport.find(file.with_name("control.sock")).headers == {}


LISTEN = """
import os, socket, sys
with socket.create_server(("127.0.0.1", 0)) as listener:
    if int(sys.argv[1]):
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root becomes others"
)
def test_another_user_who_took_port_and_number_is_no_daemon(file: Path) -> None:
    """Nobody shows him a token, or believes what he answers."""
    for user, is_ours in (("1", False), ("0", True)):
        with subprocess.Popen(
            [sys.executable, "-I", "-c", LISTEN, user],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as other:
            assert other.stdout is not None
            port = int(other.stdout.readline())
            assert transport.is_alive(ControlFile(port, TOKEN, other.pid)) is is_ours


def test_the_port_of_a_dead_daemon_is_not_asked(file: Path) -> None:
    """Whoever has it now would see the token, and could answer anything."""
    with (
        socket.create_server((transport.LOOPBACK, 0)) as taker,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as dead,
    ):
        dead.kill()
        dead.wait()
        put(file, ControlFile(taker.getsockname()[1], TOKEN, dead.pid).encode())

        with pytest.raises(errors.DaemonNotRunning):
            transport.find(file.with_name("control.sock"))


def test_a_failed_connect_leaves_no_socket_open() -> None:
    """A leak would be an error of the test run."""
    with socket.socket() as unused:
        unused.bind((transport.LOOPBACK, 0))
        route = transport.Route(None, unused.getsockname()[1], TOKEN)

        with pytest.raises(ConnectionRefusedError):
            route.connect(5)
