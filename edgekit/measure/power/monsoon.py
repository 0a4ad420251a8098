"""Monsoon's High Voltage Power Monitor, through the maker's package Monsoon (MIT).

It feeds the device in place of its battery: set its volts in the maker's program first, they are not changed here.
``monsoon`` alone is the only one connected, ``monsoon:12345`` the one with that serial number.
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

COVERS = "what its main channel feeds"
WHOLE = False
WHERE = "beside"
ADDRESS = "[SERIAL]"
TESTED = "not tested with its driver: a stand-in for Monsoon's package"
BATCH = 100
"""Readings of 5,000 a second that become one; a few between two batches are lost."""

LAG = 0.05


def find(root: Path) -> list[PowerProbe]:
    """None: it is opened when it is named."""
    del root
    return []


def connect(address: str, root: Path) -> PowerProbe:
    """The instrument with a serial number, by default the only one.

    Raises:
        MeasureError: the serial number is no number.
    """
    del root
    if address and not address.isdigit():
        raise MeasureError(f"monsoon:{address} is no serial number", "write monsoon:12345, or monsoon for the only one")

    def readings(ended: Event) -> Iterator[tuple[float, float]]:
        return _follow(int(address) if address else None, ended)

    return StreamedProbe(f"Monsoon {address}".strip(), "W", readings, address=address, covers=COVERS, lag=LAG)


def _open(serial: int | None) -> tuple[Any, Any]:
    try:
        from Monsoon import HVPM, sampleEngine
    except ImportError as error:
        raise missing("Monsoon", error) from error
    meter = HVPM.Monsoon()
    try:
        meter.setup_usb(serial)
        meter.fillStatusPacket()
        engine = sampleEngine.SampleEngine(meter)
    except Exception as error:  # whatever its USB library raises
        raise MeasureError(
            f"no Monsoon power monitor can be opened: {error}", "connect it, switch it on, and check USB permissions"
        ) from error
    engine.ConsoleOutput(False)
    engine.disableCSVOutput()
    engine.enableChannel(sampleEngine.channels.MainCurrent)
    engine.enableChannel(sampleEngine.channels.MainVoltage)
    return meter, engine


def _follow(serial: int | None, ended: Event) -> Iterator[tuple[float, float]]:
    meter, engine = _open(serial)
    try:
        if engine.periodicStartSampling() is False:
            raise MeasureError("the Monsoon power monitor does not sample", "switch it off and on, then try again")
        while not ended.is_set():
            # Times, main, USB and auxiliary milliamperes, main and USB volts.
            times, milliamperes, _, _, volts, _ = engine.periodicCollectSamples(BATCH)
            if not times:
                raise MeasureError("the Monsoon power monitor has stopped sending", "check its cable and output")
            watts = [i * v / 1e3 for i, v in zip(milliamperes, volts, strict=True)]
            yield boottime(), sum(watts) / len(watts)
    finally:
        engine.periodicStopSampling()
        meter.closeDevice()
