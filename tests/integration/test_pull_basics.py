"""A pull from each kind of source, as its user sees it."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker.errors import BadReference, UnknownModel
from stoker.schemas import PullChanged, StoreChanged
from stoker.store.manifest import FileRole
from stoker.store.partial import Partial
from stoker.store.store import Admitted
from stoker.types import PullState
from tests.fakes.gguf_files import tiny, tiny_mmproj, tiny_shards
from tests.fakes.hub import Blob, Hub
from tests.fakes.pulling import PATIENCE_S, Bench, collected, ended, model_bytes, reached

pytestmark = pytest.mark.anyio


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def bench(tmp_path: Path, hub: Hub) -> Bench:
    return Bench(tmp_path, hub)


async def test_a_repository_becomes_a_model(bench: Bench, hub: Hub) -> None:
    """The default quantisation is fetched at the commit, verified, and recorded with evidence."""
    model = model_bytes(300_000)
    files = {"x-Q4_K_M.gguf": model, "x-Q8_0.gguf": model_bytes(10, 1), "README.md": b"#"}
    commit = hub.publish("owner/x-GGUF", files)

    view = await bench.pull("owner/x-GGUF")

    assert (view.state, view.error) == (PullState.DONE, None)
    assert view.bytes_done == view.bytes_total == len(model)
    manifest = bench.store.find("owner/x-GGUF:Q4_K_M")
    assert manifest.source.revision == commit
    assert manifest.files[0].digest.hex == hashlib.sha256(model).hexdigest()
    assert manifest.trust.integrity.verdict == "ok"
    assert manifest.trust.hub_scan.verdict == "ok"
    assert manifest.licence == "apache-2.0"
    assert manifest.architecture == "llama"
    assert bench.store.path(manifest.files[0].digest).read_bytes() == model
    assert bench.partials == []


async def test_several_connections_and_no_token_to_the_cdn(
    bench: Bench, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gated model needs the token at the Hub; the CDN never sees it."""
    hub.publish("owner/gated", {"m-Q4_0.gguf": model_bytes(500_000)}, gated="auto")
    monkeypatch.setenv("HF_TOKEN", hub.token)

    view = await bench.pull("owner/gated")

    assert view.state is PullState.DONE
    assert len(hub.sent("cdn")) >= 500_000 // bench.policy.chunk_bytes
    assert all("authorization" not in request.headers for request in hub.sent("cdn"))
    assert any("authorization" in request.headers for request in hub.sent("hub", "/resolve/"))


async def test_a_public_repository_gets_no_token(
    bench: Bench, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub need not know who asks, unless it insists."""
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.publish("owner/open", {"m-Q4_0.gguf": model_bytes(1000)})

    await bench.pull("owner/open")

    assert hub.requests
    assert all("authorization" not in request.headers for request in hub.requests)


async def test_progress_is_told(bench: Bench, hub: Hub) -> None:
    """Watchers see the states in order, and the store's news after the end."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(200_000)})

    async with collected(bench.bus) as events:
        await bench.pull("owner/x", name="mine")

    states = [event.pull.state for event in events if isinstance(event, PullChanged)]
    assert states[0] is PullState.QUEUED
    assert states[-1] is PullState.DONE
    assert {PullState.RESOLVING, PullState.FETCHING, PullState.VERIFYING} <= set(states)
    assert events[-1] == StoreChanged(id="mine", change="added")


async def test_a_model_in_shards(bench: Bench, hub: Hub) -> None:
    """All shards come, and an engine finds them beside the first by their own names."""
    shards = tiny_shards(3)
    hub.publish("owner/big", {f"Q4_0/{name}": data for name, data in shards})

    view = await bench.pull("owner/big")

    assert view.error is None
    assert view.bytes_done == view.bytes_total == sum(len(data) for _, data in shards)
    (manifest,) = bench.store.list()
    assert [file.role.value for file in manifest.files] == ["model", "shard", "shard"]
    first = bench.store.model_path(manifest)
    assert first.name == shards[0][0]
    assert {path.name: path.read_bytes() for path in first.parent.iterdir()} == dict(shards)
    facts = bench.store.facts(manifest)
    assert (facts.architecture, facts.file_bytes) == ("llama", manifest.size_bytes)
    assert facts.parameters == sum(math.prod(tensor.dims) for tensor in tiny().tensors)


async def test_a_model_with_its_projector(bench: Bench, hub: Hub) -> None:
    """The projector is picked along, and the model can see."""
    hub.publish(
        "owner/vision",
        {"v-Q4_K_M.gguf": model_bytes(1000), "mmproj-F16.gguf": tiny_mmproj()},
    )

    view = await bench.pull("owner/vision:q4_k_m")

    assert view.error is None
    manifest = bench.store.find("owner/vision:Q4_K_M")
    assert [file.role.value for file in manifest.files] == ["model", "mmproj"]
    assert "vision" in manifest.capabilities


async def test_the_same_bytes_are_fetched_once(bench: Bench, hub: Hub) -> None:
    """Two repositories with the same file: the second pull moves no byte, one blob serves both."""
    model = model_bytes(200_000)
    hub.publish("owner/a", {"m-Q4_0.gguf": model})
    hub.publish("other/b", {"n-Q4_0.gguf": model})

    async with bench.running() as puller:
        first = await puller.start("owner/a")
        second = await puller.start("other/b")
        again = await puller.start("owner/a")
        views = [await ended(puller, pull.id) for pull in (first, second)]

    assert again.id == first.id
    assert [view.state for view in views] == [PullState.DONE] * 2
    assert len(bench.store.list()) == 2
    assert len(bench.blobs) == 1
    fetched = sum(int(r.headers["range"].partition("-")[0] == "bytes=0") for r in hub.sent("cdn"))
    assert fetched == 1


async def test_a_plain_file_is_imported(bench: Bench, tmp_path: Path) -> None:
    """The user's file stays as it was; nobody promised its digest, and the manifest says so."""
    model = model_bytes(100_000)
    path = tmp_path / "My Model (v2).gguf"
    path.write_bytes(model)

    view = await bench.pull(str(path))

    assert view.error is None
    manifest = bench.store.find("My-Model-v2")
    assert manifest.trust.integrity.verdict == "warn"
    assert manifest.source.location == str(path)
    assert path.read_bytes() == model


async def test_a_url_is_pulled(bench: Bench, hub: Hub) -> None:
    """A pinned digest is checked; the signature in the address is not kept."""
    model = model_bytes(150_000)
    commit = hub.publish("owner/x", {"deep/m.gguf": model})
    url = hub.link("owner/x", commit, "deep/m.gguf")
    digest = hashlib.sha256(model).hexdigest()

    view = await bench.pull(f"{url}#sha256={digest}")

    assert view.error is None
    manifest = bench.store.find("m")
    assert manifest.trust.integrity.verdict == "ok"
    assert manifest.trust.hub_scan.verdict == "unknown"
    assert "Signature" not in manifest.source.location


async def test_an_address_on_the_hub_gets_the_scan_verdict(bench: Bench, hub: Hub) -> None:
    """Pasting a file's address is no way around the gate."""
    bad = {"status": "unsafe", "avScan": {"status": "unsafe", "message": "Eicar"}}
    hub.publish("owner/x", {"m.gguf": Blob(model_bytes(1000), security=bad)})

    view = await bench.pull(f"{hub.endpoint}/owner/x/resolve/main/m.gguf?download=true")

    assert view.error is not None
    assert view.error.code == "scan_refused"


async def test_a_repaired_model_is_the_same_model(bench: Bench, hub: Hub) -> None:
    """A damaged blob is fetched again at the commit it came from, although main has moved on."""
    old = model_bytes(100_000)
    commit = hub.publish("owner/x", {"m-Q4_0.gguf": old})
    await bench.pull("owner/x")
    manifest = bench.store.find("owner/x:Q4_0")
    blob = bench.store.path(manifest.files[0].digest)
    blob.chmod(0o600)
    blob.write_bytes(old[:-1] + b"?")
    list(bench.store.verify(manifest, lambda _: None, lambda: False))
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(100_000, 7)})

    view = await bench.pull("owner/x:Q4_0")

    assert view.error is None
    repaired = bench.store.find("owner/x:Q4_0")
    assert not repaired.damaged
    assert repaired.source.revision == commit
    assert blob.read_bytes() == old


async def test_a_new_version_replaces_the_old(bench: Bench, hub: Hub) -> None:
    """Pulling again follows the branch; what only the old version needed is gone."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(1000, 1)})
    await bench.pull("owner/x")
    commit = hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(1000, 2)})

    view = await bench.pull("owner/x")

    assert view.state is PullState.DONE
    assert bench.store.find("owner/x:Q4_0").source.revision == commit
    assert len(bench.blobs) == 1


async def test_two_pulls_for_one_name(
    bench: Bench, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name was free when both began; the one that ends first has it."""
    hub.publish("owner/a", {"m-Q4_0.gguf": model_bytes(1000, 1)})
    hub.publish("other/b", {"m-Q4_0.gguf": model_bytes(1000, 2)})
    admit, proceed = bench.store.admit, threading.Event()

    def slow_for_one(partial: Partial, role: FileRole) -> Admitted:
        if "owner/a" in partial.key.origin:
            assert proceed.wait(PATIENCE_S)
        return admit(partial, role)

    monkeypatch.setattr(bench.store, "admit", slow_for_one)
    async with bench.running() as puller:
        late = await puller.start("owner/a", name="mine")
        await reached(puller, late.id, PullState.VERIFYING)
        early = await ended(puller, (await puller.start("other/b", name="mine")).id)
        proceed.set()
        late = await ended(puller, late.id)

    assert early.state is PullState.DONE
    assert late.error is not None
    assert late.error.code == "bad_reference"
    assert bench.store.find("mine").source.location.startswith("other/b")


async def test_another_model_is_never_replaced(bench: Bench, hub: Hub, tmp_path: Path) -> None:
    """A name that is taken by something else is refused, whoever asks for it."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(1000, 1)})
    await bench.pull("owner/x", name="mine")
    path = tmp_path / "mine.gguf"
    path.write_bytes(model_bytes(1000, 2))

    view = await bench.pull(str(path))

    assert view.error is not None
    assert view.error.code == "bad_reference"
    assert bench.store.find("mine").source.kind == "hub"


@pytest.mark.parametrize(
    ("reference", "error"),
    [("a/b/c/d:e:f", BadReference), ("no-such-name", UnknownModel), ("", BadReference)],
)
async def test_what_is_wrong_by_itself_is_said_at_once(
    bench: Bench, reference: str, error: type[Exception]
) -> None:
    """No job is made for what can never work."""
    async with bench.running() as puller:
        with pytest.raises(error):
            await puller.start(reference)

        assert puller.list() == []
