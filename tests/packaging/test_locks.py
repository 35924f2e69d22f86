"""The lock files: what the installers fetch is pinned, and is what the project asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
INSTALLERS = ROOT / "installers"
LOCKS = ("requirements.lock", "build.lock")


def _locked(name: str) -> dict[str, str]:
    """The pinned packages of a lock file and their versions."""
    text = (INSTALLERS / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


def test_the_locks_satisfy_what_the_project_asks_for() -> None:
    """Each dependency of pyproject.toml is pinned to a version that it allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = {
        "requirements.lock": project["project"]["dependencies"],
        "build.lock": [*project["build-system"]["requires"], "pip"],
    }

    for lock, requirements in asked.items():
        locked = _locked(lock)
        for line in requirements:
            wish = Requirement(line)
            assert wish.specifier.contains(locked[canonicalize_name(wish.name)]), line


@pytest.mark.parametrize("name", LOCKS)
def test_every_file_of_a_lock_is_pinned_by_digest(name: str) -> None:
    """For every system; and no registry is named."""
    lines = (INSTALLERS / name).read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if "==" in line]
    digests = [
        line for line in lines if re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line)
    ]

    assert len(digests) > len(pins) > 5
    assert len(pins) + len(digests) + len([line for line in lines if line[:1] == "#"]) == len(lines)
    assert [line for line in lines if "://" in line] == []
