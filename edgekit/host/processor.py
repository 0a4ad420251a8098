"""What the kernel says about the processor. Standard library only: run and measure both ask."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CLASSES = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX512",
    "avx2": "AVX2",
    "avx": "AVX",
    "sse4_1": "SSE4",
    "i8mm": "i8mm",
    "asimddp": "dotprod",
    "asimd": "NEON",
}
"""By the flag that decides, the best first: which kernels for integer matmuls ONNX Runtime has for a processor."""

DOT_PRODUCTS = frozenset({"AMX", "AVX512-VNNI", "AVX-VNNI", "i8mm", "dotprod"})
"""Classes that multiply and add 8-bit integers in one instruction, in 32 bits."""


def processor_name(root: Path = Path("/")) -> str:
    """The processor's name (a Raspberry Pi's board), "" when unknown.

    Args:
        root: where ``proc`` is looked for.
    """
    return _name(_first_processor(root)) or read_field(root / "proc/cpuinfo", "Model")


def processor_class(root: Path = Path("/")) -> str:
    """The class of the processor, one of CLASSES; "" when unknown.

    Args:
        root: where ``proc`` is looked for.
    """
    flags = cpu_flags(root)
    return next((name for flag, name in CLASSES.items() if flag in flags), "")


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """The instruction-set flags of the first processor (``flags`` on x86, ``Features`` on ARM); empty when unknown."""
    return _flags(_first_processor(root))


def identify_processor(root: Path = Path("/")) -> tuple[str, frozenset[str]]:
    """Name and flags of the first processor, read at once: what its kernels depend on."""
    fields = _first_processor(root)
    return _name(fields), _flags(fields)


def read_field(path: Path, name: str) -> str:
    """The value of the first ``name : value`` line, "" where there is none."""
    return next((value for key, value in _lines(path) if key == name), "")


def _name(fields: dict[str, str]) -> str:
    return fields.get("model name", "")


def _flags(fields: dict[str, str]) -> frozenset[str]:
    return frozenset((fields.get("flags") or fields.get("Features", "")).split())


def _first_processor(root: Path) -> dict[str, str]:
    """The fields of the first processor of /proc/cpuinfo; the kernel makes the file while it is read."""
    fields: dict[str, str] = {}
    for key, value in _lines(root / "proc/cpuinfo"):
        if not key:
            break
        fields.setdefault(key, value)
    return fields


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """``name : value`` lines as pairs; a line without a name is two empty words."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                yield key.strip(), value.strip()
    except OSError:
        return
