"""What the kernel says about the processor. Standard library only: run and measure both ask."""

from __future__ import annotations

from pathlib import Path


def processor_name(root: Path = Path("/")) -> str:
    """The processor's name (a Raspberry Pi's board), "" when unknown.

    Args:
        root: where ``proc`` is looked for.
    """
    cpuinfo = root / "proc/cpuinfo"
    return read_field(cpuinfo, "model name") or read_field(cpuinfo, "Model")


def read_field(path: Path, name: str) -> str:
    """The value of the first ``name : value`` line, "" where there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
