"""The Hugging Face Hub: the only module that imports huggingface_hub, and it does so late.

The library answers what a repository is and knows the user's token. It moves no model bytes: it
neither resumes nor hashes. What the scanners say is asked for raw, at the pinned commit, because
the library drops most of them and fails when one is absent.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

import anyio
from anyio import to_thread

from stoker.catalogue import Entry
from stoker.errors import (
    BadReference,
    DigestMismatch,
    SizeMismatch,
    SourceError,
    SourceGated,
    SourceInvalid,
    SourceNotFound,
    SourceOffline,
    SourceUnreachable,
)
from stoker.late import late
from stoker.pull.choose import Choice, Chosen, choose
from stoker.pull.fetch import Fetcher, Patience, Target
from stoker.pull.rules import Origin, status_error
from stoker.pull.source import Progress, RemoteFile, Resolution, ScanReport, Sink
from stoker.pull.web import Headers, Web
from stoker.store.manifest import SourceRecord
from stoker.types import Commit, Digest, HubRef, ModelId, RepoId

if TYPE_CHECKING:
    import httpx2
else:
    httpx2 = late("httpx2")

_METADATA_S: Final = 60.0  # for the library's own request
_HOME: Final = "huggingface.co"  # the only host that the stored token is meant for
_LONGEST_TEXT: Final = 500  # characters of a scanner's message
_PATHS_PER_REQUEST: Final = 100
_METADATA_TRIES: Final = 4
_LARGEST: Final = 2**63 - 1

_MALFORMED: Final = (ValueError, KeyError, TypeError, AttributeError)

T = TypeVar("T")
FindToken = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class _Repository:
    """What the Hub says about a repository at a commit."""

    repo: RepoId  # as the Hub spells it, also after a rename
    commit: Commit
    paths: tuple[str, ...]
    licence: str | None
    gated: bool | str
    private: bool


class HubSource:
    """One model of a repository, pinned to a commit. See `source.Source`."""

    def __init__(
        self,
        ref: HubRef,
        *,
        endpoint: str,
        web: Web,
        fetcher: Fetcher,
        pinned: Entry | None = None,
        find_token: FindToken | None = None,
    ) -> None:
        """With ``pinned``, the repository must still hold exactly that entry's file."""
        self._ref = ref
        self._endpoint = endpoint
        self._web = web
        self._fetcher = fetcher
        self._pinned = pinned
        self._find_token = find_token or token_for
        self._token: str | None = None  # set once the Hub has refused us without one

    async def resolve(self) -> Resolution:
        """Two requests: the repository, then its files at the commit."""
        repository = await self._ask(self._repository)
        choice = choose(repository.paths, self._ref.selector)
        if self._pinned is not None:  # exactly what is pinned: nothing is picked along
            choice = Choice(choice.files[:1], self._pinned.quantization, choice.selector)
        if repository.gated or repository.private:
            self._token = self._token or self._find_token(self._endpoint)
        entries = await self._ask(lambda: self._entries(repository, choice.files))
        files = tuple(self._file(chosen, repository, entries) for chosen in choice.files)
        if self._pinned is not None:
            _check_pinned(self._pinned, files[0])
        location = f"{repository.repo}:{choice.selector}"
        return Resolution(
            model=self._pinned.name if self._pinned else _model_id(repository.repo, choice),
            source=SourceRecord(kind="hub", location=location, revision=str(repository.commit)),
            files=files,
            licence=self._pinned.licence if self._pinned else repository.licence,
            evidence={"gated": repository.gated, "private": repository.private},
            scanned=True,
        )

    async def fetch(self, file: RemoteFile, sink: Sink, progress: Progress) -> None:
        """From the canonical address at the commit, never from a remembered signed one."""
        if file.size is None:
            msg = f"the hub does not say how large {file.name} is"
            raise SourceInvalid(msg)
        target = Target(
            url=file.origin,
            size=file.size,
            secret=self._authorization(),
            inspect=lambda headers: _check_linked(file, headers),
        )
        await self._fetcher.fetch(target, sink, progress)

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """Ask without a token first: most models need none, and the Hub need not know who asks."""
        patience = Patience(self._fetcher.policy, tries=_METADATA_TRIES)
        while True:
            try:
                return await question()
            except SourceError as error:
                if isinstance(error, (SourceGated, SourceNotFound)) and self._token is None:
                    self._token = self._find_token(self._endpoint)
                    if self._token is not None:
                        continue
                await patience.wait(error, progressed=False)

    def _authorization(self) -> Headers:
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    async def _repository(self) -> _Repository:
        try:
            with anyio.fail_after(_METADATA_S):
                return await to_thread.run_sync(
                    _ask_library, self._endpoint, self._ref, self._token, abandon_on_cancel=True
                )
        except TimeoutError as error:
            msg = f"the hub takes longer than {_METADATA_S:.0f} s to answer"
            raise SourceUnreachable(msg) from error

    async def _entries(
        self, repository: _Repository, files: Sequence[Chosen]
    ) -> dict[str, Mapping[str, Any]]:
        url = f"{self._endpoint}/api/models/{repository.repo}/paths-info/{repository.commit}"
        found: dict[str, Mapping[str, Any]] = {}
        for first in range(0, len(files), _PATHS_PER_REQUEST):
            paths = [chosen.path for chosen in files[first : first + _PATHS_PER_REQUEST]]
            form: dict[str, list[str] | str] = {"paths": paths, "expand": "true"}
            found.update(_parse(await self._web.read(url, secret=self._authorization(), form=form)))
        return found

    def _file(
        self, chosen: Chosen, repository: _Repository, entries: Mapping[str, Mapping[str, Any]]
    ) -> RemoteFile:
        entry = entries.get(chosen.path)
        if entry is None:
            msg = f"{repository.repo} has no {chosen.path} at {repository.commit}"
            raise SourceNotFound(msg)
        size, digest = _size_and_digest(chosen.path, entry)
        place = f"{repository.repo}/resolve/{repository.commit}/{quote(chosen.path)}"
        return RemoteFile(
            path=chosen.path,
            name=chosen.name,
            role=chosen.role,
            origin=f"{self._endpoint}/{place}",
            size=size,
            digest=digest,
            scan=_scan(entry.get("securityFileStatus")),
        )


def token_for(endpoint: str) -> str | None:
    """The user's token, where it may be sent.

    The stored token is for the Hub itself; a mirror gets only what the user put in HF_TOKEN, and
    plain http gets none unless it stays on this machine.
    """
    origin = Origin.of(endpoint)
    if origin.scheme != "https" and not origin.loopback:
        return None
    if origin.host != _HOME:
        return os.environ.get("HF_TOKEN") or None
    from huggingface_hub import get_token

    return get_token()


def _ask_library(endpoint: str, ref: HubRef, token: str | None) -> _Repository:
    """What huggingface_hub says about the repository. Raises SourceError only."""
    from huggingface_hub import HfApi, constants, errors

    # Else it asks huggingface.co, whatever the endpoint is, how to name its caller to the Hub.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        api = HfApi(endpoint=endpoint, token=token or False)
        info = api.model_info(str(ref.repo), revision=ref.revision, timeout=_METADATA_S)
        return _Repository(
            repo=RepoId.parse(info.id),
            commit=Commit.parse(info.sha),
            paths=tuple(str(sibling.rfilename) for sibling in info.siblings or ()),
            licence=_licence(info.card_data, info.tags),
            gated=info.gated or False,
            private=bool(info.private),
        )
    except errors.OfflineModeIsEnabled as error:
        raise SourceOffline("HF_HUB_OFFLINE is set", hint="Unset HF_HUB_OFFLINE.") from error
    except errors.GatedRepoError as error:
        raise SourceGated(f"{ref.repo} is gated") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        at = f" at {ref.revision}" if ref.revision else ""
        raise SourceNotFound(f"the hub has no {ref.repo}{at}, or it is private") from error
    except errors.HfHubHTTPError as error:
        raise status_error(error.response.status_code, error.response.headers) from error
    except httpx2.TransportError as error:
        raise SourceUnreachable(f"the hub cannot be reached: {str(error)[:200]}") from error
    except SourceError:
        raise
    except (httpx2.HTTPError, BadReference, *_MALFORMED) as error:
        msg = f"the hub's answer about {ref.repo} makes no sense ({type(error).__name__})"
        raise SourceInvalid(msg) from error


def _licence(card: object, tags: object) -> str | None:
    licence = getattr(card, "license", None)
    if isinstance(licence, str):
        return licence[:80]
    for tag in tags if isinstance(tags, list) else ():
        if isinstance(tag, str) and tag.startswith("license:"):
            return tag.removeprefix("license:")[:80]
    return None


def _parse(body: bytes) -> dict[str, Mapping[str, Any]]:
    """Files by path. Raises SourceInvalid."""
    try:
        entries = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise SourceInvalid("the hub's list of files is not JSON") from error
    if not isinstance(entries, list):
        raise SourceInvalid("the hub's list of files is not a list")
    return {
        entry["path"]: entry
        for entry in entries
        if isinstance(entry, dict)
        and entry.get("type") == "file"
        and isinstance(entry.get("path"), str)
    }


def _size_and_digest(path: str, entry: Mapping[str, Any]) -> tuple[int, Digest | None]:
    lfs = entry.get("lfs")
    size = entry.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= _LARGEST:
        msg = f"the hub gives {path} the size {size!r:.40}"
        raise SourceInvalid(msg)
    if lfs is None:
        return size, None
    if not isinstance(lfs, dict) or lfs.get("size", size) != size:
        msg = f"the hub gives two sizes for {path}"
        raise SourceInvalid(msg)
    return size, Digest.parse(lfs.get("oid"))


def _scan(status: object) -> ScanReport | None:
    """Every scanner by the Hub's own name for it, whatever scanners there are today."""
    if not isinstance(status, dict) or not isinstance(status.get("status"), str):
        return None
    scanners = {
        str(name)[:40]: {
            key: value[:_LONGEST_TEXT] for key, value in result.items() if isinstance(value, str)
        }
        for name, result in status.items()
        if isinstance(result, dict)
    }
    return ScanReport(status["status"][:40], scanners)


def _check_linked(file: RemoteFile, headers: Headers) -> None:
    """The download address and the list of files must mean the same bytes.

    Only a SHA-256 is compared: other ETags are of other kinds.
    """
    etag = headers.get("x-linked-etag", "").removeprefix("W/").strip('"')
    if file.digest and re.fullmatch(r"[0-9a-f]{64}", etag) and etag != file.digest.hex:
        msg = f"the hub names two digests for {file.name}"
        raise DigestMismatch(msg, expected=file.digest.hex, found=etag)
    size = headers.get("x-linked-size", "")
    if file.size is not None and size.isdecimal() and size != str(file.size):
        msg = f"the hub lists {file.name} with {file.size:,} bytes and serves {size}"
        raise SizeMismatch(msg)


def _check_pinned(entry: Entry, file: RemoteFile) -> None:
    if (file.digest, file.size) != (entry.digest, entry.bytes):
        msg = f"{file.path} on the hub is no longer the file that the catalogue lists"
        hint = "To take the new file unpinned, pull it as owner/repo:file."
        raise DigestMismatch(msg, hint=hint, expected=str(entry.digest), found=str(file.digest))


def _model_id(repo: RepoId, choice: Choice) -> ModelId:
    label = re.sub(r"[^A-Za-z0-9._-]+", "-", choice.label or "").strip("-.")[:64]
    return ModelId.parse(f"{repo}:{label}" if label else str(repo))
