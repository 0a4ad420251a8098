"""The environment read from a tree of files, and peak memory from the real kernel."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgekit.host.processor import cpu_flags
from edgekit.measure.environment import core_seconds, peak_memory, read_environment, reset_peak_memory

LAPTOP = {
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Test CPU\nflags\t\t: fma avx2\n\nprocessor\t: 1\nflags\t\t: none\n",
    "proc/meminfo": "MemTotal:       16384 kB\nMemFree: 1 kB\n",
    "proc/loadavg": "0.75 0.5 0.2 1/100 123\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2400000\n",
    "sys/class/thermal/thermal_zone0/type": "acpitz\n",
    "sys/class/thermal/thermal_zone0/temp": "90000\n",
    "sys/class/thermal/thermal_zone1/type": "x86_pkg_temp\n",
    "sys/class/thermal/thermal_zone1/temp": "51500\n",
    "sys/class/power_supply/BAT0/type": "Battery\n",
    "sys/class/power_supply/BAT0/capacity": "80\n",
    "sys/class/power_supply/BAT0/status": "Discharging\n",
    "sys/class/power_supply/AC/type": "Mains\n",
    "sys/class/power_supply/AC/online": "0\n",
}


def read(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    runtime = (("onnxruntime", "1"),)
    return read_environment(cores=2, threads=3, runtime=runtime, provider="P", root=root)


def test_a_laptop(tmp_path):
    got = read(tmp_path, LAPTOP)
    assert (got.cpu, got.governor, got.frequency_mhz) == ("Test CPU", "powersave", 2400.0)
    assert (got.memory_bytes, got.load_before, got.temperature_c) == (16384 * 1024, 0.75, 51.5)
    assert (got.battery_percent, got.on_battery) == (80.0, True)
    assert (got.cores, got.threads, got.runtime, got.provider) == (2, 3, (("onnxruntime", "1"),), "P")
    assert cpu_flags(tmp_path) == {"fma", "avx2"}


@pytest.mark.parametrize(("status", "on_battery"), [("Charging", False), ("Full", False), ("Discharging", True)])
def test_battery_states(tmp_path, status, on_battery):
    got = read(tmp_path, LAPTOP | {"sys/class/power_supply/BAT0/status": status})
    assert got.on_battery is on_battery


def test_mains_without_a_battery(tmp_path):
    got = read(tmp_path, {"sys/class/power_supply/AC/type": "Mains", "sys/class/power_supply/AC/online": "1"})
    assert (got.battery_percent, got.on_battery) == (None, False)


def test_temperature_falls_back_to_the_processors_own_chip(tmp_path):
    chip, disk = "sys/class/hwmon/hwmon0", "sys/class/hwmon/hwmon1"
    files = {f"{chip}/name": "k10temp", f"{chip}/temp1_input": "40000", f"{chip}/temp2_input": "47250"}
    assert read(tmp_path, files | {f"{disk}/name": "nvme", f"{disk}/temp1_input": "70000"}).temperature_c == 47.25


def test_what_is_not_there_is_none(tmp_path):
    got = read(tmp_path, {})
    unknown = ("memory_bytes", "frequency_mhz", "temperature_c", "battery_percent", "on_battery", "load_before")
    assert [getattr(got, name) for name in unknown] == [None] * 6
    assert (got.cpu, got.governor) == ("", "")
    assert cpu_flags(tmp_path) == frozenset()
    garbage = {"sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "fast", "proc/loadavg": ""}
    assert read(tmp_path, garbage).frequency_mhz is None


def test_peak_memory_rises_with_an_array_and_falls_after_a_reset():
    """In a process of its own, whose peak is what it has just imported."""
    program = (
        "import numpy as np\n"
        "from edgekit.measure.environment import peak_memory, reset_peak_memory\n"
        "before = peak_memory()\n"
        "block = np.ones(8_000_000)\n"
        "during = peak_memory()\n"
        "del block\n"
        "print(before, during, peak_memory(), peak_memory() if reset_peak_memory() else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, during, still, after = map(int, done.stdout.split())
    assert 5_000_000 < before < during - 60_000_000
    assert still > during - 5_000_000
    assert after < during - 30_000_000


def test_without_proc_the_peak_comes_from_getrusage(tmp_path):
    assert peak_memory(tmp_path) > 1_000_000
    assert reset_peak_memory(tmp_path) is False


def test_core_seconds_are_summed_over_threads(tmp_path):
    assert core_seconds(tmp_path) is None
    for task, text in (("7", "1500000000 250000000 12\n"), ("8", "500000000 750000000 3\n"), ("9", "")):
        path = tmp_path / f"proc/self/task/{task}/schedstat"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert core_seconds(tmp_path) == (2.0, 1.0)
