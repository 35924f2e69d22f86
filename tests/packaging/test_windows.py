"""The Windows installer: built, installed, upgraded, rolled back and removed under wine.

What runs is the real installer with the real packages; the Python inside is a stand-in.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker import __version__
from tests.fakes.wine import Wine, stub_python, until, zipped

ROOT = Path(__file__).parents[2]
WINDOWS = ROOT / "installers" / "windows"
INSTALL_TIMEOUT_S = 900  # making a Windows and each installer have deadlines of their own
UNINSTALL_KEY = "Software\\Microsoft\\Windows\\CurrentVersion\\Uninstall\\Stoker"

needs_wine = pytest.mark.skipif(
    not all(shutil.which(name) for name in ("makensis", "wine", "Xvfb")),
    reason="needs nsis, wine and xvfb",
)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stub_python(tmp_path_factory.mktemp("stub") / "python")


@pytest.fixture(scope="module")
def icon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("icons")
    subprocess.run(
        [sys.executable, "-I", "-m", "stoker_tray.icons", folder], check=True, timeout=100
    )
    return folder / "stoker.ico"


@pytest.fixture
def wine(tmp_path: Path) -> Iterator[Wine]:
    with Wine(tmp_path / "prefix") as wine:
        yield wine


def _setup(folder: Path, python: Path, icon: Path, version: str, *, broken: bool = False) -> Path:
    """A small installer of this version: the real script, and nothing but the Python in it."""
    payload = folder / f"payload-{version}"
    shutil.copytree(python, payload / "python")
    if broken:
        (payload / "python" / "fail.txt").touch()
    target = folder / f"setup-{version}.exe"
    values = {
        "VERSION": version,
        "ID": f"{version}-1",
        "PAYLOAD": payload,
        "ICON": icon,
        "LICENCE": ROOT / "LICENSE",
        "OUTFILE": target,
    }
    words = [f"-D{name}={value}" for name, value in values.items()]
    subprocess.run(
        ["makensis", "-V1", "-WX", "-DFAST", *words, WINDOWS / "stoker.nsi"], check=True, timeout=60
    )
    return target


def _calls(place: Path) -> list[str]:
    """How the Python of the version in use was called, in order."""
    (folder,) = (place / "app").iterdir()
    return (folder / "python" / "calls.txt").read_text(encoding="utf-8").splitlines()


@needs_wine
@pytest.mark.timeout(INSTALL_TIMEOUT_S)
@pytest.mark.slow
def test_the_whole_installer_is_built_and_installs(
    tmp_path: Path, python: Path, wine: Wine
) -> None:
    """With every pinned package in it; at the end Stoker runs, and starts when one signs in."""
    archive, digest = zipped(python)
    words: list[str | Path] = [
        "--python-zip",
        archive,
        "--sha256",
        digest,
        "--output",
        tmp_path,
        "--fast",
    ]
    built = subprocess.run(
        [WINDOWS / "build.sh", *words], check=False, capture_output=True, text=True, timeout=300
    )
    assert built.returncode == 0, built.stderr
    setup = Path(built.stdout.split()[-1])

    assert wine.run(setup, "/S").returncode == 0

    place = wine.local / "Programs" / "Stoker"
    (version,) = (place / "app").iterdir()
    assert version.name.startswith(f"{__version__}-")
    for name in ("stoker", "stoker_tray", "stoker_service", "pystray", "PIL", "fastapi", "pip"):
        assert (version / "site-packages" / name).is_dir(), name
    assert list((version / "site-packages" / "xllamacpp").glob("*.pyd"))
    assert "..\\site-packages" in (version / "python" / "python311._pth").read_text("utf-8")
    assert f"app\\{version.name}\\python\\python.exe" in (place / "stoker.cmd").read_text("utf-8")
    until(lambda: _calls(place)[-1] == "-I -m stoker_tray")  # it is not waited for
    assert [call.removeprefix("-I -m ") for call in _calls(place)] == [
        "stoker --version",
        "stoker start",
        "stoker autostart on",
        "stoker_tray",
    ]
    entry = wine.registry(UNINSTALL_KEY)
    assert entry["DisplayVersion"] == __version__
    assert int(entry["EstimatedSize"], 16) > 10_000  # kB


@needs_wine
@pytest.mark.timeout(INSTALL_TIMEOUT_S)
@pytest.mark.slow
def test_upgrade_roll_back_and_removal(
    tmp_path: Path, python: Path, icon: Path, wine: Wine
) -> None:
    """An upgrade leaves the login as it is, a broken one goes back, a purge leaves nothing."""
    place, data = wine.local / "Programs" / "Stoker", wine.local / "stoker"
    before = sorted(wine.prefix.joinpath("drive_c").rglob("*"))
    data.mkdir()
    (data / "config.toml").touch()

    assert wine.run(_setup(tmp_path, python, icon, "0.1.1"), "/S", "/AUTOSTART=0").returncode == 0
    until(lambda: _calls(place)[-1] == "-I -m stoker_tray")  # it is not waited for
    first = _calls(place)
    assert wine.run(_setup(tmp_path, python, icon, "0.1.2"), "/S").returncode == 0
    until(lambda: _calls(place)[-1] == "-I -m stoker_tray")
    second = _calls(place)
    failing = wine.run(_setup(tmp_path, python, icon, "0.1.3", broken=True), "/S")

    assert "-I -m stoker autostart on" not in first + second
    assert "-I -m stoker autostart refresh" in second
    assert failing.returncode == 2
    assert [folder.name for folder in (place / "app").iterdir()] == ["0.1.2-1"]
    assert "app\\0.1.2-1\\" in (place / "stoker.cmd").read_text("utf-8")
    assert _calls(place)[len(second) :][0] == "-I -m stoker start"
    assert wine.registry("Software\\Stoker")["Current"] == "0.1.2-1"

    wine.run(place / "uninstall.exe", "/S")
    until(lambda: not place.exists())
    assert (data / "config.toml").exists()
    until(lambda: wine.registry("Software\\Stoker") == {})  # what it removes last
    assert wine.registry(UNINSTALL_KEY) == {}

    wine.run(_setup(tmp_path, python, icon, "0.1.4"), "/S", "/START=0")
    assert "-I -m stoker start" not in _calls(place)
    wine.run(place / "uninstall.exe", "/S", "/PURGE=1")
    until(lambda: not place.exists() and not data.exists())
    # But for the copy of the uninstaller, which removes itself at the next start of Windows.
    after = sorted(wine.prefix.joinpath("drive_c").rglob("*"))
    left = [path for path in after if path not in before and "Temp" not in path.parts]
    assert [path for path in left if path != place.parent] == []


@needs_wine
@pytest.mark.timeout(INSTALL_TIMEOUT_S)
def test_a_first_version_that_does_not_run_is_not_installed(
    tmp_path: Path, python: Path, icon: Path, wine: Wine
) -> None:
    """It says so by its exit code and leaves nothing behind."""
    done = wine.run(_setup(tmp_path, python, icon, "0.1.1", broken=True), "/S")

    assert done.returncode == 2
    assert not (wine.local / "Programs" / "Stoker").exists()
    assert wine.registry("Software\\Stoker") == {}


def test_another_python_than_the_one_named_is_refused(tmp_path: Path) -> None:
    """Its digest decides; nothing is fetched or built before."""
    if shutil.which("makensis") is None:
        pytest.skip("needs nsis")
    archive = tmp_path / "python.zip"
    archive.write_bytes(b"not what was named")

    words: list[str | Path] = [
        "--python-zip",
        archive,
        "--sha256",
        "0" * 64,
        "--output",
        tmp_path / "out",
    ]
    done = subprocess.run(
        [WINDOWS / "build.sh", *words], check=False, capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 1
    assert "has the digest" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_the_powershell_installer_has_the_options_of_the_shell_one() -> None:
    """PowerShell cannot be run here; at least the two must not drift apart."""
    shell = (ROOT / "installers" / "install.sh").read_text(encoding="utf-8")
    power = (ROOT / "installers" / "install.ps1").read_text(encoding="utf-8")

    words = re.findall(r"^    --([a-z-]+)[ )|=]", shell, re.MULTILINE)
    ours = {word.replace("-", "") for word in words}
    theirs = {name.lower() for name in re.findall(r"^\.PARAMETER (\w+)$", power, re.MULTILINE)}
    declared = {name.lower() for name in re.findall(r"^    \[\w+\] \$(\w+)", power, re.MULTILINE)}
    assert theirs == declared == ours - {"help"}
