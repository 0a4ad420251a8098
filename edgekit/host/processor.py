"""Properties of the processor from /proc/cpuinfo. Standard library only."""

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
"""Class of integer-matmul kernels in ONNX Runtime by the processor flag that selects it, best first."""

DOT_PRODUCTS = frozenset({"AMX", "AVX512-VNNI", "AVX-VNNI", "i8mm", "dotprod"})
"""Classes with an instruction that multiplies 8-bit integers and accumulates in 32 bits."""


def processor_name(root: Path = Path("/")) -> str:
    """The processor's name (on a Raspberry Pi the board's), "" if unknown.

    Args:
        root: parent folder of ``proc``.
    """
    return _name(_first_processor(root)) or read_field(root / "proc/cpuinfo", "Model")


def processor_class(root: Path = Path("/")) -> str:
    """The class of the processor, a value of CLASSES; "" if unknown.

    Args:
        root: parent folder of ``proc``.
    """
    flags = cpu_flags(root)
    return next((name for flag, name in CLASSES.items() if flag in flags), "")


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """The instruction-set flags of the first processor (``flags`` on x86, ``Features`` on ARM); empty if unknown."""
    return _flags(_first_processor(root))


def identify_processor(root: Path = Path("/")) -> tuple[str, frozenset[str]]:
    """Name and flags of the first processor, which select the kernels."""
    fields = _first_processor(root)
    return _name(fields), _flags(fields)


def read_field(path: Path, name: str) -> str:
    """The value of the first ``name : value`` line, "" if there is none."""
    return next((value for key, value in _lines(path) if key == name), "")


def _name(fields: dict[str, str]) -> str:
    return fields.get("model name", "")


def _flags(fields: dict[str, str]) -> frozenset[str]:
    return frozenset((fields.get("flags") or fields.get("Features", "")).split())


def _first_processor(root: Path) -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo, read no further since the kernel generates it on the fly."""
    fields: dict[str, str] = {}
    for key, value in _lines(root / "proc/cpuinfo"):
        if not key:
            break
        fields.setdefault(key, value)
    return fields


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ``name : value`` lines as pairs; an empty line is two empty strings."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                yield key.strip(), value.strip()
    except OSError:
        return
