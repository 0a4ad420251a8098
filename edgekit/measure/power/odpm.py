"""ODPM: the energy counters of the power rails of Google's Pixel phones, 6 and newer.

``/sys/bus/iio/devices/iio:device*/energy_value``: a line ``t=<ms>``, then ``CH<n>(T=<ms>)[<rail>], <microjoules>`` for
each rail that is enabled. Reading it needs root, or the group of the power HAL. Rails are separate, so their joules may
be added: ``odpm:S2M_VDD_CPUCL2+S3M_VDD_CPUCL1``. Which rails feed the processor differs between models.

https://perfetto.dev/docs/data-sources/battery-counters#odpm
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edgekit.errors import MeasureError, did_you_mean
from edgekit.measure.sampling import CounterProbe, Register, read_word

if TYPE_CHECKING:
    from pathlib import Path

    from edgekit.types import PowerProbe

COVERS = "the named rails"
WHOLE = False
WHERE = "device"
ADDRESS = "RAIL[+RAIL...]"
TESTED = "fixture"
HERTZ = 5.0
LAG = 0.25
"""Seconds; the chip adds up on its own, and the driver fetches its sums no more often than this."""

_RAIL = re.compile(r"CH\d+\(T=\d+\)\[([^\]]+)\],\s*(\d+)")


def find(root: Path) -> list[PowerProbe]:
    """One probe per enabled rail."""
    return [_probe((rail,), rails) for rails in [_rails(root)] for rail in rails]


def connect(address: str, root: Path) -> PowerProbe:
    """The sum of the rails in ``address``.

    Raises:
        MeasureError: a rail is not there, or named twice.
    """
    rails, chosen = _rails(root), tuple(address.split("+"))
    for rail in chosen:
        if rail not in rails:
            known = ", ".join(rails) or "no rail can be read: run as root"
            raise MeasureError(f"no rail {rail}", f"{did_you_mean(rail, list(rails))}known: {known}")
    if len(set(chosen)) < len(chosen):
        raise MeasureError(f"the rails {address} name one twice", "name each rail once")
    return _probe(chosen, rails)


def _rails(root: Path) -> dict[str, Path]:
    """The file of each rail."""
    files = sorted((root / "sys/bus/iio/devices").glob("iio:device*/energy_value"))
    return {rail: file for file in files for rail, _ in _RAIL.findall(read_word(file))}


def _probe(chosen: tuple[str, ...], rails: dict[str, Path]) -> PowerProbe:
    def register(rail: str) -> Register:
        def read() -> int:
            counts = dict(_RAIL.findall(read_word(rails[rail])))
            if rail not in counts:
                raise MeasureError(f"{rails[rail]}: the rail {rail} is not there any more", "enable it and try again")
            return int(counts[rail])

        return Register(read, 1e-6)

    address = "+".join(chosen)
    return CounterProbe(
        f"ODPM {address}",
        [register(rail) for rail in chosen],
        HERTZ,
        address=address,
        covers=f"the rails {address}" if len(chosen) > 1 else f"the rail {address}",
        lag=LAG,
    )
