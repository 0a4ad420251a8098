"""The clock of marks and meters."""

from __future__ import annotations

import time


def boottime() -> float:
    """Seconds since this machine was booted, with its time asleep where the system counts that: no one sets it."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
