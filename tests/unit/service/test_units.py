"""The text of the systemd units: golden files, every odd path, and systemd's own opinion."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stoker_service import Program, Record, Wish, units
from tests.fakes.golden import check_golden
from tests.fakes.service_home import ODD, PROGRAM, at_home, odd_program, wish
from tests.fakes.unit_syntax import systemd_command, systemd_plain, systemd_words

GOLDEN = Path(__file__).parent / "golden" / "systemd"
MADE = Record(made=(3, 3, 0, 4, 4), program=PROGRAM.daemon)
WISHES = {
    "login": wish(),
    "on-demand": wish(on_demand=True),
    "own-home": wish(at_home("/home/me/AI models/stoker"), drain_s=2.5),
    "odd-path": wish(odd_program()),
    "ipv6": wish(host="::1", port=4329),
    "free-port": wish(port=0),
}
words = st.lists(
    st.text(st.characters(exclude_categories=("Cs", "Cc"))), min_size=0, max_size=4
).map(tuple)
paths = st.text(st.characters(exclude_categories=("Cs", "Cc"))).map(lambda text: f"/{text}")
needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here"
)


@pytest.mark.parametrize("name", WISHES)
def test_the_units_are_as_reviewed(name: str) -> None:
    chosen = WISHES[name]
    noted = replace(MADE, environment=chosen.program.environment, on_demand=chosen.on_demand)

    check_golden(GOLDEN / f"{name}.service", units.service(chosen, noted))
    if units.has_socket(chosen):
        check_golden(GOLDEN / f"{name}.socket", units.socket(chosen))


def test_the_drop_in_is_as_reviewed() -> None:
    text = units.hardened([Path("/home/me/.local/share/stoker"), Path("/home/me/100 %")])

    check_golden(GOLDEN / "10-hardened.conf", text)


@given(program=paths, arguments=words)
@example(program=ODD, arguments=(ODD, "", ";", "$$", "%%", "a\\x20b", "${HOME}", "~", "#"))
def test_systemd_reads_the_command_line_as_it_was(program: str, arguments: tuple[str, ...]) -> None:
    read = systemd_command(units.exec_line((program, *arguments)))

    direct = [program, *arguments]
    assert read in (direct, ["/bin/sh", "-c", 'exec "$0" "$@"', *direct])


@given(value=paths)
@example(value=ODD)
def test_systemd_reads_the_variables_as_they_were(value: str) -> None:
    text = units.service(wish(at_home(value)), Record())

    (line,) = re.findall(r"^Environment=(.*)$", text, re.MULTILINE)
    assert [systemd_plain(word) for word in systemd_words(line)] == [f"STOKER_HOME={value}"]


@given(program=paths)
@example(program="/a b/100%\\")
def test_the_condition_names_the_program_or_is_left_out(program: str) -> None:
    """It takes the rest of the line; what cannot be written so must not be written at all."""
    text = units.socket(wish(Program((program, "serve"), (), ())))

    lines = re.findall(r"^ConditionFileIsExecutable=(.*)$", text, re.MULTILINE)
    assert [systemd_plain(line.strip()) for line in lines] in ([program], [])
    assert lines or program != program.strip() or program.endswith("\\")


def test_a_service_manager_waits_longer_than_the_daemon_drains() -> None:
    text = units.service(wish(drain_s=300.2), Record())

    assert "\nTimeoutStopSec=316\n" in text


# --- systemd's own opinion -------------------------------------------------------------------


def analyze(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--user", *arguments],
        env={"XDG_RUNTIME_DIR": str(folder), "HOME": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def write(folder: Path, chosen: Wish) -> list[str]:
    files = {units.SERVICE: units.service(chosen, MADE)}
    if units.has_socket(chosen):
        files[units.SOCKET] = units.socket(chosen)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [str(folder / name) for name in files]


@needs_analyze
@pytest.mark.parametrize("name", WISHES)
def test_systemd_finds_no_fault(tmp_path: Path, name: str) -> None:
    """Not even that a program is missing: this one exists, in a folder with an odd name."""
    folder = tmp_path / 'it\'s "odd" $HOME % \\ é'
    folder.mkdir()
    program = folder / "stoker"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    chosen = replace(WISHES[name], program=at_home(str(folder), Program((str(program),), (), ())))

    verified = analyze(tmp_path, "verify", *write(tmp_path, chosen))

    assert (verified.returncode, verified.stderr) == (0, "")


@needs_analyze
def test_systemd_sees_the_confinement(tmp_path: Path) -> None:
    """Its score of exposure is 8.0 for the plain unit; the drop-in lowers it."""
    service, _socket = write(tmp_path, wish())
    plain = exposure(tmp_path, service)
    with Path(service).open("a", encoding="utf-8") as stream:
        stream.write(units.hardened([tmp_path]))

    assert plain <= 8.0
    assert exposure(tmp_path, service) <= 6.5


def exposure(folder: Path, unit: str) -> float:
    told = analyze(folder, "security", "--offline=yes", "--no-pager", unit)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", told.stdout)
    assert found, told
    return float(found[1])
