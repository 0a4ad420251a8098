"""benchmarks/strangers/kills: kills, writers at once and full disks break nothing and lose nothing."""

import subprocess
import sys
from pathlib import Path

from benchmarks.strangers.kills import spread

ROOT = Path(__file__).parents[2]


def test_points_are_spread_over_all_steps():
    assert spread(100, 4) == [0, 25, 50, 75]
    assert spread(3, 100) == [0, 1, 2]


def test_nothing_is_broken_and_nothing_is_lost():
    # A process of its own: what it kills are forks of it, and here other tests may have left threads.
    command = [sys.executable, "-m", "benchmarks.strangers.kills", "--points", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {line[:28].strip(): line[28:].split() for line in done.stdout.splitlines()}
    assert rows["build --force killed"] == ["8", "0", "0"]
    assert rows["two recorders at once"] == ["100", "0", "0"]
    assert rows["all"][1:] == ["0", "0"]
