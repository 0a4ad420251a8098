"""Regenerate edgekit/locks: versions and hashes of everything that `edgekit doctor --install` installs with pip.

    uv run --no-project python benchmarks/locks.py        (or any Python, with uv on the PATH)

Each file is for `pip install --require-hashes` and lists all files of a version, for every platform and Python. It
names no index; pip uses the configured one and refuses files with other hashes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "edgekit" / "locks"

OPTIMUM = ("optimum-onnx>=0.1,<0.2", "torch==2.13.0", "onnxruntime")
"""Resolved together, so that torch and transformers are compatible."""

TORCH = re.compile(r"(torch|triton|nvidia-|cuda-)")
"""Excluded from the file: torch has a build for each kind of processor, chosen by the configured index."""

RUNTIMES = (
    *("1.24.1", "1.24.2", "1.24.3", "1.24.4", "1.25.0", "1.25.1", "1.26.0", "1.27.0", "1.28.0", "1.29.0"),
    *("1.30.0", "1.31.0", "1.31.1", "1.32.0"),
)
"""Versions of onnxruntime for devices and for emulated ARM, which run the installed one."""
NUMPY = "numpy==2.3.5"
"""Supports the Pythons of current distributions, 3.11 to 3.14."""


def lock(*requirements: str, options: tuple[str, ...] = ()) -> str:
    """Resolve requirements to pins with hashes."""
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"]
    command += ["--no-annotate", "--no-header", *options, "-"]
    text = "\n".join(requirements)
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True, cwd=LOCKS).stdout


def split(text: str) -> list[str]:
    """The pins of a lock, each with its lines of hashes."""
    return re.findall(r"(?ms)^\S.*?(?=^\S|\Z)", text)


def main() -> int:
    """Write both files."""
    wheels = (*(f"onnxruntime=={version}" for version in RUNTIMES), NUMPY)
    files = {
        "optimum.txt": "".join(pin for pin in split(lock(*OPTIMUM)) if not TORCH.match(pin)),
        "runtime.txt": "".join(lock(wheel, options=("--no-deps",)) for wheel in wheels),
    }
    for name, text in files.items():
        if re.search(r"://|^-", text, flags=re.MULTILINE):
            print(f"{name}: names an index")
            return 1
        (LOCKS / name).write_text(text, encoding="utf-8")
        print(f"{name}: {text.count('==')} pins, {text.count('--hash')} hashes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
