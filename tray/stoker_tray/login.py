"""How Stoker shall start at login, from the file with the daemon's settings. For workers only.

Reads the three settings that matter here by itself: the settings module would double the tray.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from stoker.errors import BadSetting
from stoker_service import Autostart, Program, Record, Wish

_HOSTS: Final = ("127.0.0.1", "::1", "localhost")
_MOST_PORTS: Final = 65535
_DEFAULTS: Final[Mapping[str, Any]] = {"host": _HOSTS[0], "port": 4328, "drain_timeout_s": 15.0}


def wish(program: Program, manager: Autostart, config_file: Path) -> Wish:
    """As the file says, and what was chosen on the command line for the daemon stays.

    The environment does not count: it is not seen at login. Raises BadSetting for what the daemon
    would not start with either.
    """
    values = {**_DEFAULTS, **_read(config_file)}
    host, port = values["host"], _number(values["port"])
    drain_s = _number(values["drain_timeout_s"])
    is_port = 0 <= port <= _MOST_PORTS and port == int(port)
    if host not in _HOSTS or not is_port or not 0 <= drain_s < math.inf:
        msg = f"host, port or drain_timeout_s has a wrong value in {config_file}"
        raise BadSetting(msg, hint="`stoker config check` says which.")
    before = manager.installed() or Record()
    return Wish(
        program,
        host=host,
        port=int(port),
        drain_s=drain_s,
        on_demand=before.on_demand,
        linger=before.linger,
        hardened=before.hardened,
    )


def _number(value: object) -> float:
    """What the daemon takes for a number, such as one in quotes; NaN for all else."""
    try:
        return float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return math.nan


def _read(config_file: Path) -> dict[str, Any]:
    try:
        with config_file.open("rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        msg = f"cannot read {config_file}: {error}"
        raise BadSetting(msg, hint="Correct the file, or remove it to use the defaults.") from error
