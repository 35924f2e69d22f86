"""A Windows of its own for one test (wine), and a stand-in for CPython's embeddable package.

The stand-in's python.exe is a real Windows program made by NSIS: it writes down how it was called,
and fails when a file beside it says so.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

_TIMEOUT_S: Final = 180.0
_STUB: Final = r"""
Target amd64-unicode
!include FileFunc.nsh
Name stub
OutFile "{output}"
RequestExecutionLevel user
SilentInstall silent
Section
  ${{GetParameters}} $R0
  FileOpen $0 "$EXEDIR\calls.txt" a
  FileSeek $0 0 END
  FileWrite $0 "$R0$\n"
  FileClose $0
  IfFileExists "$EXEDIR\fail.txt" 0 +2
  SetErrorLevel 7
SectionEnd
"""


class Wine:
    """``with Wine(folder) as wine``: an empty Windows with a screen nobody sees.

    Leaving ends all its processes.
    """

    def __init__(self, folder: Path) -> None:
        self.prefix = folder
        self._environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder.parent),
            "WINEPREFIX": str(folder),
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": "mscoree=;mshtml=;winemenubuilder.exe=",
        }
        self._screen: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as numbers:
            self._screen = subprocess.Popen(
                ["Xvfb", "-displayfd", str(writer), "-nolisten", "tcp"],
                pass_fds=[writer],
                stderr=subprocess.DEVNULL,
            )
            os.close(writer)
            self._environ["DISPLAY"] = f":{numbers.readline().decode().strip()}"
        self.run("wineboot", "-i")
        return self

    def __exit__(self, *_: object) -> None:
        server = shutil.which("wineserver") or "/usr/lib/wine/wineserver"  # where Debian has it
        subprocess.run([server, "-k"], env=self._environ, check=False, timeout=_TIMEOUT_S)
        subprocess.run([server, "-w"], env=self._environ, check=False, timeout=_TIMEOUT_S)
        if self._screen is not None:
            self._screen.terminate()
            self._screen.wait(_TIMEOUT_S)

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """A Windows program to its end."""
        return subprocess.run(
            ["wine", *map(str, words)],
            env=self._environ,
            check=False,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )

    @property
    def local(self) -> Path:
        """%LOCALAPPDATA% of the only user."""
        (found,) = self.prefix.glob("drive_c/users/*/AppData/Local")
        return found

    def registry(self, key: str) -> dict[str, str]:
        """The values of a key of this user; {} when there is no such key."""
        done = self.run("reg", "query", f"HKCU\\{key}")
        rows = [line.split(None, 2) for line in done.stdout.splitlines() if line.startswith("  ")]
        return {row[0]: row[2].strip() for row in rows if len(row) > 2}


def until(condition: Callable[[], bool]) -> None:
    """Wait for what a program does after its end: a Windows uninstaller runs as a copy."""
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def stub_python(folder: Path) -> Path:
    """A folder with python.exe, pythonw.exe and python311._pth, as the package has them."""
    folder.mkdir(parents=True)
    script = folder.parent / f"{folder.name}.nsi"
    script.write_text(_STUB.format(output=folder / "python.exe"), encoding="utf-8")
    subprocess.run(["makensis", "-V1", "-WX", script], check=True, timeout=_TIMEOUT_S)
    shutil.copy(folder / "python.exe", folder / "pythonw.exe")
    (folder / "python311._pth").write_text("python311.zip\n.\n", encoding="utf-8")
    return folder


def zipped(folder: Path) -> tuple[Path, str]:
    """The folder as an archive, and the archive's digest."""
    target = folder.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return target, hashlib.sha256(target.read_bytes()).hexdigest()
