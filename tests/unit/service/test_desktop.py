"""The text of the XDG entries: golden files, every odd path, and what real desktops make of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stoker_service import Part, Program, Record, Wish, desktop
from stoker_service.xdg import Folders, XdgAutostart, daemon_entry, tray_entry
from tests.fakes.golden import check_golden
from tests.fakes.service_home import BOTH, ODD, PROGRAM, at_home, odd_program, wish
from tests.fakes.unit_syntax import desktop_command, desktop_value, systemd_plain, systemd_words

GOLDEN = Path(__file__).parent / "golden" / "xdg"
WISHES = {
    "login": wish(),
    "own-home": wish(at_home("/home/me/AI models/stoker")),
    "odd-path": wish(odd_program()),
}
GENERATOR = Path("/usr/lib/systemd/user-generators/systemd-xdg-autostart-generator")
AS_IT_IS = ["nice", "-n", "0"]
ODD_NAMES = ["plain", 'it\'s "me" 100% é', "a=b", "%f %%", "a;b #c"]
texts = st.text(st.characters(exclude_categories=("Cs", "Cc")))
words = st.lists(texts, max_size=4).map(tuple)
paths = texts.map(lambda text: f"/{text}")


def both(chosen: Wish) -> dict[str, str]:
    """The entries' texts by part."""
    folders = Folders(Path("/home/me"), Path("/home/me/.config"))
    noted = Record((2,), PROGRAM.daemon, chosen.program.environment)
    return {
        part: entry.render(chosen, noted)[0].content  # type: ignore[union-attr]  # a file
        for part, entry in (("daemon", daemon_entry(folders)), ("tray", tray_entry(folders)))
    }


@pytest.mark.parametrize("name", WISHES)
def test_the_entries_are_as_reviewed(name: str) -> None:
    for part, text in both(WISHES[name]).items():
        check_golden(GOLDEN / f"{name}-{part}.desktop", text)


@given(program=paths, arguments=words, home=st.none() | texts)
@example(program=ODD, arguments=(ODD, "", "%f", "%%", "a=b", "~"), home=ODD)
@example(program="/a=b", arguments=(), home="/x")
def test_a_desktop_reads_the_command_line_as_it_was(
    program: str, arguments: tuple[str, ...], home: str | None
) -> None:
    environment = () if home is None else (("STOKER_HOME", home),)

    read = desktop_command(desktop.exec_line((program, *arguments), environment))

    assert re.fullmatch(r"/[\w./:@+,-]*", read[0])
    if read[0] != program:
        variables = [] if home is None else [f"STOKER_HOME={home}"]
        assert read[: 1 + len(variables)] == ["/usr/bin/env", *variables]
        read = read[1 + len(variables) :]
    if "=" in program:
        assert read[:3] == AS_IT_IS
        read = read[3:]
    assert read == [program, *arguments]


@given(program=paths)
def test_the_program_to_look_for_is_the_program(program: str) -> None:
    text = desktop.entry("Stoker", "", (program,), Record())

    found = re.search(r"^TryExec=(.*)$", text, re.MULTILINE)
    assert found
    assert desktop_value(found[1]) == program


@pytest.mark.skipif(shutil.which("desktop-file-validate") is None, reason="not installed")
@pytest.mark.parametrize("name", WISHES)
def test_the_validator_finds_no_fault(tmp_path: Path, name: str) -> None:
    files = []
    for part, text in both(WISHES[name]).items():
        files.append(tmp_path / f"{part}.desktop")
        files[-1].write_text(text, encoding="utf-8")

    told = subprocess.run(
        ["desktop-file-validate", *files], capture_output=True, text=True, timeout=60, check=False
    )

    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


@pytest.mark.skipif(not GENERATOR.exists(), reason="systemd's generator is not installed")
@pytest.mark.parametrize("name", ODD_NAMES)
def test_gnome_and_kde_start_the_program_by_systemd(tmp_path: Path, name: str) -> None:
    """They do not read the entry themselves but use this generator."""
    folder = tmp_path / name
    folder.mkdir()
    program = Program((), (), (str(executable(folder / "stoker-tray")),))
    back_end = XdgAutostart(Folders(tmp_path, tmp_path / ".config"))
    back_end.install([Part.TRAY], wish(at_home(str(folder), program)))
    out = tmp_path / "out"
    out.mkdir()

    subprocess.run(
        [GENERATOR, out, out, out],
        env={"HOME": str(tmp_path), "XDG_CONFIG_DIRS": str(tmp_path / "none")},
        check=True,
        timeout=60,
    )

    (unit,) = out.glob("app-stoker*tray@autostart.service")
    found = re.search(r"^ExecStart=:(.*)$", unit.read_text(), re.MULTILINE)  # no variables
    assert found
    as_it_is = AS_IT_IS if "=" in name else []
    assert [systemd_plain(word) for word in systemd_words(found[1])] == [
        "/usr/bin/env",
        f"STOKER_HOME={folder}",
        *as_it_is,
        *program.tray,
    ]


@pytest.mark.skipif(shutil.which("gio") is None, reason="GLib's tool is not installed")
@pytest.mark.parametrize("name", [*ODD_NAMES, "$HOME ${HOME} \\ \\s `", "back\\"])
def test_other_desktops_start_the_program_by_glib(tmp_path: Path, name: str) -> None:
    """The program really runs, with its home."""
    folder = tmp_path / name
    folder.mkdir()
    seen = tmp_path / "seen"
    tray = executable(folder / "stoker-tray", f'printf %s "$STOKER_HOME" >"{seen}"')
    home = at_home(str(folder), Program((), (), (str(tray),)))
    entry = tray_entry(Folders(tmp_path, tmp_path))
    XdgAutostart(Folders(tmp_path, tmp_path)).install([Part.TRAY], wish(home))

    subprocess.run(["gio", "launch", entry.anchor], check=True, timeout=60)

    deadline = time.monotonic() + 30
    while not (seen.exists() and seen.read_text()):  # it does not wait for the program
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert seen.read_text() == str(folder)


def executable(path: Path, line: str = "") -> Path:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return path


def test_a_path_that_gnome_cannot_start_is_told(xdg: XdgAutostart) -> None:
    told = xdg.install(BOTH, wish(odd_program()))

    assert [line.startswith("GNOME and KDE cannot") for line in told] == [False, True] * 2


# --- the back end ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ["Hidden=true", "Hidden = True", "X-GNOME-Autostart-enabled=false"]
)
def test_what_the_desktop_switched_off_is_off_until_asked_again(
    xdg: XdgAutostart, line: str
) -> None:
    xdg.install(BOTH, wish())
    anchor = tray_entry(xdg.folders).anchor
    text = anchor.read_text()
    anchor.write_text(f"{text}{line}\n")

    assert not xdg.status()[Part.TRAY].enabled
    assert xdg.status()[Part.DAEMON].enabled
    xdg.install([Part.TRAY], wish())

    assert xdg.status()[Part.TRAY].enabled
    assert anchor.read_text() == text


def test_a_program_that_is_gone_is_a_problem(xdg: XdgAutostart, tmp_path: Path) -> None:
    program = replace(PROGRAM, tray=(str(executable(tmp_path / "tray")),))
    xdg.install([Part.TRAY], wish(program))
    assert xdg.status()[Part.TRAY].problem is None

    (tmp_path / "tray").unlink()

    assert "is gone" in (xdg.status()[Part.TRAY].problem or "")


def test_one_switch_each(xdg: XdgAutostart) -> None:
    xdg.install([Part.TRAY], wish())
    assert [xdg.status()[part].enabled for part in Part] == [False, True]

    xdg.install([Part.DAEMON], wish())
    xdg.uninstall([Part.TRAY])

    assert [xdg.status()[part].enabled for part in Part] == [True, False]


def test_it_starts_and_stops_nothing(xdg: XdgAutostart) -> None:
    xdg.install(BOTH, wish())

    assert (xdg.start(), xdg.stop()) == (False, False)
