"""Start at login on Windows: a scheduled task for the daemon, a Run value for the tray.

No service: it would run in another session, without the user's profile and without a screen. What
the user switched off in Windows' own settings (StartupApproved) is respected and never touched.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from xml.sax.saxutils import escape

from stoker.errors import AutostartBlocked, AutostartFailed
from stoker_service import record
from stoker_service.base import Part, PartState, Record, Wish, check_words
from stoker_service.commands import Commands, Runner
from stoker_service.xdg import OFF_SENTENCES, program_problem, refuse_wishes

RUN_KEY: Final = r"Software\Microsoft\Windows\CurrentVersion\Run"
APPROVED_KEY: Final = r"Software\Microsoft\Windows\CurrentVersion\Explorer\StartupApproved\Run"
RUN_VALUE: Final = "Stoker"
_NAMESPACE: Final = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
_MOST_CHARACTERS: Final = 256 * 1024

_TASK: Final = """\
<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo>
    <Author>Stoker</Author>
    <Description>Starts the private AI on this machine at login. \
Written by `stoker autostart on`, removed by `stoker autostart off`. {record}</Description>
    <URI>\\{name}</URI>
  </RegistrationInfo>
  <Triggers>
    <LogonTrigger>
      <Enabled>true</Enabled>
      <UserId>{user}</UserId>
    </LogonTrigger>
  </Triggers>
  <Principals>
    <Principal id="Author">
      <UserId>{user}</UserId>
      <LogonType>InteractiveToken</LogonType>
      <RunLevel>LeastPrivilege</RunLevel>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <AllowHardTerminate>true</AllowHardTerminate>
    <StartWhenAvailable>false</StartWhenAvailable>
    <RunOnlyIfNetworkAvailable>false</RunOnlyIfNetworkAvailable>
    <IdleSettings>
      <StopOnIdleEnd>false</StopOnIdleEnd>
      <RestartOnIdle>false</RestartOnIdle>
    </IdleSettings>
    <AllowStartOnDemand>true</AllowStartOnDemand>
    <Enabled>true</Enabled>
    <Hidden>true</Hidden>
    <RunOnlyIfIdle>false</RunOnlyIfIdle>
    <WakeToRun>false</WakeToRun>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <Priority>5</Priority>
    <RestartOnFailure>
      <Interval>PT1M</Interval>
      <Count>5</Count>
    </RestartOnFailure>
  </Settings>
  <Actions Context="Author">
    <Exec>
      <Command>{command}</Command>
      <Arguments>{arguments}</Arguments>
    </Exec>
  </Actions>
</Task>
"""


class Registry(Protocol):
    """The current user's part of the registry."""

    def read(self, key: str, name: str) -> str | bytes | None: ...
    def write(self, key: str, name: str, value: str) -> None: ...
    def delete(self, key: str, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class WindowsAutostart:
    """A task and a registry value of this user."""

    run: Runner
    registry: Registry
    user: str  # DOMAIN\name
    scratch: Path  # a folder for the file that schtasks reads

    @property
    def name(self) -> str:
        return "windows"

    @property
    def supervises(self) -> bool:
        return True

    @property
    def task_name(self) -> str:
        """All users' tasks share one folder, so the name has the user in it."""
        return f"Stoker-{self.user.rpartition(_BACKSLASH)[2]}"

    def install(self, parts: Collection[Part], wish: Wish) -> tuple[str, ...]:
        refuse_wishes(wish, "by Windows")
        done = []
        if Part.TRAY in parts:
            self._refuse_tray()
        if Part.DAEMON in parts:
            self._install_task(wish)
            done.append(f"Stoker starts at login (scheduled task {self.task_name}).")
        if Part.TRAY in parts:
            words = with_environment(wish.program.tray, wish)
            check_words(words)
            self.registry.write(RUN_KEY, RUN_VALUE, subprocess.list2cmdline(words))
            done.append(f"The tray icon starts at login (HKCU\\{RUN_KEY}).")
        return tuple(done)

    def uninstall(self, parts: Collection[Part]) -> tuple[str, ...]:
        done = []
        if Part.DAEMON in parts and self.installed() is not None:
            removed = self.run("schtasks.exe", "/delete", "/f", "/tn", self.task_name)
            if not removed.ok:
                msg = f"the scheduled task {self.task_name} stays: {removed.reason}"
                raise AutostartFailed(msg)
            done.append(OFF_SENTENCES[Part.DAEMON])
        if Part.TRAY in parts and self.registry.read(RUN_KEY, RUN_VALUE) is not None:
            self.registry.delete(RUN_KEY, RUN_VALUE)
            done.append(OFF_SENTENCES[Part.TRAY])
        return tuple(done)

    def status(self) -> dict[Part, PartState]:
        return {Part.DAEMON: self._task_state(), Part.TRAY: self._tray_state()}

    def installed(self) -> Record | None:
        return _record(self._query())

    def is_current(self, wish: Wish) -> bool:
        noted = self.installed()
        return noted is not None and noted == _noted_of(wish)

    def holds_port(self) -> bool:
        return False

    def start(self, timeout_s: float = 30.0) -> bool:
        if not self._task_state().enabled:
            return False
        started = self.run("schtasks.exe", "/run", "/tn", self.task_name, timeout_s=timeout_s)
        if not started.ok:
            msg = f"the scheduled task {self.task_name} did not start: {started.reason}"
            raise AutostartFailed(msg, timed_out=started.code is None)
        return True

    def stop(self, drain_s: float = 0) -> bool:
        """Windows would end the process without a word; the control plane does it better."""
        _ = drain_s
        return False

    # --- the daemon's task -------------------------------------------------------------------

    def _install_task(self, wish: Wish) -> None:
        shown = self._query()
        if shown and _record(shown) is None:
            msg = f"the scheduled task {self.task_name} was not written by Stoker"
            raise AutostartFailed(msg, hint="Rename it, then try again.")
        check_words(with_environment(wish.program.daemon, wish))
        self.scratch.mkdir(parents=True, exist_ok=True)
        file = self.scratch / "stoker-task.xml"
        try:
            file.write_text(task(self.task_name, self.user, wish), encoding="utf-16")
            words = ("schtasks.exe", "/create", "/f", "/tn", self.task_name, "/xml", str(file))
            made = self.run(*words)
        except OSError as error:
            msg = f"cannot write {file}: {error.strerror or error}"
            raise AutostartFailed(msg) from error
        finally:
            file.unlink(missing_ok=True)
        if not made.ok:
            msg = f"Windows did not take the scheduled task {self.task_name}: {made.reason}"
            raise AutostartFailed(msg)

    def _query(self) -> str:
        """The task's XML, empty when there is no such task."""
        shown = self.run("schtasks.exe", "/query", "/tn", self.task_name, "/xml", "ONE")
        return shown.out[shown.out.find("<Task") :] if shown.ok and "<Task" in shown.out else ""

    def _task_state(self) -> PartState:
        shown = self._query()
        if not shown:
            return PartState(enabled=False, detail="off")
        noted = _record(shown)
        if noted is None:
            problem = f"The scheduled task {self.task_name} was not written by Stoker."
            return PartState(enabled=False, detail="off", problem=problem)
        if _text_of(shown, "Settings", "Enabled") == "false":
            return PartState(enabled=False, detail=f"disabled ({self.task_name})")
        return PartState(
            enabled=True,
            detail=f"starts at login (scheduled task {self.task_name})",
            problem=program_problem(noted),
        )

    # --- the tray's value --------------------------------------------------------------------

    def _refuse_tray(self) -> None:
        if self._is_disapproved():
            msg = "the tray icon was switched off in Windows' own list of startup apps"
            hint = "Switch Stoker on there: Settings, Apps, Startup."
            raise AutostartBlocked(msg, hint=hint)

    def _is_disapproved(self) -> bool:
        value = self.registry.read(APPROVED_KEY, RUN_VALUE)
        return isinstance(value, bytes) and bool(value) and value[0] % 2 == 1

    def _tray_state(self) -> PartState:
        command = self.registry.read(RUN_KEY, RUN_VALUE)
        if command is None:
            return PartState(enabled=False, detail="off")
        if self._is_disapproved():
            return PartState(enabled=False, detail="switched off in Windows' settings")
        return PartState(enabled=True, detail=f"starts at login (HKCU\\{RUN_KEY})")


_BACKSLASH: Final = "\\"


def task(name: str, user: str, wish: Wish) -> str:
    """The task's XML; `user` has the domain before a backslash."""
    command, *arguments = with_environment(wish.program.daemon, wish)
    return _TASK.format(
        name=escape(name),
        user=escape(user),
        record=escape(record.line(_noted_of(wish))),
        command=escape(command),
        arguments=escape(subprocess.list2cmdline(arguments)),
    )


def _noted_of(wish: Wish) -> Record:
    return Record(program=wish.program.daemon, environment=wish.program.environment)


def with_environment(words: tuple[str, ...], wish: Wish) -> tuple[str, ...]:
    """A command line that sets the program's variables first: no entry here can hold them."""
    if not wish.program.environment:
        return words
    pairs = (f"{name}={value}" for name, value in wish.program.environment)
    python = str(Path(sys.executable))
    return (python, "-I", "-m", "stoker_service.launch", *pairs, "--", *words)


def _record(xml: str) -> Record | None:
    return record.parse(_text_of(xml, "RegistrationInfo", "Description").encode())


def _text_of(xml: str, *names: str) -> str:
    """The text of one element of a task; empty when there is none or it is not XML."""
    path = "/".join(_NAMESPACE + name for name in names)
    try:
        # Windows' own answer, and without a declaration there are no entities to expand.
        return ET.fromstring(xml[:_MOST_CHARACTERS]).findtext(path, "")  # noqa: S314
    except ET.ParseError:
        return ""


def windows_autostart(environ: Mapping[str, str] = os.environ) -> WindowsAutostart:
    import tempfile

    from stoker_service.registry import UserRegistry

    name = environ.get("USERNAME", "user")
    domain = environ.get("USERDOMAIN")
    user = f"{domain}\\{name}" if domain else name
    return WindowsAutostart(Commands({}), UserRegistry(), user, Path(tempfile.gettempdir()))
