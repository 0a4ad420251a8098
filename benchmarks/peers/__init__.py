"""edgekit and its peers side by side, on one machine, in one run: ``python -m benchmarks.peers``."""
