from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEAVY = ("fastapi", "uvicorn", "huggingface_hub", "httpx2", "rich", "pydantic", "xllamacpp")


def test_help_imports_nothing_heavy() -> None:
    """`stoker --help` stays instant: what a command needs is imported when it runs."""
    code = (
        "import sys; from stoker.cli import main; main(['--help']); "
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr.strip() == "[]"


def test_the_module_and_the_command_are_the_same_program() -> None:
    module = subprocess.run(
        [sys.executable, "-I", "-m", "stoker", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert module.stdout.startswith("stoker ")


def test_a_closed_pipe_is_no_fault(stoker_home: Path) -> None:
    """`stoker config show | head -0` ends without a word on stderr."""
    reader = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.close()"], stdin=subprocess.PIPE
    )
    assert reader.stdin is not None
    reader.wait(10)

    done = subprocess.run(
        [sys.executable, "-m", "stoker", "config", "show"],
        stdout=reader.stdin,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    reader.stdin.close()

    assert done.stderr == ""
