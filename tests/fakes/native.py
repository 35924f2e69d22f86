"""The real compiled runtime for tests, where this machine has one; building it takes ten minutes.

    python -m tests.fakes.native --build          # as `stoker runtime install native` does it
    python -m tests.fakes.native --build --amx    # the unsound one, which the self-test must catch

A runtime is a folder with ``bin/``, ``lib/`` and ``llama_cpp/``. $STOKER_TEST_NATIVE and
$STOKER_TEST_AMX name one; else ~/.cache/stoker-tests/native (and amx) is one, or is the home of a
Stoker that has one, which is how --build makes it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import anyio
import pytest

from stoker.engine.lab import Library
from stoker.engine.llama_server import Program
from stoker.hardware.probe import probe
from stoker.paths import Paths, from_environment
from stoker.runtimes.install import install
from stoker.runtimes.manifest import FILE, Runtime, server_name
from stoker.settings import Settings
from tests.fakes.wheel_files import cache_folder

NATIVE = "STOKER_TEST_NATIVE"  # a sound build for this machine
AMX = "STOKER_TEST_AMX"  # one with AMX left on, which dies at its first batch on some machines
_FOLDERS = {NATIVE: "native", AMX: "amx"}
_LIBRARY = {"darwin": "libllama.dylib", "win32": "llama.dll"}.get(sys.platform, "libllama.so")


class NativeMissing(Exception):
    """There is none; nothing was tested with it."""


def native_path() -> Path:
    """The sound build. Raises NativeMissing."""
    return _path(NATIVE)


def native_folder() -> Path:
    """The sound build. Skips the test, loudly, when there is none; fails it in CI."""
    return _folder(NATIVE)


def amx_folder() -> Path:
    """The unsound build; as above."""
    return _folder(AMX)


def program_in(folder: Path) -> Program:
    return Program(folder / "bin" / server_name(), folder / "lib")


def library_in(folder: Path, runtime: str = "native") -> Library:
    return Library(runtime, folder / "lib" / _LIBRARY, folder, (folder / "lib",))


def build(*, amx: bool = False) -> Runtime:
    """Compile one into the cache with the product's own installer, in about ten minutes."""
    variable = AMX if amx else NATIVE
    places = _places(cache_folder() / _FOLDERS[variable])
    places.create()

    def tell(share: float, what: str) -> None:
        sys.stderr.write(f"\r{share:6.1%} {what:50}")
        sys.stderr.flush()

    async def run() -> Runtime:
        return await install(
            "native",
            places=places,
            hardware=probe(),
            settings=Settings(),
            progress=tell,
            allow_amx=amx,
        )

    return anyio.run(run)


def _folder(variable: str) -> Path:
    try:
        return _path(variable)
    except NativeMissing as error:
        if os.environ.get("CI") == "true" and variable == NATIVE:
            pytest.fail(str(error))
        pytest.skip(str(error))


def _places(home: Path) -> Paths:
    return from_environment({"STOKER_HOME": str(home)})


def _path(variable: str) -> Path:
    home = Path(os.environ.get(variable) or cache_folder() / _FOLDERS[variable])
    installed = _places(home).runtimes.glob(f"*/{FILE}")
    below = sorted(installed, key=lambda file: file.stat().st_mtime)
    for folder in (home, *(file.parent for file in reversed(below))):
        if (folder / "bin" / server_name()).is_file():
            return folder
    msg = (
        f"NOT TESTED: THERE IS NO COMPILED RUNTIME in {home}; set {variable} to the folder of"
        " one, or build it with `python -m tests.fakes.native --build`"
        f"{' --amx' if variable == AMX else ''}"
    )
    raise NativeMissing(msg)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fakes.native")
    parser.add_argument("--build", action="store_true", help="compile it when it is missing")
    parser.add_argument("--amx", action="store_true", help="the one with AMX left on")
    options = parser.parse_args()
    try:
        found = _path(AMX if options.amx else NATIVE)
    except NativeMissing as error:
        if not options.build:
            raise SystemExit(str(error)) from None
        found = build(amx=options.amx).folder or Path()
    sys.stdout.write(f"{found}\n")


if __name__ == "__main__":
    main()
