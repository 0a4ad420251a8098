"""The device's state over time: heat, clocks, battery, free memory, and what other processes take.

Linux's files under ``root``; Android's shell may not read the battery's there, so ``dumpsys battery`` is asked instead.
Unknown stays None. A sample costs a few milliseconds of one core.

https://docs.kernel.org/driver-api/thermal/sysfs-api.html, https://docs.kernel.org/admin-guide/pm/cpufreq.html,
https://docs.kernel.org/filesystems/proc.html (1.8: /proc/stat)
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

from edgekit.host.processor import read_field
from edgekit.measure.sampling import read_word
from edgekit.types.lab import Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

COLDEST, HOTTEST = -40.0, 150.0
"""Degrees Celsius that a sensor may show; others are a sensor that is off."""

DUMPSYS = "system/bin/dumpsys"
_EVERY = 15
"""Samples between two questions to ``dumpsys``, which starts a process."""

_PLUGS = {"mains": "ac", "usb": "usb", "wireless": "wireless"}
"""``plugged`` by the beginning of a power supply's type."""


def boot_seconds() -> float:
    """Seconds of CLOCK_BOOTTIME, which runs on in sleep and is set by no one; else of the monotonic clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Observer:
    """Reads Samples of this device; the share of other processes is that since the sample before."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Args: root: the folder that contains ``proc`` and ``sys``."""
        self._root = root
        self._before = self._cpu_seconds()
        self._battery: tuple[float | None, str | None] = (None, None)
        self._count = 0

    def read(self) -> Sample:
        """The state now."""
        free = read_field(self._root / "proc/meminfo", "MemAvailable").split()
        percent, plugged = _supplies(self._root)
        if percent is None and (self._root / DUMPSYS).exists():
            percent, plugged = self._ask_android()
        return Sample(
            at=boot_seconds(),
            zones=tuple(_zones(self._root)),
            clocks_mhz=tuple(_clocks(self._root)),
            governor=_governor(self._root),
            battery_percent=percent,
            plugged=plugged,
            background=self._background(),
            free_memory_bytes=int(free[0]) * 1024 if free else None,
        )

    def _ask_android(self) -> tuple[float | None, str | None]:
        if self._count % _EVERY == 0:
            with suppress(OSError, subprocess.SubprocessError):
                told = subprocess.run(
                    (self._root / DUMPSYS, "battery"),
                    capture_output=True,
                    text=True,
                    timeout=5,
                    check=True,
                    stdin=subprocess.DEVNULL,
                    env={"PATH": "/system/bin"},
                )
                self._battery = read_dumpsys(told.stdout)
        self._count += 1
        return self._battery

    def _background(self) -> float | None:
        """Cores' worth of time that other processes took since the last call."""
        before, self._before = self._before, self._cpu_seconds()
        if before is None or self._before is None:
            return None
        at, busy, own = (now - then for now, then in zip(self._before, before, strict=True))
        return max(0.0, (busy - own) / at) if at > 0 else None

    def _cpu_seconds(self) -> tuple[float, float, float] | None:
        """Now; seconds that all cores were busy; seconds of this process and its children."""
        words = read_word(self._root / "proc/stat").split("\n", 1)[0].split()
        if words[:1] != ["cpu"] or len(words) < 8:
            return None
        user, nice, system, _, _, irq, softirq, *stolen = (int(word) for word in words[1:9])
        busy = (user + nice + system + irq + softirq + sum(stolen)) / os.sysconf("SC_CLK_TCK")
        return boot_seconds(), busy, sum(os.times()[:4])


class Watch:
    """Takes a Sample at start, at the end and every ``seconds`` in between, in a sleeping thread."""

    def __init__(self, take: Callable[[Sample], None], seconds: float = 1.0, root: Path = Path("/")) -> None:
        """Args: take: called with each sample, from the thread; seconds: between samples; root: as in Observer."""
        self._take, self._seconds, self._root = take, seconds, root
        self._ended = Event()
        self._thread = Thread(target=self._run, name="edgekit-conditions", daemon=True)

    def __enter__(self) -> Self:
        self._observer = Observer(self._root)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        self._take(self._observer.read())
        while not self._ended.wait(self._seconds):
            self._take(self._observer.read())
        self._take(self._observer.read())


def read_dumpsys(text: str) -> tuple[float | None, str | None]:
    """Percent of charge and the kind of plug in what ``dumpsys battery`` prints."""
    fields = dict(re.findall(r"(?m)^\s*([\w ]+?):\s*(\S+)\s*$", text))
    if "level" not in fields:
        return None, None
    powered = (kind for name, kind in (("AC", "ac"), ("USB", "usb"), ("Wireless", "wireless")) if _on(fields, name))
    with suppress(ValueError):
        return 100 * float(fields["level"]) / float(fields.get("scale", "100")), next(powered, "")
    return None, None


def _on(fields: dict[str, str], name: str) -> bool:
    return fields.get(f"{name} powered") == "true"


def _zones(root: Path) -> Iterator[tuple[str, float]]:
    """Degrees Celsius of thermal zones and of hwmon's sensors, by name; a zone is often a sensor too."""
    for zone in _numbered(root / "sys/class/thermal", "thermal_zone"):
        yield from _degrees(read_word(zone / "type") or zone.name, zone / "temp")
    for chip in _numbered(root / "sys/class/hwmon", "hwmon"):
        for sensor in sorted(chip.glob("temp*_input")):
            number = sensor.name.removesuffix("_input")
            label = read_word(chip / f"{number}_label") or number
            yield from _degrees(f"{read_word(chip / 'name') or chip.name} {label}", sensor)


def _degrees(name: str, file: Path) -> Iterator[tuple[str, float]]:
    with suppress(ValueError):
        degrees = int(read_word(file)) / 1e3
        if COLDEST <= degrees <= HOTTEST:
            yield name, degrees


def _clocks(root: Path) -> Iterator[float]:
    """Megahertz of each core that is on; 0.0 for one that is off."""
    for cpu in _numbered(root / "sys/devices/system/cpu", "cpu"):
        if (cpu / "cpufreq").is_dir():
            word = read_word(cpu / "cpufreq/scaling_cur_freq")
            yield int(word) / 1e3 if word.isdigit() else 0.0


def _governor(root: Path) -> str:
    """The governors of all clusters, each once."""
    cpus = _numbered(root / "sys/devices/system/cpu", "cpu")
    return ", ".join(sorted({read_word(cpu / "cpufreq/scaling_governor") for cpu in cpus} - {""}))


def _numbered(folder: Path, prefix: str) -> list[Path]:
    """The entries called ``prefix`` and a number, in the numbers' order."""
    found = [path for path in folder.glob(f"{prefix}*") if path.name.removeprefix(prefix).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(prefix)))


def _supplies(root: Path) -> tuple[float | None, str | None]:
    """Percent of charge, and the kind of plug: "" on battery, None if no supply can be read."""
    supplies = sorted((root / "sys/class/power_supply").glob("*"))
    kinds = {s: read_word(s / "type").lower() for s in supplies if read_word(s / "scope") != "Device"}
    batteries = [s for s, kind in kinds.items() if kind == "battery"]
    levels = [float(word) for word in (read_word(b / "capacity") for b in batteries) if word.isdigit()]
    online = [kind for s, kind in kinds.items() if read_word(s / "online") not in ("", "0")]
    plugs = [plug for kind in online for start, plug in _PLUGS.items() if kind.startswith(start)]
    states = {read_word(b / "status") for b in batteries}
    if not plugs and "Discharging" in states:
        plugs = [""]
    elif not plugs and states & {"Charging", "Full"}:
        plugs = ["ac"]  # the gauge does not say from where
    return sum(levels) / len(levels) if levels else None, plugs[0] if plugs else None
