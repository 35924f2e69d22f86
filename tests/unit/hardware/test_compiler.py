"""What `c++ --version` says on several systems, and compilers that do not answer."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from stoker.hardware import compiler, tools
from stoker.hardware.compiler import compiler_version

GCC = """\
g++ (Debian 12.2.0-14+deb12u1) 12.2.0
Copyright (C) 2022 Free Software Foundation, Inc.
"""
FEDORA = """\
g++ (GCC) 15.1.1 20250521 (Red Hat 15.1.1-2)
Copyright (C) 2025 Free Software Foundation, Inc.
"""
CLANG = """\
Ubuntu clang version 18.1.3 (1ubuntu1)
Target: x86_64-pc-linux-gnu
"""
APPLE = """\
Apple clang version 17.0.0 (clang-1700.0.13.5)
Target: arm64-apple-darwin24.5.0
"""


@pytest.mark.parametrize(
    ("text", "name", "version"),
    [
        (GCC, "gcc", "12.2.0"),
        (FEDORA, "gcc", "15.1.1"),
        (CLANG, "clang", "18.1.3"),
        (APPLE, "apple clang", "17.0.0"),
        ("icpx 2025.0\n", "c++", "2025.0"),
    ],
)
def test_versions(text: str, name: str, version: str) -> None:
    found = compiler_version("/usr/bin/c++", text)

    assert found is not None
    assert (found.name, found.version) == (name, version)


def test_what_names_no_version_is_no_compiler() -> None:
    assert compiler_version("/usr/bin/c++", "install the developer tools first\n") is None
    assert compiler_version("/usr/bin/c++", "") is None


posix = pytest.mark.skipif(sys.platform == "win32", reason="scripts are POSIX")


def script(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


@posix
@pytest.mark.skipif(sys.platform == "darwin", reason="asks xcode-select first")
def test_one_that_is_broken_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, "c++", "exit 1")
    script(tmp_path, "g++", "sleep 60")
    good = script(tmp_path, "clang++", "echo clang version 18.1.3")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.defpath}")
    monkeypatch.setattr(tools, "TOOL_TIMEOUT_S", 4.0)  # for the good one, too

    found = compiler.find_compiler()

    assert found is not None
    assert (found.path, found.version) == (str(good), "18.1.3")


@posix
@pytest.mark.skipif(sys.platform == "darwin", reason="asks xcode-select first")
def test_one_installed_later_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    before = compiler.find_compiler()
    script(tmp_path, "c++", "echo clang version 1.2")
    old = compiler.find_compiler()
    os.utime(script(tmp_path, "c++", "echo clang version 3.4"), (1, 1))
    new = compiler.find_compiler()

    assert before is None
    assert [one and one.version for one in (old, new)] == ["1.2", "3.4"]
