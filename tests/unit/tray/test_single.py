"""One tray per home, however the others ended."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stoker.errors import StoreUnsafe
from stoker_tray.single import only_one

HOLD = """
import sys
from pathlib import Path
from stoker_tray.single import only_one
with only_one(Path(sys.argv[1])) as is_ours:
    print(is_ours, flush=True)
    sys.stdin.read()
"""


def hold(lock: Path) -> subprocess.Popen[str]:
    """Another process that has the lock, or not; it says which."""
    command = [sys.executable, "-c", HOLD, str(lock)]
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
