"""A home folder to start at login from: its tree as a value, and stand-ins for tools."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stoker_service import Part, Program, Wish
from stoker_service.commands import SHORT_S, Result

BOTH = tuple(Part)
Tree = dict[str, tuple[str, int, bytes]]

PROGRAM = Program(
    daemon=("/opt/stoker/bin/stoker", "serve"),
    cli=("/opt/stoker/bin/stoker",),
    tray=("/opt/stoker/bin/stoker-tray",),
)
ODD = '/home/it\'s "me" 100% $HOME \\ é`/stoker'  # everything that some system's syntax uses


def wish(program: Program = PROGRAM, **changes: Any) -> Wish:
    facts: dict[str, Any] = {"host": "127.0.0.1", "port": 4328, **changes}
    return Wish(program, **facts)


def at_home(home: str, program: Program = PROGRAM) -> Program:
    """The same program with a home of its own."""
    return Program(program.daemon, program.cli, program.tray, (("STOKER_HOME", home),))


def odd_program() -> Program:
    return Program((ODD, "serve"), (ODD,), (f"{ODD}-tray",))


def tree(folder: Path) -> Tree:
    """Everything below a folder: kind, mode, and content or link target."""
    found: Tree = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if path.is_symlink():
            value = ("link", 0, str(path.readlink()).encode())
        elif path.is_dir():
            value = ("folder", stat.S_IMODE(mode), b"")
        else:
            value = ("file", stat.S_IMODE(mode), path.read_bytes())
        found[str(path.relative_to(folder))] = value
    return found


Answer = Callable[[tuple[str, ...]], Result | None]


@dataclass
class FakeRunner:
    """Answers commands by their words; remembers them. What nobody answers succeeds silently."""

    answers: dict[str, Result | Answer] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def __call__(self, *words: str, timeout_s: float = SHORT_S) -> Result:
        assert timeout_s > 0
        line = " ".join(words)
        self.asked.append(line)
        for part, answer in self.answers.items():
            if part in line:
                result = answer if isinstance(answer, Result) else answer(words)
                if result is not None:
                    return result
        return Result(0)


@dataclass
class FakeRegistry:
    """A registry in memory."""

    values: dict[tuple[str, str], str | bytes] = field(default_factory=dict)

    def read(self, key: str, name: str) -> str | bytes | None:
        return self.values.get((key, name))

    def write(self, key: str, name: str, value: str) -> None:
        self.values[key, name] = value

    def delete(self, key: str, name: str) -> None:
        del self.values[key, name]
