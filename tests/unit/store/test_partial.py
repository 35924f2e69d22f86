"""Partials: written in any order, hashed from disk, resumed only when they fit."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from threading import Thread

import pytest

from stoker.errors import DiskFull, InternalError, ModelInUse, SizeMismatch, StoreError
from stoker.store import disk
from stoker.store import partial as partial_module
from stoker.store.partial import Partial, PartialKey
from stoker.store.store import Store
from stoker.store.verify import Expected
from tests.unit.store.steps import Clock, digest_of, key_of

DATA = bytes(range(256)) * 40
KEY = key_of(DATA)
UNPROMISED = PartialKey(Expected(None, None), "https://hub.test/file")


def fill(partial: Partial, data: bytes = DATA, chunk: int = 1000) -> None:
    for start, end in partial.missing(chunk):
        partial.write(start, data[start:end])


def failing(code: int) -> Callable[..., None]:
    def fail(*_args: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_bytes_may_come_in_any_order(store: Store) -> None:
    with store.partial(KEY) as partial:
        for start, end in reversed(partial.missing(1000)):
            partial.write(start, memoryview(DATA)[start:end])
            partial.advance_hash()

        assert partial.complete
        assert partial.bytes_done == len(DATA)
        assert partial.observed().digest == digest_of(DATA)


def test_the_hash_follows_bytes_that_are_written_over(store: Store) -> None:
    with store.partial(KEY) as partial:
        partial.write(0, bytes(len(DATA)))
        partial.advance_hash()
        partial.write(0, DATA)

        assert partial.observed().digest == digest_of(DATA)


def test_bytes_past_the_promised_end_are_refused(store: Store) -> None:
    with store.partial(KEY) as partial:
        with pytest.raises(SizeMismatch):
            partial.write(len(DATA) - 1, b"ab")

        assert partial.bytes_done == 0


def test_writing_nothing_changes_nothing(store: Store) -> None:
    with store.partial(KEY) as partial:
        partial.write(5, b"")

        assert partial.bytes_done == 0


@pytest.mark.parametrize("size", [0, len(DATA) - 1, len(DATA) + 1])
def test_a_source_of_another_length_is_refused(store: Store, size: int) -> None:
    with store.partial(KEY) as partial, pytest.raises(SizeMismatch):
        partial.set_size(size)


def test_a_length_may_become_known_later(store: Store) -> None:
    with store.partial(UNPROMISED) as partial:
        assert partial.size is None
        with pytest.raises(InternalError):
            partial.missing(10)
        partial.set_size(25)

        assert partial.missing(10) == [(0, 10), (10, 20), (20, 25)]
        assert partial.size == 25


def test_what_a_checkpoint_recorded_is_resumed(store: Store) -> None:
    with store.partial(KEY) as partial:
        partial.write(0, DATA[:3000])
        partial.write(5000, DATA[5000:6000])
        partial.checkpoint()

    with store.partial(KEY) as partial:
        assert partial.missing(10**6) == [(3000, 5000), (6000, len(DATA))]
        fill(partial)
        assert partial.observed().digest == digest_of(DATA)


def test_leaving_records_what_was_written(store: Store) -> None:
    context = store.partial(KEY)
    context.__enter__().write(0, DATA[:3000])
    context.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)

    with store.partial(KEY) as partial:
        assert partial.bytes_done == 3000


def test_another_mirror_goes_on_with_the_same_digest(store: Store) -> None:
    with store.partial(KEY) as partial:
        partial.write(0, DATA[:3000])

    with store.partial(PartialKey(KEY.expected, "https://mirror.test/other")) as partial:
        assert partial.bytes_done == 3000


def test_a_sidecar_of_another_length_starts_from_zero(store: Store) -> None:
    with store.partial(KEY) as partial:
        partial.write(0, DATA[:3000])

    with store.partial(PartialKey(Expected(len(DATA) + 1, KEY.expected.digest), "o")) as partial:
        assert partial.bytes_done == 0
        assert partial.path.stat().st_size == 0


def test_an_unpromised_file_that_changed_its_length_starts_from_zero(store: Store) -> None:
    with store.partial(UNPROMISED) as partial:
        partial.set_size(len(DATA))
        partial.write(0, DATA[:3000])

    with store.partial(UNPROMISED) as partial:
        assert partial.bytes_done == 3000
        partial.set_size(5000)
        assert partial.bytes_done == 0


@pytest.mark.parametrize(
    "raw", [b"", b"not json", b'{"version": 9}', b"x" * (5 << 20)], ids=["0", "text", "v9", "big"]
)
def test_a_broken_sidecar_starts_from_zero(store: Store, raw: bytes) -> None:
    with store.partial(KEY) as partial:
        partial.write(0, DATA)
        path = partial.path
    path.with_suffix(".json").write_bytes(raw)

    with store.partial(KEY) as partial:
        assert partial.bytes_done == 0
        assert path.stat().st_size == 0


def test_a_partial_without_its_sidecar_starts_from_zero(store: Store) -> None:
    with store.partial(KEY) as partial:
        partial.write(0, DATA)
        path = partial.path
    path.with_suffix(".json").unlink()

    with store.partial(KEY) as partial:
        assert partial.bytes_done == 0


def test_a_sidecar_without_its_partial_starts_from_zero(store: Store) -> None:
    with store.partial(KEY) as partial:
        partial.write(0, DATA)
        path = partial.path
    path.unlink()

    with store.partial(KEY) as partial:
        assert partial.bytes_done == 0
    assert not path.with_suffix(".json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX links")
def test_a_link_in_the_place_of_a_partial_is_not_followed(store: Store, tmp_path: Path) -> None:
    mine = tmp_path / "thesis.txt"
    mine.write_text("mine")
    with store.partial(KEY) as partial:
        path = partial.path
    path.unlink(missing_ok=True)
    path.symlink_to(mine)

    with store.partial(KEY) as partial:
        fill(partial)

    assert mine.read_text() == "mine"
    assert not path.is_symlink()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX links")
def test_a_file_with_a_second_name_is_not_written_to(store: Store, tmp_path: Path) -> None:
    mine = tmp_path / "thesis.txt"
    mine.write_text("mine")
    with store.partial(KEY) as partial:
        path = partial.path
    path.unlink(missing_ok=True)
    path.hardlink_to(mine)

    with store.partial(KEY) as partial:
        fill(partial)

    assert mine.read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX FIFOs")
def test_a_fifo_in_the_place_of_a_partial_does_not_hang(store: Store) -> None:
    with store.partial(KEY) as partial:
        path = partial.path
    path.unlink(missing_ok=True)
    os.mkfifo(path)

    with store.partial(KEY) as partial:
        fill(partial)

        assert partial.observed().digest == digest_of(DATA)


def test_a_folder_in_the_place_of_a_partial_is_an_error_and_stays(store: Store) -> None:
    with store.partial(KEY) as partial:
        path = partial.path
    path.unlink(missing_ok=True)
    (path / "inside").mkdir(parents=True)

    with pytest.raises(StoreError), store.partial(KEY):
        pass
    assert (path / "inside").is_dir()


def test_a_read_only_partial_left_by_a_crash_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.partial(KEY) as partial:
        partial.write(0, DATA[:3000])
        path = partial.path
    path.chmod(0o444)
    really_open = os.open

    def as_a_plain_user(name: Path, flags: int, mode: int = 0o777) -> int:
        if name == path and flags & os.O_RDWR and not path.stat().st_mode & 0o200:
            raise PermissionError(errno.EACCES, "Permission denied")
        return really_open(name, flags, mode)

    monkeypatch.setattr("stoker.store.disk.os.open", as_a_plain_user)

    with store.partial(KEY) as partial:
        assert partial.bytes_done == 3000
        fill(partial)


def test_one_partial_has_one_writer(store: Store) -> None:
    with store.partial(KEY), pytest.raises(ModelInUse), store.partial(KEY):
        pass

    with store.partial(KEY):  # free again
        pass


def test_partials_of_different_files_do_not_disturb_each_other(store: Store) -> None:
    with store.partial(KEY) as one, store.partial(key_of(b"other")) as other:
        assert one.path != other.path


def test_it_may_be_left_in_another_thread(store: Store) -> None:
    context = store.partial(KEY)
    context.__enter__()

    leaving = Thread(target=context.__exit__, args=(None, None, None))
    leaving.start()
    leaving.join()

    with store.partial(KEY):
        pass


def test_threads_may_write_hash_and_record_at_once(store: Store) -> None:
    with store.partial(KEY) as partial:
        todo = partial.missing(64)
        halves = [todo[::2], todo[1::2]]

        def write(ranges: list[tuple[int, int]]) -> None:
            for start, end in ranges:
                partial.write(start, DATA[start:end])

        def tend() -> None:
            while partial.bytes_done < len(DATA):
                partial.advance_hash()
                partial.checkpoint()

        threads = [Thread(target=write, args=(half,)) for half in halves] + [Thread(target=tend)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)

        assert partial.observed().digest == digest_of(DATA)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_keeps_what_was_recorded(
    store: Store, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    with store.partial(KEY) as partial:
        partial.write(0, DATA[:3000])
        partial.checkpoint()
        with monkeypatch.context() as broken:
            broken.setattr(disk, "write_at", failing(code))
            with pytest.raises(DiskFull) as caught:
                partial.write(3000, DATA[3000:4000])
        assert partial.bytes_done == 3000

    assert "1000 more bytes" in caught.value.message
    assert caught.value.facts["needed_bytes"] == 1000
    assert f"{caught.value.facts['free_bytes']} bytes are free" in caught.value.message
    with store.partial(KEY) as partial:
        assert partial.bytes_done == 3000


@pytest.mark.parametrize("step", ["sync_file", "create", "rename"])
def test_a_full_disk_at_a_checkpoint_keeps_the_last_one(
    store: Store, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with monkeypatch.context() as broken, store.partial(KEY) as partial:
        partial.write(0, DATA[:1000])
        partial.checkpoint()
        partial.write(1000, DATA[1000:2000])
        broken.setattr(disk, step, failing(errno.ENOSPC))
        with pytest.raises(DiskFull):
            partial.checkpoint()

    with store.partial(KEY) as partial:
        assert partial.bytes_done == 1000


def test_a_full_disk_gives_up_some_bytes_to_record_the_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room for even the record, all that came since the last one would be lost."""
    monkeypatch.setattr(partial_module, "_RECORD_ROOM_BYTES", 100)
    sound = disk.write_file
    shortened: list[int] = []

    def only_after_a_cut(path: Path, data: bytes, temporary: str) -> None:
        if not shortened:
            failing(errno.ENOSPC)()
        sound(path, data, temporary)

    def cut(descriptor: int, size: int) -> None:
        shortened.append(size)
        os.ftruncate(descriptor, size)

    with monkeypatch.context() as broken, store.partial(KEY) as partial:
        partial.write(0, DATA[:1000])
        partial.write(2000, DATA[2000:3000])
        broken.setattr(disk, "write_file", only_after_a_cut)
        broken.setattr(disk, "truncate", cut)
        with pytest.raises(DiskFull):
            partial.checkpoint()

    with store.partial(KEY) as partial:
        assert partial.bytes_done == 1900
        fill(partial)
        assert partial.observed().digest == digest_of(DATA)


def test_a_file_too_big_for_the_file_system_is_said_so(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.partial(KEY) as partial, monkeypatch.context() as broken:
        broken.setattr(disk, "write_at", failing(errno.EFBIG))
        with pytest.raises(StoreError, match="cannot hold a file of this size"):
            partial.write(0, b"x")


def test_an_input_output_error_is_a_store_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.partial(KEY) as partial, monkeypatch.context() as broken:
        partial.write(0, DATA)
        broken.setattr(disk, "read_at", failing(errno.EIO))
        with pytest.raises(StoreError, match=os.strerror(errno.EIO)):
            partial.observed()


def test_a_file_cut_by_somebody_else_is_noticed(store: Store) -> None:
    with store.partial(KEY) as partial:
        partial.write(0, DATA)
        os.truncate(partial.path, 100)

        with pytest.raises(SizeMismatch):
            partial.observed()


def test_stray_bytes_behind_the_end_are_cut_off(store: Store) -> None:
    with store.partial(UNPROMISED) as partial:
        partial.write(0, DATA)
        with partial.path.open("ab") as stream:
            stream.write(b"stray")

        assert partial.observed().size == len(DATA)


def test_a_partial_with_a_gap_is_not_hashed_as_a_whole(store: Store) -> None:
    with store.partial(UNPROMISED) as partial:
        partial.write(10, b"x")

        assert not partial.complete
        with pytest.raises(InternalError):
            partial.observed()


def test_reset_starts_again(store: Store) -> None:
    with store.partial(KEY) as partial:
        partial.write(0, bytes(1000))
        partial.advance_hash()
        partial.checkpoint()
        partial.reset()
        assert partial.bytes_done == 0
        fill(partial)

        assert partial.observed().digest == digest_of(DATA)


def test_discard_leaves_nothing(store: Store, tmp_path: Path) -> None:
    with store.partial(KEY) as partial:
        partial.write(0, DATA)
        partial.checkpoint()
        partial.discard()

    assert list((tmp_path / "store/partials").iterdir()) == []


def test_after_its_end_it_refuses_work(store: Store) -> None:
    with store.partial(KEY) as partial:
        pass

    with pytest.raises(InternalError):
        partial.write(0, b"x")


def test_partials_are_closed_to_other_users(store: Store) -> None:
    with store.partial(KEY) as partial:
        assert partial.path.stat().st_mode & 0o077 == 0


# --- stale ones ------------------------------------------------------------------------------


def age(folder: Path, at: float) -> None:
    for path in folder.iterdir():
        os.utime(path, (at, at))


def test_only_partials_that_nobody_touched_are_dropped(
    store: Store, tmp_path: Path, clock: Clock
) -> None:
    folder = tmp_path / "store/partials"
    with store.partial(KEY) as partial:
        partial.write(0, DATA[:10])
    age(folder, (clock() - timedelta(days=8)).timestamp())
    with store.partial(key_of(b"new")) as partial:
        partial.write(0, b"n")

    dropped = store.drop_stale_partials(clock() - timedelta(days=7))

    assert dropped == 1
    assert {path.name.partition(".")[0] for path in folder.iterdir()} == {
        digest_of(b"new").hex,
    }


def test_a_stale_partial_that_somebody_holds_stays(
    store: Store, tmp_path: Path, clock: Clock
) -> None:
    with store.partial(KEY) as partial:
        partial.write(0, DATA[:10])
        age(tmp_path / "store/partials", 0)

        assert store.drop_stale_partials(clock()) == 0
        assert partial.path.exists()


def test_litter_beside_partials_is_dropped_but_not_counted(
    store: Store, tmp_path: Path, clock: Clock
) -> None:
    folder = tmp_path / "store/partials"
    (folder / "origin-ab.json").write_text("{}")
    (folder / "origin-ab.json.tmp").write_text("{}")
    age(folder, 0)

    assert store.drop_stale_partials(clock()) == 0
    assert list(folder.iterdir()) == []


def test_a_sidecar_never_promises_bytes_that_are_not_on_the_medium(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut right after the sidecar's rename must find the bytes that it counts."""
    steps: list[str] = []

    def record(name: str) -> None:
        original = getattr(disk, name)

        def recorded(*args: object) -> object:
            steps.append(name)
            return original(*args)

        monkeypatch.setattr(disk, name, recorded)

    with store.partial(KEY) as partial:
        partial.write(0, DATA)
        for name in disk.STEPS:
            record(name)
        partial.checkpoint()

    assert steps[0] == "sync_file"
    assert steps[-3:] == ["sync_file", "rename", "sync_folder"]


def test_hashing_goes_in_steps(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a pull of many gigabytes can be paused while its bytes are read back."""
    monkeypatch.setattr(partial_module, "_HASH_STEP_BYTES", 4000)
    monkeypatch.setattr(disk, "READ_BYTES", 1000)
    with store.partial(KEY) as partial:
        fill(partial)

        assert [partial.advance_hash() for _ in range(4)] == [True, True, False, False]
        assert partial.observed().digest == digest_of(DATA)
