"""What holds for every test."""

import os

# Whoever runs the tests, and pytest-xdist too, may have a terminal's width: what is printed is compared as in a pipe.
os.environ.pop("COLUMNS", None)
