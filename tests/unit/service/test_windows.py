"""The scheduled task and the Run value: golden file, odd paths, and what Windows is asked."""

from __future__ import annotations

import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stoker.errors import AutostartBlocked, AutostartFailed
from stoker_service import Part, Program, Wish, launch
from stoker_service.commands import Result
from stoker_service.windows import (
    APPROVED_KEY,
    RUN_KEY,
    RUN_VALUE,
    WindowsAutostart,
    task,
    with_environment,
)
from tests.fakes.golden import check_golden
from tests.fakes.service_home import BOTH, FakeRegistry, FakeRunner, at_home, wish

GOLDEN = Path(__file__).parent / "golden" / "windows"
PYTHON = "C:\\Users\\Zoë & Co\\AI 100%\\python\\pythonw.exe"
PROGRAM = Program(
    daemon=(PYTHON, "-I", "-m", "stoker", "serve"),
    cli=(PYTHON, "-I", "-m", "stoker"),
    tray=(PYTHON, "-I", "-m", "stoker_tray"),
)
HOME = "D:\\AI models\\"
WISHES = {"login": wish(PROGRAM), "own-home": wish(at_home(HOME, PROGRAM))}
SPACE = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1)


@pytest.fixture(autouse=True)
def python(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "executable", PYTHON)
    yield
    monkeypatch.undo()


@dataclass
class Scheduler:
    """schtasks.exe with a memory; it reads the file that it is given, as UTF-16."""

    tasks: dict[str, str] = field(default_factory=dict)

    def __call__(self, words: tuple[str, ...]) -> Result:
        name = words[words.index("/tn") + 1]
        if "/create" in words:
            self.tasks[name] = Path(words[words.index("/xml") + 1]).read_text("utf-16")
        elif name not in self.tasks:
            return Result(1, err="ERROR: The system cannot find the file specified.\r\n")
        elif "/delete" in words:
            del self.tasks[name]
        return Result(0, self.tasks.get(name, ""))


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


@pytest.fixture
def windows(tmp_path: Path, scheduler: Scheduler) -> WindowsAutostart:
    runner = FakeRunner({"schtasks.exe": scheduler})
    return WindowsAutostart(runner, FakeRegistry(), "DESK\\Zoë & Co", tmp_path / "scratch")


@pytest.mark.parametrize("name", WISHES)
def test_the_task_is_as_reviewed(name: str) -> None:
    check_golden(GOLDEN / f"{name}.xml", task("Stoker-Zoë & Co", "DESK\\Zoë & Co", WISHES[name]))


@pytest.mark.parametrize("name", WISHES)
def test_it_is_xml_in_the_encoding_it_names(tmp_path: Path, name: str) -> None:
    if shutil.which("xmllint") is None:
        pytest.skip("xmllint is not installed")
    file = tmp_path / "task.xml"
    file.write_text(task("Stoker-me", "DESK\\me", WISHES[name]), encoding="utf-16")

    told = subprocess.run(
        ["xmllint", "--noout", "--nonet", file], capture_output=True, timeout=60, check=False
    )

    assert (told.returncode, told.stderr) == (0, b"")


@given(program=texts, argument=texts, user=texts)
@example(program=PYTHON, argument='a "b" \\', user="]]>&<")
def test_windows_reads_what_was_meant(program: str, argument: str, user: str) -> None:
    text = task("Stoker-x", user, wish(Program((program, argument), (), ())))

    root = ET.fromstring(text.partition("\n")[2])  # noqa: S314  # our own
    found = {element.tag.removeprefix(SPACE): element.text for element in root.iter()}

    assert found["Command"] == program
    assert found["Arguments"] == subprocess.list2cmdline([argument])
    assert found["UserId"] == user


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("Triggers/LogonTrigger/UserId", "me"),
        ("Principals/Principal/LogonType", "InteractiveToken"),
        ("Principals/Principal/RunLevel", "LeastPrivilege"),
        ("Settings/DisallowStartIfOnBatteries", "false"),
        ("Settings/StopIfGoingOnBatteries", "false"),
        ("Settings/ExecutionTimeLimit", "PT0S"),
        ("Settings/MultipleInstancesPolicy", "IgnoreNew"),
        ("Settings/RestartOnFailure/Interval", "PT1M"),
        ("Settings/Priority", "5"),  # a task's own default is below that of a person's programs
        ("Settings/Hidden", "true"),
    ],
)
def test_the_task_is_fit_for_a_daemon(path: str, value: str) -> None:
    text = task("Stoker-me", "me", wish()).partition("\n")[2]
    root = ET.fromstring(text)  # noqa: S314  # our own

    assert root.findtext("/".join(SPACE + name for name in path.split("/"))) == value


# --- the back end ----------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", WISHES.values(), ids=WISHES)
def test_on_then_off_leaves_nothing(
    windows: WindowsAutostart, scheduler: Scheduler, chosen: Wish
) -> None:
    windows.install(BOTH, chosen)
    windows.install(BOTH, chosen)
    assert [state.enabled for state in windows.status().values()] == [True, True]
    assert list(scheduler.tasks) == ["Stoker-Zoë & Co"]

    windows.uninstall(BOTH)

    assert isinstance(windows.registry, FakeRegistry)
    assert (scheduler.tasks, windows.registry.values) == ({}, {})
    assert list(windows.scratch.iterdir()) == []
    assert windows.uninstall(BOTH) == ()


def test_one_switch_each(windows: WindowsAutostart) -> None:
    windows.install([Part.TRAY], wish(PROGRAM))
    assert [state.enabled for state in windows.status().values()] == [False, True]

    windows.install([Part.DAEMON], wish(PROGRAM))
    windows.uninstall([Part.TRAY])

    assert [state.enabled for state in windows.status().values()] == [True, False]


def test_the_tray_is_started_by_a_quoted_command_line(windows: WindowsAutostart) -> None:
    windows.install([Part.TRAY], wish(PROGRAM))

    command = windows.registry.read(RUN_KEY, RUN_VALUE)

    assert command == f'"{PYTHON}" -I -m stoker_tray'


@pytest.mark.parametrize(("first", "off"), [(2, False), (6, False), (3, True), (7, True)])
def test_windows_own_switch_is_respected_and_never_touched(
    windows: WindowsAutostart, first: int, *, off: bool
) -> None:
    assert isinstance(windows.registry, FakeRegistry)
    windows.install([Part.TRAY], wish(PROGRAM))
    windows.registry.values[APPROVED_KEY, RUN_VALUE] = bytes([first, *([0] * 11)])
    before = dict(windows.registry.values)

    assert windows.status()[Part.TRAY].enabled is not off
    if off:
        with pytest.raises(AutostartBlocked, match="startup apps"):
            windows.install(BOTH, wish(PROGRAM))
        assert windows.registry.values == before
        assert not windows.status()[Part.DAEMON].enabled  # nothing was half done
    windows.uninstall(BOTH)

    assert list(windows.registry.values) == [(APPROVED_KEY, RUN_VALUE)]


def test_another_task_of_this_name_is_left_alone(
    windows: WindowsAutostart, scheduler: Scheduler
) -> None:
    other = '<?xml version="1.0"?>\n<Task><RegistrationInfo/></Task>'
    scheduler.tasks[windows.task_name] = other

    with pytest.raises(AutostartFailed, match="not written by Stoker"):
        windows.install([Part.DAEMON], wish(PROGRAM))
    windows.uninstall([Part.DAEMON])

    assert scheduler.tasks == {windows.task_name: other}
    assert windows.status()[Part.DAEMON].problem


def test_a_task_that_was_disabled_is_off_until_asked_again(
    windows: WindowsAutostart, scheduler: Scheduler
) -> None:
    windows.install([Part.DAEMON], wish(PROGRAM))
    text = scheduler.tasks[windows.task_name]
    scheduler.tasks[windows.task_name] = text.replace(
        "<AllowStartOnDemand>true</AllowStartOnDemand>\n    <Enabled>true",
        "<AllowStartOnDemand>true</AllowStartOnDemand>\n    <Enabled>false",
    )

    assert not windows.status()[Part.DAEMON].enabled
    assert windows.start() is False
    windows.install([Part.DAEMON], wish(PROGRAM))

    assert windows.status()[Part.DAEMON].enabled
    assert windows.start() is True


@pytest.mark.parametrize("answer", ["not XML", "<Task", "<Task><RegistrationInfo>", ""])
def test_an_answer_that_makes_no_sense_is_not_ours(
    windows: WindowsAutostart, scheduler: Scheduler, answer: str
) -> None:
    scheduler.tasks[windows.task_name] = answer

    assert not windows.status()[Part.DAEMON].enabled
    assert windows.installed() is None
    assert bool(windows.status()[Part.DAEMON].problem) is answer.startswith("<Task")


def test_windows_refusal_is_told(windows: WindowsAutostart) -> None:
    refusal = Result(1, err="ERROR: Access is denied.\r\n")
    assert isinstance(windows.run, FakeRunner)
    windows.run.answers = {"/create": refusal, "/query": Result(1)}

    with pytest.raises(AutostartFailed, match="Access is denied"):
        windows.install([Part.DAEMON], wish(PROGRAM))

    assert list(windows.scratch.iterdir()) == []


def test_a_change_of_the_program_is_seen(windows: WindowsAutostart) -> None:
    windows.install([Part.DAEMON], wish(PROGRAM))

    assert windows.is_current(wish(PROGRAM))
    assert not windows.is_current(wish(at_home(HOME, PROGRAM)))


# --- variables -------------------------------------------------------------------------------


def test_an_entry_without_variables_starts_a_program_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real Python
    seen = tmp_path / "seen"
    code = "import os, pathlib, sys; p = pathlib.Path(sys.argv[1])"
    code += "; p.write_text(os.environ['STOKER_HOME']); sys.exit(7)"
    words = (sys.executable, "-c", code, str(seen))

    line = with_environment(words, wish(at_home(HOME, PROGRAM)))

    assert subprocess.run(line, timeout=60, check=False).returncode == 7
    assert seen.read_text() == HOME
    assert (
        launch.main(
            ["A=1=2", "--", sys.executable, "-c", "import os; assert os.environ['A'] == '1=2'"]
        )
        == 0
    )
