"""hwmon: energy counters and power sensors of boards (INA2xx shunts, PMICs, some GPUs).

``energy<n>_input`` counts microjoules. ``power<n>_input`` or ``power<n>_average`` is in microwatts and is sampled. If a
channel has both, the counter is used. What a sensor covers (a rail, the board, a GPU) is not documented, so none is
used unless selected by name.

https://docs.kernel.org/hwmon/sysfs-interface.html
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edgekit.measure.sampling import CounterProbe, Register, SampledProbe, read_number, read_word

if TYPE_CHECKING:
    from pathlib import Path

    from edgekit.types import PowerProbe

COVERS = "whatever the board's maker wired to the sensor"
WHOLE = False
HERTZ = 10.0

_CHANNEL = re.compile(r"(energy|power)(\d+)_(input|average)")


def find(root: Path) -> list[PowerProbe]:
    """One probe per channel, in the order of chips and channels."""
    probes: list[PowerProbe] = []
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        channels: dict[int, Path] = {}
        # Prefer energy to power, and input to average.
        for kind in ("energy*_input", "power*_input", "power*_average"):
            for file in sorted(chip.glob(kind)):
                found = _CHANNEL.fullmatch(file.name)
                if found:
                    channels.setdefault(int(found[2]), file)
        probes += [_probe(chip, number, file) for number, file in sorted(channels.items())]
    return probes


def _probe(chip: Path, number: int, file: Path) -> PowerProbe:
    quantity = file.name.split("_")[0].rstrip("0123456789")
    label = read_word(chip / f"{quantity}{number}_label") or f"{quantity}{number}"
    name = f"hwmon {read_word(chip / 'name') or chip.name} {label}"
    if quantity == "energy":
        return CounterProbe(name, [Register(lambda: read_number(file), 1e-6)], hertz=0.2)
    return SampledProbe(name, lambda: read_number(file) / 1e6, HERTZ)
