"""The Python on a device that runs the driver: found there, or, on a phone without root, the one that is pushed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from shlex import quote
from typing import TYPE_CHECKING

from edgekit.errors import LabError
from edgekit.lab.driver.archive import OLDEST
from edgekit.lab.shell import ask
from edgekit.record import added_later, from_json

if TYPE_CHECKING:
    from collections.abc import Sequence

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
print(json.dumps({"path": sys.argv[1], "version": platform.python_version(), "libc": libc, "system": sys.platform,
    "implementation": platform.python_implementation(), "machine": platform.machine(),
    "bits": 8 * struct.calcsize("P")}))
sys.exit(sys.version_info < %r)"""

_FIND = """for name in {places}; do
  path=$(command -v "$name" 2>/dev/null) || continue
  "$path" -I -c {ask} "$path" 2>/dev/null && exit 0
done
[ -x /system/bin/getprop ] && echo android $(uname -m)
exit 0"""


@dataclass(frozen=True)
class Python:
    """A Python on a device. ``libc``: ``glibc 2.36``, ``musl``, ``bionic`` or "". ``words`` start it, if any."""

    path: str
    version: str
    libc: str
    system: str
    implementation: str
    machine: str
    bits: int
    words: tuple[str, ...] = added_later(())

    @property
    def minor(self) -> str:
        """Its version without the patch: ``3.11``."""
        return ".".join(self.version.split(".")[:2])

    @property
    def command(self) -> str:
        """The words of ``sh`` that start it."""
        return " ".join(map(quote, self.words or (self.path,)))


def find_python(transport: Transport) -> Python | None:
    """The Python of a device; None on an Android phone of 64 bits without one, where a system with one is pushed.

    Raises:
        LabError: there is none, or only older ones.
    """
    script = _FIND.format(places=" ".join(PLACES), ask=quote(_ASK % (OLDEST,)))
    said = [line for line in ask(transport, script).splitlines() if line.strip()]
    last = said[-1] if said else ""
    oldest = ".".join(map(str, OLDEST))
    if last == "android aarch64":
        return None
    if not last or last.startswith("android "):
        raise LabError(
            f"{transport.address}: no Python there", f"install Python {oldest} or newer: sudo apt-get install python3"
        )
    found = _read(transport, last)
    if tuple(int(part) for part in found.minor.split(".") if part.isdigit()) < OLDEST:
        raise LabError(
            f"{transport.address}: Python {found.version} is too old for the driver",
            f"install Python {oldest} or newer there; it is found as one of {', '.join(PLACES)}",
        )
    return found


def ask_python(transport: Transport, words: Sequence[str]) -> Python:
    """What the Python says that ``words`` start.

    Raises:
        LabError: it does not start.
    """
    script = f"{' '.join(map(quote, words))} -I -c {quote(_ASK % (OLDEST,))} {quote(words[-1])}"
    return replace(_read(transport, ask(transport, script)), words=tuple(words))


def _read(transport: Transport, text: str) -> Python:
    try:
        return replace(from_json(Python, text), words=())
    except ValueError as error:
        raise LabError(
            f"{transport.address}: its python3 does not answer as one does: {error}", "look at what `python3` is there"
        ) from error
