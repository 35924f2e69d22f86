"""``python -m stoker_tray``: the tray in the foreground."""

from __future__ import annotations

import sys

from stoker_tray.app import main

sys.exit(main())
