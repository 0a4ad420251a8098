"""``python -m edgekit``: the command line."""

import sys

# Python searches the current folder first, which may be an untrusted bundle.
if not sys.flags.safe_path:
    sys.path.pop(0)

from edgekit.cli import main

main()
