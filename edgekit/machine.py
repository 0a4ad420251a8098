"""What the kernel says about the processor. Standard library only: run and measure both ask."""

from __future__ import annotations

from pathlib import Path

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
"""By the flag that decides, the best first: which kernels for integer products ONNX Runtime has for a processor."""

DOT_PRODUCTS = frozenset({"AMX", "AVX512-VNNI", "AVX-VNNI", "i8mm", "dotprod"})
"""Classes that multiply and add 8-bit integers in one instruction, in 32 bits."""


def processor_name(root: Path = Path("/")) -> str:
    """The processor's name (a Raspberry Pi's board), "" when unknown.

    Args:
        root: where ``proc`` is looked for.
    """
    cpuinfo = root / "proc/cpuinfo"
    return read_field(cpuinfo, "model name") or read_field(cpuinfo, "Model")


def processor_class(root: Path = Path("/")) -> str:
    """The class of the processor, one of CLASSES; "" when unknown.

    Args:
        root: where ``proc`` is looked for.
    """
    flags = cpu_flags(root)
    return next((name for flag, name in CLASSES.items() if flag in flags), "")


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """The instruction-set flags of the first processor (``flags`` on x86, ``Features`` on ARM); empty when unknown."""
    cpuinfo = root / "proc/cpuinfo"
    return frozenset((read_field(cpuinfo, "flags") or read_field(cpuinfo, "Features")).split())


def read_field(path: Path, name: str) -> str:
    """The value of the first ``name : value`` line, "" where there is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == name:
                    return value.strip()
    except OSError:
        pass
    return ""
