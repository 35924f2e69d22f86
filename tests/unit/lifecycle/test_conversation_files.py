"""The files of saved conversations: whole or not there, private, and never too many."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.lifecycle import conversation_files as files
from stoker.tuning.launch import LaunchPlan, MemoryNeed
from stoker.types import Digest
from tests.fakes.slots import state_of

DIGEST = Digest("ab" * 32)
OTHER = Digest("cd" * 32)
NS = 1_000_000_000
PLAN = LaunchPlan(
    model_id="owner/name:Q4",
    model_path=Path("/store/m.gguf"),
    mmproj_path=None,
    context=4096,
    parallel=4,
    threads=2,
    threads_batch=2,
    batch=512,
    ubatch=512,
    n_outputs_max=4,
    cache_ram_mib=0,
    checkpoints=0,
    kv_unified=True,
    embedding=False,
    pooling=None,
    extra_buffers=True,
    gpu_layers=0,
    memory=MemoryNeed(0, 0, 0, 0, 0, 0),
    runtime="r-1",
)

only_posix = pytest.mark.skipif(os.name != "posix", reason="modes and links of another kind")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "conversations"


def folder_of(root: Path, digest: Digest = DIGEST, plan: LaunchPlan = PLAN) -> Path:
    return files.make_folder(root, files.state_key(digest, plan, "r-1"))


def write(folder: Path, tokens: Sequence[int], saved_s: float | None = None) -> files.Kept:
    """As an engine and `finish` do."""
    content = state_of(tokens)
    part = folder / "0123.part"
    part.write_bytes(content)
    saved_ns = time.time_ns() if saved_s is None else int(saved_s * NS)
    kept = files.finish(part, len(tokens), len(content), saved_ns)
    assert kept is not None
    return kept


# --- what a state belongs to ------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"kv_type": "q8_0"},
        {"flash_attention": False},
        {"kv_unified": False},
        {"extra_buffers": False},
        {"gpu_layers": 3},
        {"cpu_experts": 2},
        {"mmproj_path": Path("/store/eye.gguf")},
        {"context": 4097},
        {"cells": 16384},
    ],
)
def test_another_setting_that_the_values_depend_on_is_another_key(
    change: dict[str, object],
) -> None:
    other = replace(PLAN, **change)  # type: ignore[arg-type]

    assert files.state_key(DIGEST, other, "r-1") != files.state_key(DIGEST, PLAN, "r-1")


def test_another_model_or_runtime_is_another_key() -> None:
    keys = {
        files.state_key(DIGEST, PLAN, "r-1"),
        files.state_key(DIGEST, PLAN, "r-2"),
        files.state_key(OTHER, PLAN, "r-1"),
    }

    assert len(keys) == 3


@pytest.mark.parametrize(
    "change", [{"threads": 9}, {"parallel": 1}, {"context": 3840}, {"cache_ram_mib": 64}]
)
def test_what_changes_no_value_keeps_the_key(change: dict[str, object]) -> None:
    """The context follows the free memory of the moment; within a power of two nothing changes."""
    other = replace(PLAN, **change)  # type: ignore[arg-type]

    assert files.state_key(DIGEST, other, "r-1") == files.state_key(DIGEST, PLAN, "r-1")


# --- whole or not there -----------------------------------------------------------------------


def test_a_finished_file_is_named_by_its_tokens_and_bytes(root: Path) -> None:
    kept = write(folder_of(root), [1, 2, 3])

    assert kept.path.name == f"3-{hashlib.sha256(state_of([1, 2, 3])).hexdigest()}.state"
    assert files.kept_in(folder_of(root)) == [kept]
    assert files.hash_file(kept.path) == kept.sha256


def test_a_file_shorter_than_the_engine_said_is_removed(root: Path) -> None:
    part = folder_of(root) / "1.part"
    part.write_bytes(state_of([1, 2, 3])[:-1])

    assert files.finish(part, 3, len(state_of([1, 2, 3])), time.time_ns()) is None
    assert not part.exists()
    assert files.kept_in(folder_of(root)) == []


def test_a_file_that_is_gone_is_not_finished(root: Path) -> None:
    assert files.finish(folder_of(root) / "1.part", 3, 9, time.time_ns()) is None


@only_posix
def test_a_link_is_no_file(root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(state_of([1, 2, 3]))
    part = folder_of(root) / "1.part"
    part.symlink_to(secret)

    assert files.finish(part, 3, secret.stat().st_size, time.time_ns()) is None
    assert not part.is_symlink()
    assert secret.exists()


def test_a_hash_that_is_not_wanted_any_more_is_given_up(root: Path) -> None:
    assert files.hash_file(write(folder_of(root), [1]).path, lambda: False) is None


# --- one conversation, one file ---------------------------------------------------------------


def test_a_conversation_that_went_on_replaces_its_past(root: Path) -> None:
    folder = folder_of(root)
    write(folder, range(100), 1)
    write(folder, [7] * 100, 2)

    longer = write(folder, range(150), 3)

    assert [(kept.tokens, kept.path == longer.path) for kept in files.kept_in(folder)] == [
        (150, True),
        (100, False),
    ]


def test_one_that_was_answered_again_replaces_the_first_answer(root: Path) -> None:
    folder = folder_of(root)
    write(folder, [*range(90), 1, 1, 1, 1])

    write(folder, [*range(90), 2, 2, 2, 2])

    assert len(files.kept_in(folder)) == 1


def test_one_that_only_begins_alike_stays(root: Path) -> None:
    folder = folder_of(root)
    write(folder, [*range(50), *[1] * 50])

    write(folder, [*range(50), *[2] * 90])

    assert len(files.kept_in(folder)) == 2


def test_the_same_again_is_one_file_with_the_newer_time(root: Path) -> None:
    folder = folder_of(root)
    write(folder, range(100), 1)

    write(folder, range(100), 2)

    assert [kept.modified_ns for kept in files.kept_in(folder)] == [2 * NS]


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)))
def test_what_is_continued_is_its_past(old: list[int], more: list[int]) -> None:
    past, now = array("i", old), array("i", old + more)

    assert files.is_past_of(past, now) == bool(old)


@given(st.binary(max_size=200))
def test_any_bytes_are_tokens_or_none(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    """A file is read by a program of ours only in bounds that are checked."""
    path = tmp_path_factory.mktemp("f") / "x"
    for content in (data, state_of([])[:8] + data):
        path.write_bytes(content)

        found = files.tokens_of(path)

        assert found is None or len(found) <= 200


def test_tokens_are_read_with_or_without_a_head_of_their_own(root: Path) -> None:
    """Newer engines put a format, a version and a number before the tokens."""
    folder = folder_of(root)
    plain, packed = folder / "a", folder / "b"
    plain.write_bytes(state_of([5, 6, 7]))
    packed.write_bytes(state_of([-1, 1, 3, 5, 6, 7, 0]))

    assert files.tokens_of(plain) == files.tokens_of(packed) == array("i", [5, 6, 7])


# --- private ----------------------------------------------------------------------------------


@only_posix
def test_folders_are_closed_to_others(root: Path) -> None:
    root.mkdir(mode=0o755)

    folder = folder_of(root)

    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (
        (root / "CACHEDIR.TAG")
        .read_text()
        .startswith("Signature: 8a477f597d28d172789f06886806bc55")
    )


@only_posix
def test_a_link_in_the_place_of_the_folder_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    root.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match="no folder"):
        folder_of(root)
    files.clear(root)

    assert (tmp_path / "elsewhere").is_dir()


# --- limits -----------------------------------------------------------------------------------


def test_the_oldest_go_when_there_are_too_many_bytes(root: Path) -> None:
    now = time.time()
    old = write(folder_of(root), [1] * 100, now - 30)
    middle = write(folder_of(root, OTHER), [2] * 100, now - 20)
    new = write(folder_of(root), [3] * 100, now - 10)

    gone = files.trim(root, old.size + middle.size)

    assert gone == 1
    assert [kept.path for kept in files.all_kept(root)] == [new.path, middle.path]


def test_one_that_is_larger_than_the_limit_goes_itself(root: Path) -> None:
    write(folder_of(root), range(100))

    files.trim(root, 99)

    assert files.all_kept(root) == []


def test_one_that_rested_too_long_goes(root: Path) -> None:
    now = time.time()
    write(folder_of(root), range(100), now - files.KEPT_S - 1)
    write(folder_of(root), [7] * 100, now - files.KEPT_S + 60)

    files.trim(root, 1 << 30)

    assert len(files.all_kept(root)) == 1


def test_a_folder_holds_no_more_than_anybody_restores(root: Path) -> None:
    now = time.time()
    for number in range(files.MOST_FILES + 3):
        write(folder_of(root), [number] * 100, now - 100 + number)

    files.trim(root, 1 << 30)

    left = files.all_kept(root)
    assert len(left) == files.MOST_FILES
    assert all(kept.modified_ns > (now - 100 + 2) * NS for kept in left)


# --- the start of the daemon ------------------------------------------------------------------


def test_tidying_leaves_only_whole_files_of_stored_models(root: Path) -> None:
    good = write(folder_of(root), range(100))
    write(folder_of(root, OTHER), range(100))
    for stray in ("1.part", f"9-{'0' * 64}.trying", "notes.txt", "9-abc.state"):
        (good.path.parent / stray).write_text("x")
    (root / "strange").mkdir()
    (root / "strange" / "x").write_text("x")
    (root / "stray").write_text("x")

    files.tidy(root, 1 << 30, frozenset({DIGEST}))

    assert sorted(path.name for path in root.rglob("*")) == sorted(
        ["CACHEDIR.TAG", good.path.parent.name, good.path.name]
    )


@only_posix
def test_tidying_follows_no_link(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    folder = folder_of(root)
    (folder / f"9-{'0' * 64}.state").symlink_to(outside / "precious")
    (root / f"{DIGEST.hex[:32]}-{'0' * 16}").symlink_to(outside)

    files.tidy(root, 1 << 30, frozenset({DIGEST}))

    assert (outside / "precious").exists()
    assert [path.name for path in root.iterdir()] == ["CACHEDIR.TAG"]


def test_tidying_when_it_is_off_removes_all(root: Path) -> None:
    write(folder_of(root), range(100))

    files.tidy(root, 0, frozenset({DIGEST}))

    assert not root.exists()


def test_tidying_nothing_makes_nothing(root: Path) -> None:
    files.tidy(root, 1 << 30, frozenset({DIGEST}))

    assert not root.exists()


def test_a_removed_model_takes_its_conversations_along(root: Path) -> None:
    write(folder_of(root), range(100))
    write(folder_of(root, plan=replace(PLAN, kv_type="q8_0")), range(100))
    other = write(folder_of(root, OTHER), range(100))

    files.forget(root, DIGEST)

    assert files.all_kept(root) == [other]
    assert len(list(root.iterdir())) == 2  # with the tag
