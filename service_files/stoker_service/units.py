"""The text of the systemd user units. Pure.

Every line was tried with systemd 252 in a user manager without privileges; what does nothing there
(ProtectSystem= alone), fails (ProtectClock=) or takes the GPU away (PrivateDevices=) is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from stoker_service import record
from stoker_service.base import Record, Wish

SERVICE: Final = "stoker.service"
SOCKET: Final = "stoker.socket"
HARDENED: Final = "10-hardened.conf"

_STOP_MARGIN_S: Final = 15  # after the running answers have ended: workers and sockets close
_PLAIN_WORD: Final = re.compile(r"[\w./:@+,=-]+", re.ASCII)
_ODD_PROGRAM: Final = re.compile(r"""["'\\$]""")  # systemd refuses or changes these in a program
_VIA_SHELL: Final = ("/bin/sh", "-c", 'exec "$0" "$@"')

_HEAD: Final = """\
# Written by `stoker autostart on`, removed by `stoker autostart off`, replaced when it is renewed.
# To change something for good, use a drop-in: systemctl --user edit {unit}
"""

_SERVICE: Final = """\
[Unit]
Description=Stoker, a private AI on this machine
Documentation=https://github.com/stoker-ai/stoker/tree/main/docs
{condition}\
StartLimitIntervalSec=60
StartLimitBurst=5
{record}

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
{environment}\
Restart=on-failure
RestartSec=2
# 2: a wrong setting, which another try does not mend
RestartPreventExitStatus=2
WatchdogSec=30
TimeoutStopSec={stop_s}
# only the daemon is told to stop: it lets running answers end, then ends its workers
KillMode=mixed
# a worker that the kernel kills for its memory costs that worker, not the daemon
OOMPolicy=continue
# a memory image would hold what was asked and answered
LimitCORE=0
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native

[Install]
WantedBy=default.target
"""

_SOCKET: Final = """\
[Unit]
Description=Stoker's endpoint
{condition}\
{record}

[Socket]
ListenStream={address}
NoDelay=yes

[Install]
WantedBy=sockets.target
"""

_HARDENED: Final = """\
# Written by `stoker autostart on --hardened`, removed by `stoker autostart off`.
[Unit]
{record}

[Service]
# Everything is read-only but Stoker's own folders; this needs user namespaces.
PrivateUsers=yes
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths=/tmp /var/tmp
{folders}
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
"""


def service(wish: Wish, noted: Record) -> str:
    also = f"Also={SOCKET}\n" if has_socket(wish) else ""
    return (
        _HEAD.format(unit=SERVICE)
        + _SERVICE.format(
            condition=_condition(wish.program.daemon[0]),
            record=record.line(noted),
            command=exec_line(wish.program.daemon),
            environment="".join(map(_variable, wish.program.environment)),
            stop_s=math.ceil(wish.drain_s) + _STOP_MARGIN_S,
        )
        + also
    )


def socket(wish: Wish) -> str:
    host = "127.0.0.1" if wish.host == "localhost" else wish.host
    address = f"[{host}]:{wish.port}" if ":" in host else f"{host}:{wish.port}"
    return _HEAD.format(unit=SOCKET) + _SOCKET.format(
        condition=_condition(wish.program.daemon[0]),
        record=record.line(Record()),
        address=address,
    )


def hardened(folders: Iterable[Path]) -> str:
    """The drop-in; these folders stay writable and must exist."""
    words = " ".join(quote(str(folder)) for folder in folders)
    return _HARDENED.format(record=record.line(Record()), folders=f"ReadWritePaths={words}")


def has_socket(wish: Wish) -> bool:
    """A port that is chosen at each start cannot be listened to beforehand."""
    return wish.port != 0


def exec_line(words: tuple[str, ...]) -> str:
    """A command line as ExecStart= takes it: no variable, no specifier, each word as it is."""
    if _ODD_PROGRAM.search(words[0]):
        words = (*_VIA_SHELL, *words)
    program, *rest = words
    return " ".join([quote(program), *(quote(word).replace("$", "$$") for word in rest)])


def quote(word: str) -> str:
    """One word for a setting that takes words; ``%`` would begin a specifier."""
    if _PLAIN_WORD.fullmatch(word):
        return word
    inner = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{inner}"'


def _variable(pair: tuple[str, str]) -> str:
    name, value = pair
    return f"Environment={quote(f'{name}={value}')}\n"


def _condition(program: str) -> str:
    """A line that lets a unit rest in silence when its program was removed.

    It takes the rest of the line as it is: a path that cannot be written so has no such line.
    """
    if program != program.strip() or program.endswith("\\"):
        return ""
    return f"ConditionFileIsExecutable={program.replace('%', '%%')}\n"
