"""The store's root: who owns it, what format it has, what a crash left in it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from stoker.errors import StoreError, StoreTooNew, StoreUnsafe
from stoker.store.store import Store
from tests.unit.store.steps import Clock, put_model

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")


def test_opening_makes_a_closed_tree(tmp_path: Path) -> None:
    root = tmp_path / "deep/er/store"

    Store(root).open()

    assert json.loads((root / "format.json").read_text()) == {
        "format": "stoker-store",
        "version": 1,
    }
    for folder in (root, *root.rglob("*")):
        assert folder.stat().st_mode & 0o077 == 0 or sys.platform == "win32"


def test_opening_again_changes_nothing(store: Store, tmp_path: Path) -> None:
    put_model(store)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")}

    Store(tmp_path / "store").open()

    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")}
    assert after == before


@posix
@pytest.mark.parametrize("folder", [".", "blobs/sha256", "manifests", "partials", "quarantine"])
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_may_write_is_refused(
    store: Store, tmp_path: Path, folder: str, mode: int
) -> None:
    (tmp_path / "store" / folder).chmod(mode)

    with pytest.raises(StoreUnsafe, match="other users"):
        Store(tmp_path / "store").open()


@posix
def test_a_folder_that_others_may_read_is_closed(store: Store, tmp_path: Path) -> None:
    (tmp_path / "store").chmod(0o755)

    Store(tmp_path / "store").open()

    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700


@posix
def test_a_folder_of_another_user_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stoker.store.home.os.getuid", lambda: 12_345)

    with pytest.raises(StoreUnsafe, match="another user"):
        Store(tmp_path / "store").open()


@posix
@pytest.mark.parametrize("folder", [".", "manifests", "blobs/sha256"])
def test_a_link_is_refused(store: Store, tmp_path: Path, folder: str) -> None:
    place = tmp_path / "store" / folder
    moved = tmp_path / "elsewhere"
    place.rename(moved)
    place.symlink_to(moved)

    with pytest.raises(StoreUnsafe, match="link"):
        Store(tmp_path / "store").open()


@posix
def test_a_dangling_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").symlink_to(tmp_path / "nowhere")

    with pytest.raises(StoreUnsafe, match="link"):
        Store(tmp_path / "store").open()

    assert not (tmp_path / "nowhere").exists()


def test_a_file_in_the_place_of_the_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("mine")

    with pytest.raises(StoreUnsafe):
        Store(tmp_path / "store").open()


def test_a_later_format_is_refused_and_left_alone(store: Store, tmp_path: Path) -> None:
    put_model(store)
    (tmp_path / "store/format.json").write_text('{"format":"stoker-store","version":2,"x":1}')
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(StoreTooNew, match="2"):
        Store(tmp_path / "store").open()

    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("raw", ["", "{", '{"format":"other","version":1}', "x" * 10_000])
def test_an_unreadable_format_is_an_error_with_a_way_out(
    store: Store, tmp_path: Path, raw: str
) -> None:
    (tmp_path / "store/format.json").write_text(raw)

    with pytest.raises(StoreError) as caught:
        Store(tmp_path / "store").open()
    assert "format.json" in caught.value.hint

    (tmp_path / "store/format.json").unlink()
    Store(tmp_path / "store").open()


def test_litter_of_a_crash_is_swept_when_it_is_old(
    store: Store, tmp_path: Path, clock: Clock
) -> None:
    old, fresh = (tmp_path / "store/manifests" / f"{name}.json.tmp" for name in ("old", "fresh"))
    for path, age_s in ((old, 7200), (fresh, 60)):
        path.write_text("{")
        at = clock().timestamp() - age_s
        os.utime(path, (at, at))

    Store(tmp_path / "store", now=clock).open()

    assert not old.exists()
    assert fresh.exists()


def test_foreign_files_are_left_alone(store: Store, tmp_path: Path) -> None:
    notes = [
        tmp_path / "store" / place / "notes.txt"
        for place in (".", "manifests", "blobs/sha256", "partials")
    ]
    for path in notes:
        path.write_text("mine")
    manifest = put_model(store)

    again = Store(tmp_path / "store")
    again.open()
    again.prune(Clock()())
    again.remove(manifest.id)

    assert [path.read_text() for path in notes] == ["mine"] * 4
    assert again.problems() == []
