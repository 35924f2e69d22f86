"""Frozen value types, built only by strict parsers.

A string from a user, a server or a file becomes one of these or an error. They are the only
things that reach a path, an argument vector or a URL. Not for: wire shapes (`schemas`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import urlsplit

from stoker.errors import BadReference, FileKindRefused, SourceInvalid

_LONGEST_REFERENCE: Final = 1024  # characters; a URL with a query fits
_NAME: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_REPO: Final = re.compile(rf"({_NAME})/({_NAME})")
_SHORT: Final = re.compile(_NAME)
_SELECTOR: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")
_MODEL_ID: Final = re.compile(rf"{_NAME}(?:/{_NAME})?(?::[A-Za-z0-9][A-Za-z0-9._-]{{0,63}})?")
_FILENAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+ ()=-]{0,199}")
_WINDOWS_DEVICES: Final = frozenset(
    ("con", "prn", "aux", "nul", *(f"com{n}" for n in range(10)), *(f"lpt{n}" for n in range(10)))
)


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A SHA-256: 64 lower-case hex digits."""

    hex: str

    @classmethod
    def parse(cls, text: object) -> Digest:
        """From ``<hex>`` or ``sha256:<hex>``. Raises SourceInvalid."""
        value = text.removeprefix("sha256:") if isinstance(text, str) else ""
        if not _DIGEST.fullmatch(value):
            msg = f"not a SHA-256 digest: {str(text)[:80]!r}"
            raise SourceInvalid(msg)
        return cls(value)

    def __str__(self) -> str:
        return f"sha256:{self.hex}"


@dataclass(frozen=True, slots=True)
class Commit:
    """A git commit: 40 lower-case hex digits. A branch or a tag is not one."""

    hex: str

    @classmethod
    def parse(cls, text: object) -> Commit:
        """Raises SourceInvalid."""
        if not isinstance(text, str) or not _COMMIT.fullmatch(text):
            msg = f"not a commit: {str(text)[:80]!r}"
            raise SourceInvalid(msg)
        return cls(text)

    def __str__(self) -> str:
        return self.hex


@dataclass(frozen=True, slots=True)
class RepoId:
    """``owner/name`` on a hub; safe inside a URL path, never used as a file path."""

    owner: str
    name: str

    @classmethod
    def parse(cls, text: object) -> RepoId:
        """Raises BadReference."""
        match = _REPO.fullmatch(text) if isinstance(text, str) else None
        if match is None or ".." in match[0] or "--" in match[0]:
            msg = f"not a repository name: {str(text)[:120]!r}"
            raise BadReference(msg)
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}"


@dataclass(frozen=True, slots=True)
class Filename:
    """The last part of a file's path in a repository; safe on every system.

    The directory part of a remote path is only ever used in a URL, never on disk.
    """

    text: str

    @classmethod
    def parse(cls, text: object) -> Filename:
        """From a remote path such as ``sub/model-Q4_0.gguf``. Raises FileKindRefused."""
        if isinstance(text, str) and "\\" not in text and not text.startswith("/"):
            parts = PurePosixPath(text).parts
            name = parts[-1] if parts else ""
            stem = name.split(".", maxsplit=1)[0].rstrip().lower()  # "NUL .gguf" is NUL too
            if (
                _FILENAME.fullmatch(name)
                and not name.endswith((".", " "))
                and ".." not in parts
                and stem not in _WINDOWS_DEVICES
            ):
                return cls(name)
        msg = f"a file name that no file may have: {str(text)[:120]!r}"
        raise FileKindRefused(msg)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, order=True)
class ModelId:
    """The name under which a stored model is listed and called."""

    text: str

    @classmethod
    def parse(cls, text: object) -> ModelId:
        """Raises BadReference."""
        if not isinstance(text, str) or not _MODEL_ID.fullmatch(text) or ".." in text:
            msg = f"not a model name: {str(text)[:120]!r}"
            raise BadReference(msg)
        return cls(text)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class HubRef:
    """On a hub: ``owner/repo[:quant-or-file][@revision]``."""

    repo: RepoId
    selector: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        selector = f":{self.selector}" if self.selector else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{selector}{revision}"


@dataclass(frozen=True, slots=True)
class NameRef:
    """A catalogue short name, an alias, or the id of a stored model."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class UrlRef:
    """An http(s) URL of one GGUF file; ``#sha256=<hex>`` pins its digest."""

    url: str
    digest: Digest | None = None

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, slots=True)
class PathRef:
    """A file on this machine, absolute."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


ModelRef = HubRef | NameRef | UrlRef | PathRef


def parse_model_ref(text: object) -> ModelRef:
    """What a user typed, as one of the four kinds. Raises BadReference.

    A path is recognised by a leading ``/``, ``./``, ``../``, ``~`` or a drive letter; it is made
    absolute by the caller, because only the caller knows the working folder.
    """
    if (
        not isinstance(text, str)
        or not 0 < len(text) <= _LONGEST_REFERENCE
        or not text.isprintable()
    ):
        msg = f"not a model reference: {str(text)[:120]!r}"
        raise BadReference(msg)
    if text.startswith(("http://", "https://")):
        return _parse_url(text)
    if Path(text).is_absolute():
        return PathRef(Path(text))
    body, at, revision = text.partition("@")
    name, colon, selector = body.partition(":")
    if (at and not revision) or (colon and not selector):
        msg = f"nothing after the last sign: {text[:120]!r}"
        raise BadReference(msg)
    if "/" not in name:
        if selector or revision or not _SHORT.fullmatch(name):
            msg = f"not a model reference: {text[:120]!r}"
            raise BadReference(msg)
        return NameRef(name)
    if (selector and not _SELECTOR.fullmatch(selector)) or ".." in text:
        msg = f"not a quantisation or file: {selector[:120]!r}"
        raise BadReference(msg)
    if revision and not _REVISION.fullmatch(revision):
        msg = f"not a revision: {revision[:120]!r}"
        raise BadReference(msg)
    return HubRef(RepoId.parse(name), selector or None, revision or None)


def _parse_url(text: str) -> UrlRef:
    url, _, fragment = text.partition("#")
    try:
        parts = urlsplit(url)
        valid = bool(parts.hostname) and parts.username is None and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        msg = f"not a download URL: {text[:120]!r}"
        raise BadReference(msg)
    if not fragment:
        return UrlRef(url)
    try:
        return UrlRef(url, Digest.parse(fragment.removeprefix("sha256=")))
    except SourceInvalid as error:
        msg = f"not a digest after #: {fragment[:80]!r}"
        raise BadReference(msg) from error


class ModelState(StrEnum):
    """Where a model stands; the words of `stoker status`."""

    UNLOADED = "unloaded"
    QUEUED = "queued"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class FailureKind(StrEnum):
    """Why a worker ended, as far as its last words tell."""

    OUT_OF_MEMORY = "out_of_memory"
    BAD_FILE = "bad_file"
    UNSUPPORTED_ARCHITECTURE = "unsupported_architecture"
    BACKEND = "backend"
    ASSERT = "assert"
    CRASH = "crash"
    KILLED = "killed"
    UNKNOWN = "unknown"


class PullState(StrEnum):
    """Where a pull stands."""

    QUEUED = "queued"
    RESOLVING = "resolving"
    FETCHING = "fetching"
    VERIFYING = "verifying"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in {PullState.DONE, PullState.FAILED, PullState.CANCELLED}


class Capability(StrEnum):
    """What a model can be asked for."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    RERANK = "rerank"
    VISION = "vision"
    AUDIO = "audio"
