"""The store as its callers see it: what gets in, what is found, what goes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from stoker.errors import (
    DigestMismatch,
    DiskFull,
    GgufError,
    ManifestInvalid,
    SizeMismatch,
    StokerError,
    TemplateRefused,
    UnknownModel,
)
from stoker.store import disk
from stoker.store.manifest import FileRole, Manifest
from stoker.store.partial import PartialKey
from stoker.store.store import MARGIN_BYTES, FileResult, Store
from stoker.store.verify import Expected
from stoker.types import Capability, ModelId
from tests.fakes.gguf_files import (
    hostile_ggufs,
    tiny_gguf,
    tiny_mmproj,
    tiny_shards,
)
from tests.unit.store.steps import (
    MODEL,
    Clock,
    admit,
    digest_of,
    file_of,
    key_of,
    manifest_of,
    put_model,
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


# --- bytes come in ---------------------------------------------------------------------------


def test_good_bytes_become_a_read_only_blob(store: Store, tmp_path: Path, clock: Clock) -> None:
    admitted = admit(store, MODEL)

    path = store.path(admitted.digest)
    assert path.read_bytes() == MODEL
    assert path.stat().st_mode & 0o777 == 0o444
    assert store.has(admitted.digest, len(MODEL))
    assert not store.has(admitted.digest, len(MODEL) + 1)
    assert list((tmp_path / "store/partials").iterdir()) == []
    assert admitted.facts is not None
    assert admitted.facts.capabilities == (Capability.CHAT, Capability.COMPLETION)
    assert admitted.integrity.verdict == admitted.structure.verdict == "ok"
    assert admitted.integrity.at == clock()
    assert admitted.template.verdict == "ok"
    assert not admitted.reused


def test_bytes_that_nobody_promised_are_a_warning(store: Store) -> None:
    admitted = admit(store, MODEL, key=PartialKey(Expected(None, None), "/home/me/m.gguf"))

    assert admitted.digest == digest_of(MODEL)
    assert admitted.integrity.verdict == "warn"
    assert admitted.integrity.evidence["sha256"] == digest_of(MODEL).hex


def test_odd_things_in_the_header_are_a_structure_warning(store: Store) -> None:
    admitted = admit(store, MODEL + bytes(100))

    assert admitted.structure.verdict == "warn"
    assert "follow the last tensor" in admitted.structure.detail


def test_a_file_without_a_template_says_so(store: Store) -> None:
    assert admit(store, tiny_gguf(template=None)).template.verdict == "unknown"


def test_bytes_that_are_there_already_are_reused(store: Store) -> None:
    first = admit(store, MODEL)
    inode = store.path(first.digest).stat().st_ino

    second = admit(store, MODEL)

    assert second.reused
    assert store.path(first.digest).stat().st_ino == inode


def test_an_unfinished_partial_is_kept_and_not_judged(store: Store, tmp_path: Path) -> None:
    with store.partial(key_of(MODEL)) as partial:
        partial.write(0, MODEL[:100])
        with pytest.raises(SizeMismatch, match=f"100 of {len(MODEL)}"):
            store.admit(partial, FileRole.MODEL)

    with store.partial(key_of(MODEL)) as partial:
        assert partial.bytes_done == 100
    assert set_aside(tmp_path) == []


BAD_TEMPLATE = tiny_gguf(template="{{ ''.__class__.__mro__ }}")
FLIPPED = MODEL[:-1] + bytes((MODEL[-1] ^ 1,))
REFUSED: dict[str, tuple[bytes, PartialKey, FileRole, type[StokerError]]] = {
    "flipped byte": (FLIPPED, key_of(MODEL), FileRole.MODEL, DigestMismatch),
    "empty": (b"", PartialKey(Expected(None, None), "o"), FileRole.MODEL, SizeMismatch),
    "bad template": (BAD_TEMPLATE, key_of(BAD_TEMPLATE), FileRole.MODEL, TemplateRefused),
    "projector as model": (tiny_mmproj(), key_of(tiny_mmproj()), FileRole.MODEL, GgufError),
    "model as projector": (MODEL, key_of(MODEL), FileRole.MMPROJ, GgufError),
    "model as shard": (MODEL, key_of(MODEL), FileRole.SHARD, GgufError),
    **{
        name: (hostile.data, key_of(hostile.data), FileRole.MODEL, GgufError)
        for name, hostile in hostile_ggufs().items()
        if name in {"html", "lfs pointer", "offsets overlap", "nested arrays", "scores as INT8"}
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_bytes_go_to_quarantine_and_leave_no_blob(
    store: Store, tmp_path: Path, name: str
) -> None:
    data, key, role, error = REFUSED[name]

    with store.partial(key) as partial:
        partial.write(0, data)
        with pytest.raises(error) as caught:
            store.admit(partial, role)

    assert blobs(tmp_path) == set()
    assert list((tmp_path / "store/partials").iterdir()) == []
    (reason,) = set_aside(tmp_path)
    assert reason["origin"] == key.origin
    assert reason["sha256"] == digest_of(data).hex
    findings = reason["findings"]
    assert isinstance(findings, list)
    assert findings[0]["text"] in caught.value.message


def test_good_bytes_get_in_after_bad_ones(store: Store) -> None:
    with store.partial(key_of(MODEL)) as partial:
        partial.write(0, FLIPPED)
        with pytest.raises(DigestMismatch):
            store.admit(partial, FileRole.MODEL)

    assert admit(store, MODEL).digest == digest_of(MODEL)


def test_every_template_of_a_file_is_looked_at(store: Store) -> None:
    from tests.fakes.gguf_files import STRING, scalar, tiny

    made = tiny()
    made.kv["tokenizer.chat_template.tool_use"] = scalar(STRING, "{{ lipsum }}")

    with pytest.raises(TemplateRefused):
        admit(store, made.build())


def test_there_must_be_room_before_a_download(store: Store) -> None:
    store.reserve(1)

    with pytest.raises(DiskFull) as caught:
        store.reserve(10**18)

    free = caught.value.facts["free_bytes"]
    assert caught.value.facts["needed_bytes"] == 10**18
    assert str(10**18) in caught.value.message
    assert str(free) in caught.value.message


def test_a_margin_stays_free(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _path: MARGIN_BYTES + 100)

    store.reserve(100)
    with pytest.raises(DiskFull):
        store.reserve(101)


# --- models ----------------------------------------------------------------------------------


def test_a_committed_model_is_there_after_a_restart(store: Store, tmp_path: Path) -> None:
    manifest = put_model(store)

    again = Store(tmp_path / "store")
    again.open()

    assert again.list() == store.list() == [manifest]
    assert again.has(manifest.files[0].digest, len(MODEL))
    assert again.facts(manifest).context_length == 2048


def test_a_model_without_its_blob_is_not_committed(store: Store) -> None:
    with pytest.raises(ManifestInvalid, match="missing"):
        store.commit(manifest_of(file_of(MODEL)))

    assert store.list() == []


def test_a_model_with_a_wrong_size_is_not_committed(store: Store) -> None:
    admit(store, MODEL)

    with pytest.raises(ManifestInvalid, match="bytes"):
        store.commit(manifest_of(replace(file_of(MODEL), size=5)))


def test_models_are_listed_by_id(store: Store) -> None:
    for model in ("b", "a", "c"):
        put_model(store, model=model)

    assert [manifest.id.text for manifest in store.list()] == ["a", "b", "c"]


def test_a_model_is_found_by_id_alias_and_whatever_case(store: Store, clock: Clock) -> None:
    admit(store, MODEL)
    for model, alias in (("Owner/Repo:Q4_0", "small"), ("small", "other")):
        clock.forward(minutes=1)
        store.commit(manifest_of(file_of(MODEL), model=model, aliases=(alias,), created_at=clock()))

    assert store.find("Owner/Repo:Q4_0").id.text == "Owner/Repo:Q4_0"
    assert store.find("owner/repo:q4_0").id.text == "Owner/Repo:Q4_0"
    assert store.find("small").id.text == "small"  # an id goes before an alias
    assert store.find("OTHER").id.text == "small"


def test_an_unknown_model_is_answered_with_what_there_is(store: Store) -> None:
    put_model(store, model="starter")

    with pytest.raises(UnknownModel) as caught:
        store.find("startr")

    assert caught.value.facts == {"available": ["starter"]}
    assert "starter" in caught.value.hint
    with pytest.raises(UnknownModel) as caught:
        store.find("nothing like it")
    assert caught.value.hint == UnknownModel.hint


def test_the_same_id_replaces_and_frees_what_only_the_old_one_needed(
    store: Store, tmp_path: Path
) -> None:
    admit(store, MODEL)
    store.commit(replace(manifest_of(file_of(MODEL)), pinned=True))

    put_model(store, OTHER)

    (manifest,) = store.list()
    assert manifest.files[0].digest == digest_of(OTHER)
    assert manifest.pinned  # the user's wish outlives the version
    assert blobs(tmp_path) == {digest_of(OTHER).hex}


def test_removing_frees_what_no_other_model_needs(store: Store, tmp_path: Path) -> None:
    put_model(store, MODEL, "one")
    put_model(store, MODEL, "two")

    assert store.remove(ModelId.parse("one")) == 0
    assert blobs(tmp_path) == {digest_of(MODEL).hex}
    assert store.remove(ModelId.parse("two")) == len(MODEL)
    assert blobs(tmp_path) == set()
    assert list((tmp_path / "store/manifests").iterdir()) == []
    with pytest.raises(UnknownModel):
        store.remove(ModelId.parse("two"))


def test_removing_spares_bytes_that_are_about_to_be_committed(store: Store) -> None:
    put_model(store, MODEL, "old")
    admit(store, MODEL)  # for another model, whose manifest comes next

    store.remove(ModelId.parse("old"))

    store.commit(manifest_of(file_of(MODEL), model="new"))


def test_a_broken_manifest_hides_its_model_and_is_kept(store: Store, tmp_path: Path) -> None:
    put_model(store, MODEL, "good")
    put_model(store, OTHER, "bad")
    (path,) = (tmp_path / "store/manifests").glob("bad-*")
    path.write_text("{")

    again = Store(tmp_path / "store")
    again.open()

    assert [manifest.id.text for manifest in again.list()] == ["good"]
    assert len(again.problems()) == 1
    assert path.name in again.problems()[0]
    assert path.read_text() == "{"


def test_no_blob_is_deleted_while_a_manifest_is_unreadable(store: Store, tmp_path: Path) -> None:
    put_model(store)
    (tmp_path / "store/manifests/broken-000000000000.json").write_text("{")
    again = Store(tmp_path / "store")
    again.open()

    assert again.remove(ModelId.parse("tiny")) == 0

    assert blobs(tmp_path) == {digest_of(MODEL).hex}


def test_committing_again_mends_a_broken_manifest(store: Store, tmp_path: Path) -> None:
    manifest = put_model(store)
    (path,) = (tmp_path / "store/manifests").iterdir()
    path.write_text("")
    again = Store(tmp_path / "store")
    again.open()
    assert again.problems()

    again.commit(manifest)

    assert again.problems() == []
    assert again.list() == [manifest]


@pytest.mark.parametrize("content", ["renamed", "later", "huge"])
def test_a_manifest_that_does_not_fit_is_reported(
    store: Store, tmp_path: Path, content: str
) -> None:
    put_model(store)
    (path,) = (tmp_path / "store/manifests").iterdir()
    if content == "renamed":
        path.rename(path.with_name("other-000000000000.json"))
    elif content == "later":
        path.write_text('{"version": 2}')
    else:
        path.write_bytes(b" " * (5 << 20))
    again = Store(tmp_path / "store")
    again.open()

    assert again.list() == []
    assert len(again.problems()) == 1


def test_only_unnamed_old_blobs_are_pruned(store: Store, clock: Clock, tmp_path: Path) -> None:
    """Also those of a pull that was given up since the daemon started."""
    put_model(store)
    admit(store, OTHER)
    stored_at = clock().fromtimestamp(
        store.path(digest_of(OTHER)).stat().st_ctime, tz=clock().tzinfo
    )

    assert store.prune(stored_at - timedelta(days=1)) == 0
    assert store.prune(stored_at + timedelta(days=1)) == len(OTHER)
    assert blobs(tmp_path) == {digest_of(MODEL).hex}


def test_only_blobs_of_no_model_are_dropped(store: Store, tmp_path: Path) -> None:
    put_model(store)
    admit(store, OTHER)

    assert store.drop_unnamed([digest_of(MODEL), digest_of(OTHER)]) == len(OTHER)

    assert blobs(tmp_path) == {digest_of(MODEL).hex}


# --- split models ----------------------------------------------------------------------------


def put_shards(store: Store, shards: list[tuple[str, bytes]]) -> Manifest:
    files = []
    for number, (name, data) in enumerate(shards):
        role = FileRole.SHARD if number else FileRole.MODEL
        admit(store, data, role)
        files.append(file_of(data, name, role))
    manifest = manifest_of(files[0], *reversed(files[1:]))
    store.commit(manifest)
    return manifest


def test_a_split_model_counts_as_one(store: Store) -> None:
    shards = tiny_shards(3)

    manifest = put_shards(store, shards)

    facts = store.facts(manifest)
    assert facts.file_bytes == sum(len(data) for _, data in shards)
    assert facts.parameters == admit(store, MODEL).facts.parameters  # type: ignore[union-attr]


def test_a_header_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as nobody touches the file: then it is read again, and does not pass."""
    manifest = put_model(store)
    facts = store.facts(manifest)
    path = store.path(manifest.files[0].digest)

    with monkeypatch.context() as closed:
        closed.setattr(Store, "_headers", None)
        assert store.facts(manifest) is facts
    path.chmod(0o600)
    path.write_bytes(b"GGUF" + b"\xff" * (path.stat().st_size - 4))

    with pytest.raises(GgufError):
        store.facts(manifest)


def test_a_split_model_with_a_missing_shard_is_not_committed(store: Store) -> None:
    with pytest.raises(GgufError, match="shard 1 of 2"):
        put_shards(store, tiny_shards(3)[:2])


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege there")
def test_an_engine_sees_the_shards_under_their_own_names(store: Store, tmp_path: Path) -> None:
    shards = tiny_shards(2)
    manifest = put_shards(store, shards)

    path = store.model_path(manifest)

    assert path == store.model_path(manifest)  # and again, over what is there
    assert path.name == shards[0][0]
    assert [(path.parent / name).read_bytes() for name, _ in shards] == [data for _, data in shards]
    store.remove(manifest.id)
    assert not path.parent.exists()
    assert blobs(tmp_path) == set()


def test_a_model_in_one_file_is_opened_where_it_lies(store: Store) -> None:
    manifest = put_model(store)

    assert store.model_path(manifest) == store.path(manifest.files[0].digest)


def test_a_projector_is_admitted_beside_its_model(store: Store) -> None:
    eyes = tiny_mmproj()

    admitted = admit(store, eyes, FileRole.MMPROJ)
    admit(store, MODEL)
    store.commit(manifest_of(file_of(MODEL), file_of(eyes, "mmproj.gguf", FileRole.MMPROJ)))

    assert admitted.facts is None
    assert store.facts(store.find("tiny")).file_bytes == len(MODEL)


# --- the order of the steps ------------------------------------------------------------------


def test_nothing_gets_its_name_before_its_bytes_are_on_the_medium(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit protocol of docs/store-format.md, as the calls that reach the system."""
    steps: list[tuple[str, str]] = []

    def record(name: str) -> None:
        original = getattr(disk, name)

        def recorded(*args: object) -> object:
            paths = [arg for arg in args if isinstance(arg, Path)]
            steps.append((name, paths[-1].parent.name if paths else ""))
            return original(*args)

        monkeypatch.setattr(disk, name, recorded)

    with store.partial(key_of(MODEL)) as partial:
        partial.write(0, MODEL)
        for name in ("write_at", "make_read_only", "sync_file", "rename", "sync_folder", "unlink"):
            record(name)
        admitted = store.admit(partial, FileRole.MODEL)
        store.commit(manifest_of(file_of(MODEL)))

    ab = admitted.digest.hex[:2]
    blob = steps.index(("rename", ab))
    assert [name for name, _ in steps[:blob] if name != "sync_folder"] == [
        "make_read_only",
        "sync_file",
    ]
    assert steps[blob + 1] == ("sync_folder", "sha256")  # the folder named by the path `…/ab`
    manifest = steps.index(("rename", "manifests"))
    assert manifest > blob + 1
    assert steps[manifest - 2 : manifest] == [("write_at", ""), ("sync_file", "")]
    assert steps[manifest + 1] == ("sync_folder", "store")
