"""The Homebrew formula and the package's layout: made, and checked as files."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from stoker import __version__

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "installers" / "macos" / "build.sh"
DIGEST = "0123456789abcdef" * 4


def _build(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BUILD, *words], check=False, capture_output=True, text=True, timeout=60)


def test_the_formula_names_version_digest_and_locks(tmp_path: Path) -> None:
    """It is sound Ruby, pins the release, and installs from the lock files alone."""
    assert _build("--sha256", DIGEST, "--output", tmp_path).returncode == 0

    formula = (tmp_path / "stoker.rb").read_text(encoding="utf-8")
    assert f"/v{__version__}.tar.gz" in formula
    assert f'sha256 "{DIGEST}"' in formula
    assert "--require-hashes" in formula
    assert "@" not in re.sub(r"python@3\.\d+|\$@", "", formula)  # every place was filled
    for name in re.findall(r'"(installers/[^"]+)"', formula):
        assert (ROOT / name).is_file(), name
    if shutil.which("ruby"):
        subprocess.run(["ruby", "-c", tmp_path / "stoker.rb"], check=True, timeout=60)


def test_the_package_holds_all_that_its_script_runs(tmp_path: Path) -> None:
    """The payload is an installable checkout; the script is sound shell and names a file in it."""
    assert _build("--sha256", DIGEST, "--output", tmp_path).returncode == 0

    pkg = tmp_path / "pkg"
    script = (pkg / "scripts" / "postinstall").read_text(encoding="utf-8")
    (folder,) = re.findall(r'^source_folder="(/[^"]+)"$', script, re.MULTILINE)
    source = pkg / "payload" / folder.lstrip("/")
    assert (source / "installers" / "install.sh").stat().st_mode & 0o755 == 0o755
    for name in ("daemon", "tray", "service_files", "pyproject.toml"):
        assert (source / name).exists()
    assert not list(source.rglob("*.pyc"))
    subprocess.run(["sh", "-n", pkg / "scripts" / "postinstall"], check=True, timeout=10)
    root = ET.parse(pkg / "distribution.xml").getroot()  # noqa: S314  # our own file
    versions = [ref.get("version") for ref in root.iter("pkg-ref") if ref.get("version")]
    assert versions == [__version__]


@pytest.mark.parametrize("words", [(), ("--sha256", "abc"), ("--sha256",), ("--wrong",)])
def test_without_a_digest_nothing_is_made(tmp_path: Path, words: tuple[str, ...]) -> None:
    """It says what is missing."""
    done = _build(*words, "--output", tmp_path)

    assert done.returncode == 1
    assert done.stderr.startswith("build.sh: ")
    assert list(tmp_path.iterdir()) == []
