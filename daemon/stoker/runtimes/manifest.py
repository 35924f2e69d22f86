"""What a runtime is, and the file `runtime.json` that says so in its folder.

The file is read strictly: what is not exactly as `write` wrote it is no runtime, so that nothing a
stray file says ever becomes a program that runs. Not for: which runtimes there are (`registry`),
or which one is used (`manager`).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from stoker.errors import EngineError
from stoker.store import disk

FILE: Final = "runtime.json"

_VERSION: Final = 1
_MOST_BYTES: Final = 64 * 1024
_NAME: Final = r"^[a-z0-9][a-z0-9._+-]{0,95}$"  # also the name of its folder
_WORD: Final = r"^[A-Za-z0-9._+-]{1,64}$"
_VARIANT: Final = r"^[A-Za-z0-9._+-]{0,64}$"
_OPTION: Final = r"^[!-~]{1,200}$"  # of CMake: no spaces, nothing that steers a terminal
_MOST_SIZE: Final = 1 << 53  # bytes on disk; what JSON carries exactly

Kind = Literal["builtin", "native", "vulkan", "cuda", "rocm", "metal", "path"]
EngineKind = Literal["xllamacpp", "llama-server"]


class DamagedRuntime(EngineError):
    """A folder among the runtimes that holds none."""

    hint = "Remove it with `stoker runtime remove`, and install the runtime again."


@dataclass(frozen=True, slots=True)
class Runtime:
    """An engine in one version, built for one kind of machine."""

    name: str  # "xllamacpp-2026.10.11549", "llama-cpp-python-0.3.36-avx512"
    kind: Kind
    engine: EngineKind  # which adapter runs it
    version: str
    variant: str  # what it was compiled for; "" when for anything
    folder: Path | None  # None: in Stoker's own environment, or the user's own on the PATH
    created_at: str  # RFC 3339
    cpu: str  # `engine.canary.cpu_digest` of the machine that it was made for; "" when for any
    cmake: tuple[str, ...] = ()  # the options that it was compiled with
    digest: str | None = None  # SHA-256 of what it was made from, in hex
    bytes: int = 0  # on disk
    program: Path | None = None  # the user's own server program, when it is one

    @property
    def server(self) -> Path | None:
        """The server program, whether it is there or not; None when the engine has none."""
        if self.folder is None or self.engine != "llama-server":
            return self.program
        return self.folder / "bin" / server_name()

    @property
    def libraries(self) -> Path | None:
        """The folder of its shared libraries."""
        return None if self.folder is None else self.folder / "lib"


def server_name() -> str:
    """The file name of llama.cpp's server on this system."""
    return "llama-server.exe" if sys.platform == "win32" else "llama-server"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1]
    name: Annotated[str, Field(pattern=_NAME)]
    kind: Literal["native", "vulkan", "cuda", "rocm", "metal"]
    engine: EngineKind
    engine_version: Annotated[str, Field(pattern=_WORD)]
    variant: Annotated[str, Field(pattern=_VARIANT)]
    created_at: Annotated[AwareDatetime, Field(strict=False)]
    cpu: Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$")]
    cmake: Annotated[list[Annotated[str, Field(pattern=_OPTION)]], Field(max_length=200)]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    bytes: Annotated[int, Field(ge=0, le=_MOST_SIZE)]


def write(runtime: Runtime, folder: Path) -> None:
    """Put `runtime.json` into a folder that is ours alone. Raises EngineError, StoreError.

    The folder may still have another name: the last step of an install is its rename.
    """
    try:
        document = _Document.model_validate(
            {
                "version": _VERSION,
                "name": runtime.name,
                "kind": runtime.kind,
                "engine": runtime.engine,
                "engine_version": runtime.version,
                "variant": runtime.variant,
                "created_at": runtime.created_at,
                "cpu": runtime.cpu,
                "cmake": list(runtime.cmake),
                "digest": runtime.digest,
                "bytes": runtime.bytes,
            }
        )
    except ValidationError as error:
        raise DamagedRuntime(f"a runtime that makes no sense: {_first(error)}") from error
    with disk.wrapped("describe a runtime", folder):
        disk.write_file(folder / FILE, document.model_dump_json(indent=2).encode() + b"\n", ".tmp")


def read(folder: Path) -> Runtime:
    """The runtime in this folder, which has its name. Raises DamagedRuntime."""
    try:
        raw = disk.read_file(folder / FILE, _MOST_BYTES)
        document = _Document.model_validate_json(raw)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DamagedRuntime(f"{folder.name} has no readable {FILE}: {reason}") from error
    except ValidationError as error:
        raise DamagedRuntime(f"{folder.name}: {FILE}: {_first(error)}") from error
    if document.name != folder.name:
        raise DamagedRuntime(f"{folder.name} says that it is {document.name}")
    runtime = Runtime(
        name=document.name,
        kind=document.kind,
        engine=document.engine,
        version=document.engine_version,
        variant=document.variant,
        folder=folder,
        created_at=document.created_at.isoformat(),
        cpu=document.cpu,
        cmake=tuple(document.cmake),
        digest=document.digest,
        bytes=document.bytes,
    )
    server = runtime.server
    if server is not None and not server.is_file():
        raise DamagedRuntime(f"{folder.name} has lost its program {server.name}")
    return runtime


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'file'}: {first['msg']}"
