"""Run a process and measure its wall time, processor time and peak resident memory."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

LAUNCHER = """
import os, sys, time
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
quiet = [(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
started = time.perf_counter()
pid = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ, file_actions=quiet)
_, status, usage = os.wait4(pid, 0)
cpu = usage.ru_utime + usage.ru_stime
print(time.perf_counter() - started, usage.ru_maxrss * 1024, os.waitstatus_to_exitcode(status), cpu)
"""


@dataclass(frozen=True)
class Spent:
    """Resources of a process, including its children."""

    seconds: float
    rss_bytes: int
    code: int
    cpu_seconds: float


def spend(command: list[str], log: Path = Path(os.devnull), folder: Path | None = None) -> Spent:
    """Run a process in ``folder``, offline, with its output appended to ``log``, and measure it.

    A small launcher starts it, because the peak that the kernel reports starts at the size of the parent.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    launched = [sys.executable, "-S", "-c", LAUNCHER, str(log), *command]
    out = subprocess.run(launched, env=environment, cwd=folder, check=True, capture_output=True, text=True).stdout
    seconds, memory, code, cpu = out.split()
    return Spent(float(seconds), int(memory), int(code), float(cpu))
