"""`python -m stoker`: the same program as the `stoker` command."""

from __future__ import annotations

import sys

from stoker.entry import main

if __name__ == "__main__":
    sys.exit(main())
