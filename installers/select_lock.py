"""Print the requirements of a lock file that one target needs, without markers, digests kept.

    select_lock.py LOCK --platform win32|darwin|linux --machine AMD64 --python 3.11

pip judges markers by the machine it runs on, which is wrong when a package is made for another
one. Uses the `packaging` that comes with pip; needs nothing else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pip._vendor.packaging.requirements import Requirement

_SYSTEMS: Final = {"win32": ("nt", "Windows"), "darwin": ("posix", "Darwin")}


def environment(platform: str, machine: str, python: str) -> dict[str, str]:
    """The marker variables of a CPython on the target."""
    os_name, system = _SYSTEMS.get(platform, ("posix", "Linux"))
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": os_name,
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": system,
        "platform_version": "",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": platform,
    }


def select(lock: str, target: Mapping[str, str]) -> Iterator[str]:
    """One line for each requirement of the target: name, version and digests."""
    for line in lock.replace("\\\n", " ").splitlines():
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        wanted, *digests = text.split(" --hash=")
        requirement: Any = Requirement(wanted.strip())
        if requirement.marker is None or requirement.marker.evaluate(dict(target)):
            requirement.marker = None
            yield " --hash=".join([str(requirement), *(digest.strip() for digest in digests)])


def main() -> None:
    """Read the arguments, print the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("lock", type=Path)
    parser.add_argument("--platform", required=True, choices=("win32", "darwin", "linux"))
    parser.add_argument("--machine", default="AMD64")
    parser.add_argument("--python", required=True)
    wish = parser.parse_args()
    target = environment(wish.platform, wish.machine, wish.python)
    for line in select(wish.lock.read_text(encoding="utf-8"), target):
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
