"""A device that a lab holds for a night: its state, and one run at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from edgekit.types.measurement import Energy

if TYPE_CHECKING:
    from edgekit.lab.file import LabBundle, Workload
    from edgekit.types.lab import DeviceFacts, Mark, Power, Rate, Sample
    from edgekit.types.measurement import Measurement


LEASE_SECONDS = 300.0
"""How long others keep away from a device after its last renewal: longer than any silence of a run."""


@dataclass(frozen=True)
class Outcome:
    """What a run brought back: the parts of a LabRun that come from the device."""

    driver: str
    measurement: Measurement | None = None
    energy: Energy = field(default_factory=lambda: Energy("none", reason="no meter was read"))
    marks: tuple[Mark, ...] = ()
    samples: tuple[Sample, ...] = ()
    rates: tuple[Rate, ...] = ()
    power: tuple[Power, ...] = ()
    notes: tuple[str, ...] = ()


class Station(Protocol):
    """A device that is connected and leased. One thread uses it.

    Methods raise LinkLost when the device is gone for longer than the link may be, and LabError (or another
    EdgekitError that the driver reported) for what the device refuses.
    """

    @property
    def facts(self) -> DeviceFacts:
        """What it is."""

    def sample(self) -> Sample:
        """Its state now."""

    def execute(self, bundle: LabBundle, workload: Workload) -> Outcome:
        """Run a workload, and return when it has ended on the device too."""

    def close(self) -> None:
        """Give the device back."""
