"""What the device's state is read from: Linux's files in a tree of fixtures, and what Android's dumpsys prints."""

import os
import time

import pytest

from edgekit.measure import conditions
from edgekit.measure.conditions import Observer, Watch, boot_seconds, read_dumpsys


def fill(root, tree):
    for name, text in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


BOARD = {
    "sys/class/thermal/thermal_zone10/type": "gpu",
    "sys/class/thermal/thermal_zone10/temp": "41500",
    "sys/class/thermal/thermal_zone2/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone2/temp": "55000",
    "sys/class/thermal/thermal_zone3/type": "off",
    "sys/class/thermal/thermal_zone3/temp": "-274000",
    "sys/class/thermal/thermal_zone4/type": "broken",
    "sys/class/thermal/thermal_zone4/temp": "",
    "sys/class/hwmon/hwmon0/name": "nvme",
    "sys/class/hwmon/hwmon0/temp1_input": "30100",
    "sys/class/hwmon/hwmon0/temp1_label": "Composite",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1800000",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil",
    "sys/devices/system/cpu/cpu10/cpufreq/scaling_cur_freq": "2400000",
    "sys/devices/system/cpu/cpu10/cpufreq/scaling_governor": "performance",
    "sys/devices/system/cpu/cpu2/cpufreq/scaling_cur_freq": "",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1",
    "proc/meminfo": "MemTotal: 4000000 kB\nMemAvailable: 1000 kB",
    "proc/stat": "cpu  100 0 50 1000 5 0 0 0 0 0\ncpu0 100 0 50 1000 5 0 0 0 0 0",
}


def test_heat_clocks_and_memory(tmp_path):
    sample = Observer(fill(tmp_path, BOARD)).read()
    assert sample.zones == (("cpu-thermal", 55.0), ("gpu", 41.5), ("nvme Composite", 30.1))
    assert sample.hottest == 55.0
    assert sample.clocks_mhz == (1800.0, 0.0, 2400.0)
    assert sample.governor == "performance, schedutil"
    assert sample.free_memory_bytes == 1_024_000
    assert (sample.battery_percent, sample.plugged) == (None, None)
    assert 0 <= boot_seconds() - sample.at < 5


def test_nothing_known_is_none_and_never_zero(tmp_path):
    sample = Observer(tmp_path).read()
    assert (sample.zones, sample.clocks_mhz, sample.governor) == ((), (), "")
    assert (sample.background, sample.free_memory_bytes, sample.hottest) == (None, None, None)


def test_background_is_what_others_took_since_the_last_sample(tmp_path, monkeypatch):
    now, own = [10.0], [0.0]
    monkeypatch.setattr(conditions, "boot_seconds", lambda: now[0])
    monkeypatch.setattr(os, "times", lambda: (own[0], 0.0, 0.0, 0.0, 0.0))
    observer = Observer(fill(tmp_path, BOARD))
    ticks = os.sysconf("SC_CLK_TCK")
    now[0], own[0] = 12.0, 1.0
    # 5 seconds of cores in 2 seconds: 3 busy for user, 1 for the system, 1 stolen by the hypervisor; 1 was our own.
    fill(
        tmp_path,
        {"proc/stat": f"cpu  {100 + 3 * ticks} 0 {50 + ticks} 9999 99 0 0 {ticks} 0 0"},
    )
    assert observer.read().background == pytest.approx(2.0)
    now[0] = 13.0
    assert observer.read().background == 0.0


@pytest.mark.parametrize(
    ("supplies", "expected"),
    [
        ({"bat/type": "Battery", "bat/capacity": "77", "bat/status": "Discharging"}, (77.0, "")),
        (
            {"bat/type": "Battery", "bat/capacity": "77", "bat/status": "Charging", "p/type": "USB", "p/online": "1"},
            (77.0, "usb"),
        ),
        ({"p/type": "Mains", "p/online": "1"}, (None, "ac")),
        ({"bat/type": "Battery", "bat/capacity": "5", "p/type": "Wireless", "p/online": "1"}, (5.0, "wireless")),
        ({"bat/type": "Battery", "bat/capacity": "9", "bat/status": "Full"}, (9.0, "ac")),
        ({"m/type": "Battery", "m/scope": "Device", "m/capacity": "50", "m/status": "Discharging"}, (None, None)),
    ],
)
def test_batteries_and_plugs(tmp_path, supplies, expected):
    sample = Observer(fill(tmp_path, {f"sys/class/power_supply/{k}": v for k, v in supplies.items()})).read()
    assert (sample.battery_percent, sample.plugged) == expected


DUMPSYS = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  Max charging current: 500000
  status: 2
  level: 40
  scale: 50
  temperature: 301
"""


def test_androids_own_words_for_the_battery():
    assert read_dumpsys(DUMPSYS) == (80.0, "usb")
    assert read_dumpsys(DUMPSYS.replace("USB powered: true", "USB powered: false")) == (80.0, "")
    assert read_dumpsys("Can't find service: battery") == (None, None)
    assert read_dumpsys("level: many\nscale: 100") == (None, None)


def test_android_is_asked_where_the_files_say_nothing(tmp_path):
    program = tmp_path / conditions.DUMPSYS
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/asked\n[ $1 = battery ] && cat <<'END'\n{DUMPSYS}END\n")
    program.chmod(0o755)
    observer = Observer(tmp_path)
    # The shell of the fixture finds `cat` without a PATH to Android's.
    program.write_text(program.read_text().replace("cat <<", "/bin/cat <<"))
    assert [(s.battery_percent, s.plugged) for s in (observer.read(), observer.read())] == [(80.0, "usb")] * 2
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_a_watch_takes_samples_at_both_ends_and_between(tmp_path):
    seen = []
    with Watch(seen.append, 0.01, tmp_path):
        deadline = time.monotonic() + 10
        while len(seen) < 3 and time.monotonic() < deadline:
            time.sleep(0.005)
        before = len(seen)
    assert before >= 3
    assert len(seen) > before
    count = len(seen)
    time.sleep(0.05)
    assert len(seen) == count
