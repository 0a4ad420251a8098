"""The battery's gauge: the power of the whole device while it runs on battery.

``/sys/class/power_supply/*``: ``power_now`` in microwatts, or ``current_now`` times ``voltage_now``. The class is
defined in microamperes and microvolts, and negative while discharging; drivers of phones differ in both. The sign is
not used, but must stay the same. The unit is found out from all readings of a run: from the charge counter if it moved,
else by what a running device can draw; if both are possible, there is no number. Gauges refresh about once a second
and are good for comparisons, not for absolute numbers. With a charger connected they show something else, so any state
but ``Discharging`` is rejected, and so is a supply that is online: a weak one and the battery feed the device together.

https://docs.kernel.org/power/power_supply_class.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.errors import MeasureError
from edgekit.measure.sampling import SampledProbe, read_number, read_word

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekit.types import PowerProbe

COVERS = "whole device"
WHOLE = True
WHERE = "device"
ADDRESS = ""
TESTED = "kernel-tested (sbs-battery); fixture for other drivers"
HERTZ = 4.0
LAG = 1.0
"""Seconds; gauges average and refresh about once a second."""

LEAST, MOST = 0.02, 30.0
"""Watts that a device whose gauge gives no power draws while it is awake: less is no processor, more is no phone."""

UNPLUG = "unplug the charger: reach a phone by adb over Wi-Fi, or use an external meter"


def find(root: Path) -> list[PowerProbe]:
    """One probe for all batteries of the machine, but not those of peripherals."""
    batteries = _batteries(root)
    if not batteries:
        return []
    gauges = _Gauges(root, batteries)
    return [
        SampledProbe(
            "battery " + " + ".join(b.name for b in batteries),
            gauges.watts,
            HERTZ,
            address=" + ".join(b.name for b in batteries),
            covers=COVERS,
            resolution=1e-3,
            lag=LAG,
            scale=gauges.scale,
        )
    ]


def charge_joules(root: Path) -> float | None:
    """Joules of a full charge by the gauges' own account: ``energy_full``, or ``charge_full`` times the voltage now.

    None if a gauge tells neither.
    """
    total = 0.0
    for battery in _batteries(root):
        energy, charge = read_word(battery / "energy_full"), read_word(battery / "charge_full")
        if energy.isdigit():
            total += int(energy) * 3.6e-3
        elif charge.isdigit() and (battery / "voltage_now").exists():
            total += _coulombs(int(charge)) * _volts(battery)
        else:
            return None
    return total or None


def _batteries(root: Path) -> list[Path]:
    return [
        supply
        for supply in sorted((root / "sys/class/power_supply").glob("*"))
        if read_word(supply / "type") == "Battery"
        and read_word(supply / "scope") != "Device"
        and read_word(supply / "present") != "0"
        and ((supply / "power_now").exists() or (supply / "current_now").exists())
    ]


def _volts(battery: Path) -> float:
    """``voltage_now``: no battery has 0.1 V, and none 100 V, so a number below 100,000 is in millivolts."""
    raw = read_number(battery / "voltage_now")
    return raw / 1e3 if raw < 100_000 else raw / 1e6


def _coulombs(raw: int) -> float:
    """A capacity, in microampere hours; below 100,000 of them, in milliampere hours."""
    return raw * 3.6 if raw < 100_000 else raw * 3.6e-3


class _Gauges:
    """The gauges of a run: their watts if currents are in microamperes, and what tells whether they are."""

    def __init__(self, root: Path, batteries: list[Path]) -> None:
        self._supplies, self._batteries = root / "sys/class/power_supply", batteries
        self._clear()

    def _clear(self) -> None:
        self._signs: set[bool] = set()
        self._charges: list[int] = []
        self._volts = 0.0

    def watts(self) -> float:
        """The draw of all batteries now."""
        states = {b.name: read_word(b / "status") for b in self._batteries}
        # With two batteries, one discharges while the other is idle.
        if "Discharging" not in states.values() or "Charging" in states.values():
            told = ", ".join(f"{name} is {state or 'in an unknown state'}" for name, state in states.items())
            raise MeasureError(f"{told}: the gauge does not show the device's power", UNPLUG)
        online = [s.name for s in sorted(self._supplies.glob("*")) if _feeds(s)]
        if online:
            raise MeasureError(f"the supply {online[0]} is online: the battery does not feed the device alone", UNPLUG)
        return sum(self._draw(b) for b in self._batteries if states[b.name] == "Discharging")

    def _draw(self, battery: Path) -> float:
        if (battery / "power_now").exists():
            return abs(read_number(battery / "power_now")) / 1e6
        raw, self._volts = read_number(battery / "current_now"), _volts(battery)
        if raw:
            self._signs.add(raw > 0)
        for name in ("charge_counter", "charge_now"):
            if (battery / name).exists():
                self._charges.append(read_number(battery / name))
                break
        return abs(raw) / 1e6 * self._volts

    def scale(self, at: Sequence[float], watts: Sequence[float]) -> float:
        """1 for microamperes, 1000 for milliamperes.

        Args:
            at: seconds.
            watts: if the currents are in microamperes.

        Raises:
            MeasureError: it cannot be told, or a current changed its sign.
        """
        if any((b / "power_now").exists() for b in self._batteries):
            return 1.0
        if len(self._signs) > 1:
            raise MeasureError("the battery's current changed its direction: it was charged meanwhile", UNPLUG)
        counted = self._counted_joules()
        if counted:
            mean = sum(watts) / len(watts)
            ratio = counted / (mean * (at[-1] - at[0])) if mean else 0.0
            for factor in (1.0, 1000.0):
                if factor / 5 < ratio < factor * 5:
                    return factor
            raise MeasureError(
                f"the battery's current and its charge counter disagree by {ratio:.3g}", "use an external meter"
            )
        most = max(watts)
        if most * 1000 > MOST or not most:
            return 1.0
        if most < LEAST:
            return 1000.0
        raise MeasureError(
            f"the battery's gauge tells either {most:.3g} W or {most * 1000:.3g} W: its unit is not documented",
            "measure for minutes, until the charge counter moves, or use an external meter",
        )

    def _counted_joules(self) -> float | None:
        """By the charge counter of a single battery, if it fell by at least three steps."""
        if len(self._batteries) > 1 or len(set(self._charges)) < 4 or self._charges[0] <= self._charges[-1]:
            return None
        fell = _coulombs(self._charges[0]) - _coulombs(self._charges[-1])
        return fell * self._volts


def _feeds(supply: Path) -> bool:
    return read_word(supply / "type") not in ("Battery", "") and read_word(supply / "online") not in ("0", "")
