"""NVIDIA boards through NVML's total energy counter, with the package nvidia-ml-py (extra ``nvidia``).

The counter is in millijoules since the driver was loaded and refreshes about every 100 ms: measure for seconds. Boards
before Volta do not have it. It covers only the GPU board, so it is not used for a model on the CPU unless selected.

https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import MeasureError
from edgekit.measure.sampling import CounterProbe, Register

if TYPE_CHECKING:
    from edgekit.types import PowerProbe

COVERS = "GPU board"
WHOLE = False
WHERE = "device"
ADDRESS = "NUMBER"
TESTED = "fixture"
HERTZ = 10.0
LAG = 0.1
"""Seconds between refreshes of the counter."""


def find(root: Path) -> list[PowerProbe]:
    """One probe per board; none if ``root`` is a fixture, since NVML does not read files."""
    if root != Path("/"):
        return []
    try:
        import pynvml

        pynvml.nvmlInit()
    except ImportError:
        return []
    except pynvml.NVMLError:
        return []
    handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    return [_probe(pynvml, i, handle) for i, handle in enumerate(handles)]


def _probe(nvml: Any, index: int, handle: Any) -> PowerProbe:
    title = nvml.nvmlDeviceGetName(handle)
    title = title.decode() if isinstance(title, bytes) else title

    def read() -> int:
        try:
            return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        except nvml.NVMLError as error:
            raise MeasureError(
                f"GPU {index} ({title}): no energy counter: {error}", "use a GPU of the Volta generation or newer"
            ) from error

    register = Register(read, 1e-3)
    return CounterProbe(f"NVML {title} #{index}", [register], HERTZ, address=str(index), covers=COVERS, lag=LAG)
