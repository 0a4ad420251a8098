"""Joulescope's JS220 and JS110, through pyjoulescope_driver: the instrument adds up the joules itself.

``joulescope`` alone is the only one connected, ``joulescope:u/js220/000123`` the one with that path.

https://joulescope-driver.readthedocs.io/
"""

from __future__ import annotations

from math import isfinite
from queue import Empty, SimpleQueue
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

COVERS = "what is behind its terminals"
WHOLE = False
WHERE = "beside"
ADDRESS = "[PATH]"
TESTED = "not tested with its driver: a stand-in for pyjoulescope_driver"
HERTZ = 50
LAG = 0.05
"""Seconds from the end of a window to its arrival."""

SILENCE = 3.0


def find(root: Path) -> list[PowerProbe]:
    """None: it is opened when it is named."""
    del root
    return []


def connect(address: str, root: Path) -> PowerProbe:
    """The instrument at a path of the driver, by default the only one."""
    del root

    def readings(ended: Event) -> Iterator[tuple[float, float]]:
        return _follow(address, ended)

    return StreamedProbe(f"Joulescope {address}".strip(), "J", readings, address=address, covers=COVERS, lag=LAG)


def _follow(address: str, ended: Event) -> Iterator[tuple[float, float]]:
    try:
        from pyjoulescope_driver import Driver
    except ImportError as error:
        raise missing("pyjoulescope_driver", error) from error
    arrived: SimpleQueue[tuple[float, Any]] = SimpleQueue()
    with Driver() as driver:
        path = _choose(address, driver.device_paths())
        driver.open(path)
        try:
            js110 = "js110" in path
            driver.publish(f"{path}/s/i/range/{'select' if js110 else 'mode'}", "auto")
            if js110:
                for signal in "ivp":
                    driver.publish(f"{path}/s/{signal}/ctrl", "on")
            driver.publish(f"{path}/s/stats/scnt", (2_000_000 if js110 else 1_000_000) // HERTZ)
            driver.publish(f"{path}/s/stats/ctrl", "on" if js110 else 1)
            driver.subscribe(f"{path}/s/stats/value", "pub", lambda _, value: arrived.put((boottime(), value)))
            yield from _windows(path, arrived, ended)
        finally:
            driver.close(path)


def _choose(address: str, paths: list[str]) -> str:
    if address and address in paths:
        return address
    if not address and len(paths) == 1:
        return paths[0]
    known = ", ".join(f"joulescope:{path}" for path in paths)
    raise MeasureError(
        f"no Joulescope at {address}" if address else f"{len(paths)} Joulescopes are connected",
        f"choose one: {known}" if known else "connect it, close other programs that use it, and check USB permissions",
    )


def _windows(path: str, arrived: SimpleQueue[tuple[float, Any]], ended: Event) -> Iterator[tuple[float, float]]:
    silent_since = boottime()
    while not ended.is_set():
        try:
            at, value = arrived.get(timeout=0.05)
        except Empty:
            if boottime() - silent_since > SILENCE:
                raise MeasureError(f"{path} has stopped sending", "check its cable, then measure again") from None
            continue
        silent_since = at
        joules = value["accumulators"]["energy"]["value"]
        if not isfinite(joules):
            raise MeasureError(f"{path} sends {joules} J", "update its firmware, and check its range")
        yield at, joules
