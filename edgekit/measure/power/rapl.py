"""RAPL: the energy counters of x86 packages, through Linux powercap.

``/sys/class/powercap/intel-rapl:<package>/energy_uj`` counts microjoules and wraps to 0 after
``max_energy_range_uj`` (262 kJ or less: a few minutes of a server under load). AMD's counters have the same names.
Only package domains are summed: core, uncore and dram are part of a package, psys contains it. Since 2020 only root
can read the file. Virtual machines do not have it.

https://docs.kernel.org/power/powercap/powercap.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.measure.sampling import CounterProbe, Register, read_number, read_word

if TYPE_CHECKING:
    from pathlib import Path

    from edgekit.types import PowerProbe

COVERS = "processor package"
WHOLE = True
WHERE = "device"
ADDRESS = ""
TESTED = "fixture"
HERTZ = 10.0
LAG = 0.001
"""Seconds; the counter is updated about every millisecond."""


def find(root: Path) -> list[PowerProbe]:
    """One probe for all packages."""
    packages = [
        (read_word(domain / "name"), domain)
        for domain in sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
        if read_word(domain / "name").startswith("package")
    ]
    if not packages:
        return []
    registers = [_register(domain) for _, domain in packages]
    names = " + ".join(name for name, _ in packages)
    return [CounterProbe(f"RAPL {names}", registers, HERTZ, address=names, covers=COVERS, lag=LAG)]


def _register(domain: Path) -> Register:
    last = read_word(domain / "max_energy_range_uj")
    return Register(lambda: read_number(domain / "energy_uj"), 1e-6, int(last) if last.isdigit() else None)
