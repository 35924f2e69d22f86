"""The installers: sound shell, clear answers, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from stoker import __version__
from stoker_service import record
from tests import conftest

ROOT = Path(__file__).parents[2]
INSTALL = ROOT / "installers" / "install.sh"
UNINSTALL = ROOT / "installers" / "uninstall.sh"
SCRIPTS = (INSTALL, UNINSTALL, ROOT / "tests" / "run.sh", ROOT / ".ci" / "run")
INSTALL_TIMEOUT_S = 600  # a slow package index
HOME = 'it\'s a $HOME "é"'  # everything must be quoted
TOOLS = "sh cat chmod cksum cut date df dirname find grep head id ls mkdir mv readlink rm rmdir"
TOOLS += " sed sleep sort tail tr uname awk basename ln"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="shell scripts")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound_shell(script: Path) -> None:
    """It parses in bash and, where it claims to be sh, in sh; shellcheck finds nothing."""
    shell = script.read_text(encoding="utf-8").splitlines()[0].rsplit("/", maxsplit=1)[-1]
    for program in {"bash", "bash" if "bash" in shell else "sh"}:
        subprocess.run([program, "-n", script], check=True, timeout=30)
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


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A bare machine: a home, and a PATH with the basic tools but no Python."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in TOOLS.split():
        found = shutil.which(name)
        assert found, name
        (tools / name).symlink_to(found)
    (tmp_path / HOME).mkdir()
    return tmp_path


def _program(machine: Path, name: str, body: str) -> None:
    path = machine / "tools" / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def _env(machine: Path) -> dict[str, str]:
    return {"HOME": str(machine / HOME), "PATH": str(machine / "tools")}


def _run(
    machine: Path, script: Path, *args: str, extra: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", script, *args],
        check=False,
        env={**_env(machine), **(extra or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT_S,
    )


def _home(machine: Path) -> list[str]:
    home = machine / HOME
    return sorted(str(path.relative_to(home)) for path in home.rglob("*"))


@pytest.mark.parametrize("script", [INSTALL, UNINSTALL], ids=["install", "uninstall"])
def test_help_is_given_and_does_nothing(machine: Path, script: Path) -> None:
    """--help prints the options and touches no file."""
    done = _run(machine, script, "--help")

    assert done.returncode == 0
    assert "--prefix DIR" in done.stdout
    assert _home(machine) == []


@pytest.mark.parametrize("script", [INSTALL, UNINSTALL], ids=["install", "uninstall"])
@pytest.mark.parametrize("args", [("--wrong",), ("--prefix",), ("--prefix", "")])
def test_a_wrong_option_changes_nothing(machine: Path, script: Path, args: tuple[str, ...]) -> None:
    """It is named, and nothing is touched."""
    done = _run(machine, script, *args)

    assert done.returncode == 1
    assert args[0] in done.stderr
    assert _home(machine) == []


@pytest.mark.parametrize(
    ("manager", "command"),
    [
        ("apt-get", "apt-get install -y python3-venv"),
        ("dnf", "dnf install -y python3.12"),
        ("pacman", "pacman -S --needed python"),
        ("zypper", "zypper install -y python312"),
        ("apk", "apk add python3 py3-pip"),
        ("brew", "brew install python@3.13"),
    ],
)
def test_without_python_the_mending_command_is_told(
    machine: Path, manager: str, command: str
) -> None:
    """Each system gets its own command, and nothing is touched."""
    _program(machine, manager, "exit 1")
    _program(machine, "apt-cache", "echo 'Version: 3.11.2-1'")

    done = _run(machine, INSTALL)

    assert done.returncode == 1
    assert "Python 3.11 or newer is needed" in done.stderr
    assert command in done.stderr
    assert _home(machine) == []


def test_on_an_old_debian_a_newer_python_is_named(machine: Path) -> None:
    """Where python3 is too old but a newer one is packaged, that one is told."""
    _program(machine, "apt-get", "exit 1")
    _program(
        machine,
        "apt-cache",
        'case $2 in python3) echo "Version: 3.10.6-1" ;; python3.12-venv) ;; *) exit 1 ;; esac',
    )
    _program(machine, "python3", "exit 1")  # too old: every check of its version fails

    done = _run(machine, INSTALL)

    assert done.returncode == 1
    assert "apt-get install -y python3.12-venv" in done.stderr


def test_a_python_without_venv_is_told_apart(machine: Path) -> None:
    """On Debian the venv module is a package of its own, named after the version."""
    _program(machine, "apt-get", "exit 1")
    _program(
        machine,
        "python3",
        'case "$*" in *ensurepip*) exit 1 ;; *print*) echo python3.11-venv ;; '
        "-V) echo Python 3.11.2 ;; esac",
    )

    done = _run(machine, INSTALL)

    assert done.returncode == 1
    assert "Python 3.11.2 is here, but its venv module is not" in done.stderr
    assert "apt-get install -y python3.11-venv" in done.stderr
    assert _home(machine) == []


@pytest.mark.parametrize("prefix", ["/", "HOME"])
def test_a_folder_that_is_not_for_stoker_alone_is_refused(machine: Path, prefix: str) -> None:
    """Neither script works in the root or in a person's home itself."""
    folder = str(machine / HOME) if prefix == "HOME" else prefix
    keep = machine / HOME / "store"
    keep.mkdir()

    for script in (INSTALL, UNINSTALL):
        done = _run(machine, script, extra={"STOKER_HOME": folder})
        assert done.returncode == 1
        assert "not a folder for Stoker alone" in done.stderr
    assert keep.exists()


def test_an_install_that_fails_leaves_nothing_half_done(machine: Path) -> None:
    """When the packages cannot be installed, the reason is shown and no environment stays."""
    _program(
        machine,
        "python3",
        'case "$*" in *venv*" "*) echo "no network" >&2; exit 1 ;; esac\nexit 0',
    )

    done = _run(machine, INSTALL)

    assert done.returncode == 1
    assert "could not be installed" in done.stderr
    app = machine / HOME / ".local" / "share" / "stoker" / "app"
    assert [path.name for path in app.iterdir()] == ["install.log"]
    assert not (machine / HOME / ".local" / "bin" / "stoker").exists()


def test_removing_what_is_not_there_is_fine(machine: Path) -> None:
    """Uninstalling twice is no error."""
    for _ in range(2):
        done = _run(machine, UNINSTALL, "--purge")
        assert done.returncode == 0, done.stderr


def test_a_purge_spares_what_is_not_ours(machine: Path) -> None:
    """In a home that somebody chose, only what Stoker makes is removed."""
    home = machine / "chosen"
    for path in ("store/blobs/x", "state/daemon.lock", "run/empty/x", "config.toml", "diary.txt"):
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text("x")

    done = _run(machine, UNINSTALL, "--purge", extra={"STOKER_HOME": str(home)})

    assert done.returncode == 0, done.stderr
    assert [path.name for path in home.iterdir()] == ["diary.txt"]
    assert "not Stoker's" in done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of this checkout, which a test may turn into another version."""
    copy = tmp_path / "a checkout"
    copy.mkdir()
    for name in ("daemon", "tray", "service_files", "installers"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def _with_python(machine: Path) -> dict[str, str]:
    """Give the machine this Python; the settings with which its pip reaches the package index."""
    _program(machine, "python3", f'exec "{sys.base_prefix}/bin/python3" "$@"')
    return {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}


def _set_version(checkout: Path, version: str) -> None:
    (checkout / "daemon/stoker/__init__.py").write_text(f'__version__ = "{version}"\n')


def _version(command: Path) -> str:
    return subprocess.check_output([command, "--version"], text=True, timeout=60).strip()


@pytest.mark.slow
@pytest.mark.timeout(INSTALL_TIMEOUT_S)
def test_install_upgrade_and_remove_for_real(machine: Path, checkout: Path) -> None:
    """Installing again does nothing, an upgrade keeps the settings, a purge leaves nothing."""
    pip = _with_python(machine)
    install, uninstall = (checkout / "installers" / name for name in (INSTALL.name, UNINSTALL.name))
    home = machine / HOME
    app, command = home / ".local/share/stoker/app", home / ".local/bin/stoker"

    def installed() -> str:
        done = _run(machine, install, "--no-start", "--no-model", extra=pip)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    told = installed()
    assert "is not on your PATH" in told
    assert "start at login; to undo: " in told
    assert _version(command) == f"stoker {__version__}"
    assert _version(command.with_name("stoker-tray")) == f"stoker-tray {__version__}"
    entries = home / ".config/autostart"
    noted = record.read(entries / "stoker.desktop")
    assert noted is not None
    assert noted.program == (str(command), "start"), "the launcher, which outlives this version"
    assert sorted(path.name for path in entries.iterdir()) == [
        "stoker-tray.desktop",
        "stoker.desktop",
    ]
    first = (app / "current").resolve()

    (app / "0.0.0-broken").mkdir()  # what a killed installer leaves
    subprocess.run(
        [command, "autostart", "off", "--tray"], check=True, timeout=60, env=_env(machine)
    )
    told = installed()
    assert "already there" in told
    assert "start at login" not in told
    assert [path.name for path in entries.iterdir()] == ["stoker.desktop"], "as the user left it"
    assert (app / "current").resolve() == first
    assert not (app / "0.0.0-broken").exists()

    config = home / ".config/stoker/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("port = 4999\n")
    _set_version(checkout, "99.0.0")
    installed()
    assert _version(command) == "stoker 99.0.0"
    assert first.is_dir(), "the last good one is kept"

    kept = _run(machine, uninstall)
    assert (kept.returncode, config.exists(), app.exists()) == (0, True, False), kept.stderr
    assert not command.is_symlink()
    purged = _run(machine, uninstall, "--purge")
    assert purged.returncode == 0, purged.stderr
    assert [name for name in _home(machine) if "stoker" in name and ".cache" not in name] == []


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(INSTALL_TIMEOUT_S)
def test_an_answer_a_failing_upgrade_and_no_process_left(
    machine: Path, checkout: Path, starter_gguf: Path
) -> None:
    """The install ends with an answer; an upgrade that fails goes back; removal ends it all."""
    pip = {**_with_python(machine), "STOKER_PORT": "0"}
    install, uninstall = (checkout / "installers" / name for name in (INSTALL.name, UNINSTALL.name))
    prefix = machine / "all of it"
    command = prefix / "bin" / "stoker"
    try:
        words = ("--prefix", str(prefix), "--model", str(starter_gguf), "--no-autostart")
        done = _run(machine, install, *words, extra=pip)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not (machine / HOME / ".config").exists()
        question, answer = done.stdout.partition("\n> ")[2].splitlines()[:2]
        assert "capital of France" in question
        assert "Paris" in answer
        assert "http://127.0.0.1:" in done.stdout

        _set_version(checkout, "99.0.0")
        (checkout / "daemon/stoker/serve.py").write_text("raise SystemExit(7)\n")
        broken = _run(machine, install, "--prefix", str(prefix), "--no-model", extra=pip)
        assert broken.returncode == 1
        assert "The version before is in use again" in broken.stdout
        assert _version(command) == f"stoker {__version__}"
        asked: list[str | Path] = [
            command,
            "run",
            starter_gguf.stem.lower(),
            "--max-tokens",
            "8",
            "Hello",
        ]
        subprocess.run(asked, env=_env(machine), check=True, timeout=100)
        assert len(conftest._processes_of(prefix)) >= 1
    finally:
        removed = _run(machine, uninstall, "--purge", "--prefix", str(prefix))
    assert removed.returncode == 0, removed.stdout + removed.stderr
    assert conftest._processes_of(prefix) == []
    assert not prefix.exists()
