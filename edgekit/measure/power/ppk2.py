"""Nordic's Power Profiler Kit II as an ampere meter, up to 1 A, through ppk2-api (GPL-2.0, installed by its user).

It measures current; the volts of the supply that it is looped into are given by the user: ``ppk2:/dev/ttyACM0@5000`` in
millivolts. 100,000 readings a second are added up to joules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.errors import MeasureError
from edgekit.host.clock import boottime
from edgekit.measure.appliance import missing
from edgekit.measure.sampling import StreamedProbe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from threading import Event

    from edgekit.types import PowerProbe

COVERS = "what is behind its VOUT, at the volts that were given"
WHOLE = False
WHERE = "beside"
ADDRESS = "PORT@MILLIVOLTS"
TESTED = "protocol-tested"
RATE = 100_000
"""Readings per second."""

PERIOD = 0.02
LAG = 0.03
"""Seconds from a current to its arrival."""

SILENCE = 2.0


def find(root: Path) -> list[PowerProbe]:
    """None: the volts must be given."""
    del root
    return []


def connect(address: str, root: Path) -> PowerProbe:
    """The meter at a serial port.

    Raises:
        MeasureError: no port, or no millivolts from 800 to 5000.
    """
    del root
    port, _, volts = address.rpartition("@")
    if not port or not volts.isdigit() or not 800 <= int(volts) <= 5000:
        raise MeasureError(
            f"ppk2:{address} is no PORT@MILLIVOLTS", "write the supply's volts, 800 to 5000 mV: ppk2:/dev/ttyACM0@3700"
        )

    def readings(ended: Event) -> Iterator[tuple[float, float]]:
        return _follow(port, int(volts), ended)

    return StreamedProbe(f"PPK2 {port} at {volts} mV", "J", readings, address=address, covers=COVERS, lag=LAG)


def _open(port: str, millivolts: int) -> Any:
    try:
        from ppk2_api.ppk2_api import PPK2_API
    except ImportError as error:
        raise missing("ppk2-api", error) from error
    try:
        meter = PPK2_API(port, timeout=1, write_timeout=1, exclusive=True)
    except OSError as error:
        raise MeasureError(
            f"{port} cannot be opened: {error}", "check the port's name, your group (dialout), and who else uses it"
        ) from error
    if not meter.get_modifiers():
        raise MeasureError(f"{port} does not answer as a PPK2", "unplug it, plug it in again, and check the port")
    meter.set_source_voltage(millivolts)
    meter.use_ampere_meter()
    meter.toggle_DUT_power("ON")
    return meter


def _follow(port: str, millivolts: int, ended: Event) -> Iterator[tuple[float, float]]:
    meter = _open(port, millivolts)
    meter.start_measuring()
    began = heard = boottime()
    joules, count = 0.0, 0
    try:
        while not ended.wait(PERIOD):
            data, now = meter.get_data(), boottime()
            if data:
                microamperes, _ = meter.get_samples(data)
                # The first readings come after the command's way there: the clock starts with them.
                began = began if count else now - len(microamperes) / RATE
                count, heard = count + len(microamperes), now
                joules += sum(microamperes) * 1e-6 * millivolts * 1e-3 / RATE
                yield now, joules
            elif now - heard > SILENCE:
                raise MeasureError(f"{port}: the PPK2 has stopped sending", "check its cable, then measure again")
            missed = (now - began) - count / RATE
            if count and missed > max(0.5, 0.02 * (now - began)):
                raise MeasureError(
                    f"{port}: {missed:.1f} s of readings were lost", "close other programs: this machine is too busy"
                )
    finally:
        # The device behind it stays powered.
        meter.stop_measuring()
        meter.ser.close()
        meter.ser = None
