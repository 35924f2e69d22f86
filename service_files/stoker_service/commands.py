"""Run the system's own tools, with a deadline and without ever raising."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

SHORT_S: Final = 15.0  # for a command that only looks or makes a note; normally milliseconds
_MISSING: Final = 127  # as shells have it
_MOST: Final = 300  # characters of a reason


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended. ``code`` is None when it did not end in time."""

    code: int | None
    out: str = ""
    err: str = ""

    @property
    def ok(self) -> bool:
        return self.code == 0

    @property
    def reason(self) -> str:
        """Why it failed, on one line."""
        if self.code is None:
            return "it did not answer in time"
        words = (self.err.strip() or self.out.strip() or f"exit code {self.code}").split("\n")[0]
        return " ".join(words.split())[:_MOST]


class Runner(Protocol):
    def __call__(self, *words: str, timeout_s: float = SHORT_S) -> Result: ...


@dataclass(frozen=True, slots=True)
class Commands:
    """Runs commands with some variables changed."""

    environment: Mapping[str, str]

    def __call__(self, *words: str, timeout_s: float = SHORT_S) -> Result:
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                check=False,
                env={**os.environ, **self.environment},
            )
        except subprocess.TimeoutExpired:
            return Result(None)
        except OSError as error:
            return Result(_MISSING, err=f"{words[0]}: {error.strerror or error}")
        return Result(
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )
