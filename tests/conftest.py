"""Fixtures and guards for every test.

Guards: a test talks to this machine only, and leaves no process behind. Unclosed sockets and files
are errors already (`filterwarnings = error` turns their ResourceWarning into one).
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn

import psutil
import pytest
from hypothesis import HealthCheck, settings

from tests.fakes.gemma import GemmaMissing, gemma_path
from tests.fakes.starter import StarterMissing, starter_path

# Who runs the tests may have a narrow terminal, and pytest-xdist passes its width on.
os.environ.pop("COLUMNS", None)

# A busy machine is slow, which says nothing about the code under test.
settings.register_profile("stoker", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("stoker")

# --- network guard ---------------------------------------------------------------------------


class NetworkBlocked(BaseException):
    """Not an Exception: no code under test may mistake it for a network that is down."""


def _is_local(address: object) -> bool:
    if not isinstance(address, tuple):
        return True  # a UNIX socket's path, or another family without a network
    host = address[0]
    if host in {None, "", "localhost", b"localhost"}:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name would have to be looked up


def _guard_network(event: str, args: tuple[object, ...]) -> None:
    if event in {"socket.connect", "socket.sendto"}:
        address = args[1]
    elif event == "socket.getaddrinfo":
        address = (args[0],)
    else:
        return
    if not _is_local(address):
        msg = f"a test may talk to this machine only, not to {address!r}"
        raise NetworkBlocked(msg)


sys.addaudithook(_guard_network)  # in this process only; pip below runs in a child

# --- leak check ------------------------------------------------------------------------------

LEAVE_S = 10  # what is ended may have to wait for a processor before it is gone


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Fail a test that leaves a child process behind, and end that process."""
    before = set(psutil.Process().children(recursive=True))
    yield
    left = [p for p in psutil.Process().children(recursive=True) if p not in before]
    _fail_for(psutil.wait_procs(left, timeout=LEAVE_S)[1])


def _fail_for(left: list[psutil.Process]) -> None:
    found = [str(process) for process in left]
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=5)
    if found:
        pytest.fail(f"processes left behind: {'; '.join(found)}")


def _processes_of(home: Path) -> list[psutil.Process]:
    """Processes that work in or for `home`, also those that no longer have us as a parent."""
    found = []
    for process in psutil.process_iter(["cwd", "environ"]):
        cwd, environ = process.info["cwd"] or "", process.info["environ"] or {}
        for_home = environ.get("STOKER_HOME") == str(home) or Path(cwd).is_relative_to(home)
        if for_home and process.pid != os.getpid():
            found.append(process)
    return found


# --- folders of long homes -------------------------------------------------------------------

# A test's own folder has too long a path for sockets, so its daemon's and its tray's run folder is
# here, as in `stoker.paths`; neither removes it, because the next one would make it again.
_RUN_FOLDERS: Final = f"stoker-{os.getuid() if os.name == 'posix' else ''}-*"
_folders_before: set[Path] = set()


def _run_folders() -> set[Path]:
    return set(Path("/tmp").glob(_RUN_FOLDERS)) if os.name == "posix" else set()


def pytest_sessionstart() -> None:
    _folders_before.update(_run_folders())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove what was made meanwhile, unless a daemon is there: no test left one behind."""
    if hasattr(session.config, "workerinput"):  # another one's tests may still run
        return
    for folder in _run_folders() - _folders_before:
        with socket.socket(socket.AF_UNIX) as probe:
            in_use = probe.connect_ex(str(folder / "control.sock")) == 0
        if not in_use:
            shutil.rmtree(folder, ignore_errors=True)


# --- fixtures --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, as the daemon does."""
    return "asyncio"


@pytest.fixture
def stoker_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home in a short path (a socket's path holds about 100 bytes), as STOKER_HOME."""
    for name in list(os.environ):
        if name.startswith(("STOKER_", "HF_")) and not name.startswith("STOKER_TEST_"):
            monkeypatch.delenv(name)
    home = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp" if os.name == "posix" else None))
    home = home.resolve()  # macOS: /tmp is a link, and processes report the real path
    monkeypatch.setenv("STOKER_HOME", str(home))
    yield home
    try:
        _fail_for(psutil.wait_procs(_processes_of(home), timeout=LEAVE_S)[1])
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(
    params=[
        pytest.param("unix", marks=pytest.mark.skipif(os.name != "posix", reason="Windows")),
        "tcp",
    ]
)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who asks for it runs twice: with a control plane on a UNIX socket, and on loopback TCP."""
    monkeypatch.setenv("STOKER_TEST_CONTROL", request.param)
    return str(request.param)


@pytest.fixture(scope="session")
def starter_gguf() -> Path:
    """The real starter model, read-only for tests; downloaded once per machine and verified."""
    try:
        return starter_path()
    except StarterMissing as error:
        _no_model(str(error))


@pytest.fixture(scope="session")
def gemma_gguf() -> Path:
    """The second real model, likewise: larger, with a sliding window, without a chat template."""
    try:
        return gemma_path()
    except GemmaMissing as error:
        _no_model(str(error))


def _no_model(why: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)
