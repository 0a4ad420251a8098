"""Read the machine's state: governor, clock, temperature, battery, load, memory. Unknown values are None."""

from __future__ import annotations

import platform
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.host.processor import processor_class, processor_name, read_field
from edgekit.measure.sampling import read_word
from edgekit.types import Environment

if TYPE_CHECKING:
    from collections.abc import Iterable

_CPU_ZONES = ("x86_pkg_temp", "cpu", "soc", "pkg")
_CPU_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu")


def read_environment(
    *,
    cores: int,
    threads: int,
    runtime: tuple[tuple[str, str], ...],
    provider: str,
    provider_options: tuple[tuple[str, str], ...] = (),
    arithmetic: str = "",
    root: Path = Path("/"),
) -> Environment:
    """Read the current environment.

    Args:
        cores: physical cores that this process may use.
        threads: threads that the runtime uses.
        runtime: (package, version) of everything whose version can change a number.
        provider: the execution provider.
        provider_options: its options.
        arithmetic: description of how exact integer matmuls are.
        root: the folder that contains ``proc`` and ``sys``.
    """
    frequency = _number(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    load = read_word(root / "proc/loadavg").split()
    memory = read_field(root / "proc/meminfo", "MemTotal").split()
    percent, on_battery = _battery(root)
    return Environment(
        host=platform.node(),
        system=platform.platform(),
        cpu=processor_name(root),
        cores=cores,
        threads=threads,
        memory_bytes=int(memory[0]) * 1024 if memory else None,
        governor=read_word(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        frequency_mhz=None if frequency is None else frequency / 1e3,
        temperature_c=_temperature(root),
        battery_percent=percent,
        on_battery=on_battery,
        load_before=float(load[0]) if load else None,
        runtime=runtime,
        provider=provider,
        provider_options=provider_options,
        processor_class=processor_class(root),
        arithmetic=arithmetic,
    )


@dataclass(frozen=True)
class Conditions:
    """Conditions that may change from one answer to the next. Unknown values are None."""

    free_memory: int | None
    battery_percent: float | None
    on_battery: bool | None
    temperature_c: float | None


def read_conditions(root: Path = Path("/")) -> Conditions:
    """Read the current conditions. ``free_memory``: bytes available without swapping (Linux: MemAvailable).

    Args:
        root: the folder that contains ``proc`` and ``sys``.
    """
    free = read_field(root / "proc/meminfo", "MemAvailable").split()
    percent, on_battery = _battery(root)
    return Conditions(int(free[0]) * 1024 if free else None, percent, on_battery, _temperature(root))


def reset_peak_memory(root: Path = Path("/")) -> bool:
    """Reset the kernel's peak of resident memory; False if that is not possible.

    Linux: write 5 to /proc/self/clear_refs (https://www.kernel.org/doc/html/latest/filesystems/proc.html).
    """
    try:
        (root / "proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory(root: Path = Path("/")) -> int:
    """The peak resident memory of this process in bytes since its start or the last reset_peak_memory().

    Resident pages of mapped files count. Without /proc, getrusage is used, which cannot be reset.
    """
    kib = read_field(root / "proc/self/status", "VmHWM").split()
    if kib:
        return int(kib[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def core_seconds(root: Path = Path("/")) -> tuple[float, float] | None:
    """Seconds that the threads now alive ran on a core, and seconds that they waited for one while ready.

    Linux: the first two numbers of /proc/self/task/*/schedstat, in nanoseconds
    (https://docs.kernel.org/scheduler/sched-stats.html). None elsewhere.
    """
    rows = [read_word(task / "schedstat").split() for task in (root / "proc/self/task").glob("*")]
    rows = [row for row in rows if len(row) == 3]
    return (sum(int(row[0]) for row in rows) / 1e9, sum(int(row[1]) for row in rows) / 1e9) if rows else None


def _battery(root: Path) -> tuple[float | None, bool | None]:
    """The charge in percent, and whether the machine runs on battery."""
    supplies = sorted((root / "sys/class/power_supply").glob("*"))
    mains = [read_word(s / "online") == "1" for s in supplies if read_word(s / "type") in ("Mains", "USB")]
    batteries = [s for s in supplies if read_word(s / "type") == "Battery" and read_word(s / "scope") != "Device"]
    levels = [level for level in (_number(b / "capacity") for b in batteries) if level is not None]
    percent = sum(levels) / len(levels) if levels else None
    if batteries:
        return percent, any(read_word(b / "status") == "Discharging" for b in batteries)
    return None, False if any(mains) else None


def _temperature(root: Path) -> float | None:
    """The hottest sensor of the processor in degrees Celsius."""
    zones = [
        _number(zone / "temp")
        for zone in (root / "sys/class/thermal").glob("thermal_zone*")
        if read_word(zone / "type").lower().startswith(_CPU_ZONES)
    ]
    chips = [
        _number(sensor)
        for chip in (root / "sys/class/hwmon").glob("hwmon*")
        if read_word(chip / "name") in _CPU_CHIPS
        for sensor in chip.glob("temp*_input")
    ]
    return _hottest(zones) if _hottest(zones) is not None else _hottest(chips)


def _hottest(millidegrees: Iterable[float | None]) -> float | None:
    known = [m / 1e3 for m in millidegrees if m is not None]
    return max(known, default=None)


def _number(path: Path) -> float | None:
    try:
        return float(read_word(path))
    except ValueError:
        return None
