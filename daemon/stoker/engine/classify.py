"""Why a worker ended: from its exit status and its last words to a kind and a sentence. Pure.

The first pattern that matches wins; they go from the cause to the consequence, because an engine
reports a failed allocation as a failed load. Not for: what would help against it (`explain`).
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from typing import Final

from stoker.types import FailureKind

_PATTERNS: Final = {
    FailureKind.OUT_OF_MEMORY: (
        r"out of memory|cannot allocate memory|bad_alloc|MemoryError",
        r"(failed|unable) to allocate",
        r"ErrorOutOfDeviceMemory|ErrorOutOfHostMemory|ErrorOutOfMemory|cudaMalloc failed",
        r"insufficient memory|memory allocation of size \d{1,20} failed",
    ),
    FailureKind.UNSUPPORTED_ARCHITECTURE: (
        r"(unknown|unsupported) model architecture",
        r"unknown (pre-)?tokenizer|unknown projector type",
    ),
    FailureKind.BAD_FILE: (
        r"invalid magic|unknown magic|invalid (split|gguf)|gguf_init_from_",
        r"failed to read (magic|tensor|key|header)|failed to open (gguf|file)",
        r"tensor .{1,200} (data is not within|out of bounds|has wrong shape)",
        r"missing tensor|wrong number of tensors|key not found in model",
        r"file (is )?(truncated|corrupt)|unexpected(ly)? (reached )?end of file",
        r"error loading model|failed to load model",
    ),
    FailureKind.ASSERT: (r"GGML_ASSERT|GGML_ABORT|terminate called|assertion .{0,200}failed",),
    FailureKind.BACKEND: (
        r"no backends? (are )?loaded|illegal instruction|device lost",
        r"CUDA error|HIP error|Vulkan error|metal.{0,40}error",
    ),
}
_COMPILED: Final = {
    kind: re.compile("|".join(patterns), re.IGNORECASE) for kind, patterns in _PATTERNS.items()
}

# How engines say how much they could not have; looked for in lines that speak of it only.
_BYTES: Final = re.compile(r"\bof size[: ]{1,2}(\d{1,16})\b(?! ?[KMG]i?B)", re.IGNORECASE)
_MIB: Final = re.compile(r"\b(\d{1,9}(?:\.\d{1,3})?) ?Mi?B\b", re.IGNORECASE)
_MOST: Final = 1 << 50  # bytes; a larger number in a log is no size
_ARCHITECTURE: Final = re.compile(r"model architecture: '([A-Za-z0-9._-]{1,40})'")

_TEXT: Final = {
    FailureKind.OUT_OF_MEMORY: "The engine ran out of memory.",
    FailureKind.BAD_FILE: "The engine could not read the model file.",
    FailureKind.UNSUPPORTED_ARCHITECTURE: "The engine does not know this kind of model.",
    FailureKind.BACKEND: "The engine's compute backend failed.",
    FailureKind.ASSERT: "The engine stopped itself after an internal error.",
    FailureKind.CRASH: "The engine crashed.",
    FailureKind.KILLED: "The engine was killed, by the system or by hand.",
    FailureKind.UNKNOWN: "The engine ended without saying why.",
}

_HINT: Final = {
    FailureKind.OUT_OF_MEMORY: "Close other programs, set a smaller context, or choose a smaller"
    " model.",
    FailureKind.BAD_FILE: "Check it with `stoker verify MODEL`, then pull it again.",
    FailureKind.UNSUPPORTED_ARCHITECTURE: "Choose another model, or upgrade Stoker: new kinds of"
    " models need a newer runtime.",
    FailureKind.BACKEND: "`stoker doctor` says what this machine lacks.",
    FailureKind.ASSERT: "Send the request again; if it repeats, report it with `stoker logs`.",
    FailureKind.CRASH: "Send another request; if this one crashes it again, report it with"
    " `stoker logs`.",
    FailureKind.KILLED: "Memory may have run out: close other programs, or choose a smaller model.",
    FailureKind.UNKNOWN: "Send the request again; `stoker logs` has the engine's last words.",
}


def classify(returncode: int | None, tail: Sequence[str]) -> FailureKind:
    """The kind of failure of a worker that nobody asked to stop."""
    for kind, pattern in _COMPILED.items():
        if any(pattern.search(line) for line in tail):
            return kind
    return _from_status(returncode)


def _from_status(returncode: int | None) -> FailureKind:
    if returncode is None or returncode >= 0:
        return FailureKind.UNKNOWN
    number = -returncode
    if number == signal.SIGABRT:
        return FailureKind.ASSERT
    # Windows has neither of these names.
    if number in {getattr(signal, name, None) for name in ("SIGKILL", "SIGTERM")}:
        return FailureKind.KILLED
    if number == getattr(signal, "SIGILL", None):  # an instruction that this CPU lacks
        return FailureKind.BACKEND
    if number in {getattr(signal, name, None) for name in ("SIGSEGV", "SIGBUS", "SIGFPE")}:
        return FailureKind.CRASH
    return FailureKind.UNKNOWN


def numbers(kind: FailureKind, tail: Sequence[str]) -> dict[str, object]:
    """What the last words say beyond the kind: facts for the error, as far as they are there.

    ``missing_bytes`` is the largest piece of memory that the engine did not get, ``architecture``
    the kind of model that it does not know.
    """
    if kind is FailureKind.OUT_OF_MEMORY:
        sizes = [size for line in tail if _COMPILED[kind].search(line) for size in _sizes(line)]
        return {"missing_bytes": max(sizes)} if sizes else {}
    if kind is FailureKind.UNSUPPORTED_ARCHITECTURE:
        names = [name for line in tail for name in _ARCHITECTURE.findall(line)]
        return {"architecture": names[0]} if names else {}
    return {}


def _sizes(line: str) -> list[int]:
    found = [int(number) for number in _BYTES.findall(line)]
    found += [int(float(number) * 1024 * 1024) for number in _MIB.findall(line)]
    return [size for size in found if 0 < size <= _MOST]


def describe(kind: FailureKind) -> tuple[str, str]:
    """What happened and what to do next, one sentence each."""
    return _TEXT[kind], _HINT[kind]
