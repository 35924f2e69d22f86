"""The pinned sources, and what lies among the runtimes. Installs: tests/integration."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

from stoker import paths
from stoker.errors import InternalError, RuntimeUnsupported
from stoker.runtimes import install, tidy
from stoker.runtimes.pins import parse, pins
from stoker.settings import Settings
from tests.fakes.hardware import machine

ROOT = Path(__file__).parents[3]


def test_the_catalogue_and_pyproject_name_the_same_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    native, wheels = pins().native, pins().wheels

    assert project["optional-dependencies"]["native"] == [f"{native.package}=={native.version}"]
    assert f"{wheels.package}=={wheels.version}" in project["dependencies"]


def test_every_tool_is_pinned_by_digest() -> None:
    names = {tool.package for tool in pins().native.tools}

    assert names == {"scikit-build-core", "pathspec", "packaging", "cmake", "ninja"}
    for tool in pins().native.tools:
        assert len(set(tool.sha256)) == len(tool.sha256)
        assert tool.requirement.startswith(f"{tool.package}=={tool.version} --hash=sha256:")


def test_indexes_are_the_project_s_own_over_https() -> None:
    wheels = pins().wheels

    assert wheels.index.startswith("https://")
    assert set(wheels.variants) == {"cuda", "rocm", "vulkan"}


@pytest.mark.parametrize("text", ["format = 2", "not toml", "format = 1\n[native]\npackage = 1"])
def test_a_damaged_catalogue_is_our_own_fault(text: str) -> None:
    with pytest.raises(InternalError):
        parse(text)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_or_a_file_goes_and_what_it_points_to_stays(tmp_path: Path) -> None:
    places = paths.from_environment({"STOKER_HOME": str(tmp_path / "home")})
    places.runtimes.mkdir(parents=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine").write_text("x")
    (places.runtimes / ".partial-1").symlink_to(other)
    (places.runtimes / ".partial-2").symlink_to(tmp_path / "nowhere")
    (places.runtimes / ".partial-3").write_text("x")

    assert tidy.sweep(places) == 3
    assert list(places.runtimes.iterdir()) == []
    assert (other / "mine").exists()


def test_the_sweep_takes_only_what_killed_installs_left(tmp_path: Path) -> None:
    places = paths.from_environment({"STOKER_HOME": str(tmp_path)})
    assert tidy.sweep(places) == 0
    for name in (".partial-0123", ".partial-4567", "a-runtime"):
        (places.runtimes / name / "deep").mkdir(parents=True)

    assert tidy.sweep(places) == 2
    assert [path.name for path in places.runtimes.iterdir()] == ["a-runtime"]


@pytest.mark.anyio
async def test_metal_is_for_macos(tmp_path: Path) -> None:
    places = paths.from_environment({"STOKER_HOME": str(tmp_path)})

    with pytest.raises(RuntimeUnsupported):
        await install.install(
            "metal",
            places=places,
            hardware=machine(),
            settings=Settings(),
            progress=lambda _share, _words: None,
        )
    assert not places.runtimes.exists()
