"""One adapter per system's tray: Windows, macOS, and StatusNotifierItem everywhere else."""

from __future__ import annotations

import os
import sys

from stoker_tray.face import Listener, Shell

# Importing pystray probes for a backend, which may load GTK or fail without a display. The adapters
# subclass the backends that they need, so the probe must find nothing. This package is imported
# before any module in it can import pystray.
os.environ["PYSTRAY_BACKEND"] = "dummy"


def open_shell(listener: Listener) -> Shell:
    """Make the adapter for this system; nothing shows before its `run`."""
    if sys.platform == "win32":
        from stoker_tray.adapters import win32

        return win32.open_shell(listener)
    if sys.platform == "darwin":
        from stoker_tray.adapters import darwin

        return darwin.open_shell(listener)
    from stoker_tray.adapters.sni import SniShell

    return SniShell(listener)
