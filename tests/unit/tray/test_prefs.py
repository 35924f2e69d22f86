"""What the user told the tray survives, whatever happens to the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stoker.errors import StokerError
from stoker_tray import prefs
from stoker_tray.notices import Kind

KINDS = st.frozensets(st.sampled_from([kind.value for kind in Kind]))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "tray.json"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(KINDS)
def test_what_is_saved_is_loaded(file: Path, muted: frozenset[str]) -> None:
    prefs.save(file, muted)

    assert prefs.load(file) == muted
    assert [one.name for one in file.parent.iterdir()] == ["tray.json"]


def test_without_a_file_nothing_is_silent(file: Path) -> None:
    assert prefs.load(file) == frozenset()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"muted": 1}',
        b'{"muted": "ready"}',
        b'{"muted": {"ready": 1}}',
        b'{"muted": [null, 1, [], {"ready": true}, "Ready", "\\ud800"]}',
        b"[" * 30_000,
        b'{"muted": ["ready"], "x": "' + b"x" * 100_000 + b'"}',
    ],
)
def test_a_broken_file_is_the_default(file: Path, content: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content)

    assert prefs.load(file) == frozenset()


def test_kinds_that_are_not_known_are_ignored(file: Path) -> None:
    file.parent.mkdir()
    file.write_text(json.dumps({"muted": ["ready", "of a newer version"], "more": 1}))

    assert prefs.load(file) == {"ready"}


def test_a_folder_in_place_of_the_file_is_the_default(file: Path) -> None:
    file.mkdir(parents=True)

    assert prefs.load(file) == frozenset()


def test_a_write_that_fails_is_told_and_changes_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefs.save(file, {Kind.READY})

    def full(_number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StokerError, match="No space left") as caught:
        prefs.save(file, {Kind.UPDATE})

    assert "until the icon quits" in caught.value.hint
    assert prefs.load(file) == {"ready"}
    assert [one.name for one in file.parent.iterdir()] == ["tray.json"]
