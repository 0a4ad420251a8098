"""``python -m edgekit``: the command line."""

import sys

# Python looks for modules in the current folder first, which may be a bundle of somebody else's.
if not sys.flags.safe_path:
    sys.path.pop(0)

from edgekit.cli import main

main()
