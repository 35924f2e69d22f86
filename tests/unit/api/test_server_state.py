from __future__ import annotations

from pathlib import Path

import pytest

from stoker.api.server_state import ServerState, read, write
from stoker.errors import StoreError
from stoker.types import ModelId

OFF = ServerState(enabled=False, models=(ModelId("a"), ModelId("owner/repo:Q4")))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Whole, and with nothing left beside it."""
    file = tmp_path / "state" / "server.json"

    write(file, OFF)

    assert read(file) == OFF
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"enabled": 0}',
        '{"enabled": "false"}',
        "[" * 100_000,
        '{"enabled": false, "models": ["' + "a" * 100_000 + '"]}',
    ],
)
def test_a_broken_file_means_on(tmp_path: Path, text: str) -> None:
    """Otherwise a user would find the port closed, and nothing that says why."""
    file = tmp_path / "server.json"
    file.write_text(text, encoding="utf-8")

    assert read(file) == ServerState()


def test_no_file_means_on(tmp_path: Path) -> None:
    assert read(tmp_path / "server.json") == ServerState()


@pytest.mark.parametrize("models", ["null", "{}", '"a"', '[3, null, "../x"]'])
def test_off_stays_off_whatever_the_models_are(tmp_path: Path, models: str) -> None:
    """Names that no model can have are dropped."""
    file = tmp_path / "server.json"
    file.write_text(f'{{"enabled": false, "models": {models}}}', encoding="utf-8")

    assert read(file) == ServerState(enabled=False)


def test_a_file_that_cannot_be_replaced_stays(tmp_path: Path) -> None:
    file = tmp_path / "server.json"
    write(file, OFF)
    (tmp_path / "server.json.tmp").mkdir()

    with pytest.raises((StoreError, OSError)):
        write(file, ServerState())

    assert read(file) == OFF
