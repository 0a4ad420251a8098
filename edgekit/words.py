"""Format numbers for people, and read durations. A missing number is never shown as zero. Standard library only."""

from __future__ import annotations

import re
from math import isfinite, isnan, log10

ABSENT = "not measured"

_SECONDS = {"s": 1, "m": 60, "h": 3600}
_UNITS = ("B", "kB", "MB", "GB", "TB")


def size(count: float) -> str:
    """Bytes in decimal units: ``86.4 MB``."""
    if count < 1000:
        return f"{count:.0f} B"
    power = min(int(log10(count)) // 3, 4)
    value = count / 1000**power
    return f"{value:.{0 if value >= 100 else 1}f} {_UNITS[power]}"


def count(number: float) -> str:
    """A whole number with thousands separated: ``134,515,008``."""
    return f"{number:,.0f}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with ``digits`` significant digits; a word if it is missing or not finite."""
    if value is None:
        return ABSENT
    if not isfinite(value):
        return "undefined" if isnan(value) else "infinite" if value > 0 else "minus infinite"
    if value == 0:
        return "0"
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(fraction: float, digits: int = 1) -> str:
    """0.955 -> ``95.5 %``."""
    return f"{100 * fraction:.{digits}f} %"


def promise(alpha: float, delta: float) -> str:
    """``at most 5 % of the answers served are wrong, with confidence 95 %``."""
    return f"at most {100 * alpha:.4g} % of the answers served are wrong, with confidence {100 * (1 - delta):.6g} %"


def duration(text: str) -> float | None:
    """Seconds of ``90s``, ``10m`` or ``8h``; None if the text is no duration above zero."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smh])", text)
    value = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    return value or None


def seconds(value: float) -> str:
    """A duration: ``13.2 ms``, ``1.52 s``, ``2 min 5 s``."""
    if value < 1:
        return f"{number(1000 * value)} ms"
    if value < 60:
        return f"{number(value)} s"
    return f"{value // 60:.0f} min {value % 60:.0f} s"


def processor(name: str, kind: str) -> str:
    """A processor with its class: ``Intel(R) Xeon(R) Processor (AVX512-VNNI)``."""
    return f"{name or 'unknown processor'}{f' ({kind})' if kind else ''}"


def left_aside(names: tuple[str, ...]) -> str:
    """Tensors that a model does not use: how many, and the first."""
    if len(names) == 1:
        return f"1 tensor that the model does not use: {names[0][:80]!r}"
    return f"{len(names)} tensors that the model does not use, first {names[0][:80]!r}"


def minor_version(text: str) -> str:
    """A version without its patch: ``1.32`` of ``1.32.0``."""
    return ".".join(text.split(".")[:2])
