"""`python -m stoker_tray.icons OUT_DIR`: write the icon files that installers need."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stoker_tray.icons.export import export


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stoker_tray.icons", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="OUT_DIR")
    for path in export(parser.parse_args().folder):
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
