"""Models through the real program: import, look, verify, remove, against a real daemon."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.gguf_files import tiny_gguf
from tests.fakes.stoker_command import StokerCommand

CONTENT = tiny_gguf()
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def stoker(
    stoker_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StokerCommand]:
    """A running daemon, and a model file in the folder where the commands run."""
    monkeypatch.setenv("STOKER_PORT", "0")
    (tmp_path / "tiny.gguf").write_bytes(CONTENT)
    command = StokerCommand(tmp_path)
    started = command("start")
    assert started.returncode == 0, started.stderr
    yield command
    command("stop")


def _list(stoker: StokerCommand) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = json.loads(stoker("list", "--json").stdout)
    return models


def _flip_a_byte(home: Path) -> None:
    (blob,) = (home / "store" / "blobs").rglob(DIGEST)
    blob.chmod(0o600)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)


def test_an_imported_file_is_listed_with_its_digest_and_verdicts(
    stoker: StokerCommand, tmp_path: Path
) -> None:
    ran = stoker("import", "tiny.gguf", "--name", "tiny")

    assert ran.returncode == 0, ran.stderr
    (model,) = _list(stoker)
    assert model["id"] == "tiny"
    assert model["files"][0]["sha256"] == DIGEST
    assert model["bytes"] == len(CONTENT)
    assert model["trust"]["structure"]["verdict"] == "ok"
    assert json.loads(stoker("show", "tiny", "--json").stdout) == model
    assert (tmp_path / "tiny.gguf").read_bytes() == CONTENT


def test_import_json_is_the_pull_at_its_end(stoker: StokerCommand) -> None:
    ran = stoker("import", "tiny.gguf", "--name", "tiny", "--json")

    view = json.loads(ran.stdout)
    assert (view["state"], view["model"]) == ("done", "tiny")


def test_what_is_not_a_model_is_refused_and_leaves_nothing(
    stoker: StokerCommand, tmp_path: Path
) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"not a model" * 100)

    ran = stoker("import", "bad.gguf", "--name", "bad", "--json")

    assert ran.returncode == 1
    assert json.loads(ran.stdout)["error"]["code"] == "gguf_invalid"
    assert len(ran.stderr.splitlines()[-2:]) == 2
    assert _list(stoker) == []


def test_verify_finds_a_flipped_byte_and_the_model_is_not_loaded(
    stoker: StokerCommand, stoker_home: Path
) -> None:
    stoker("import", "tiny.gguf", "--name", "tiny")
    assert stoker("verify").returncode == 0
    _flip_a_byte(stoker_home)

    ran = stoker("verify", "--json")

    (result,) = json.loads(ran.stdout)
    assert ran.returncode == 1
    assert (result["id"], result["sha256"], result["ok"]) == ("tiny", DIGEST, False)
    assert result["finding"]
    load = stoker("load", "tiny", "--json")
    assert load.returncode == 1
    assert json.loads(load.stdout)["error"]["code"] == "blob_damaged"


def test_importing_again_repairs_a_damaged_model(stoker: StokerCommand, stoker_home: Path) -> None:
    stoker("import", "tiny.gguf", "--name", "tiny")
    _flip_a_byte(stoker_home)
    assert stoker("verify").returncode == 1

    assert stoker("import", "tiny.gguf", "--name", "tiny").returncode == 0

    assert stoker("verify").returncode == 0


def test_rm_frees_the_space(stoker: StokerCommand, stoker_home: Path) -> None:
    stoker("import", "tiny.gguf", "--name", "tiny")

    ran = stoker("rm", "tiny", "--json")

    assert json.loads(ran.stdout) == [{"id": "tiny", "bytes_freed": len(CONTENT)}]
    assert _list(stoker) == []
    assert list((stoker_home / "store" / "blobs").rglob(DIGEST)) == []


def test_an_unknown_model_is_told_as_such_by_every_command(stoker: StokerCommand) -> None:
    for words in (("show", "x"), ("rm", "x"), ("load", "x"), ("verify", "x"), ("run", "x", "Hi")):
        ran = stoker(*words)

        assert ran.returncode == 1, words
        assert len(ran.stderr.splitlines()) == 2, words
        assert "x" in ran.stderr.splitlines()[0], words


def test_a_pin_is_kept_and_the_only_model_is_the_default(stoker: StokerCommand) -> None:
    """Both over a restart; nothing is loaded by a pin."""
    stoker("import", "tiny.gguf", "--name", "tiny")

    view = json.loads(stoker("pin", "tiny", "--json").stdout)
    assert stoker("restart").returncode == 0

    assert (view["pinned"], view["state"]) == (True, "unloaded")
    status = json.loads(stoker("status", "--json").stdout)
    assert status["default"] == "tiny"
    assert [(one["default"], one["pinned"]) for one in status["models"]] == [(True, True)]
    assert _list(stoker)[0]["pinned"] is True
    assert stoker("pin", "tiny", "--off").stdout == "tiny is not pinned.\n"
    assert _list(stoker)[0]["pinned"] is False
