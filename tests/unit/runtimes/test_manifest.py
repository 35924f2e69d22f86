"""`runtime.json`: what `write` wrote is read back; anything else is no runtime."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.runtimes.manifest import FILE, DamagedRuntime, Runtime, read, server_name, write

RUNTIME = Runtime(
    name="llama-cpp-python-0.3.36-avx512",
    kind="native",
    engine="llama-server",
    version="0.3.36",
    variant="avx512",
    folder=None,
    created_at="2026-11-22T09:00:00+00:00",
    cpu="0123456789abcdef",
    cmake=("-DGGML_AVX512=ON",),
    digest="a" * 64,
    bytes=12,
)


def place(folder: Path, runtime: Runtime = RUNTIME) -> Path:
    made = folder / runtime.name
    (made / "bin").mkdir(parents=True)
    (made / "bin" / server_name()).write_text("#!/bin/sh\n")
    write(runtime, made)
    return made


def change(folder: Path, **values: Any) -> None:
    content = json.loads((folder / FILE).read_text())
    content.update(values)
    (folder / FILE).write_text(json.dumps(content))


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    folder = place(tmp_path)

    assert read(folder) == replace(RUNTIME, folder=folder)
    assert read(folder).server == folder / "bin" / server_name()
    assert read(folder).libraries == folder / "lib"


@pytest.mark.parametrize(
    "values",
    [
        {"version": 2},
        {"name": "../other"},
        {"name": "another-name"},
        {"kind": "path"},
        {"kind": "builtin"},
        {"engine": "sh"},
        {"cpu": "zz"},
        {"cmake": "-DX"},
        {"digest": "short"},
        {"bytes": -1},
        {"bytes": 10**400},
        {"variant": "\x1b[31mred"},
        {"cmake": ["-DX=\x1b[2J"]},
        {"created_at": "yesterday"},
        {"command": "rm -rf /"},
        {"program": "/bin/sh"},
    ],
)
def test_what_is_not_exactly_that_is_no_runtime(tmp_path: Path, values: dict[str, Any]) -> None:
    folder = place(tmp_path)
    change(folder, **values)

    with pytest.raises(DamagedRuntime):
        read(folder)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff\xfe", b"null", b" " * 100_000])
def test_garbage_is_no_runtime(tmp_path: Path, raw: bytes) -> None:
    folder = place(tmp_path)
    (folder / FILE).write_bytes(raw)

    with pytest.raises(DamagedRuntime):
        read(folder)


def test_a_folder_without_the_file_or_the_program_is_none(tmp_path: Path) -> None:
    folder = place(tmp_path)
    (folder / "bin" / server_name()).unlink()

    with pytest.raises(DamagedRuntime, match="program"):
        read(folder)
    with pytest.raises(DamagedRuntime):
        read(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "A", "x" * 97, "a\n"])
def test_a_name_that_is_no_folder_is_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(DamagedRuntime):
        write(replace(RUNTIME, name=name), tmp_path)


@given(st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=4))
def test_no_content_ends_in_another_error(values: dict[str, str]) -> None:
    """Nothing but DamagedRuntime ever comes out of a stranger's file."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / FILE).write_text(json.dumps(values))
        with pytest.raises(DamagedRuntime):
            read(folder)
