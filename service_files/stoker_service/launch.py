"""`python -m stoker_service.launch NAME=VALUE… -- PROGRAM…`: run a program with these variables.

For entries that start a program but cannot hold variables (Windows' tasks and Run values).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence


def main(words: Sequence[str]) -> int:
    """Run it to its end and return its exit code."""
    split = words.index("--")
    pairs = (pair.partition("=") for pair in words[:split])
    variables = {name: value for name, _, value in pairs}
    return subprocess.call(words[split + 1 :], env={**os.environ, **variables})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
