"""hwmon: energy counters and power sensors of boards (INA2xx shunts, INA3221, LTC4151, PMICs, some GPUs).

``energy<n>_input`` counts microjoules. ``power<n>_input`` or ``power<n>_average`` is in microwatts. A channel without
either is ``in<n>_input`` (millivolts) times ``curr<n>_input`` (milliamperes), as of the INA3221. The first of these
that a channel has is used. What a sensor covers (a rail, the board, a GPU) is not documented, so none is used unless
selected by name.

https://docs.kernel.org/hwmon/sysfs-interface.html
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from edgekit.measure.sampling import CounterProbe, Register, SampledProbe, read_number, read_word

if TYPE_CHECKING:
    from pathlib import Path

    from edgekit.types import PowerProbe

COVERS = "whatever the board's maker wired to the sensor"
WHOLE = False
WHERE = "device"
ADDRESS = "CHIP/CHANNEL"
TESTED = "kernel-tested (LTC4151); fixture for INA226, INA3221 and counters"
HERTZ = 10.0
LAG = 0.01
"""Seconds; a chip's conversion, which averages."""

_CHANNEL = re.compile(r"(energy|power|curr)(\d+)_(input|average)")


def find(root: Path) -> list[PowerProbe]:
    """One probe per channel, in the order of chips and channels."""
    chips = sorted((root / "sys/class/hwmon").glob("hwmon*"))
    names = Counter(read_word(chip / "name") for chip in chips)
    probes: list[PowerProbe] = []
    for chip in chips:
        channels: dict[int, Path] = {}
        # Prefer energy to power, input to average, and both to a product.
        for kind in ("energy*_input", "power*_input", "power*_average", "curr*_input"):
            for file in sorted(chip.glob(kind)):
                found = _CHANNEL.fullmatch(file.name)
                if found and (found[1] != "curr" or (chip / f"in{found[2]}_input").exists()):
                    channels.setdefault(int(found[2]), file)
        title = read_word(chip / "name") or chip.name
        title = f"{title} {chip.name}" if names[title] > 1 else title
        probes += [_probe(chip, title, number, file) for number, file in sorted(channels.items())]
    return probes


def _probe(chip: Path, title: str, number: int, file: Path) -> PowerProbe:
    quantity = file.name.split("_")[0].rstrip("0123456789")
    labels = (read_word(chip / f"{kind}{number}_label") for kind in (quantity, "in"))
    label = next(filter(None, labels), f"{quantity}{number}")
    name, address = f"hwmon {title} {label}", f"{title}/{label}"
    if quantity == "energy":
        register = Register(lambda: read_number(file), 1e-6)
        return CounterProbe(name, [register], hertz=HERTZ, address=address, covers=COVERS, lag=LAG)

    def watts() -> float:
        if quantity == "power":
            return read_number(file) / 1e6
        return read_number(chip / f"in{number}_input") * read_number(file) / 1e6

    return SampledProbe(name, watts, HERTZ, address=address, covers=COVERS, resolution=1e-3, lag=LAG)
