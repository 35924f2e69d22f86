"""The Debian package: what is in it, and its whole life in a Debian system of its own."""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from stoker import __version__
from tests.fakes.debian_root import UID, USER, DebianMissing, DebianRoot, debian_root

ROOT = Path(__file__).parents[2]
INSTALLERS = ROOT / "installers"
BUILD = INSTALLERS / "deb" / "build.sh"
MINORS = ("3.11", "3.12", "3.13", "3.14")
OWN_MINOR = "{}.{}".format(*sys.version_info)
NEXT = "99.0.0"
EPOCH = "1700000000"
QUESTION = "What is the capital of France? Answer in one short sentence."
BUILD_TIMEOUT_S = 400  # half a minute when the packages come quickly
ANSWER_TIMEOUT_S = 120  # the model is loaded first, on a machine that does other things
DEB_FILES = INSTALLERS / "deb" / "files"
SHELL_FILES = ("stoker", "stoker-tray", "bytecode", "stoker.rtupdate", "postinst", "prerm")
# What apt, dpkg and the packages that came along leave, and what is the user's.
NOT_OURS = (
    "/var/lib/apt/",
    "/var/lib/dpkg/",
    "/var/cache/",
    "/var/log/",
    f"/home/{USER}/",
    "/tmp/",
    "/srv/",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def _missing(reason: str) -> None:
    """In CI the package must be proven; elsewhere a developer may lack root or the tools."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"THE DEBIAN PACKAGE WAS NOT TESTED: {reason}")
    pytest.skip(f"THE DEBIAN PACKAGE WAS NOT TESTED: {reason}")


# --- building ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workshop:
    """The packages, and a Debian system to try them on."""

    first: Path  # this checkout, for every Python
    upgrade: Path  # the same as version 99, for this Python
    again: Path  # the upgrade, built once more
    debian: DebianRoot


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """Everything that takes long, at once."""
    tools = [tool for tool in ("dpkg-deb", "strip", "lintian") if shutil.which(tool) is None]
    if tools:
        _missing(f"not installed: {', '.join(tools)}")
    folder = tmp_path_factory.mktemp("deb")
    try:
        with debian_root() as debian:
            with debian.bootstrapping():
                first = _build(ROOT, folder / "first")
                one, other = _checkouts(folder / "one", folder / "quite another place")
                upgrade = _build(one, folder / "upgrade", "--python", OWN_MINOR)
                again = _build(other, folder / "again", "--python", OWN_MINOR, TZ="Asia/Kolkata")
            yield Workshop(first, upgrade, again, debian)
    except DebianMissing as error:
        _missing(str(error))


def _build(checkout: Path, output: Path, *options: str, **environ: str) -> Path:
    settings = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "PYTHON": sys.executable, **environ}
    script = checkout / BUILD.relative_to(ROOT)
    done = subprocess.run(
        [script, "--fast", "--output", output, *options],
        check=False,
        env=settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


def _checkouts(copy: Path, other: Path) -> tuple[Path, Path]:
    """This checkout as another version, in two places."""
    for name in ("daemon", "tray", "service_files", "installers"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    (copy / "daemon/stoker/__init__.py").write_text(f'__version__ = "{NEXT}"\n')
    shutil.copytree(copy, other)
    return copy, other


@pytest.fixture(scope="module")
def unpacked(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["dpkg-deb", "--extract", workshop.first, folder], check=True, timeout=60)
    return folder


# --- what is in it -------------------------------------------------------------------------------


def test_lintian_finds_nothing(workshop: Workshop) -> None:
    """No error and no warning; each override in it has its reason beside it."""
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", workshop.first],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert (done.returncode, done.stdout) == (0, "")


def test_the_same_source_gives_the_same_bytes(workshop: Workshop) -> None:
    """Whatever the folder, the time and the zone of the build."""
    assert filecmp.cmp(workshop.upgrade, workshop.again, shallow=False)


def test_the_name_tells_version_and_architecture(workshop: Workshop) -> None:
    """As apt and people expect it."""
    architecture = subprocess.check_output(["dpkg", "--print-architecture"], text=True).strip()

    assert workshop.first.name == f"stoker_{__version__}_{architecture}.deb"


def test_it_asks_for_a_python_that_it_serves(unpacked: Path, workshop: Workshop) -> None:
    """The range of its Depends is that of the Pythons it has libraries for."""
    control = subprocess.check_output(["dpkg-deb", "--field", workshop.first], text=True)

    served = {path.name for path in (unpacked / "usr/lib/stoker/lib").iterdir()}

    assert "python3 (>= 3.11), python3 (<< 3.15)" in control
    assert served == {"python3", *(f"python{minor}" for minor in MINORS)}


@pytest.mark.parametrize(
    "options",
    [("--wrong",), ("--output",), ("--python", "3.9"), ("--python", "3.11", "--python", "3.13")],
)
def test_a_wrong_wish_builds_nothing(tmp_path: Path, options: tuple[str, ...]) -> None:
    """It is told in one line."""
    done = subprocess.run(
        [BUILD, *(() if options == ("--output",) else ("--output", tmp_path / "out")), *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert list(tmp_path.iterdir()) == []


def test_the_menu_entry_is_valid() -> None:
    """Its icon and programs are those of the package."""
    entry = DEB_FILES / "stoker-tray.desktop"
    if shutil.which("desktop-file-validate"):
        subprocess.run(["desktop-file-validate", entry], check=True, timeout=30)

    text = entry.read_text(encoding="utf-8")
    assert set(re.findall(r"^Exec=(\S+)", text, re.MULTILINE)) == {"stoker", "stoker-tray"}
    assert "Icon=stoker\n" in text


def test_no_place_of_the_builder_is_in_it(unpacked: Path) -> None:
    """Nothing of it names the checkout that it was built from."""
    place = str(ROOT).encode()
    files = [path for path in unpacked.rglob("*") if path.is_file()]

    assert len(files) > 1000
    assert [str(path) for path in files if place in path.read_bytes()] == []


def test_every_library_in_it_has_its_licence(unpacked: Path) -> None:
    """The copyright file has a paragraph for each, and for the engine that is compiled in."""
    text = (unpacked / "usr/share/doc/stoker/copyright").read_text(encoding="utf-8")
    top = {
        path.name
        for path in (unpacked / "usr/lib/stoker/lib").glob("*/site-packages/*")
        if path.name not in {"stoker", "stoker_tray", "stoker_service", "stoker.pth"}
        and path.suffix not in {".dist-info", ".libs"}
    }

    named = set(re.findall(r"site-packages/([^/\s]+)", text))

    assert top - named == set()
    assert "ggml authors" in text


def _python(minor: str) -> Path | None:
    """A Python of this minor version on this machine."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    places = [
        *pyenv.glob(f"versions/{minor}.*/bin"),
        Path(sys.base_prefix, "bin"),
        Path("/usr/bin"),
    ]
    found = (place / f"python{minor}" for place in places)
    return next((path for path in found if path.exists()), None)


@pytest.mark.parametrize("minor", MINORS)
def test_it_serves_every_python_that_it_names(unpacked: Path, tmp_path: Path, minor: str) -> None:
    """With each, all of its compiled libraries load, and so does the daemon."""
    python = _python(minor)
    if python is None:
        pytest.skip(f"NOT TRIED WITH PYTHON {minor}: this machine has none")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").symlink_to(python)
    (tmp_path / "lib").symlink_to(unpacked / "usr/lib/stoker/lib")
    (tmp_path / "pyvenv.cfg").write_text(f"home = {python.parent}\n")
    modules = [
        ".".join((*path.relative_to(place).parent.parts, path.name.split(".")[0]))
        for place in (tmp_path / f"lib/python{part}/site-packages" for part in ("3", minor))
        for path in place.rglob("*.so")
    ]

    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    done = subprocess.run(
        [tmp_path / "bin/python3", "-I", "-B", "-c", code, *modules, "stoker.serve", "stoker.cli"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert len(modules) > 10
    assert done.returncode == 0, done.stderr


# --- its life ------------------------------------------------------------------------------------


@pytest.mark.e2e
def test_install_answer_upgrade_remove_and_purge(workshop: Workshop, starter_gguf: Path) -> None:
    """A daemon answers, goes on as the new version after an upgrade, and ends with the package.

    Nothing of the package is left then, and what is the user's stays.
    """
    debian = workshop.debian
    before = debian.files()

    told = _apt(debian, "install", debian.put(workshop.first, "/tmp"))
    assert "stoker autostart on" in told
    assert debian.processes() == [], "installing starts nothing"
    _check_environment(debian)

    assert debian.run("stoker-tray", "--version", user=USER).strip() == f"stoker-tray {__version__}"

    as_user = {"user": USER, "STOKER_PORT": "0"}
    model = debian.put(starter_gguf, "/srv")
    debian.run("stoker", "start", **as_user)
    debian.run("stoker", "import", model, "--name", "starter", **as_user)
    assert "Paris" in _answer(debian)
    old = _daemon(debian)
    assert old["version"] == __version__

    told = _apt(debian, "install", debian.put(workshop.upgrade, "/tmp"))
    new = _daemon(debian)
    assert f"restarting the daemon of {USER}" in told
    assert (new["version"], new["pid"] != old["pid"]) == (NEXT, True)
    assert {process.uids().real for process in debian.processes()} == {UID}
    assert "Paris" in _answer(debian), "the model is still there"

    told = _apt(debian, "remove", "stoker")
    assert f"stopping the daemon of {USER}" in told
    assert debian.processes() == []
    debian.run("dpkg", "--purge", "stoker")
    _apt(debian, "autoremove", "--purge")
    left = {path for path in debian.files() - before if not path.startswith(NOT_OURS)}
    assert left == set()
    kept = debian.outside(f"/home/{USER}/.local/share/stoker/store/blobs")
    assert any(path.stat().st_size == starter_gguf.stat().st_size for path in kept.rglob("*"))


def _apt(debian: DebianRoot, *words: str) -> str:
    return debian.run(
        "apt-get", "-y", "-q", "-o", "Dpkg::Use-Pty=0", "--no-install-recommends", *words
    )


def _check_environment(debian: DebianRoot) -> None:
    """Its libraries fit together, and the system's that they need come from its Depends."""
    debian.run("/usr/lib/stoker/bin/python3", "-I", "-m", "pip", "check")
    linked = debian.run("sh", "-c", "find /usr/lib/stoker -name '*.so*' -type f | xargs ldd")
    assert "not found" not in linked
    used = set(re.findall(r"=> /(?!usr/lib/stoker)\S+/(\S+)", linked))
    owners = debian.run("dpkg", "--search", *(f"*/{name}" for name in sorted(used)))
    needed = {line.split(":")[0] for line in owners.splitlines()}
    depends = debian.run("dpkg-query", "--show", "--showformat=${Depends}", "stoker")
    assert needed - set(re.findall(r"[a-z][a-z0-9+.-]+", depends)) == set()
    assert {"libc6", "libgomp1"} <= needed


def _daemon(debian: DebianRoot) -> dict[str, object]:
    """What the user's daemon says about itself."""
    status = json.loads(debian.run("stoker", "status", "--json", user=USER))
    return {**status["daemon"], **status["server"]}


def _answer(debian: DebianRoot) -> str:
    """The starter's answer to a question that anybody can check, through the endpoint."""
    body = {
        "model": "starter",
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": 60,
    }
    request = urllib.request.Request(
        f"{_daemon(debian)['base_url']}/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=ANSWER_TIMEOUT_S) as response:
        answer: str = json.load(response)["choices"][0]["message"]["content"]
    return answer


# --- its scripts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [BUILD, INSTALLERS / "lock.sh", *(DEB_FILES / name for name in SHELL_FILES)],
    ids=lambda path: path.name,
)
def test_a_script_is_sound_shell(script: Path) -> None:
    """It parses, may be run, and shellcheck finds nothing."""
    shell = script.read_text(encoding="utf-8").splitlines()[0].rsplit("/", maxsplit=1)[-1]
    subprocess.run(["bash" if "bash" in shell else "sh", "-n", script], check=True, timeout=30)
    assert script.stat().st_mode & 0o111

    if shutil.which("shellcheck"):
        done = subprocess.run(
            ["shellcheck", "-S", "warning", script],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout == ""
