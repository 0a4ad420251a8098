"""What `edgekit doctor --install` gets with pip, pinned by version and hash. `benchmarks/locks.py` writes the files.

pip compares every file that it gets with them (``--require-hashes``) and builds none (``--only-binary``): no code of
another file runs. torch alone is pinned by version and not by hash: it has a build for each kind of processor, and the
index that pip is set up with says which is right.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent

WHEELS = ("--only-binary=:all:", "--no-input", "--disable-pip-version-check")
"""What pip is always told: nothing is built, nothing is asked."""

STRICT = ("--require-hashes", *WHEELS)
"""What pip must be told with each of these files."""


def pins(name: str) -> dict[str, str]:
    """The lines of a lock by what they pin: ``numpy==2.3.5`` gives that and its hashes."""
    text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    found, line = {}, ""
    for part in text.splitlines():
        line += part.removesuffix("\\").strip() + " "
        if not part.endswith("\\"):
            found[line.split()[0]] = line.strip()
            line = ""
    return found
