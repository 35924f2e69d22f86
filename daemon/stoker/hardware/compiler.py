"""Which C++ compiler this machine has, if any: it must answer when asked for its version.

Asked again only when the program changed. Never raises; each question has a deadline.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from functools import lru_cache
from pathlib import Path
from typing import Final

from stoker.hardware import tools
from stoker.hardware.facts import CompilerFacts

_NAMES: Final = ("c++", "g++", "clang++")
_VERSION: Final = re.compile(r"(?<![\w.])(\d{1,4}\.\d{1,4}(?:\.\d{1,6})?)")
_XCODE_SELECT: Final = "/usr/bin/xcode-select"
_VSWHERE: Final = r"Microsoft Visual Studio\Installer\vswhere.exe"
_VC_TOOLS: Final = "Microsoft.VisualStudio.Component.VC.Tools.x86.x64"


def find_compiler() -> CompilerFacts | None:
    """The first that answers, in the order in which build tools look for one."""
    if sys.platform == "win32":
        return _visual_studio()
    if sys.platform == "darwin" and tools.run(_XCODE_SELECT, "-p") is None:
        return None  # its c++ is only a stand-in, and asking it opens a window
    names = (os.environ.get("CXX", ""), *_NAMES)
    for path in filter(None, (shutil.which(name) for name in names if name)):
        found = _asked(path, _changed(path))
        if found is not None:
            return found
    return None


@lru_cache(maxsize=16)
def _asked(path: str, changed: float) -> CompilerFacts | None:  # noqa: ARG001  # a new one is asked anew
    text = tools.run(path, "--version")
    return compiler_version(path, text) if text else None


def compiler_version(path: str, text: str) -> CompilerFacts | None:
    """From the first line of ``c++ --version``. Pure; None when it names no version."""
    first = next(iter(text.splitlines()), "")
    # "g++ (Debian 12.2.0-14) 12.2.0": what is in brackets is the packager's.
    match = _VERSION.search(re.sub(r"\([^)]*\)", "", first)) or _VERSION.search(first)
    if match is None:
        return None
    return CompilerFacts(path, _name(path, text), match[1])


def _name(path: str, text: str) -> str:
    lower = text.lower()
    if "apple" in lower and "clang" in lower:
        return "apple clang"
    if "clang" in lower:
        return "clang"
    return "gcc" if "free software foundation" in lower else Path(path).name


def _changed(path: str) -> float:
    try:
        return Path(path).stat().st_mtime
    except OSError:
        return 0.0


def _visual_studio() -> CompilerFacts | None:
    """Its own locator names the newest one with C++ tools."""
    folder = os.environ.get("PROGRAMFILES(X86)", "")  # Windows asks for no case
    tool = str(Path(folder) / _VSWHERE)
    wanted = (tool, "-latest", "-products", "*", "-requires", _VC_TOOLS)
    place = (tools.run(*wanted, "-property", "installationPath") or "").strip()
    version = (tools.run(*wanted, "-property", "installationVersion") or "").strip()
    return CompilerFacts(place, "msvc", version) if place and version else None
