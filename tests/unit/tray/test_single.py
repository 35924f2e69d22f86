"""One tray per home, however the others ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stoker.errors import StokerError, StoreUnsafe
from stoker_tray import single
from stoker_tray.single import end_other, only_one

HOLD = """
import signal, sys
from pathlib import Path
from stoker_tray.single import only_one
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with only_one(Path(sys.argv[1])) as is_ours:
    print(is_ours, flush=True)
    sys.stdin.read()
"""
SOON_S = 0.2  # where a program waits for seconds

posix = pytest.mark.skipif(os.name != "posix", reason="there are no signals")


def hold(lock: Path, *words: str) -> subprocess.Popen[str]:
    """Another process that has the lock, or not; it says which."""
    command = [sys.executable, "-c", HOLD, str(lock), *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_second_process_is_not_the_only_one(tmp_path: Path) -> None:
    lock = tmp_path / "lock"

    with only_one(lock) as first, hold(lock) as second:
        told = says(second)

    assert (first, told) == (True, "False")


def test_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    """The file stays; it means nothing without its lock."""
    lock = tmp_path / "lock"
    with hold(lock) as other:
        assert says(other) == "True"
        with only_one(lock) as during:
            pass
        other.kill()
        other.wait()

        with only_one(lock) as after:
            pass

    assert (during, after) == (False, True)


def test_a_successor_waits_for_the_one_before(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with hold(lock) as other:
        assert says(other) == "True"
        timer = threading.Timer(0.2, other.kill)
        timer.start()

        with only_one(lock, wait_s=30) as is_ours:
            pass
        timer.join()

    assert is_ours


def test_a_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A clipboard's owner may outlive the tray by days."""
    lock = tmp_path / "lock"
    sleep = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with only_one(lock) as first:
        child = subprocess.Popen(sleep, stdin=subprocess.PIPE)

    with child, only_one(lock) as second:
        assert child.stdin is not None
        child.stdin.close()

    assert (first, second) == (True, True)


@pytest.mark.skipif(os.name != "posix", reason="a folder in the way")
def test_a_lock_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()

    with pytest.raises(StoreUnsafe, match="lock"), only_one(tmp_path / "lock"):
        pass


# --- the other one is ended ------------------------------------------------------------------


@posix
def test_the_holder_is_asked_to_end(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with hold(lock) as other:
        assert says(other) == "True"

        end_other(lock)

        assert other.wait() == -signal.SIGTERM


@posix
def test_a_holder_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with hold(lock, "deaf") as other:
        assert says(other) == "True"

        end_other(lock, end_s=SOON_S)

        assert other.wait() == -signal.SIGKILL


@posix
@pytest.mark.parametrize("is_held", [True, False])
def test_only_who_holds_the_lock_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_held: bool
) -> None:
    """The file may name a process of long ago, whose number now is another's."""
    monkeypatch.setattr(single, "KILLED_S", SOON_S)
    lock, elsewhere = tmp_path / "lock", tmp_path / "elsewhere"
    with hold(lock if is_held else tmp_path / "none") as other, hold(elsewhere) as innocent:
        assert (says(other), says(innocent)) == ("True", "True")
        lock.write_text(str(innocent.pid))

        if is_held:
            with pytest.raises(StokerError, match="could not be ended"):
                end_other(lock, end_s=SOON_S)
        else:
            end_other(lock)

        assert (other.poll(), innocent.poll()) == (None, None)
        other.kill()
        innocent.kill()


@posix
@pytest.mark.parametrize("text", ["", "me", "-1", "0", "x", "9" * 15, "\0\n"])
def test_a_lock_without_a_name_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Whoever has just taken it may write its name in a moment."""
    monkeypatch.setattr(single, "KILLED_S", SOON_S)
    lock = tmp_path / "lock"
    with hold(lock) as other:
        assert says(other) == "True"
        name = lock.read_text()
        lock.write_text(str(os.getpid()) if text == "me" else text)

        with pytest.raises(StokerError):
            end_other(lock, end_s=SOON_S)
        lock.write_text(name)
        end_other(lock)

        assert other.wait() == -signal.SIGTERM


def test_where_nobody_is_nothing_is_done(tmp_path: Path) -> None:
    """Nor is a file made; and one that ended in order leaves no name."""
    with only_one(tmp_path / "lock"):
        pass

    end_other(tmp_path / "lock")
    end_other(tmp_path / "no" / "lock")

    assert [file.read_text().strip() for file in tmp_path.iterdir()] == [""]
