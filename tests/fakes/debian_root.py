"""A small Debian system of this machine's suite, in memory: install packages, be another user.

It has its own processes and its own mounts, and the machine's network. When its block ends, or when
the tests are killed, its first process goes, and with it every process, mount and file of it.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

TOOLS: Final = ("debootstrap", "unshare", "nsenter", "mount", "chroot", "apt-get")
USER: Final = "alice"
UID: Final = 12345
_COMMAND_TIMEOUT_S: Final = 300  # a slow mirror
_BOOTSTRAP_TIMEOUT_S: Final = 900  # 50 MB and a hundred packages; half a minute when all is well
_END_TIMEOUT_S: Final = 10

# The first process: it reaps whoever loses its parent, and ends when its input does.
_FIRST: Final = """
import signal, subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", sys.argv[1]], check=True)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
sys.stdin.read()
"""


class DebianMissing(Exception):
    """It cannot be made here; nothing was installed."""


class DebianRoot:
    """The system: `run` a command in it, `put` a file there, list its `files` and `processes`."""

    def __init__(self, folder: Path, first: psutil.Process) -> None:
        self._folder = folder
        self._first = first
        self._inside = ["nsenter", "--mount", "--pid", "--ipc", "--target", str(first.pid), "--"]

    @contextmanager
    def bootstrapping(self) -> Iterator[None]:
        """Fill it while the block runs. Raises DebianMissing."""
        suite, mirror = _own_suite()
        with (
            tempfile.TemporaryFile("w+") as output,
            subprocess.Popen(
                [*self._inside, "debootstrap", "--variant=minbase", suite, self._folder, mirror],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            ) as bootstrap,
        ):
            try:
                yield
                code = bootstrap.wait(_BOOTSTRAP_TIMEOUT_S)
            finally:
                bootstrap.terminate()
            if code:
                output.seek(0)
                raise DebianMissing(output.read()[-2000:])
        self._settle()

    def _settle(self) -> None:
        """Let it reach the mirror as this machine does, and have a user."""
        for place in ("etc/apt/apt.conf.d", "etc/apt/auth.conf.d", "etc/ssl/certs"):
            if Path("/", place).is_dir():
                shutil.copytree(
                    Path("/", place),
                    self.outside(place),
                    dirs_exist_ok=True,
                    ignore_dangling_symlinks=True,
                )
        shutil.copy("/etc/resolv.conf", self.outside("etc/resolv.conf"))
        mount = [*self._inside, "mount", "-t", "proc", "proc", f"{self._folder}/proc"]
        subprocess.run(mount, check=True, timeout=_COMMAND_TIMEOUT_S)
        self.run("apt-get", "update", "-q")
        self.run("useradd", "--create-home", "--uid", str(UID), USER)

    def outside(self, path: str | Path) -> Path:
        """The file as this process reaches it."""
        inside = Path(self._folder, str(path).lstrip("/"))
        return Path(f"/proc/{self._first.pid}/root", str(inside).lstrip("/"))

    def put(self, file: Path, folder: str) -> str:
        """Copy a file of this machine into a folder there; its path there."""
        target = self.outside(folder) / file.name
        shutil.copy(file, target)
        target.chmod(0o644)
        return f"{folder}/{file.name}"

    def run(self, *command: str, user: str = "root", **environ: str) -> str:
        """What the command printed; when it fails, the test does, with that output."""
        ids = {"root": "0:0", USER: f"{UID}:{UID}"}[user]
        home = "/root" if user == "root" else f"/home/{user}"
        variables = {
            "HOME": home,
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
            **environ,
        }
        words = [*self._inside, "chroot", f"--userspec={ids}", "--groups=", str(self._folder)]
        words += ["env", "-i", f"--chdir={home}", *(f"{k}={v}" for k, v in variables.items())]
        done = subprocess.run(
            [*words, *command],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def files(self) -> set[str]:
        """Every path of it, but for what the kernel shows."""
        return set(self.run("find", "/", "-xdev").splitlines())

    def processes(self) -> list[psutil.Process]:
        """Everything that was left running in it."""
        return self._first.children(recursive=True)


@contextmanager
def debian_root() -> Iterator[DebianRoot]:
    """An empty one, to be filled. Raises DebianMissing when this machine cannot have one."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        raise DebianMissing(f"not there: {', '.join(missing)}" if missing else "only root can")
    with tempfile.TemporaryDirectory(prefix="stoker-debian-") as folder:
        unshare = ["unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child"]
        with subprocess.Popen(
            [*unshare, sys.executable, "-I", "-c", _FIRST, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            try:
                if holder.stdout.readline() != "ready\n":
                    raise DebianMissing("this machine does not let root make namespaces")
                yield DebianRoot(Path(folder), psutil.Process(holder.pid).children()[0])
            finally:
                holder.stdin.close()
                try:
                    holder.wait(_END_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    holder.kill()
        assert list(Path(folder).iterdir()) == []


def _own_suite() -> tuple[str, str]:
    """This machine's suite and the mirror that it has it from. Raises DebianMissing."""
    suite = platform.freedesktop_os_release().get("VERSION_CODENAME")
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"],
        check=True,
        capture_output=True,
        text=True,
        timeout=_COMMAND_TIMEOUT_S,
    ).stdout
    for line in targets.splitlines():
        found, _, mirror = line.partition(" ")
        if suite and found == suite:
            return suite, mirror
    raise DebianMissing("no source of packages has this machine's suite")
