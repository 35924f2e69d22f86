"""The calls that change the disk: whole or not at all, and wrapped when they fail."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from stoker.errors import DiskFull, StoreError
from stoker.store import disk


def failing(code: int) -> Callable[..., int]:
    def fail(*_args: object) -> int:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.fixture
def descriptor(tmp_path: Path) -> int:
    return disk.create(tmp_path / "file")


def close_after(descriptor: int, path: Path) -> bytes:
    os.close(descriptor)
    return path.read_bytes()


def test_a_write_goes_on_until_all_is_written(
    descriptor: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: whole(fd, bytes(data)[:3], at))

    disk.write_at(descriptor, b"0123456789", 2)

    assert close_after(descriptor, tmp_path / "file") == b"\0\x000123456789"


def test_systems_without_positioned_calls_are_served(
    descriptor: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pwrite")
    monkeypatch.delattr(os, "preadv")
    buffer = bytearray(4)

    disk.write_at(descriptor, b"0123456789", 0)
    count = disk.read_at(descriptor, buffer, 3, 5)

    assert (count, bytes(buffer)) == (3, b"567\0")
    assert close_after(descriptor, tmp_path / "file") == b"0123456789"


def test_creating_over_something_is_an_error(descriptor: int, tmp_path: Path) -> None:
    os.close(descriptor)

    with pytest.raises(FileExistsError):
        disk.create(tmp_path / "file")


@pytest.mark.parametrize("step", ["write_at", "sync_file", "rename"])
def test_a_small_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "small.json"
    disk.write_file(path, b"old", ".tmp")
    with monkeypatch.context() as broken:
        broken.setattr(disk, step, failing(errno.ENOSPC))
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            disk.write_file(path, b"new", ".tmp")

    assert path.read_bytes() == b"old"
    disk.write_file(path, b"new", ".tmp")  # over any litter
    assert path.read_bytes() == b"new"
    assert [found.name for found in tmp_path.iterdir()] == ["small.json"]


def test_a_small_file_that_is_not_small_is_refused(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 11)

    with pytest.raises(OSError, match="more than 10"):
        disk.read_file(tmp_path / "big", 10)


def test_a_folder_is_never_read_as_a_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="not a plain file"):
        disk.open_for_reading(tmp_path)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_file_systems_that_cannot_sync_a_folder_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "fsync", failing(code))

    disk.sync_folder(tmp_path)


def test_a_folder_that_fails_to_sync_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))

    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        disk.sync_folder(tmp_path)


def test_free_space_is_that_of_the_nearest_folder_there_is(tmp_path: Path) -> None:
    assert disk.free_bytes(tmp_path / "not/yet/there") == pytest.approx(
        disk.free_bytes(tmp_path), abs=1 << 30
    )


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        (errno.ENOSPC, DiskFull, "full"),
        (errno.EDQUOT, DiskFull, "full"),
        (errno.EFBIG, StoreError, "file system"),
        (errno.ELOOP, StoreError, "a link"),
        (errno.EACCES, StoreError, os.strerror(errno.EACCES)),
    ],
)
def test_errors_of_the_system_become_our_own(
    tmp_path: Path, code: int, error: type[StoreError], text: str
) -> None:
    with pytest.raises(error, match=text) as caught, disk.wrapped("try", tmp_path):
        failing(code)()

    assert isinstance(caught.value.__cause__, OSError)


def test_every_named_step_is_there() -> None:
    """Tests that stop a process between steps find them by these names."""
    assert all(callable(getattr(disk, name)) for name in disk.STEPS)
