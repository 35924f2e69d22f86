"""Models at rest: verification, damage, repair, quarantine."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from stoker.errors import (
    BlobDamaged,
    GgufError,
    StoreError,
)
from stoker.store import disk, quarantine
from stoker.store.manifest import FileRole, Manifest, ManifestFile
from stoker.store.store import FileResult, Store
from stoker.store.upkeep import Upkeep
from tests.fakes.gguf_files import (
    tiny_gguf,
    tiny_mmproj,
)
from tests.unit.store.steps import (
    MODEL,
    UNKNOWN,
    Clock,
    admit,
    file_of,
    flip_byte,
    manifest_of,
    put_model,
    touch,
)

OTHER = tiny_gguf(seed=7)


def verify(store: Store, manifest: Manifest) -> list[FileResult]:
    return list(store.verify(manifest, lambda _bytes: None, lambda: False))


def blobs(root: Path) -> set[str]:
    return {path.name for path in (root / "store/blobs").rglob("*") if path.is_file()}


def set_aside(root: Path) -> list[dict[str, object]]:
    """The reasons in quarantine, each with its bytes beside it."""
    reasons = sorted((root / "store/quarantine").glob("*.json"))
    assert all(path.with_suffix(".bin").exists() for path in reasons)
    return [json.loads(path.read_text()) for path in reasons]


def failing(code: int) -> Callable[..., None]:
    def fail(*_args: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


# --- at rest ---------------------------------------------------------------------------------


def test_a_sound_model_verifies_and_says_when(store: Store, clock: Clock) -> None:
    manifest = put_model(store)
    clock.forward(days=1)
    hashed: list[int] = []

    results = list(store.verify(manifest, hashed.append, lambda: False))

    assert [(result.ok, result.finding, result.size) for result in results] == [
        (True, None, len(MODEL))
    ]
    assert sum(hashed) == len(MODEL)
    (after,) = store.list()
    assert after.verified_at == after.trust.integrity.at == clock()


def test_verification_can_be_cancelled(store: Store) -> None:
    manifest = put_model(store)

    assert list(store.verify(manifest, lambda _bytes: None, lambda: True)) == []
    assert store.list()[0].verified_at is None


def test_a_flipped_byte_is_found_and_the_model_not_served(store: Store, tmp_path: Path) -> None:
    manifest = put_model(store)
    flip_byte(store.path(manifest.files[0].digest))

    (result,) = verify(store, manifest)

    assert not result.ok
    assert "digest" in str(result.finding)
    assert store.list()[0].damaged
    assert blobs(tmp_path) == set()
    assert len(set_aside(tmp_path)) == 1
    with pytest.raises(BlobDamaged):
        store.check(manifest)


def test_damage_is_remembered_over_a_restart(store: Store, tmp_path: Path) -> None:
    manifest = put_model(store)
    flip_byte(store.path(manifest.files[0].digest))
    verify(store, manifest)

    again = Store(tmp_path / "store")
    again.open()

    assert again.list()[0].damaged
    with pytest.raises(BlobDamaged):
        again.check(again.find("tiny"))


def test_every_model_of_a_bad_blob_is_marked(store: Store) -> None:
    one, two = put_model(store, model="one"), put_model(store, model="two")
    put_model(store, OTHER, "sound")
    flip_byte(store.path(one.files[0].digest))

    verify(store, two)

    assert {manifest.id.text for manifest in store.list() if manifest.damaged} == {"one", "two"}


def test_a_missing_blob_is_damage(store: Store) -> None:
    manifest = put_model(store)
    store.path(manifest.files[0].digest).unlink()

    (result,) = verify(store, manifest)

    assert not result.ok
    assert "missing" in str(result.finding)
    with pytest.raises(BlobDamaged):
        store.facts(manifest)


def test_a_disk_that_cannot_read_a_blob_is_damage(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = put_model(store)
    with monkeypatch.context() as broken:
        broken.setattr(disk, "open_for_reading", failing(errno.EIO))
        (result,) = verify(store, manifest)

    assert not result.ok
    assert store.list()[0].damaged


def test_trouble_that_is_not_the_disks_is_no_verdict(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = put_model(store)
    with monkeypatch.context() as broken:
        broken.setattr(disk, "open_for_reading", failing(errno.EMFILE))
        with pytest.raises(StoreError):
            verify(store, manifest)

    assert not store.list()[0].damaged


def test_a_load_check_hashes_only_what_changed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = put_model(store)
    with monkeypatch.context() as watched:
        watched.setattr(disk, "open_for_reading", failing(errno.EMFILE))
        store.check(manifest)  # nothing is opened

    touch(store.path(manifest.files[0].digest))
    assert not store.has(manifest.files[0].digest, len(MODEL))
    store.check(manifest)
    assert store.has(manifest.files[0].digest, len(MODEL))


def test_a_load_check_finds_a_changed_file(store: Store, tmp_path: Path) -> None:
    manifest = put_model(store)
    path = store.path(manifest.files[0].digest)
    flip_byte(path)
    touch(path)

    with pytest.raises(BlobDamaged, match="digest"):
        store.check(manifest)

    assert blobs(tmp_path) == set()
    assert store.list()[0].damaged


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX links")
def test_a_link_in_the_place_of_a_blob_is_damage(store: Store, tmp_path: Path) -> None:
    manifest = put_model(store)
    path = store.path(manifest.files[0].digest)
    copy = tmp_path / "copy"
    copy.write_bytes(MODEL)
    path.unlink()
    path.symlink_to(copy)

    with pytest.raises(BlobDamaged):
        store.check(manifest)

    assert copy.read_bytes() == MODEL


def test_losing_the_index_costs_only_a_hashing(store: Store, tmp_path: Path) -> None:
    manifest = put_model(store)
    for raw in (None, b"", b"{", b'{"version": 2}', b'{"version":1,"blobs":{"x":{}}}'):
        index = tmp_path / "store/index.json"
        index.unlink() if raw is None else index.write_bytes(raw)
        again = Store(tmp_path / "store")
        again.open()
        assert not again.has(manifest.files[0].digest, len(MODEL))

        again.check(manifest)

        assert again.has(manifest.files[0].digest, len(MODEL))


def test_pulling_again_repairs(store: Store) -> None:
    one, two = put_model(store, model="one"), put_model(store, model="two")
    flip_byte(store.path(one.files[0].digest))
    verify(store, one)

    admitted = admit(store, MODEL)

    assert not admitted.reused
    assert not any(manifest.damaged for manifest in store.list())
    store.check(one)
    store.check(two)


def test_a_damaged_blob_in_place_is_replaced_by_good_bytes(store: Store) -> None:
    manifest = put_model(store)
    path = store.path(manifest.files[0].digest)
    flip_byte(path)
    touch(path)

    assert not admit(store, MODEL).reused

    assert path.read_bytes() == MODEL
    store.check(manifest)


def test_a_model_with_another_bad_blob_stays_marked(store: Store) -> None:
    eyes = tiny_mmproj()
    admit(store, eyes, FileRole.MMPROJ)
    admit(store, MODEL)
    manifest = manifest_of(file_of(MODEL), file_of(eyes, "mmproj.gguf", FileRole.MMPROJ))
    store.commit(manifest)
    for file in manifest.files:
        flip_byte(store.path(file.digest))
    assert [result.ok for result in verify(store, manifest)] == [False, False]

    admit(store, MODEL)
    assert store.list()[0].damaged

    admit(store, eyes, FileRole.MMPROJ)
    assert not store.list()[0].damaged


def test_verifying_a_repaired_file_clears_the_mark(store: Store) -> None:
    """For a user who puts the right bytes back by hand."""
    manifest = put_model(store)
    path = store.path(manifest.files[0].digest)
    flip_byte(path)
    verify(store, manifest)
    path.write_bytes(MODEL)

    assert [result.ok for result in verify(store, manifest)] == [True]
    assert not store.list()[0].damaged


def test_verifying_does_not_turn_a_warning_into_praise(store: Store) -> None:
    admit(store, MODEL)
    manifest = manifest_of(file_of(MODEL))
    store.commit(manifest.with_integrity(replace(UNKNOWN, verdict="warn")))

    verify(store, manifest)

    assert store.list()[0].trust.integrity.verdict == "warn"


def test_a_model_removed_while_it_is_verified_stays_removed(store: Store) -> None:
    manifest = put_model(store)

    def remove(_count: int) -> None:
        store.remove(manifest.id)

    results = list(store.verify(manifest, remove, lambda: False))

    assert [result.ok for result in results] == [True]
    assert store.list() == []


def test_damage_counts_even_when_the_disk_takes_no_note(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = put_model(store)
    flip_byte(store.path(manifest.files[0].digest))

    with monkeypatch.context() as broken:
        broken.setattr(disk, "create", failing(errno.ENOSPC))
        verify(store, manifest)

    assert store.list()[0].damaged
    with pytest.raises(BlobDamaged):
        store.check(manifest)


def test_the_longest_unverified_are_scrubbed_first(store: Store, clock: Clock) -> None:
    admit(store, MODEL)
    ages = {"fresh": 1, "old": 40, "older": 50}
    for model, days in ages.items():
        at = clock() - timedelta(days=days)
        store.commit(replace(manifest_of(file_of(MODEL), model=model), verified_at=at))
    never = clock() - timedelta(days=45)
    store.commit(manifest_of(file_of(MODEL), model="never", created_at=never))

    found = store.scrub_candidates(clock() - timedelta(days=30))

    assert [manifest.id.text for manifest in found] == ["older", "never", "old"]


def test_damaged_models_are_not_scrubbed(store: Store, clock: Clock) -> None:
    manifest = put_model(store)
    store.path(manifest.files[0].digest).unlink()
    verify(store, manifest)

    assert store.scrub_candidates(clock() + timedelta(days=1)) == []


# --- quarantine ------------------------------------------------------------------------------


def refuse(store: Store, data: bytes) -> None:
    with pytest.raises(GgufError):
        admit(store, data)


def test_the_quarantine_is_bounded_in_size(
    store: Store, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "MAX_BYTES", 250_000)
    for number in range(5):
        refuse(store, bytes((number,)) * 100_000)
        clock.forward(seconds=1)

    folder = tmp_path / "store/quarantine"
    kept = sorted(path.read_bytes()[0] for path in folder.glob("*.bin"))
    assert kept == [3, 4]
    assert len(list(folder.glob("*.json"))) == 5


def test_the_quarantine_is_bounded_in_age(store: Store, tmp_path: Path, clock: Clock) -> None:
    refuse(store, b"old")
    folder = tmp_path / "store/quarantine"
    clock.forward(days=15)
    refuse(store, b"new")

    assert store.prune_quarantine(clock() - timedelta(days=14)) == 2

    assert [path.read_bytes() for path in folder.glob("*.bin")] == [b"new"]


def test_a_bad_blob_is_kept_as_long_as_a_bad_download(
    store: Store, tmp_path: Path, clock: Clock
) -> None:
    """Its age counts from when it was put aside, however old its file is."""
    manifest = put_model(store)
    path = store.path(manifest.files[0].digest)
    flip_byte(path)
    os.utime(path, (0, 0))
    verify(store, manifest)

    assert store.prune_quarantine(clock() - timedelta(days=14)) == 0
    assert len(set_aside(tmp_path)) == 1


# --- two at the same time --------------------------------------------------------------------


def test_a_repair_during_a_verification_stands(store: Store, tmp_path: Path) -> None:
    """The bad bytes that are being hashed say nothing about the good ones that replace them."""
    manifest = put_model(store)
    path = store.path(manifest.files[0].digest)
    flip_byte(path)
    touch(path)

    results = list(store.verify(manifest, lambda _bytes: repair(store), lambda: False))

    assert [result.ok for result in results] == [True]
    assert not store.list()[0].damaged
    assert path.read_bytes() == MODEL
    assert set_aside(tmp_path) == []


def repair(store: Store) -> None:
    admit(store, MODEL)


def test_a_model_removed_during_its_repair_stays_removed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = put_model(store)
    flip_byte(store.path(manifest.files[0].digest))
    verify(store, manifest)
    look = Upkeep.finding

    def finding(self: Upkeep, file: ManifestFile) -> str | None:
        found = look(self, file)
        store.remove(manifest.id)
        return found

    monkeypatch.setattr(Upkeep, "finding", finding)
    admit(store, MODEL)

    assert store.list() == []


def test_damage_found_by_another_is_not_forgotten(store: Store) -> None:
    """A long verification ends; what was found meanwhile in a file it had passed still counts."""
    one = put_model(store)
    projector = tiny_mmproj()
    admit(store, projector, FileRole.MMPROJ)
    both = manifest_of(
        file_of(MODEL), file_of(projector, "mmproj.gguf", FileRole.MMPROJ), model="both"
    )
    store.commit(both)
    slow = store.verify(both, lambda _bytes: None, lambda: False)
    assert next(slow).ok
    flip_byte(store.path(one.files[0].digest))
    verify(store, one)

    assert [result.ok for result in slow] == [True]

    assert store.find("both").damaged
