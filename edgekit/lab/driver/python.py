"""The Python on a device that runs the driver: found there, or, on a phone without root, the one that is pushed."""

from __future__ import annotations

from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING

from edgekit.errors import LabError
from edgekit.lab.driver.archive import OLDEST
from edgekit.lab.shell import ask
from edgekit.record import from_json

if TYPE_CHECKING:
    from edgekit.lab.transport import Transport

PLACES = ("python3", *(f"python3.{minor}" for minor in range(15, OLDEST[1] - 1, -1)))
"""Names to look for, in this order. The first that is not too old is used."""

# What a Python says about itself; the libc's name is needed to choose wheels.
_ASK = """import json, os, platform, struct, sys, sysconfig
try:
    libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
except (AttributeError, OSError, ValueError):
    libc = ""
if hasattr(sys, "getandroidapilevel"):
    libc = "bionic"
elif not libc and "musl" in str(sysconfig.get_config_var("HOST_GNU_TYPE")):
    libc = "musl"
print(json.dumps({"path": sys.executable, "version": platform.python_version(), "libc": libc, "system": sys.platform,
    "implementation": platform.python_implementation(), "machine": platform.machine(),
    "bits": 8 * struct.calcsize("P")}))
sys.exit(sys.version_info < %r)"""

_FIND = """for name in {places}; do
  path=$(command -v "$name" 2>/dev/null) || continue
  "$path" -I -c {ask} 2>/dev/null && exit 0
done
[ -x /system/bin/getprop ] && echo android $(uname -m)
exit 0"""


@dataclass(frozen=True)
class Python:
    """A Python on a device. ``libc``: ``glibc 2.36``, ``musl``, ``bionic`` or ""."""

    path: str
    version: str
    libc: str
    system: str
    implementation: str
    machine: str
    bits: int

    @property
    def minor(self) -> str:
        """Its version without the patch: ``3.11``."""
        return ".".join(self.version.split(".")[:2])

    @property
    def command(self) -> str:
        """The words of ``sh`` that start it."""
        return quote(self.path)


def find_python(transport: Transport) -> Python | None:
    """The Python of a device; None on an Android phone of 64 bits without one, where a system with one is pushed.

    Raises:
        LabError: there is none, or only older ones.
    """
    script = _FIND.format(places=" ".join(PLACES), ask=quote(_ASK % (OLDEST,)))
    *told, last = ask(transport, script).strip().splitlines() or [""]
    oldest = ".".join(map(str, OLDEST))
    if last == "android aarch64":
        return None
    if last.startswith("android "):
        told.append("")
        last = ""
    if not last:
        raise LabError(
            f"{transport.address}: no Python there", f"install Python {oldest} or newer: sudo apt-get install python3"
        )
    try:
        found = from_json(Python, last)
    except ValueError as error:
        raise LabError(
            f"{transport.address}: its python3 does not answer as one does: {error}", "look at what `python3` is there"
        ) from error
    if tuple(int(part) for part in found.minor.split(".") if part.isdigit()) < OLDEST:
        raise LabError(
            f"{transport.address}: Python {found.version} is too old for the driver",
            f"install Python {oldest} or newer there; it is found as one of {', '.join(PLACES)}",
        )
    return found
