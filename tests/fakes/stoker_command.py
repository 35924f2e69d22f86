"""The `stoker` command as a user's shell runs it: a process, its exit code and what it printed."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 90.0  # a start on a busy machine waits up to 60 s


@dataclass(frozen=True)
class StokerCommand:
    """Call it with the words of a command line; keywords change the environment."""

    folder: Path  # where the commands run

    def __call__(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "stoker", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            cwd=self.folder,
            env={**os.environ, **environ},
        )
