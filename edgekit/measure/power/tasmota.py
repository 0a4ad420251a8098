"""Sockets with the Tasmota firmware, by HTTP in the local network.

``/cm?cmnd=Status 10`` answers with ``StatusSNS.ENERGY``: ``Power`` in watts, a list if there are several channels.
``WattRes 3`` in its console gives milliwatts instead of whole watts. They measure the mains side: the charger's loss is
included, and power is refreshed about once a second.

https://tasmota.github.io/docs/Commands/#management
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.errors import MeasureError
from edgekit.measure.appliance import Appliance, number
from edgekit.measure.sampling import SampledProbe

if TYPE_CHECKING:
    from pathlib import Path

    from edgekit.types import PowerProbe

COVERS = "whatever is plugged into the socket, with its power supply"
WHOLE = False
WHERE = "beside"
ADDRESS = "HOST[/CHANNEL]"
TESTED = "protocol-tested"
HERTZ = 4.0
LAG = 1.0
RESOLUTION = 1.0


def find(root: Path) -> list[PowerProbe]:
    """None: nothing looks for sockets in a network."""
    del root
    return []


def connect(address: str, root: Path) -> PowerProbe:
    """The socket at a host; it is asked when the meter starts.

    Raises:
        MeasureError: the channel is no number.
    """
    del root
    host, _, channel = address.partition("/")
    if not (host and (channel or "0").isdigit()):
        raise MeasureError(
            f"tasmota:{address} is no HOST/CHANNEL", "write tasmota:192.168.1.20 or tasmota:192.168.1.20/1"
        )
    title, appliance = f"Tasmota {host}", Appliance("Tasmota", host)

    def watts() -> float:
        found = appliance.get("cm", {"cmnd": "Status 10"})
        energy = (found.get("StatusSNS") or {}).get("ENERGY") or {}
        several = isinstance(energy.get("Power"), list)
        return number(energy, title, "Power", *([int(channel or 0)] if several else []))

    return SampledProbe(
        f"Tasmota {address}", watts, HERTZ, address=address, covers=COVERS, resolution=RESOLUTION, lag=LAG
    )
