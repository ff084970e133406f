"""``python -m sona``: the same as ``sona``."""

import sys

from sona.cli import main

if __name__ == "__main__":
    sys.exit(main())
