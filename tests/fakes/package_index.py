"""A Python package index on loopback, and packages to serve: real wheels, and a source that builds.

``with PackageIndex() as index:`` serves at ``index.url``. What it tells of a file's digest may be
set to a lie. `engine_source` is a small stand-in for llama-cpp-python's source: its build backend
prints what pip, scikit-build-core and Ninja print, and does what `Behaviour` says.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

PROGRAM = 0o100755
_METADATA = "Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
_WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@dataclass
class Served:
    """One file of the index."""

    name: str
    content: bytes
    listed_sha256: str | None = None  # None: the truth

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


class PackageIndex:
    """The simple interface of PEP 503 over HTTP; below any first folder, as projects' own have."""

    def __init__(self) -> None:
        self.packages: dict[str, list[Served]] = {}
        self.asked: list[str] = []
        self.held: set[str] = set()  # files that are asked for and do not come
        self._end = threading.Event()
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.asked.append(self.path)
                index._answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/simple"

    def publish(self, package: str, name: str, content: bytes) -> Served:
        served = Served(name, content)
        self.packages.setdefault(package, []).append(served)
        return served

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = [part for part in request.path.split("/") if part]
        found = [file for files in self.packages.values() for file in files if file.name in parts]
        if found:
            if found[0].name in self.held:
                self._end.wait(60)
            self._send(request, "application/octet-stream", found[0].content)
        elif parts and parts[-1] in self.packages:
            links = "".join(
                f'<a href="/files/{file.name}#sha256={file.listed_sha256 or file.sha256}">'
                f"{file.name}</a>\n"
                for file in self.packages[parts[-1]]
            )
            self._send(request, "text/html", f"<!DOCTYPE html><html><body>{links}".encode())
        else:
            request.send_error(404)

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, kind: str, content: bytes) -> None:
        request.send_response(200)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        with contextlib.suppress(OSError):  # the client was cancelled
            request.wfile.write(content)


def wheel(package: str, version: str, files: Mapping[str, bytes]) -> tuple[str, bytes]:
    """Name and content of a wheel for any system; what lies in ``bin/`` is a program."""
    spelled = package.replace("-", "_")
    about = f"{spelled}-{version}.dist-info"
    every = {
        **files,
        f"{about}/METADATA": _METADATA.format(package=package, version=version).encode(),
        f"{about}/WHEEL": _WHEEL.encode(),
    }
    record = "".join(f"{name},{_digest(data)},{len(data)}\n" for name, data in every.items())
    every[f"{about}/RECORD"] = f"{record}{about}/RECORD,,\n".encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in every.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (PROGRAM if name.startswith("bin/") else 0o100644) << 16
            archive.writestr(info, data)
    return f"{spelled}-{version}-py3-none-any.whl", stream.getvalue()


def _digest(data: bytes) -> str:
    raw = hashlib.sha256(data).digest()
    return "sha256=" + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@dataclass(frozen=True)
class Behaviour:
    """What the build of the fake source does."""

    steps: int = 6
    step_s: float = 0.0
    hang_at: int | None = None  # the step that never ends, in a process of its own
    say: tuple[str, ...] = ()  # said before it fails
    fill_bytes: int = 0  # written to the folder for temporary files
    server: str | None = "#!/bin/sh\necho version: fake\n"  # None: the build makes none
    extra: dict[str, str] = field(default_factory=dict)  # more files of the wheel


def engine_source(package: str, version: str, behaviour: Behaviour) -> tuple[str, bytes]:
    """Name and content of a source distribution that pip builds without anything else."""
    spelled = package.replace("-", "_")
    root = f"{spelled}-{version}"
    facts = {"package": spelled, "version": version, **asdict(behaviour)}
    files = {
        "PKG-INFO": _METADATA.format(package=package, version=version),
        "pyproject.toml": (
            "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
            f"[project]\nname = '{package}'\nversion = '{version}'\n"
        ),
        "behaviour.json": json.dumps(facts),
        "backend.py": _BACKEND,
    }
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, text in files.items():
            data = text.encode()
            info = tarfile.TarInfo(f"{root}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return f"{root}.tar.gz", stream.getvalue()


_BACKEND = """
import json, os, subprocess, sys, tempfile, time, zipfile
from pathlib import Path

FACTS = json.loads(Path(__file__).with_name("behaviour.json").read_text())
ABOUT = f"{FACTS['package']}-{FACTS['version']}.dist-info"
METADATA = f"Metadata-Version: 2.1\\nName: {FACTS['package']}\\nVersion: {FACTS['version']}\\n"
WHEEL = "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: false\\nTag: py3-none-any\\n"

def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    about = Path(folder, ABOUT)
    about.mkdir()
    (about / "METADATA").write_text(METADATA)
    (about / "WHEEL").write_text(WHEEL)
    return ABOUT

def build_wheel(folder, config_settings=None, metadata_directory=None):
    import fake_build_tool  # pip must have installed it for us
    print("*** Configuring CMake...", flush=True)
    print("[1/1] a check that CMake makes for itself", flush=True)
    print("*** Building project with Ninja...", flush=True)
    for step in range(1, FACTS["steps"] + 1):
        time.sleep(FACTS["step_s"])
        if step == FACTS["hang_at"]:
            marker = "import time; time.sleep(600)"
            subprocess.run([sys.executable, "-c", marker, tempfile.gettempdir()])
        print(f"[{step}/{FACTS['steps']}] compiler -c source{step}.cpp", flush=True)
    if FACTS["fill_bytes"]:
        with tempfile.NamedTemporaryFile() as stream:
            stream.write(bytes(FACTS["fill_bytes"]))
            stream.flush()
    if FACTS["say"]:
        print("\\n".join(FACTS["say"]), flush=True)
        sys.exit(1)
    print("*** Installing project into wheel...", flush=True)
    return _wheel(folder)

def _wheel(folder):
    idle = os.sched_getscheduler(0) == os.SCHED_IDLE if hasattr(os, "SCHED_IDLE") else None
    seen = {"environ": dict(os.environ), "nice": os.nice(0), "idle": idle}
    files = {
        "llama_cpp/__init__.py": "version = 'fake'\\n",
        "llama_cpp/seen.json": json.dumps(seen),
        "llama_cpp/lib/libllama.so": "library",
        "lib/libllama.so": "library",
        "lib/libllama.so.0": "library",
        "lib/libllama.so.0.5": "library",
        "lib/libother.so": "another",
        "lib/cmake/llama/config.cmake": "x",
        "lib/pkgconfig/llama.pc": "x",
        "include/llama.h": "x",
        "bin/llama-bench": "#!/bin/sh\\n",
        "bin/llama-quantize": "#!/bin/sh\\n",
        f"{ABOUT}/METADATA": METADATA,
        f"{ABOUT}/WHEEL": WHEEL,
        f"{ABOUT}/licenses/LICENSE.md": "MIT",
        **FACTS["extra"],
    }
    if FACTS["server"] is not None:
        files["bin/llama-server"] = FACTS["server"]
    name = f"{FACTS['package']}-{FACTS['version']}-py3-none-any.whl"
    with zipfile.ZipFile(Path(folder, name), "w") as archive:
        for path, text in files.items():
            info = zipfile.ZipInfo(path)
            info.external_attr = (0o100755 if path.startswith("bin/") else 0o100644) << 16
            archive.writestr(info, text)
        archive.writestr(f"{ABOUT}/RECORD", "".join(f"{path},,\\n" for path in files))
    return name
"""
