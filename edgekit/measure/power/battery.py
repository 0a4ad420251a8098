"""The battery's gauge: the power of the whole device while it runs on battery.

``/sys/class/power_supply/BAT*``: ``power_now`` in microwatts, or ``current_now`` (microamperes, the sign depends on the
driver) times ``voltage_now`` (microvolts). Gauges refresh about once a second and are good for comparisons, not for
absolute numbers. On mains they show the charging power, so any state but ``Discharging`` is rejected.

https://docs.kernel.org/power/power_supply_class.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.errors import MeasureError
from edgekit.measure.sampling import SampledProbe, read_number, read_word

if TYPE_CHECKING:
    from pathlib import Path

    from edgekit.types import PowerProbe

COVERS = "whole device"
WHOLE = True
HERTZ = 2.0


def find(root: Path) -> list[PowerProbe]:
    """One probe for all batteries of the machine, but not those of peripherals."""
    batteries = [
        supply
        for supply in sorted((root / "sys/class/power_supply").glob("*"))
        if read_word(supply / "type") == "Battery"
        and read_word(supply / "scope") != "Device"
        and read_word(supply / "present") != "0"
        and ((supply / "power_now").exists() or (supply / "current_now").exists())
    ]
    if not batteries:
        return []
    name = "battery " + " + ".join(b.name for b in batteries)
    return [SampledProbe(name, lambda: _watts(batteries), HERTZ)]


def _watts(batteries: list[Path]) -> float:
    states = {b.name: read_word(b / "status") for b in batteries}
    # With two batteries, one discharges while the other is idle.
    if "Discharging" not in states.values() or "Charging" in states.values():
        told = ", ".join(f"{name} is {state or 'in an unknown state'}" for name, state in states.items())
        raise MeasureError(f"{told}: the gauge does not show the device's power", "unplug the charger")
    return sum(_draw(b) for b in batteries if states[b.name] == "Discharging")


def _draw(battery: Path) -> float:
    if (battery / "power_now").exists():
        return abs(read_number(battery / "power_now")) / 1e6
    return abs(read_number(battery / "current_now")) * read_number(battery / "voltage_now") / 1e12
