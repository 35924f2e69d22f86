"""The LaunchAgents: golden files, what other readers make of them, and what launchctl is asked."""

from __future__ import annotations

import plistlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stoker.errors import AutostartBlocked, AutostartFailed
from stoker_service import Part, Program, Record, Wish
from stoker_service.commands import Result
from stoker_service.launchd import LABELS, LaunchdAutostart, agent, agent_entry
from tests.fakes.golden import check_golden
from tests.fakes.service_home import BOTH, ODD, FakeRunner, at_home, odd_program, tree, wish

GOLDEN = Path(__file__).parent / "golden" / "launchd"
WISHES = {
    "login": wish(),
    "own-home": wish(at_home("/Users/me/AI models/stoker"), drain_s=2.5),
    "odd-path": wish(odd_program()),
}
LOGS = Path("/Users/me/Library/Application Support/stoker/logs")
TARGET = f"gui/501/{LABELS[Part.DAEMON]}"
texts = st.text(st.characters(exclude_categories=("Cs", "Cc")))


def texts_of(chosen: Wish) -> dict[Part, str]:
    noted = Record((2,), environment=chosen.program.environment)
    return {part: agent(part, chosen, noted, LOGS) for part in Part}


@pytest.mark.parametrize("name", WISHES)
def test_the_agents_are_as_reviewed(name: str) -> None:
    for part, text in texts_of(WISHES[name]).items():
        check_golden(GOLDEN / f"{name}-{part}.plist", text)


@given(program=texts, argument=texts, home=texts)
@example(program=ODD, argument="-->", home="--<&>")
def test_launchd_reads_what_was_meant(program: str, argument: str, home: str) -> None:
    chosen = wish(at_home(home, Program((program, argument), (), ())))

    read = plistlib.loads(agent(Part.DAEMON, chosen, Record(), None).encode())

    assert read["ProgramArguments"] == [program, argument]
    assert read["EnvironmentVariables"]["STOKER_HOME"] == home
    assert "StandardErrorPath" not in read


@pytest.mark.parametrize("name", WISHES)
@pytest.mark.parametrize("reader", ["xmllint --noout --nonet", "plistutil -f json -i"])
def test_other_readers_find_no_fault(tmp_path: Path, name: str, reader: str) -> None:
    words = reader.split()
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    for part, text in texts_of(WISHES[name]).items():
        file = tmp_path / f"{part}.plist"
        file.write_text(text, encoding="utf-8")
        told = subprocess.run(
            [*words, file], capture_output=True, text=True, timeout=60, check=False
        )
        assert (told.returncode, told.stderr) == (0, "")


def test_an_own_switch_for_each_part(launchd: LaunchdAutostart, home: Path) -> None:
    launchd.install([Part.TRAY], wish())
    assert [launchd.status()[part].enabled for part in Part] == [False, True]

    launchd.install([Part.DAEMON], wish())
    launchd.uninstall([Part.TRAY])

    assert [launchd.status()[part].enabled for part in Part] == [True, False]
    assert len([name for name in tree(home) if name.endswith(".plist")]) == 1


def test_what_the_user_switched_off_stays_off(
    launchd: LaunchdAutostart, runner: FakeRunner, home: Path
) -> None:
    for word in ("disabled", "true"):
        runner.answers["print-disabled"] = Result(0, f'\t"{LABELS[Part.DAEMON]}" => {word}\n')

        with pytest.raises(AutostartBlocked, match="Login Items") as raised:
            launchd.install([Part.DAEMON], wish())

        assert f"launchctl enable {TARGET}" in raised.value.hint
    launchd.install([Part.TRAY], wish())
    assert [launchd.status()[part].enabled for part in Part] == [False, True]


@pytest.mark.parametrize(
    "wanted",
    [{"on_demand": True}, {"linger": True}, {"hardened": True}],
    ids=lambda wanted: next(iter(wanted)),
)
def test_what_only_systemd_can_do_is_refused(
    launchd: LaunchdAutostart, home: Path, wanted: dict[str, Any]
) -> None:
    with pytest.raises(AutostartFailed):
        launchd.install(BOTH, wish(**wanted))

    assert tree(home) == {}


def test_start_loads_the_agent_or_starts_the_loaded_one(
    launchd: LaunchdAutostart, runner: FakeRunner, home: Path
) -> None:
    assert launchd.start() is False
    launchd.install([Part.DAEMON], wish())

    assert launchd.start() is True
    plist = agent_entry(home, Part.DAEMON).anchor
    assert runner.asked[-1] == f"launchctl bootstrap gui/501 {plist}"
    runner.answers = {}
    assert launchd.start() is True

    assert runner.asked[-1] == f"launchctl kickstart {TARGET}"


def test_stop_unloads_the_agent_until_the_next_login(
    launchd: LaunchdAutostart, runner: FakeRunner
) -> None:
    launchd.install([Part.DAEMON], wish())
    assert launchd.stop() is False  # not loaded: started by hand

    runner.answers = {}
    assert launchd.stop() is True

    assert runner.asked[-1] == f"launchctl bootout {TARGET}"
    assert launchd.status()[Part.DAEMON].enabled


@pytest.mark.parametrize("answer", [Result(None), Result(5, err="Input/output error\n")])
def test_a_start_or_stop_that_fails_says_why(
    launchd: LaunchdAutostart, runner: FakeRunner, answer: Result
) -> None:
    launchd.install([Part.DAEMON], wish())
    runner.answers["bootstrap"] = answer
    with pytest.raises(AutostartFailed) as raised:
        launchd.start()
    assert bool(raised.value.facts["timed_out"]) is (answer.code is None)

    runner.answers = {"bootout": answer}
    with pytest.raises(AutostartFailed, match="could not stop"):
        launchd.stop()


def test_the_log_is_written_once_its_folder_is_there(
    launchd: LaunchdAutostart, tmp_path: Path
) -> None:
    """launchd makes no folder and would not start the program."""
    own = tmp_path / "own"
    chosen = wish(at_home(str(own)))
    launchd.install([Part.DAEMON], chosen)
    assert launchd.is_current(chosen)

    (own / "state" / "logs").mkdir(parents=True)

    assert not launchd.is_current(chosen)
    launchd.install([Part.DAEMON], chosen)
    read = plistlib.loads(agent_entry(launchd.home, Part.DAEMON).anchor.read_bytes())
    assert read["StandardErrorPath"] == str(own / "state" / "logs" / "daemon.out")
