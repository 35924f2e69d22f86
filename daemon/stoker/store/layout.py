"""Where things lie below the store's root. Pure: names in, relative paths out.

Only parsed types and our own hex digests become part of a path; no string from a server does.
docs/store-format.md describes the result.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Final

from stoker.store.verify import Expected
from stoker.types import Digest, Filename, ModelId

FORMAT_FILE: Final = PurePosixPath("format.json")
INDEX_FILE: Final = PurePosixPath("index.json")
BLOBS: Final = PurePosixPath("blobs/sha256")
MANIFESTS: Final = PurePosixPath("manifests")
PARTIALS: Final = PurePosixPath("partials")
QUARANTINE: Final = PurePosixPath("quarantine")
VIEWS: Final = PurePosixPath("views")
FOLDERS: Final = (BLOBS, MANIFESTS, PARTIALS, QUARANTINE, VIEWS)
TEMPORARY: Final = ".tmp"  # suffix of a file that is being written

_UNREADABLE: Final = re.compile(r"[^a-z0-9._-]+")
_LONGEST_SLUG: Final = 80  # characters; with the key it stays far below every system's 255
_BLOB_NAME: Final = re.compile(r"[0-9a-f]{64}")


def blob(digest: Digest) -> PurePosixPath:
    """``blobs/sha256/ab/<hex>``."""
    return BLOBS / digest.hex[:2] / digest.hex


def blob_digest(name: str) -> Digest | None:
    """The digest that a file in the blobs folder is named by; None for anything else."""
    return Digest.parse(name) if _BLOB_NAME.fullmatch(name) else None


def manifest(model: ModelId) -> PurePosixPath:
    """``manifests/<readable>-<key>.json``. The key alone tells models apart."""
    return MANIFESTS / f"{_slug(model)}-{_key(model.text)[:12]}.json"


def partial(expected: Expected, origin: str) -> PurePosixPath:
    """The stem of a partial's files: by promised digest, else by where the bytes come from."""
    name = expected.digest.hex if expected.digest else f"origin-{_key(origin)}"
    return PARTIALS / name


def quarantined(digest: Digest | None, at: datetime) -> PurePosixPath:
    """The stem of a quarantined file's names; sorts by time."""
    name = digest.hex[:12] if digest else "unhashed"
    return QUARANTINE / f"{quarantine_time(at)}-{name}"


def quarantine_time(at: datetime) -> str:
    """How the names of files that were put aside at that moment begin."""
    return f"{at.astimezone(UTC):%Y%m%dT%H%M%S%fZ}".rjust(22, "0")  # the year 1 is "1" on Linux


def view(model: ModelId) -> PurePosixPath:
    """The folder in which the shards of a split model carry their own names."""
    return VIEWS / f"{_slug(model)}-{_key(model.text)[:12]}"


def view_file(model: ModelId, name: Filename) -> PurePosixPath:
    return view(model) / name.text


def _slug(model: ModelId) -> str:
    return _UNREADABLE.sub("-", model.text.lower()).strip("-.")[:_LONGEST_SLUG]


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
