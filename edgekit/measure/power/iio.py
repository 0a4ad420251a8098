"""IIO: shunts read as analog-to-digital converters (INA219, INA226, ...).

``in_power<n>_raw`` times ``in_power<n>_scale`` is in milliwatts. A device without it has ``in_voltage<n>`` in
millivolts and ``in_current<n>`` in milliamperes: their product, of the highest voltage channel (the lower ones are
shunts). A channel may have ``_offset``, or ``_input``, which is scaled already. What a shunt covers is not documented,
so none is used unless selected by name.

https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-bus-iio
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from edgekit.errors import MeasureError
from edgekit.measure.sampling import SampledProbe, read_word

if TYPE_CHECKING:
    from pathlib import Path

    from edgekit.types import PowerProbe

COVERS = "whatever the board's maker wired to the shunt"
WHOLE = False
WHERE = "device"
ADDRESS = "CHIP/CHANNEL"
TESTED = "kernel-tested (INA226)"
HERTZ = 100.0
LAG = 0.01
"""Seconds; a chip's conversion, which averages."""

_CHANNEL = re.compile(r"in_(power|voltage|current)(\d+)_(?:raw|input)")


def find(root: Path) -> list[PowerProbe]:
    """One probe per power channel, or per device with a voltage and a current."""
    devices = sorted((root / "sys/bus/iio/devices").glob("iio:device*"))
    names = Counter(read_word(device / "name") for device in devices)
    probes: list[PowerProbe] = []
    for device in devices:
        title = read_word(device / "name") or device.name
        title = f"{title} {device.name}" if names[title] > 1 else title
        files = [found for file in sorted(device.glob("in_*")) if (found := _CHANNEL.fullmatch(file.name))]
        powers = [f"in_power{found[2]}" for found in files if found[1] == "power"]
        volts = [f"in_voltage{found[2]}" for found in files if found[1] == "voltage"]
        amperes = [f"in_current{found[2]}" for found in files if found[1] == "current"]
        if powers:
            probes += [_probe(device, title, (channel,)) for channel in powers]
        elif volts and len(amperes) == 1:
            probes.append(_probe(device, title, (volts[-1], amperes[0])))
    return probes


def _probe(device: Path, title: str, channels: tuple[str, ...]) -> PowerProbe:
    label = "*".join(channel.removeprefix("in_") for channel in channels)

    def watts() -> float:
        product = 1e-3 if len(channels) == 1 else 1e-6
        for channel in channels:
            product *= _read(device, channel)
        return product

    scale = read_word(device / f"{channels[0]}_scale") if len(channels) == 1 else ""
    resolution = float(scale) / 1e3 if re.fullmatch(r"\d+(\.\d+)?", scale) else 1e-3
    return SampledProbe(
        f"IIO {title} {label}",
        watts,
        HERTZ,
        address=f"{title}/{label}",
        covers=COVERS,
        resolution=resolution,
        lag=LAG,
    )


def _read(device: Path, channel: str) -> float:
    """A channel in its milli-unit: (raw + offset) * scale."""
    if (device / f"{channel}_input").exists():
        return _number(device / f"{channel}_input")
    offset = device / f"{channel}_offset"
    raw = _number(device / f"{channel}_raw") + (_number(offset) if offset.exists() else 0.0)
    return raw * _number(device / f"{channel}_scale")


def _number(file: Path) -> float:
    try:
        return float(file.read_text())
    except (OSError, ValueError) as error:
        raise MeasureError(
            f"{file}: cannot be read as a number: {error}", "allow reading it, or choose another meter"
        ) from error
