"""The manifest: its file format, and how it is shown."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.errors import ManifestInvalid, StoreTooNew
from stoker.store import manifest_file
from stoker.store.manifest import FileRole, Manifest, Verdict
from stoker.types import Capability
from tests.unit.store.steps import file_of, manifest_of

FULL = replace(
    manifest_of(
        file_of(b"model", "m-00001-of-00002.gguf"),
        file_of(b"shard", "m-00002-of-00002.gguf", FileRole.SHARD),
        file_of(b"eyes", "mmproj.gguf", FileRole.MMPROJ),
        model="owner/repo:Q4_0",
        aliases=("small",),
    ),
    licence="apache-2.0",
    capabilities=(Capability.CHAT, Capability.VISION),
    architecture="llama",
    parameters=7_000_000_000,
    quantization="Q4_0",
    context_length=8192,
    verified_at=datetime(2026, 11, 2, tzinfo=UTC),
    pinned=True,
).with_integrity(
    Verdict("warn", "nobody promised", {"scanners": {"a": ["b", 1, None]}}, datetime.now(UTC))
)


def changed(**fields: object) -> bytes:
    document = json.loads(manifest_file.dumps(FULL))
    document.update(fields)
    return json.dumps(document).encode()


@pytest.mark.parametrize("manifest", [FULL, manifest_of(file_of(b"x"))])
def test_a_manifest_survives_its_file(manifest: Manifest) -> None:
    assert manifest_file.loads(manifest_file.dumps(manifest)) == manifest


def test_the_same_manifest_gives_the_same_bytes() -> None:
    assert manifest_file.dumps(FULL) == manifest_file.dumps(FULL)


def test_a_later_version_is_refused_by_name_whatever_else_it_holds() -> None:
    with pytest.raises(StoreTooNew):
        manifest_file.loads(b'{"version": 2, "blobs": "elsewhere"}')


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"null",
        b"\x00",
        b'{"version": 0}',
        b'{"version": "1"}',
        b"[" * 100_000,
        changed(unknown=1),
        changed(id="../x"),
        changed(id=None),
        changed(files=[]),
        changed(files=[{"name": "../a", "role": "model", "sha256": "a" * 64, "bytes": 1}]),
        changed(files=[{"name": "a", "role": "model", "sha256": "A" * 64, "bytes": 1}]),
        changed(files=[{"name": "a", "role": "model", "sha256": "a" * 64, "bytes": 0}]),
        changed(files=[{"name": "a", "role": "virus", "sha256": "a" * 64, "bytes": 1}]),
        changed(files=[{"name": "a", "role": "shard", "sha256": "a" * 64, "bytes": 1}]),
        changed(files=[{"name": "a", "role": "model", "sha256": "a" * 64, "bytes": 1}] * 2),
        changed(created_at="2026-11-01T00:00:00"),
        changed(created_at="yesterday"),
        changed(trust={}),
        changed(pinned="yes"),
    ],
)
def test_what_is_not_a_manifest_is_refused(raw: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        manifest_file.loads(raw)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_manifest_or_refused(raw: bytes) -> None:
    with pytest.raises((ManifestInvalid, StoreTooNew)):
        manifest_file.loads(raw)


def test_a_capability_of_a_later_program_is_passed_over() -> None:
    raw = changed(capabilities=["chat", "telepathy"])

    assert manifest_file.loads(raw).capabilities == (Capability.CHAT,)


@pytest.mark.parametrize(
    "manifest",
    [
        manifest_of(),
        manifest_of(file_of(b"x", role=FileRole.MMPROJ)),
        manifest_of(file_of(b"x")).with_integrity(Verdict("ok", "x", {"a": object()})),
        replace(manifest_of(file_of(b"x")), licence="x" * (5 << 20)),
        replace(manifest_of(file_of(b"x")), created_at=datetime(2026, 1, 1)),  # noqa: DTZ001
    ],
)
def test_what_could_not_be_read_back_is_not_written(manifest: Manifest) -> None:
    with pytest.raises(ManifestInvalid):
        manifest_file.dumps(manifest)


def test_the_view_shows_files_source_and_verdicts() -> None:
    view = FULL.view()

    assert view.id == "owner/repo:Q4_0"
    assert view.source == "url:https://hub.test/file"
    assert view.bytes == FULL.size_bytes == len(b"model" + b"shard" + b"eyes")
    assert [file.role for file in view.files] == ["model", "shard", "mmproj"]
    assert view.trust.integrity.verdict == "warn"
    assert view.trust.hub_scan.verdict == "unknown"
    assert view.pinned
    assert json.loads(view.model_dump_json())["files"][0]["sha256"] == FULL.files[0].digest.hex
