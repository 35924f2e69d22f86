"""The Hub's answers that are about the repository, not its bytes: scans, gates, limits, choice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stoker.catalogue import Catalogue, Entry, HubChoice, HubFile
from stoker.errors import SourceOffline
from stoker.types import Digest, ModelId, PullState, RepoId
from tests.fakes.gguf_files import tiny_mmproj
from tests.fakes.hub import CAPTIVE_PORTAL, SAFE, TOO_MANY, Answer, Blob, Hub
from tests.fakes.pulling import Bench, model_bytes

pytestmark = pytest.mark.anyio


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def bench(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name in ("HF_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return Bench(tmp_path, hub)


UNSAFE = {**SAFE, "status": "unsafe", "avScan": {"status": "unsafe", "message": "Win.Trojan"}}
SUSPICIOUS = {**SAFE, "jFrogScan": {"status": "suspicious", "message": "odd template"}}
CAUTION = {**SAFE, "status": "caution", "protectAiScan": {"status": "caution"}}
QUEUED = {"status": "queued"}
NEW_SCANNER = {"status": "safe", "quantumScan": {"status": "entangled"}}
NEW_STATUS = {"status": "shiny"}


@pytest.mark.parametrize(
    ("security", "trust", "outcome"),
    [
        (SAFE, "standard", "ok"),
        (SAFE, "strict", "ok"),
        (UNSAFE, "standard", "refused"),
        (SUSPICIOUS, "standard", "refused"),
        (CAUTION, "standard", "warn"),
        (CAUTION, "strict", "refused"),
        (QUEUED, "standard", "unknown"),
        (QUEUED, "strict", "refused"),
        (None, "standard", "unknown"),
        (None, "strict", "refused"),
        (NEW_SCANNER, "strict", "ok"),
        (NEW_STATUS, "standard", "unknown"),
    ],
)
async def test_the_scan_verdict_gates(
    bench: Bench, hub: Hub, security: dict[str, Any] | None, trust: str, outcome: str
) -> None:
    """Bad verdicts refuse before a byte is fetched; silence is no alarm, except in strict."""
    hub.publish("owner/x", {"m-Q4_0.gguf": Blob(model_bytes(1000), security=security)})
    bench.settings["trust"] = trust

    view = await bench.pull("owner/x")

    if outcome == "refused":
        assert view.error is not None
        assert view.error.code == "scan_refused"
        assert hub.sent("cdn") == []
        assert bench.store.list() == []
    else:
        assert view.error is None
        verdict = bench.store.list()[0].trust.hub_scan
        assert verdict.verdict == outcome
        assert verdict.at is not None


async def test_the_refusal_names_the_scanner(bench: Bench, hub: Hub) -> None:
    """The user reads who says what; the evidence is in the facts."""
    hub.publish("owner/x", {"m-Q4_0.gguf": Blob(model_bytes(1000), security=UNSAFE)})

    view = await bench.pull("owner/x")

    assert view.error is not None
    assert "ClamAV" in view.error.message
    assert "Win.Trojan" in view.error.message
    assert view.error.facts["file"] == "m-Q4_0.gguf"


async def test_the_evidence_is_recorded_at_the_commit(bench: Bench, hub: Hub) -> None:
    """What every scanner said is kept with the commit, also of scanners nobody knows yet."""
    blob = Blob(model_bytes(1000), security=NEW_SCANNER)
    commit = hub.publish("owner/x", {"m-Q4_0.gguf": blob})

    await bench.pull("owner/x")

    evidence = bench.store.list()[0].trust.hub_scan.evidence
    assert evidence["revision"] == commit
    assert "quantumScan" in str(evidence["files"])
    asked = hub.sent("hub", "/paths-info/")
    assert asked[0].path.endswith(commit)


@pytest.mark.parametrize(
    ("prepare", "code"),
    [
        (lambda _: None, "source_not_found"),
        (lambda hub: hub.publish("owner/x", {"m.gguf": b"x"}, private=True), "source_not_found"),
        (lambda hub: hub.publish("owner/x", {"m.gguf": b"x"}, gated="manual"), "source_gated"),
        (lambda hub: hub.publish("owner/x", {"m.gguf": b"x"}, branch="v2"), "source_not_found"),
    ],
    ids=["absent", "private", "gated", "no such branch"],
)
async def test_what_cannot_be_had(bench: Bench, hub: Hub, prepare: Any, code: str) -> None:
    """Absent, private and gated each say what to do."""
    prepare(hub)

    view = await bench.pull("owner/x")

    assert view.error is not None
    assert view.error.code == code
    assert view.error.hint


async def test_a_private_repository_with_a_token(
    bench: Bench, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token is used when the Hub says no without it."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(1000)}, private=True)
    monkeypatch.setenv("HF_TOKEN", hub.token)

    assert (await bench.pull("owner/x")).state is PullState.DONE


async def test_too_many_requests_are_waited_out(bench: Bench, hub: Hub) -> None:
    """A short wait is waited; the pull goes on."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(1000)})
    hub.on_api.extend([TOO_MANY, TOO_MANY])
    hub.on_resolve.append(Answer(429, b"", {"Retry-After": "0"}))

    assert (await bench.pull("owner/x")).state is PullState.DONE


@pytest.mark.parametrize("after", ["86400", "99999999999999999999", "-1", "soon"])
async def test_an_absurd_wait_ends_the_pull(bench: Bench, hub: Hub, after: str) -> None:
    """Nobody waits for a day: it is said instead. Nonsense counts as no word."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(1000)})
    limit = {"RateLimit": '"api";r=0;t=86400', "Retry-After": after}
    hub.on_api.append(Answer(429, b"", limit))

    view = await bench.pull("owner/x")

    assert view.error is not None
    assert view.error.code == "source_rate_limited"


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b'{"id": "owner/x", "sha": "abc'),
        Answer(200, b"[1, 2, 3]"),
        Answer(200, b"null"),
        Answer(200, b'{"id": "owner/x", "sha": "main", "siblings": []}'),
        Answer(200, b'{"id": "../../etc", "sha": "%s"}' % (b"a" * 40)),
        CAPTIVE_PORTAL,
    ],
    ids=["truncated", "list", "null", "no commit", "path", "portal"],
)
async def test_an_answer_that_makes_no_sense(bench: Bench, hub: Hub, answer: Answer) -> None:
    """Whatever the server says, the pull ends with a reason of ours."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(1000)})
    hub.on_api.extend([answer] * 4)

    view = await bench.pull("owner/x")

    assert view.error is not None
    assert view.error.code in {"source_invalid", "bad_reference"}


@pytest.mark.parametrize("body", [b"{", b"{}", b"[]", b'[{"type": "directory"}]', b"[" * 100_000])
async def test_a_list_of_files_that_makes_no_sense(bench: Bench, hub: Hub, body: bytes) -> None:
    """The same for the second request, which is read raw."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(1000)})
    hub.on_paths_info.extend([Answer(200, body)] * 4)

    view = await bench.pull("owner/x")

    assert view.error is not None
    assert view.error.code in {"source_invalid", "source_not_found"}


async def test_the_hub_library_asks_nobody_else(
    bench: Bench, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its question to huggingface.co about its caller is not asked, whatever the environment."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", None)
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(1000)})

    view = await bench.pull("owner/x")

    assert view.error is None
    assert all("agent/" not in request.headers["user-agent"] for request in hub.requests)


async def test_a_renamed_repository(bench: Bench, hub: Hub) -> None:
    """The redirect is followed, and the model is listed under its present name."""
    hub.publish("new/name", {"m-Q4_0.gguf": model_bytes(1000)})
    hub.publish("old/name", {})
    hub.repositories["old/name"].moved_to = "new/name"

    view = await bench.pull("old/name")

    assert view.error is None
    assert view.model == "new/name:Q4_0"


async def test_a_short_name_is_pinned(bench: Bench, hub: Hub) -> None:
    """A catalogue entry is kept under its short name, and only its own file is fetched."""
    model = model_bytes(1000)
    hub.publish("maker/good", {"good-Q4_0.gguf": model, "mmproj-F16.gguf": b"x"})
    bench.catalogue = Catalogue([_entry(model)])

    view = await bench.pull("good")

    assert view.error is None
    manifest = bench.store.find("good")
    assert manifest.licence == "MIT"
    assert len(manifest.files) == 1


async def test_a_short_name_whose_file_was_replaced(bench: Bench, hub: Hub) -> None:
    """A re-upload is not what the catalogue promised: refused before a byte is fetched."""
    hub.publish("maker/good", {"good-Q4_0.gguf": model_bytes(1000, 2)})
    bench.catalogue = Catalogue([_entry(model_bytes(1000))])

    view = await bench.pull("good")

    assert view.error is not None
    assert view.error.code == "digest_mismatch"
    assert "owner/repo:file" in view.error.hint
    assert hub.sent("cdn") == []


async def test_a_short_name_without_a_digest_is_what_the_hub_says(bench: Bench, hub: Hub) -> None:
    """Verified against the Hub's own facts, with its projector, under the short name."""
    model = model_bytes(1000)
    others = {"x-Q8_0.gguf": model_bytes(1500), "mmproj-F16.gguf": tiny_mmproj()}
    hub.publish("maker/sees", {"x-Q4_0.gguf": model, **others})
    entry = replace(
        _entry(model),
        digest=None,
        licence="see the model page",
        sources=(HubChoice(RepoId.parse("maker/sees"), "Q4_0"),),
    )
    bench.catalogue = Catalogue([entry])

    view = await bench.pull("good")

    assert view.error is None
    assert view.model == "good"
    manifest = bench.store.find("good")
    assert [file.name.text for file in manifest.files] == ["x-Q4_0.gguf", "mmproj-F16.gguf"]
    assert manifest.model_file.digest.hex == hashlib.sha256(model).hexdigest()
    assert manifest.trust.integrity.verdict == "ok"
    assert manifest.licence != entry.licence
    assert manifest.source.location == "maker/sees:x-Q4_0.gguf"


async def test_the_next_source_is_tried(bench: Bench, hub: Hub) -> None:
    """One digest, two places: the second serves when the first is gone."""
    model = model_bytes(1000)
    hub.publish("maker/good", {"good-Q4_0.gguf": model})
    bench.catalogue = Catalogue([_entry(model, "gone/away", "maker/good")])

    assert (await bench.pull("good")).state is PullState.DONE


async def test_a_mirror_with_other_bytes_is_passed_over(bench: Bench, hub: Hub) -> None:
    """The digest decides: who has another file is no reason to give up."""
    model = model_bytes(1000)
    hub.publish("evil/mirror", {"good-Q4_0.gguf": model_bytes(1000, 2)})
    hub.publish("maker/good", {"good-Q4_0.gguf": model})
    bench.catalogue = Catalogue([_entry(model, "evil/mirror", "maker/good")])

    assert (await bench.pull("good")).state is PullState.DONE
    assert [path.read_bytes() for path in bench.blobs] == [model]


async def test_a_signed_address_is_not_repeated(bench: Bench) -> None:
    """A refusal may end in a log; what follows the question mark may be a secret."""
    bench.settings["offline"] = True
    async with bench.running() as puller:
        with pytest.raises(SourceOffline) as caught:
            await puller.start("https://host.test/m.gguf?Signature=geheim")

    assert "m.gguf" in str(caught.value)
    assert "geheim" not in str(caught.value)


async def test_offline_means_no_request(bench: Bench, hub: Hub, tmp_path: Path) -> None:
    """Offline, a local file is imported and a download is refused at once."""
    bench.settings["offline"] = True
    path = tmp_path / "m.gguf"
    path.write_bytes(model_bytes(1000))

    assert (await bench.pull(str(path))).state is PullState.DONE
    with pytest.raises(BaseExceptionGroup) as caught:
        await bench.pull("owner/x")

    assert "would have to be downloaded" in str(caught.value.exceptions)
    assert hub.requests == []


def test_the_token_stays_where_it_belongs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token over plain http, and the stored one for the Hub itself only."""
    from stoker.pull.huggingface import token_for

    monkeypatch.delenv("HF_TOKEN", raising=False)
    stored = tmp_path / "token"
    stored.write_text("hf_stored")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(stored))

    assert token_for("https://huggingface.co") == "hf_stored"
    assert token_for("https://mirror.example") is None
    monkeypatch.setenv("HF_TOKEN", "hf_env")
    assert token_for("https://mirror.example") == "hf_env"
    assert token_for("http://mirror.example") is None
    assert os.environ["HF_TOKEN"] == "hf_env"


def _entry(model: bytes, *repos: str) -> Entry:
    return Entry(
        name=ModelId("good"),
        title="Good",
        summary="",
        licence="MIT",
        parameters=1,
        active_parameters=1,
        bytes=len(model),
        digest=Digest(hashlib.sha256(model).hexdigest()),
        quantization="Q4_0",
        memory_bytes=1,
        sources=tuple(
            HubFile(RepoId.parse(repo), "good-Q4_0.gguf") for repo in repos or ("maker/good",)
        ),
    )
