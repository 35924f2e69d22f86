"""Bytes that rot are found, and what they belong to is not served."""

from __future__ import annotations

import json

import openai
import pytest

from tests.fakes.asking import ENDLESS
from tests.fakes.daemon import Daemon

pytestmark = pytest.mark.e2e


def _flip(daemon: Daemon, position: int) -> None:
    """Flip one bit of the stored blob, keeping its times, as a bad disk would."""
    import os

    [blob] = [p for p in daemon.paths.store.glob("blobs/sha256/*/*") if p.is_file()]
    before = blob.stat()
    blob.chmod(0o600)
    with blob.open("r+b") as stream:
        stream.seek(position)
        byte = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([byte ^ 1]))
    blob.chmod(0o444)
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_verify_finds_a_flipped_byte_and_the_model_is_not_served(
    daemon: Daemon, api: openai.OpenAI
) -> None:
    """`stoker verify` finds one bit in 98 MB; the model is refused until it is repaired."""
    assert daemon.cli("verify").returncode == 0
    _flip(daemon, 50_000_000)

    result = daemon.cli("verify", "--json")

    [finding] = json.loads(result.stdout)
    assert result.returncode == 1
    assert finding["ok"] is False
    assert finding["id"] == "starter"
    with pytest.raises(openai.APIStatusError) as caught:
        api.chat.completions.create(model="starter", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "blob_damaged"
    assert "starter is damaged" in daemon.cli("status").stdout
    doctor = daemon.cli("doctor")
    assert doctor.returncode == 1
    assert "starter is damaged" in doctor.stdout


def test_a_changed_blob_is_noticed_before_a_load(daemon: Daemon, api: openai.OpenAI) -> None:
    """Without any verify, a blob that was written to is hashed again before an engine sees it."""
    [blob] = [p for p in daemon.paths.store.glob("blobs/sha256/*/*") if p.is_file()]
    blob.chmod(0o600)
    with blob.open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"\x00\x01\x02\x03")

    with pytest.raises(openai.APIStatusError) as caught:
        api.chat.completions.create(model="starter", messages=[{"role": "user", "content": "hi"}])

    assert caught.value.code == "blob_damaged"
    assert not blob.exists()


def test_repair(daemon: Daemon, api: openai.OpenAI, starter_gguf: object) -> None:
    """Pulling the same bytes again heals the model."""
    _flip(daemon, 60_000_000)
    assert daemon.cli("verify").returncode == 1

    daemon.pull(str(starter_gguf), name="starter")

    assert daemon.cli("verify").returncode == 0
    answer = api.chat.completions.create(
        model="starter",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=4,
        extra_body=ENDLESS,
    )
    assert answer.choices[0].message.content
