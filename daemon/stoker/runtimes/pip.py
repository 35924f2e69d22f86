"""How an install calls pip: which pip, with what environment, and what its failures mean."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from stoker.errors import BuildFailed, CompilerMissing, DiskFull, StokerError
from stoker.runtimes.running import Ended, Limits, run

# Kept of the user's environment: what finds programs, the network and the package index. All else
# goes: compiler flags and Python's own settings would change what is built.
_KEPT: Final = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "NETRC", "DEVELOPER_DIR", "SDKROOT"),
        *("XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "XDG_CACHE_HOME"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"),
        *("PIP_CERT", "PIP_CLIENT_CERT", "PIP_TRUSTED_HOST", "PIP_PROXY", "PIP_KEYRING_PROVIDER"),
        *("PIP_TIMEOUT", "PIP_DEFAULT_TIMEOUT", "PIP_RETRIES", "PIP_CONFIG_FILE", "PIP_CACHE_DIR"),
        # Windows finds neither its compiler nor its own libraries without these.
        *("SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "PROGRAMDATA"),
        *("PROGRAMFILES", "PROGRAMFILES(X86)", "PROGRAMW6432", "COMMONPROGRAMFILES", "APPDATA"),
        *("LOCALAPPDATA", "USERPROFILE", "NUMBER_OF_PROCESSORS", "PROCESSOR_ARCHITECTURE"),
    }
)
_SECRET: Final = re.compile(r"(?<=://)[^/\s]+@")  # greedy: a password may hold an @, too
_QUIET: Final = ("--no-input", "--disable-pip-version-check", "--progress-bar=off")

_MAKE: Final = Limits(total_s=600, silence_s=300)

_NO_ROOM: Final = re.compile(
    r"No space left|Errno 28\b|Disk quota exceeded|Errno 122\b", re.IGNORECASE
)
_REASONS: Final = (  # the first that matches; each with what to do about it
    (
        "no_compiler",
        (
            r"No CMAKE_C(XX)?_COMPILER could be found|CMAKE_C(XX)?_COMPILER not set"
            r"|is not a full path and was not found in the PATH"
            r"|is not able to compile a simple test program|Could not find any instance of Visual"
        ),
        "",
    ),
    (
        "out_of_memory",
        (
            r"Killed signal terminated program|out of memory allocating|virtual memory exhausted"
            r"|Cannot allocate memory|std::bad_alloc|internal compiler error: Killed"
            r"|fatal error C1060|signal 9|^Killed$|\bKilled\b.*(cc1|clang|ninja)"
        ),
        "The compiler ran out of memory; close other programs, unload models, and try again.",
    ),
    (
        "compiler_too_old",
        (
            r"unrecognized command[- ]line option|unknown argument: .-m|invalid (feature modifier"
            r"|arch|value) .*-?march|unsupported option .-m|requires? .*C\+\+17"
            r"|does not support .*(C\+\+17|cxx_std_17)|CMAKE_CXX_STANDARD"
        ),
        "The compiler is too old for this processor; install a newer one and try again.",
    ),
    (
        "hash",
        r"DO NOT MATCH THE HASHES|HashMismatch|Expected sha256",
        "The package index sent another file than the one that is pinned; check package_index.",
    ),
    (
        "not_found",
        r"No matching distribution|Could not find a version",
        "The package index does not have it; check package_index and `pip config list`.",
    ),
    (
        "network",
        (
            r"ConnectionError|NewConnectionError|Max retries exceeded|ReadTimeout|ConnectTimeout"
            r"|Temporary failure in name resolution|ProxyError|SSLError|Connection (refused|reset)"
            r"|IncompleteRead|HTTP error \d{3}|[45]\d\d (Server|Client) Error|IncompleteDownload"
        ),
        "Check the network and pip's settings (`pip config list`), and try again.",
    ),
    (
        "no_pip",
        (
            r"No module named '?(pip|ensurepip|venv)\b|ensurepip is not available"
            r"|no such option: --python"
        ),
        "Install a current pip (on Debian and Ubuntu the package python3-venv), and try again.",
    ),
)
_ERRORS: Final = re.compile(r"(?i)\b(fatal error|error|ERROR)\b[: ]|CMake Error|FAILED:")
_SHOWN_LINES: Final = 30


def finder() -> tuple[str, ...] | None:
    """How to run pip for another environment: our own, else one on PATH, else None."""
    if importlib.util.find_spec("pip") is not None:
        return (sys.executable, "-I", "-m", "pip")
    found = shutil.which("pip3") or shutil.which("pip")
    return (found,) if found else None


async def private(folder: Path, environ: Mapping[str, str]) -> tuple[tuple[str, ...], Path]:
    """A new environment below `folder`: how to run pip for it, and its Python. Raises BuildFailed.

    Its own pip is only made when there is no other: some systems' Pythons cannot.
    """
    home, found = folder / "env", finder()
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    options = ["--without-pip"] if found else []
    ended = await run(
        [sys.executable, "-I", "-m", "venv", *options, str(home)],
        cwd=folder,
        environ=environ,
        limits=_MAKE,
    )
    if ended.code != 0:
        raise failure("make an environment for the build tools", ended)
    command = (*found, "--python", str(python)) if found else (str(python), "-I", "-m", "pip")
    return command, python


def arguments(command: str, *more: str) -> list[str]:
    """Of one pip command. An index is never among them: see `environment`."""
    return [command, *_QUIET, *more]


def environment(
    work: Path, environ: Mapping[str, str] = os.environ, *, index: str | None = None
) -> dict[str, str]:
    """A clean one: temporary files in `work`, no settings of the user but for the network.

    `index` overrides pip's own setting. Its address may hold a password, which everybody on this
    machine could read in a command line.
    """
    kept = {name: value for name, value in environ.items() if name.upper() in _KEPT}
    # The user's configuration files apply for the index, not for where or how to install.
    overrides = {
        "PIP_CONSTRAINT": os.devnull,
        "PIP_REQUIRE_VIRTUALENV": "0",
        "PIP_USER": "0",
        "PIP_NO_WARN_SCRIPT_LOCATION": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        "LC_ALL": "C.UTF-8" if sys.platform != "darwin" else "en_US.UTF-8",
    }
    if index:
        overrides["PIP_INDEX_URL"] = index
    return {**kept, **overrides, "TMPDIR": str(work), "TEMP": str(work), "TMP": str(work)}


def path_with(folder: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The same with a folder of programs before all others."""
    name = next((key for key in environ if key.upper() == "PATH"), "PATH")
    return {**environ, name: os.pathsep.join((str(folder), environ.get(name, os.defpath)))}


def redacted(lines: Iterable[str]) -> list[str]:
    """The same without the passwords that an index's address may hold. Pure."""
    return [_SECRET.sub("", line) for line in lines]


def reason_of(lines: Sequence[str]) -> tuple[str, str]:
    """Why a step failed, as a word, and what to do; ("unknown", "") when nobody knows. Pure."""
    text = "\n".join(lines)
    for word, pattern, hint in _REASONS:
        if re.search(pattern, text, re.MULTILINE):
            return word, hint
    return "unknown", ""


def failure(doing: str, ended: Ended, *, free_bytes: int = 0) -> StokerError:
    """What the end of a step means. Pure."""
    lines = redacted(ended.tail)
    if any(_NO_ROOM.search(line) for line in lines):
        msg = f"the disk is full: cannot {doing}"
        hint = "Free some space and try again; nothing was changed."
        return DiskFull(msg, hint=hint, free_bytes=free_bytes)
    word, hint = reason_of(lines)
    if word == "no_compiler":
        return CompilerMissing("the C++ compiler that is there does not work", tail=lines[-10:])
    said = ended.why or next((line for line in lines if _ERRORS.search(line)), "")
    if not said:
        said = lines[-1] if lines else f"exit code {ended.code}"
    if ended.why:
        word = "too_slow"
    return BuildFailed(
        f"cannot {doing}: {said[:300]}",
        hint=hint or None,
        reason=word,
        tail=lines[-_SHOWN_LINES:],
    )
