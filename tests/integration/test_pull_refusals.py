"""What must never become a model: refused with the reason, and no blob is left."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stoker.schemas import PullView
from stoker.store import disk
from stoker.types import PullState
from tests.fakes import hub as faults
from tests.fakes.gguf_files import tiny_gguf
from tests.fakes.hub import Answer, Blob, Cut, Flip, Hub, Lie, redirect
from tests.fakes.pulling import Bench, ended, model_bytes

pytestmark = pytest.mark.anyio

SIZE = 300_000


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def bench(tmp_path: Path, hub: Hub) -> Bench:
    return Bench(tmp_path, hub)


def assert_refused(view: PullView, bench: Bench, code: str) -> None:
    assert view.state is PullState.FAILED
    assert view.error is not None
    assert view.error.code == code, view.error
    assert view.error.hint
    assert bench.blobs == []
    assert bench.store.list() == []


async def test_a_flipped_byte(bench: Bench, hub: Hub) -> None:
    """Wrong bytes of the right length: fetched once more, then refused for good."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(SIZE)})
    hub.always = Flip(200_000)

    view = await bench.pull("owner/x")

    assert_refused(view, bench, "digest_mismatch")
    starts = [r for r in hub.sent("cdn") if r.headers["range"].startswith("bytes=0-")]
    assert len(starts) == 2
    assert bench.quarantined


async def test_a_byte_flipped_once(bench: Bench, hub: Hub) -> None:
    """The one clean retry mends what the network broke once."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(50_000)})
    hub.on_bytes.append(Flip(20_000))

    view = await bench.pull("owner/x")

    assert view.state is PullState.DONE, view.error


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Lie(content_length=1000), "source_invalid"),
        (Lie(content_range="bytes 1-65536/300000"), "size_mismatch"),
        (Lie(content_range=""), "source_invalid"),
        (Lie(content_range="bytes 0-65535/99"), "size_mismatch"),
        (faults.POINTER, "size_mismatch"),
        (faults.CAPTIVE_PORTAL, "source_invalid"),
        (faults.GZIP, "source_invalid"),
        (faults.TWO_RANGES, "source_invalid"),
        (faults.EXPIRED, "source_unreachable"),
        (Answer(500), "source_unreachable"),
        (Answer(416, b"", {"Content-Range": "bytes */99"}), "size_mismatch"),
        (Answer(451), "source_invalid"),
        (Cut(0), "source_unreachable"),
        (redirect("http://127.0.0.1:1/x"), "source_unreachable"),
        (redirect("http://10.0.0.1/x"), "redirect_refused"),
        (redirect("https://169.254.169.254/latest/meta-data"), "redirect_refused"),
        (redirect("https://[::ffff:10.0.0.1]/x"), "redirect_refused"),
        (redirect("file:///etc/passwd"), "redirect_refused"),
        (redirect("https://user:secret@127.0.0.1/x"), "redirect_refused"),
        (redirect("?Signature=s0"), "source_invalid"),
        (Answer(302), "source_invalid"),
    ],
    ids=str,
)
async def test_a_server_that_misbehaves_for_good(
    bench: Bench, hub: Hub, fault: Any, code: str
) -> None:
    """Each broken promise has its own reason; nothing is kept."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(SIZE)})
    hub.always = fault

    assert_refused(await bench.pull("owner/x"), bench, code)


@pytest.mark.parametrize(
    ("blob", "code"),
    [
        (Blob(model_bytes(SIZE), listed_size=SIZE), "size_mismatch"),
        (Blob(model_bytes(SIZE), listed_size=0), "source_invalid"),
        (Blob(model_bytes(SIZE), listed_size=-1), "source_invalid"),
        (Blob(model_bytes(SIZE), listed_size=2**63), "source_invalid"),
        (Blob(model_bytes(SIZE), listed_size=1.5), "source_invalid"),
        (Blob(model_bytes(SIZE), listed_size="300000"), "source_invalid"),
        (Blob(model_bytes(SIZE), listed_size=True), "source_invalid"),
        (Blob(model_bytes(SIZE), listed_oid="../../etc/passwd"), "source_invalid"),
        (Blob(model_bytes(SIZE), listed_oid=None, etag=f'"{"0" * 64}"'), "digest_mismatch"),
        (Blob(model_bytes(SIZE), listed_oid="0" * 64, etag=""), "digest_mismatch"),
        (Blob(b"<html>not a model</html>" * 100), "gguf_invalid"),
        (Blob(tiny_gguf()[:-100]), "gguf_invalid"),
        (Blob(tiny_gguf(template="{{ ''.__class__.__mro__ }}")), "template_refused"),
    ],
    ids=[str(number) for number in range(13)],
)
async def test_a_file_that_is_not_what_it_seems(
    bench: Bench, hub: Hub, blob: Blob, code: str
) -> None:
    """Wrong sizes, wrong digests, files that are no model or no safe one."""
    hub.publish("owner/x", {"m-Q4_0.gguf": blob})

    assert_refused(await bench.pull("owner/x"), bench, code)


@pytest.mark.parametrize("etag", ['W/"abc"', '"../../x"', '"' + "a" * 40 + '"', "/" * 5000])
async def test_a_strange_etag_is_not_a_path(bench: Bench, hub: Hub, etag: str) -> None:
    """What is no SHA-256 is not compared and not used."""
    hub.publish("owner/x", {"m-Q4_0.gguf": Blob(model_bytes(1000), etag=etag)})

    view = await bench.pull("owner/x")

    assert view.state is PullState.DONE, view.error


@pytest.mark.parametrize(
    "name",
    [
        "..\\x-Q4_0.gguf",
        "a/../../b-Q4_0.gguf",
        "C:\\x-Q4_0.gguf",
        "CON.gguf",
        "a:b-Q4_0.gguf",
        "x\n-Q4_0.gguf",
        "\u202ex-Q4_0.gguf",
        "y" * 300 + ".gguf",
        "/etc/x-Q4_0.gguf",
    ],
)
async def test_a_hostile_file_name(bench: Bench, hub: Hub, name: str) -> None:
    """A name that no file may have is refused before a byte is fetched."""
    hub.publish("owner/x", {name: model_bytes(1000)})

    view = await bench.pull("owner/x")

    assert_refused(view, bench, "file_kind_refused")
    assert hub.sent("cdn") == []


async def test_a_repository_without_a_model(bench: Bench, hub: Hub) -> None:
    """Pickles and safetensors are never downloaded."""
    hub.publish("owner/x", {"pytorch_model.bin": b"x", "model.safetensors": b"y"})

    assert_refused(await bench.pull("owner/x"), bench, "file_kind_refused")


@pytest.mark.parametrize("kind", ["fifo", "folder", "missing", "empty", "text", "part"])
async def test_a_path_that_is_no_model(bench: Bench, tmp_path: Path, kind: str) -> None:
    """Importing never hangs, and never takes what is not a sound model."""
    path = tmp_path / ("m-00001-of-00002.gguf" if kind == "part" else "m.gguf")
    codes = {"missing": "source_not_found", "part": "source_not_found", "text": "gguf_invalid"}
    codes |= {"fifo": "file_kind_refused", "folder": "file_kind_refused", "empty": "size_mismatch"}
    makers: dict[str, Callable[[], object]] = {
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "missing": lambda: None,
        "empty": path.touch,
        "text": lambda: path.write_text("hello, I am not a model"),
        "part": lambda: path.write_bytes(model_bytes(1000)),
    }
    makers[kind]()

    assert_refused(await bench.pull(str(path)), bench, codes[kind])


async def test_a_file_that_changes_while_it_is_copied(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mixture of two versions is never kept."""
    path = tmp_path / "m.gguf"
    path.write_bytes(model_bytes(SIZE))
    write_at = disk.write_at

    def meanwhile(descriptor: int, data: bytes, offset: int) -> None:
        os.utime(path, (1, 1))
        write_at(descriptor, data, offset)

    monkeypatch.setattr(disk, "write_at", meanwhile)

    view = await bench.pull(str(path))

    assert_refused(view, bench, "source_invalid")
    assert view.error is not None
    assert "changed" in view.error.message


# --- the disk --------------------------------------------------------------------------------


async def test_disk_full_before_the_first_byte(bench: Bench, hub: Hub) -> None:
    """A model that cannot fit is refused at once, with both numbers."""
    blob = Blob(model_bytes(1000), listed_size=2**50)
    hub.publish("owner/x", {"m-Q4_0.gguf": blob})

    view = await bench.pull("owner/x")

    assert_refused(view, bench, "disk_full")
    assert view.error is not None
    assert view.error.facts["needed_bytes"] == 2**50
    assert "free_bytes" in view.error.facts
    assert hub.sent("cdn") == []


async def test_disk_full_in_the_middle(
    bench: Bench, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came is kept, and the pull goes on from there once there is room."""
    hub.publish("owner/x", {"m-Q4_0.gguf": model_bytes(SIZE)})
    bench.tune(connections=1, chunk_bytes=64 * 1024)
    write_at = disk.write_at

    def full(descriptor: int, data: bytes, offset: int) -> None:
        if offset >= 128 * 1024:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_at(descriptor, data, offset)

    async with bench.running() as puller:
        monkeypatch.setattr(disk, "write_at", full)
        started = await puller.start("owner/x")
        view = await ended(puller, started.id)
        assert_refused(view, bench, "disk_full")
        assert view.error is not None
        assert "free_bytes" in view.error.facts
        monkeypatch.undo()
        hub.requests.clear()

        await puller.resume(view.id)

        assert (await ended(puller, view.id)).state is PullState.DONE
    assert hub.sent("cdn")[0].headers["range"].startswith("bytes=131072-")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes; the only honest full disk."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"A REAL FULL DISK WAS NOT TESTED: mounting a tmpfs takes root here ({error})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


async def test_a_disk_that_is_really_full(
    small_disk: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real ENOSPC: reported with numbers; after making room the same pull ends well."""
    monkeypatch.setattr("stoker.store.store.MARGIN_BYTES", -(1 << 30))  # let it run into the wall
    bench = Bench(small_disk, hub)
    model = model_bytes(3_000_000)
    hub.publish("owner/x", {"m-Q4_0.gguf": model})
    other = small_disk / "other-program"
    other.write_bytes(bytes(2_000_000))

    async with bench.running() as puller:
        started = await puller.start("owner/x")
        view = await ended(puller, started.id)
        assert_refused(view, bench, "disk_full")
        assert bench.partials
        other.unlink()

        await puller.resume(view.id)

        assert (await ended(puller, view.id)).state is PullState.DONE
    assert bench.blobs[0].read_bytes() == model
