"""Shelly's metering sockets and relays, by HTTP in the local network; nothing leaves it.

``/shelly`` tells the generation. The second and later ones have RPC: ``/rpc/Switch.GetStatus?id=<channel>`` with
``apower`` in watts (a device that only meters has ``PM1``). The first has ``/status`` with ``meters[<channel>].power``.
They measure the mains side: the charger's loss is included, and power is refreshed about once a second.

https://shelly-api-docs.shelly.cloud/
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
RESOLUTION = 0.1


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
        raise MeasureError(f"shelly:{address} is no HOST/CHANNEL", "write shelly:192.168.1.20 or shelly:192.168.1.20/1")
    socket = _Socket(host, int(channel or 0))
    return SampledProbe(
        f"Shelly {address}",
        socket.watts,
        HERTZ,
        address=address,
        covers=COVERS,
        resolution=RESOLUTION,
        lag=LAG,
    )


class _Socket:
    def __init__(self, host: str, channel: int) -> None:
        self._title, self._channel = f"Shelly {host}", channel
        self._appliance = Appliance("Shelly", host)
        self._component = ""

    def watts(self) -> float:
        component = self._component = self._component or self._kind()
        if component == "meters":
            return number(self._appliance.get("status"), self._title, "meters", self._channel, "power")
        return number(
            self._appliance.get(f"rpc/{component}.GetStatus", {"id": str(self._channel)}), self._title, "apower"
        )

    def _kind(self) -> str:
        """What meters: ``meters`` in the first generation, else a component of the RPC."""
        if "gen" not in self._appliance.get("shelly"):
            return "meters"
        status = self._appliance.get("rpc/Shelly.GetStatus")
        return next((c for c in ("Switch", "PM1") if f"{c.lower()}:{self._channel}" in status), "Switch")
