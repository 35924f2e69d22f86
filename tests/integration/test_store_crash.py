"""A store survives the death of its process between any two of its steps.

A child process is killed before each call that changes the disk, or in its middle when it writes;
once per call. After every death the store is opened again here and its invariants are checked.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial as bind
from pathlib import Path
from typing import Any

import pytest

from stoker.store import disk
from stoker.store.manifest import FileRole
from stoker.store.store import Store
from tests.fakes.gguf_files import tiny_gguf
from tests.unit.store.steps import digest_of, file_of, flip_byte, key_of, manifest_of, put_model

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")

REPOSITORY = Path(__file__).parents[2]
DATA = tiny_gguf()
DIGEST = digest_of(DATA)
FEWEST_STEPS = {"pull": 25, "resume": 20, "repair": 20, "condemn": 10, "remove": 4, "replace": 25}


# --- what the child does ---------------------------------------------------------------------


def pull(store: Store) -> None:
    with store.partial(key_of(DATA)) as partial:
        for start, end in partial.missing(6000):
            partial.write(start, DATA[start:end])
            partial.advance_hash()
            partial.checkpoint()
        store.admit(partial, FileRole.MODEL)
    store.commit(manifest_of(file_of(DATA)))


def condemn(store: Store) -> None:
    list(store.verify(store.find("tiny"), lambda _bytes: None, lambda: False))


def remove(store: Store) -> None:
    store.remove(store.find("tiny").id)


def prepare_nothing(store: Store) -> None:
    """A fresh store."""


def prepare_partial(store: Store) -> None:
    with store.partial(key_of(DATA)) as partial:
        partial.write(0, DATA[:5000])


def prepare_model(store: Store) -> None:
    put_model(store, DATA)


def prepare_damage(store: Store) -> None:
    put_model(store, DATA)
    flip_byte(store.path(DIGEST))


def prepare_found_damage(store: Store) -> None:
    prepare_damage(store)
    condemn(store)


def prepare_older(store: Store) -> None:
    put_model(store, tiny_gguf(seed=9))


SCENARIOS: dict[str, tuple[Callable[[Store], None], Callable[[Store], None]]] = {
    "pull": (prepare_nothing, pull),
    "resume": (prepare_partial, pull),
    "repair": (prepare_found_damage, pull),
    "condemn": (prepare_damage, condemn),
    "remove": (prepare_model, remove),
    "replace": (prepare_older, pull),
}


def arm(last: int) -> None:
    """Die before the given step; when that is a write, in its middle."""
    taken = 0

    def step(name: str, original: Callable[..., Any], *args: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == last:
            if name == "write_at":
                descriptor, data, offset = args
                original(descriptor, data[: len(data) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    for name in disk.STEPS:
        setattr(disk, name, bind(step, name, getattr(disk, name)))


def child(scenario: str, base: Path) -> None:
    """Fork once for each step, each time over a fresh store; the last one comes to its end."""
    prepare, act = SCENARIOS[scenario]
    killed = True
    number = 0
    while killed:
        number += 1
        root = base / f"{number:03d}"
        store = Store(root)
        store.open()
        prepare(store)
        pid = os.fork()
        if pid == 0:
            arm(number)
            store = Store(root)
            store.open()
            act(store)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if not killed and status != 0:
            sys.exit(f"step {number}: the child failed by itself")


# --- what the parent asserts -----------------------------------------------------------------


def assert_sound(store: Store, root: Path, *, flipped: bool = False) -> None:
    for path in (root / "blobs").rglob("*"):
        if path.is_file() and not flipped:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    assert store.problems() == []
    for manifest in store.list():
        if not manifest.damaged:
            assert all(store.path(file.digest).is_file() for file in manifest.files)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_store_survives_death_at_every_step(scenario: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.test_store_crash", scenario, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    roots = sorted(tmp_path.iterdir())
    assert len(roots) > FEWEST_STEPS[scenario]
    for root in roots:
        store = Store(root)
        store.open()
        # The byte that the test flipped itself may still be in place: finding it was interrupted.
        assert_sound(store, root, flipped=scenario == "condemn")
        assert_second_try_works(store, scenario)
        assert_sound(store, root)


def assert_second_try_works(store: Store, scenario: str) -> None:
    if scenario == "remove":
        for manifest in store.list():
            store.remove(manifest.id)
        assert store.list() == []
        return
    if scenario == "condemn":
        condemn(store)
        assert store.list()[0].damaged
    pull(store)
    (manifest,) = store.list()
    assert manifest.digests == {DIGEST}
    assert not manifest.damaged
    store.check(manifest)
    assert store.path(DIGEST).read_bytes() == DATA


if __name__ == "__main__":
    child(sys.argv[1], Path(sys.argv[2]))
