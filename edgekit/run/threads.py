"""The number of threads for a session: the physical cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator


def physical_cores(root: Path = Path("/"), affinity: Collection[int] | None = None) -> int:
    """Physical cores that the affinity mask and the cgroup's CPU quota allow this process, at least 1.

    Two hyper-threads share one core's vector units, so a second one costs time instead of saving it.
    A quota of 2.5 cores counts as 2: a thread that exceeds the quota is stopped for the rest of the period, and the
    others wait for it.

    Args:
        root: the folder that contains ``proc`` and ``sys``.
        affinity: logical CPUs that may be used; the process's own mask by default.
    """
    cpus = _own_cpus() if affinity is None else affinity
    cores = _distinct_cores(root / "sys/devices/system/cpu", cpus)
    if cores is None:
        cores = min(_told_cores() or len(cpus), len(cpus))
    quota = min(_quotas(root), default=float(cores))
    return max(1, min(cores, int(quota)))


def core_cpus(root: Path = Path("/"), affinity: Collection[int] | None = None) -> tuple[int, ...]:
    """The lowest logical CPU of each physical core in the affinity mask; empty if the topology is unknown.

    Args:
        root: the folder that contains ``sys``.
        affinity: logical CPUs that may be used; the process's own mask by default.
    """
    first: dict[str, int] = {}
    for cpu in sorted(_own_cpus() if affinity is None else affinity):
        siblings = _siblings(root / "sys/devices/system/cpu", cpu)
        if siblings is None:
            return ()
        first.setdefault(siblings, cpu)
    return tuple(first.values())


def _own_cpus() -> Collection[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _distinct_cores(directory: Path, cpus: Collection[int]) -> int | None:
    """The number of cores that ``cpus`` are on, by their sibling lists; None if the topology is unknown."""
    cores = set()
    for cpu in cpus:
        siblings = _siblings(directory, cpu)
        if siblings is None:
            return None
        cores.add(siblings)
    return len(cores)


def _told_cores() -> int | None:
    """The machine's physical cores by psutil, which knows systems without /sys; it is not on a lab's devices."""
    try:
        import psutil
    except ImportError:
        return None
    count: int | None = psutil.cpu_count(logical=False)
    return count


def _siblings(directory: Path, cpu: int) -> str | None:
    return _read(directory / f"cpu{cpu}/topology/thread_siblings_list")


def _quotas(root: Path) -> Iterator[float]:
    """CPU quotas in cores of the process's cgroups and all their parents; versions 2 and 1."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        # In a container the path may be the host's and not exist; its parents end at the mount, which does.
        for folder in (mount / group.lstrip("/"), *(mount / group.lstrip("/")).parents):
            if controllers:
                quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
            else:
                quota, _, period = (_read(folder / "cpu.max") or "").partition(" ")
            if quota and period and quota not in ("max", "-1"):
                yield int(quota) / int(period)
            if folder == mount:
                break


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
