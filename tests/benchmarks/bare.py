"""The engine alone, with the settings that the daemon gave it: what Stoker is compared with."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from tests.benchmarks.streams import Target
from tests.fakes.daemon import Daemon

# As short as its library allows.
_START = """
import json, sys, xllamacpp as x
socket, record = sys.argv[1], json.loads(sys.argv[2])
p = x.CommonParams()
p.model.path, p.hostnames, p.fit_params, p.ui = record["model"], [socket], False, False
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = record["threads"]
for name, value in record["settings"].items():
    setattr(p, name, value)
s = x.Server(p)
print("ready", flush=True)
sys.stdin.read()
"""


class RecordingDaemon(Daemon):
    """The daemon under measurement; it writes its last worker's address and key to a file."""

    def __init__(self, home: Path, **settings: object) -> None:
        super().__init__(home, **settings)
        self.record = home / "worker.json"
        self.environ["STOKER_TEST_WORKER_FILE"] = str(self.record)
        self.command = [sys.executable, "-m", "tests.benchmarks.recording_daemon"]

    def targets(self) -> tuple[Target, Target]:
        """The endpoint, and the very same worker asked directly."""
        url = urlsplit(self.base_url)
        worker = json.loads(self.record.read_text())
        endpoint = Target((str(url.hostname), int(url.port or 80)), "starter")
        return endpoint, Target(Path(worker["socket"]), "starter", worker["key"])


def start_s(record: str) -> float:
    """Seconds that the bare engine takes to start with these settings and to be ready."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [f"{folder}/s.sock", record]
        start = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-I", "-c", _START, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            elapsed = time.perf_counter() - start
            process.kill()
    return elapsed
