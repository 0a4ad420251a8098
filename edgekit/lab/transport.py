"""The seam between the lab and a device: put a file, get a file, run a command.

Everything else (leases, jobs that outlive a lost link, what is kept on the device) is built on these, once, with POSIX
shell commands that toybox and busybox have too. To add a way to a device, add a file to ``transports/``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Protocol

from edgekit.errors import LabError, did_you_mean
from edgekit.lab import transports
from edgekit.types import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Finished:
    """A command that ended on the device. ``code``: its exit status, or 128 + the signal that ended it."""

    code: int
    out: bytes
    err: bytes


class Transport(Protocol):
    """A connection to a device. Methods may be called from one thread at a time.

    Each raises LinkLost when the device cannot be reached any more, and LabError for what the device refuses.
    """

    @property
    def address(self) -> str:
        """As the user writes it: ``ssh:pi@board``."""

    @property
    def home(self) -> str:
        """The absolute folder on the device that edgekit owns. It may not exist yet."""

    def run(self, command: str, give: bytes = b"", seconds: float | None = None) -> Finished:
        """Run a line of ``sh`` with ``give`` on its stdin.

        Args:
            command: the line.
            give: bytes for its stdin.
            seconds: after this time the command is ended on the device, with its children, and LabError is raised.
        """

    def stream(self, command: str) -> Iterator[bytes]:
        """Run a line of ``sh`` and yield what it prints, as it comes. Closing the iterator ends it on the device."""

    def put(self, source: Path, target: str, progress: Progress = silent) -> None:
        """Copy a file to the device. ``target`` appears whole or not at all; its folder exists."""

    def get(self, source: str, target: Path) -> None:
        """Copy a file from the device."""

    def reconnect(self) -> None:
        """Connect again after LinkLost. Raises LinkLost if the device is still not there."""

    def close(self) -> None:
        """End the connection. Commands that are still running are ended."""


def names() -> tuple[str, ...]:
    """The known kinds of transport, by file."""
    return tuple(sorted(m.name for m in iter_modules(transports.__path__)))


def connect(address: str) -> Transport:
    """Connect to a device.

    Args:
        address: ``local``, ``ssh:pi@board``, ``adb:SERIAL``, ``adb:HOST:PORT``, ``place:NAME``.

    Raises:
        LabError: an unknown kind of address, a device that refuses, or a missing package; the hint says what to do.
        LinkLost: nothing answers there.
    """
    kind, _, name = address.partition(":")
    if kind not in names():
        raise LabError(
            f"'{address}' is no device: unknown transport '{kind}'",
            f"{did_you_mean(kind, list(names()))}write one of: local, ssh:USER@HOST, adb:SERIAL, place:NAME",
        )
    transport: Transport = import_module(f"{transports.__name__}.{kind}").connect(name)
    return transport
