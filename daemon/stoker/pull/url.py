"""A single GGUF file at a web address that the user gave."""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit, urlunsplit

from stoker.errors import FileKindRefused
from stoker.pull.fetch import Fetcher, Target, look
from stoker.pull.source import Progress, RemoteFile, Resolution, Sink
from stoker.pull.web import Web
from stoker.store.manifest import FileRole, SourceRecord
from stoker.types import Filename, ModelId, UrlRef


class UrlSource:
    """One file by its address; a digest in the reference pins it. See `source.Source`."""

    def __init__(self, ref: UrlRef, *, web: Web, fetcher: Fetcher) -> None:
        self._ref = ref
        self._web = web
        self._fetcher = fetcher

    async def resolve(self) -> Resolution:
        """One request, for the size and the version of what is there now."""
        name = file_name(self._ref.url)
        size, version = await look(self._web, self._ref.url)
        location = without_query(self._ref.url)
        file = RemoteFile(
            path=name.text,
            name=name,
            role=FileRole.MODEL,
            origin=f"{location}#{_key(self._ref.url, version)}",
            size=size,
            digest=self._ref.digest,
        )
        return Resolution(
            model=model_id(name),
            source=SourceRecord(kind="url", location=location, revision=None),
            files=(file,),
        )

    async def fetch(self, file: RemoteFile, sink: Sink, progress: Progress) -> None:
        target = Target(url=self._ref.url, size=file.size or 0)
        await self._fetcher.fetch(target, sink, progress)


def file_name(url: str) -> Filename:
    """The name of the file at an address. Raises FileKindRefused when it is no GGUF."""
    name = Filename.parse(unquote(PurePosixPath(urlsplit(url).path).name))
    if not name.text.lower().endswith(".gguf"):
        msg = f"{name} is not a GGUF file"
        raise FileKindRefused(msg)
    return name


def _key(url: str, version: str) -> str:
    """Tells files and versions at one address apart, for the partial.

    The query may choose the file, but it may be a secret too. Without a version nothing that was
    kept may be continued, so the key is then of no other pull.
    """
    text = f"{urlsplit(url).query}\n{version or secrets.token_hex(16)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shown(reference: str) -> str:
    """A reference that is fit for a log or a record: a URL's query may be a signature."""
    return without_query(reference) if "://" in reference else reference


def without_query(url: str) -> str:
    """The address without what may be a signature: fit for manifests and logs."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))


def model_id(name: Filename) -> ModelId:
    """The name under which a single file is listed, unless the user gives one."""
    stem = re.sub(r"\.gguf$", "", name.text, flags=re.IGNORECASE)
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:90].rstrip("-._")
    return ModelId.parse(re.sub(r"\.{2,}", ".", safe) or "model")
