"""Every meter against a tree of files such as the kernel makes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgekit.errors import MeasureError
from edgekit.measure import energy, sampling
from edgekit.measure.power import battery, hwmon, nvml, rapl
from edgekit.measure.sampling import read_number


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


@pytest.fixture
def seconds(monkeypatch):
    """A clock that goes on by two seconds each time it is read; the sampling thread never gets to tick."""
    readings = iter(range(0, 10_000, 2))
    monkeypatch.setattr(sampling, "perf_counter", lambda: float(next(readings)))
    monkeypatch.setattr(hwmon, "HERTZ", 0.001)
    monkeypatch.setattr(battery, "HERTZ", 0.001)


PACKAGE = "sys/class/powercap/intel-rapl:0"


def rapl_tree(root: Path, energy_uj: int) -> Path:
    return tree(
        root,
        {
            f"{PACKAGE}/name": "package-0",
            f"{PACKAGE}/energy_uj": energy_uj,
            f"{PACKAGE}/max_energy_range_uj": 262143328850,
            "sys/class/powercap/intel-rapl:0:0/name": "core",
            "sys/class/powercap/intel-rapl:0:0/energy_uj": 5,
            "sys/class/powercap/intel-rapl:1/name": "psys",
            "sys/class/powercap/intel-rapl:1/energy_uj": 5,
            "sys/class/powercap/intel-rapl-mmio:0/name": "package-0",
            "sys/class/powercap/intel-rapl-mmio:0/energy_uj": 5,
        },
    )


def test_rapl_counts_packages_only(tmp_path):
    (probe,) = rapl.find(rapl_tree(tmp_path, 1_000_000))
    assert probe.name == "RAPL package-0"
    assert probe.kind == "measured"
    probe.start()
    (tmp_path / PACKAGE / "energy_uj").write_text("3500000\n")
    assert probe.stop() == pytest.approx(2.5)


def test_rapl_adds_two_packages(tmp_path):
    second = "sys/class/powercap/intel-rapl:2"
    tree(rapl_tree(tmp_path, 0), {f"{second}/name": "package-1", f"{second}/energy_uj": 10})
    (probe,) = rapl.find(tmp_path)
    assert probe.name == "RAPL package-0 + package-1"
    probe.start()
    (tmp_path / PACKAGE / "energy_uj").write_text("1000000")
    (tmp_path / second / "energy_uj").write_text("2000010")
    assert probe.stop() == pytest.approx(3.0)


def test_rapl_wraps_around(tmp_path):
    (probe,) = rapl.find(rapl_tree(tmp_path, 262143328850 - 999_999))
    probe.start()
    (tmp_path / PACKAGE / "energy_uj").write_text("2000000")
    assert probe.stop() == pytest.approx(3.0)  # one million up to the wrap, two after it


def test_a_counter_that_stands_still_counts_nothing():
    assert sampling.Register(lambda: 5, 1e-6, last=2**32).since(5, 5) == 0
    assert sampling.Register(lambda: 5, 1e-6).since(5, 5) == 0


def test_a_counter_that_goes_back_without_a_range_is_an_error():
    with pytest.raises(MeasureError, match="decreased from 5 to 4"):
        sampling.Register(lambda: 0, 1.0).since(5, 4)


def test_a_counter_that_wraps_more_than_once_is_seen_by_the_polling_thread():
    values = iter([0, 6, 2, 8, 4, 0])  # a range of 0..9, six units between readings
    probe = sampling.CounterProbe("c", [sampling.Register(lambda: next(values), 1.0, last=9)], hertz=1000)
    done = sampling.Event()

    def take(inner=probe._take):
        try:
            inner()
        except StopIteration:
            done.set()

    probe._poll._take = take
    probe.start()
    assert done.wait(10)
    assert probe.stop() == 30


@pytest.mark.parametrize("content", [None, "", "twelve", "1.5"])
def test_a_file_without_a_whole_number_is_no_meter(tmp_path, content):
    if content is not None:
        (tmp_path / "energy").write_text(content)
    with pytest.raises(MeasureError, match="energy: cannot be read as a number"):
        read_number(tmp_path / "energy")
    (tmp_path / "energy").write_text(" 15\n")
    assert read_number(tmp_path / "energy") == 15


def test_rapl_without_permission_tells_the_way(tmp_path, monkeypatch):
    (probe,) = rapl.find(rapl_tree(tmp_path, 0))
    file = tmp_path / PACKAGE / "energy_uj"
    if os.geteuid() == 0:  # root reads everything: let the open fail as it does for others
        read_text = Path.read_text

        def refuse(self, *args, **kwargs):
            if self == file:
                raise PermissionError(13, "Permission denied")
            return read_text(self, *args, **kwargs)

        monkeypatch.setattr(Path, "read_text", refuse)
    else:
        file.chmod(0)
    with pytest.raises(MeasureError) as caught:
        probe.start()
    assert str(file) in caught.value.message
    assert f"sudo chmod a+r {file}" in caught.value.hint
    chosen, reason = energy.choose_meter(tmp_path)
    assert chosen is None
    assert "permission denied" in reason
    assert "sudo chmod" in reason


BAT = "sys/class/power_supply/BAT0"
BATTERY = {f"{BAT}/type": "Battery", f"{BAT}/status": "Discharging", f"{BAT}/present": 1}


@pytest.mark.parametrize(
    "gauge",
    [
        {f"{BAT}/power_now": 7_500_000},
        {f"{BAT}/current_now": -625_000, f"{BAT}/voltage_now": 12_000_000},
    ],
)
def test_battery_by_power_or_by_current_and_voltage(tmp_path, seconds, gauge):
    mouse = "sys/class/power_supply/hid"
    other = {f"{mouse}/type": "Battery", f"{mouse}/scope": "Device", f"{mouse}/power_now": 1}
    mains = {"sys/class/power_supply/AC/type": "Mains", "sys/class/power_supply/AC/online": 0}
    (probe,) = battery.find(tree(tmp_path, BATTERY | gauge | other | mains))
    assert probe.name.startswith("battery BAT0")
    probe.start()
    assert probe.stop() == pytest.approx(7.5 * 2)


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging", "Unknown"])
def test_battery_on_mains_is_refused(tmp_path, status):
    (probe,) = battery.find(tree(tmp_path, BATTERY | {f"{BAT}/power_now": 9, f"{BAT}/status": status}))
    with pytest.raises(MeasureError, match=f"BAT0 is {status}") as caught:
        probe.start()
    assert "unplug" in caught.value.hint
    assert energy.choose_meter(tmp_path)[0] is None


def test_battery_plugged_in_during_the_work_is_noticed(tmp_path):
    (probe,) = battery.find(tree(tmp_path, BATTERY | {f"{BAT}/power_now": 9}))
    probe.start()
    (tmp_path / BAT / "status").write_text("Charging")
    with pytest.raises(MeasureError, match="Charging"):
        probe.stop()


def test_hwmon_prefers_a_counter_and_samples_the_rest(tmp_path, seconds):
    chip = "sys/class/hwmon/hwmon3"
    tree(
        tmp_path,
        {
            f"{chip}/name": "ina226",
            f"{chip}/energy1_input": 100,
            f"{chip}/power1_input": 1,
            f"{chip}/power2_average": 4_000_000,
            f"{chip}/power2_label": "VDD_IN",
            f"{chip}/power2_cap": 9,
            f"{chip}/temp1_input": 40_000,
        },
    )
    counter, sampled = hwmon.find(tmp_path)
    assert counter.name == "hwmon ina226 energy1"
    assert sampled.name.startswith("hwmon ina226 VDD_IN, sampled at ")
    counter.start()
    (tmp_path / chip / "energy1_input").write_text("2000100")
    assert counter.stop() == pytest.approx(2.0)
    sampled.start()
    (tmp_path / chip / "power2_average").write_text("2000000")
    assert sampled.stop() == pytest.approx((4 + 2) / 2 * 2)


def test_hwmon_is_not_used_unless_it_is_named(tmp_path):
    tree(tmp_path, {"sys/class/hwmon/hwmon0/name": "amdgpu", "sys/class/hwmon/hwmon0/power1_input": 5})
    chosen, reason = energy.choose_meter(tmp_path)
    assert chosen is None
    assert "amdgpu power1" in reason
    assert "used only if selected by name" in reason


class FakeNvml(SimpleNamespace):
    class NVMLError(Exception):
        pass


def fake_nvml(read) -> FakeNvml:
    return FakeNvml(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetName=lambda h: b"Test GPU",
        nvmlDeviceGetTotalEnergyConsumption=read,
    )


def test_nvml_counts_millijoules(monkeypatch):
    values = iter([1000, 4500])
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(lambda handle: next(values)))
    (probe,) = nvml.find(Path("/"))
    assert probe.name == "NVML Test GPU #0"
    probe.start()
    assert probe.stop() == pytest.approx(3.5)


def test_nvml_without_a_counter_says_so(monkeypatch):
    def unsupported(handle):
        raise FakeNvml.NVMLError("Not Supported")

    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(unsupported))
    (probe,) = nvml.find(Path("/"))
    with pytest.raises(MeasureError, match="Not Supported"):
        probe.start()


def test_nvml_is_silent_without_driver_library_or_on_a_fixture_tree(monkeypatch, tmp_path):
    broken = fake_nvml(lambda handle: 0)

    def fail():
        raise FakeNvml.NVMLError("no driver")

    broken.nvmlInit = fail
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    assert nvml.find(Path("/")) == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.find(Path("/")) == []
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(lambda handle: 0))
    assert nvml.find(tmp_path) == []


def test_every_file_in_power_is_a_meter(tmp_path):
    names = []
    for file in energy.meter_files():
        names.append(file.__name__.rpartition(".")[2])
        assert file.find(tmp_path) == []
        assert isinstance(file.WHOLE, bool)
        assert file.COVERS
    assert names == ["battery", "hwmon", "nvml", "rapl"]
    chosen, reason = energy.choose_meter(tmp_path)
    assert chosen is None
    assert all(name in reason for name in names)
    assert energy.meters(tmp_path) == []


def test_meters_are_found_under_the_root(tmp_path):
    tree(rapl_tree(tmp_path, 1), BATTERY | {f"{BAT}/power_now": 1})
    assert [p.name.split(",")[0] for p in energy.meters(tmp_path)] == ["battery BAT0", "RAPL package-0"]
