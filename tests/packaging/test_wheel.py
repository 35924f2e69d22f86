"""The wheel: what is in it, what it starts, and how light its client side is."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BUILD_TIMEOUT_S = 120


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """This checkout, built as a user's pip would build it."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=BUILD_TIMEOUT_S,
    )
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        return archive


def _metadata(wheel: zipfile.ZipFile, name: str) -> str:
    path = next(path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    with zipfile.ZipFile(str(wheel.filename)) as archive:
        return archive.read(path).decode()


def _described(wheel: zipfile.ZipFile) -> Message:
    return Parser().parsestr(_metadata(wheel, "METADATA"))


def test_the_wheel_holds_our_three_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """No `daemon`, `tray` or `tests` lands in a user's site-packages."""
    top = {name.split("/")[0] for name in wheel.namelist()}

    assert {name for name in top if not name.endswith(".dist-info")} == {
        "stoker",
        "stoker_tray",
        "stoker_service",
    }


def test_data_and_type_marks_are_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    """What the program reads at run time is installed with it, and nothing left over."""
    names = set(wheel.namelist())

    data = {"catalogue.toml", "py.typed", "runtimes/runtime_catalogue.toml"}
    assert {f"stoker/{name}" for name in data} <= names
    assert [name for name in names if "__pycache__" in name or name.endswith(".pyc")] == []


def test_the_command_is_installed(wheel: zipfile.ZipFile) -> None:
    """`stoker` is on PATH after an install."""
    points = ConfigParser()
    points.read_string(_metadata(wheel, "entry_points.txt"))

    assert points["console_scripts"]["stoker"] == "stoker.entry:main"


def test_the_licence_travels_with_the_wheel(wheel: zipfile.ZipFile) -> None:
    """The metadata names it, and its text is included."""
    assert _described(wheel)["License-Expression"] == "Apache-2.0"
    assert any(name.endswith("/licenses/LICENSE") for name in wheel.namelist())


def test_the_native_runtime_is_an_extra_with_one_version(wheel: zipfile.ZipFile) -> None:
    """It needs a compiler, so a plain install must not ask for it; what it builds is pinned."""
    requires = _described(wheel).get_all("Requires-Dist") or []

    native = [line for line in requires if line.startswith("llama-cpp-python")]

    assert len(native) == 1
    assert re.fullmatch(r"llama-cpp-python==[\d.]+; extra == 'native'", native[0])


def test_the_builtin_runtime_is_pinned(wheel: zipfile.ZipFile) -> None:
    """Another engine is a deliberate change, not what an index happens to have."""
    requires = _described(wheel).get_all("Requires-Dist") or []

    assert [line for line in requires if re.fullmatch(r"xllamacpp==[\d.]+", line)]


def test_no_test_tool_is_a_dependency(wheel: zipfile.ZipFile) -> None:
    """The groups for development stay in the checkout."""
    requires = " ".join(_described(wheel).get_all("Requires-Dist") or [])

    for tool in ("pytest", "ruff", "mypy", "openai", "gguf"):
        assert tool not in requires


def _imported_by(statement: str) -> set[str]:
    """Every module that a fresh interpreter holds after `statement`."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import stoker.cli",
        "import stoker.client",
        "from stoker.cli import main; main(['--help'])",
    ],
)
def test_a_client_imports_no_server(statement: str) -> None:
    """`stoker --help` is instant: web frameworks, event loops and HTTP are for those who serve."""
    heavy = {
        "asyncio",
        "anyio",
        "apscheduler",
        "fastapi",
        "huggingface_hub",
        "httpx2",
        "llama_cpp",
        "numpy",
        "sqlite3",
        "starlette",
        "uvicorn",
        "uvloop",
        "xllamacpp",
    }

    assert _imported_by(statement) & heavy == set()


def test_the_daemon_imports_no_inference_library() -> None:
    """A crash in an engine must cost a worker, never the daemon."""
    assert _imported_by("import stoker.serve") & {"xllamacpp", "llama_cpp", "numpy"} == set()


def test_the_import_contracts_name_real_modules() -> None:
    """A contract about a module that was renamed would guard nothing."""
    named = {
        module.strip(" ()")
        for contract in PYPROJECT["tool"]["importlinter"]["contracts"]
        for key in ("source_modules", "forbidden_modules", "layers")
        for entry in contract.get(key, [])
        for module in re.split(r"[|:]", entry)
        if module.strip(" ()").startswith("stoker")
    }
    roots = {"stoker": "daemon", "stoker_tray": "tray", "stoker_service": "service_files"}

    missing = []
    for module in sorted(named):
        place = ROOT / roots[module.split(".")[0]] / Path(*module.split("."))
        if not place.is_dir() and not place.with_suffix(".py").is_file():
            missing.append(module)

    assert missing == []
