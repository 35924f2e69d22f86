"""What the store's tests do again and again, in the words of the store."""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from stoker.store.manifest import FileRole, Manifest, ManifestFile, SourceRecord, Trust, Verdict
from stoker.store.partial import PartialKey
from stoker.store.store import Admitted, Store
from stoker.store.verify import Expected
from stoker.types import Digest, Filename, ModelId
from tests.fakes.gguf_files import tiny_gguf

UNKNOWN = Verdict("unknown", "nobody looked")
MODEL = tiny_gguf()


class Clock:
    """A time that stands still until it is told to move."""

    def __init__(self) -> None:
        self.at = datetime(2026, 11, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at

    def forward(self, **delta: float) -> None:
        self.at += timedelta(**delta)


def digest_of(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest())


def key_of(data: bytes, origin: str = "https://hub.test/file") -> PartialKey:
    """The key of bytes whose size and digest were promised."""
    return PartialKey(Expected(len(data), digest_of(data)), origin)


def admit(
    store: Store,
    data: bytes,
    role: FileRole = FileRole.MODEL,
    key: PartialKey | None = None,
) -> Admitted:
    """Write all bytes into a partial and have them admitted."""
    with store.partial(key or key_of(data)) as partial:
        partial.set_size(len(data))
        for start, end in partial.missing(4096):
            partial.write(start, data[start:end])
        partial.checkpoint()
        return store.admit(partial, role)


def file_of(data: bytes, name: str = "tiny.gguf", role: FileRole = FileRole.MODEL) -> ManifestFile:
    return ManifestFile(Filename.parse(name), role, digest_of(data), len(data))


def manifest_of(
    *files: ManifestFile,
    model: str = "tiny",
    aliases: tuple[str, ...] = (),
    created_at: datetime | None = None,
) -> Manifest:
    return Manifest(
        id=ModelId.parse(model),
        aliases=tuple(map(ModelId.parse, aliases)),
        source=SourceRecord("url", "https://hub.test/file"),
        files=files,
        trust=Trust(Verdict("ok", "matches"), UNKNOWN, UNKNOWN, UNKNOWN),
        created_at=created_at or datetime(2026, 11, 1, tzinfo=UTC),
    )


def put_model(store: Store, data: bytes = MODEL, model: str = "tiny") -> Manifest:
    """A model of one file, admitted and committed."""
    admit(store, data)
    manifest = manifest_of(file_of(data), model=model)
    store.commit(manifest)
    return manifest


def flip_byte(path: Path, at: int = -1) -> None:
    """Damage a stored file as a failing disk would: same length, and it looks older than it is."""
    before = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as stream:
        stream.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes((byte[0] ^ 1,)))
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def touch(path: Path) -> None:
    """Change what the file looks like, not what it holds."""
    os.utime(path, ns=(1, 1))
