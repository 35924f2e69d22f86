"""The guard of the control socket: who may connect, and what may lie in its place."""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from stoker.api import peer
from stoker.api.listen import listening
from stoker.api.peer import PeerCheckedProtocol, bind_control, peer_uid
from stoker.errors import DaemonAlreadyRunning, StoreUnsafe

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no UNIX sockets")

NOBODY = 65534
ASK = b"GET / HTTP/1.1\r\nHost: stoker\r\nConnection: close\r\n\r\n"
# Connects and asks, and prints all that comes back; as another user when it is told so.
ASK_AS = """
import os, socket, sys
path, uid = sys.argv[1], int(sys.argv[2])
os.setgroups([]); os.setgid(uid); os.setuid(uid)
with socket.socket(socket.AF_UNIX) as peer:
    peer.settimeout(10)
    peer.connect(path)
    try:
        peer.sendall(b"GET / HTTP/1.1\\r\\nHost: stoker\\r\\nConnection: close\\r\\n\\r\\n")
        print(len(peer.recv(100)))
    except (ConnectionResetError, BrokenPipeError):
        print("refused")
"""


@pytest.fixture(
    params=[False, True] if sys.platform != "win32" else [False], ids=["asyncio", "uvloop"]
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both loops that the daemon may run on; uvloop hands out stand-ins for sockets."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def path(stoker_home: Path) -> Path:
    return stoker_home / "run" / "control.sock"


class Asked:
    """An app that counts its requests."""

    count = 0

    async def __call__(self, _scope: Any, _receive: Any, send: Any) -> None:
        self.count += 1
        head = {"type": "http.response.start", "status": 200, "headers": []}
        await send(head)
        await send({"type": "http.response.body", "body": b"served"})


def ask(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(10)
        asking.connect(str(path))
        answer = b""
        try:
            asking.sendall(ASK)
            while piece := asking.recv(4096):
                answer += piece
        except (ConnectionResetError, BrokenPipeError):
            pass
        return answer


@pytest.mark.anyio
async def test_the_user_who_runs_the_daemon_is_served(path: Path) -> None:
    app = Asked()

    async with listening(app, bind_control(path), protocol=PeerCheckedProtocol):
        answer = await anyio.to_thread.run_sync(ask, path)

    assert b"served" in answer
    assert app.count == 1


@pytest.mark.anyio
async def test_another_user_is_cut_off_before_the_app_and_logged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Asked()
    monkeypatch.setattr(peer, "peer_uid", lambda _descriptor: os.getuid() + 1)

    with capture_logs() as logged:
        async with listening(app, bind_control(path), protocol=PeerCheckedProtocol):
            answer = await anyio.to_thread.run_sync(ask, path)

    assert answer == b""
    assert app.count == 0
    assert [(entry["event"], entry["uid"]) for entry in logged] == [
        ("control_peer_refused", os.getuid() + 1)
    ]


@pytest.mark.anyio
async def test_a_peer_without_a_name_is_cut_off(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system does not say who calls, nobody is served."""
    app = Asked()
    monkeypatch.setattr(peer, "peer_uid", lambda _descriptor: None)

    async with listening(app, bind_control(path), protocol=PeerCheckedProtocol):
        answer = await anyio.to_thread.run_sync(ask, path)

    assert answer == b""
    assert app.count == 0


@pytest.mark.anyio
@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can become another user"
)
async def test_a_process_of_another_user_is_refused(path: Path) -> None:
    """The kernel's word, not the file modes: both are opened up here."""
    app = Asked()
    listener = bind_control(path)
    for place, mode in ((path, 0o666), (path.parent, 0o711), (path.parent.parent, 0o711)):
        await anyio.Path(place).chmod(mode)
    command = [sys.executable, "-I", "-c", ASK_AS, str(path)]

    async with listening(app, listener, protocol=PeerCheckedProtocol):
        stranger = await anyio.run_process([*command, str(NOBODY)], stderr=None)
        friend = await anyio.run_process([*command, "0"], stderr=None)

    assert stranger.stdout.strip() in {b"refused", b"0"}
    assert int(friend.stdout) > 0
    assert app.count == 1


def test_peer_uid_is_that_of_the_other_end() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert peer_uid(ours.fileno()) == os.getuid()


def test_a_peer_without_credentials_is_not_us() -> None:
    """A TCP peer never passes for this user."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        assert peer_uid(client.fileno()) != os.getuid()


# --- binding ---------------------------------------------------------------------------------


@pytest.fixture
def bound(path: Path) -> Iterator[socket.socket]:
    with closing(bind_control(path)) as listener:
        yield listener


def test_socket_and_folder_are_closed_to_others(path: Path, bound: socket.socket) -> None:
    info = path.lstat()

    assert stat.S_ISSOCK(info.st_mode)
    assert stat.S_IMODE(info.st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not bound.get_inheritable()


def test_an_open_folder_is_closed(path: Path) -> None:
    path.parent.mkdir(mode=0o755)

    bind_control(path).close()

    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_socket_of_a_dead_daemon_is_replaced(path: Path) -> None:
    bind_control(path).close()
    old = path.lstat()

    with bind_control(path) as listener:
        listener.listen()
        assert path.lstat().st_ctime_ns >= old.st_ctime_ns
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))


def test_a_daemon_that_answers_is_left_alone(path: Path, bound: socket.socket) -> None:
    bound.listen()
    before = path.lstat()

    with pytest.raises(DaemonAlreadyRunning):
        bind_control(path)

    assert path.lstat() == before


def test_a_daemon_with_a_full_backlog_is_left_alone(path: Path, bound: socket.socket) -> None:
    bound.listen(0)
    waiting = []
    with pytest.raises((BlockingIOError, TimeoutError)):  # noqa: PT012  # fills until it is full
        while True:
            one = socket.socket(socket.AF_UNIX)
            waiting.append(one)
            one.settimeout(0.2)
            one.connect(str(path))

    with pytest.raises(DaemonAlreadyRunning):
        bind_control(path)
    for one in waiting:
        one.close()

    assert path.exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_not_a_socket_is_never_removed(path: Path, kind: str, tmp_path: Path) -> None:
    path.parent.mkdir(parents=True)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(precious)

    with pytest.raises(StoreUnsafe):
        bind_control(path)

    assert path.exists()
    assert precious.read_text() == "mine"


def test_a_folder_that_is_a_link_is_refused(path: Path, tmp_path: Path) -> None:
    path.parent.symlink_to(tmp_path)

    with pytest.raises(StoreUnsafe):
        bind_control(path)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give files away"
)
def test_a_folder_of_another_user_is_refused(path: Path) -> None:
    path.parent.mkdir(parents=True)
    os.chown(path.parent, NOBODY, NOBODY)

    with pytest.raises(StoreUnsafe):
        bind_control(path)


def test_a_path_too_long_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(StoreUnsafe, match="cannot create"):
        bind_control(tmp_path / ("d" * 120) / "control.sock")
