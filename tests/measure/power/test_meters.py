"""Every meter against a tree of files such as the kernel makes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgekit.errors import MeasureError
from edgekit.measure import energy, sampling
from edgekit.measure.power import battery, hwmon, iio, nvml, odpm, rapl
from edgekit.measure.sampling import read_number


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


@pytest.fixture
def seconds(monkeypatch):
    """A clock that goes on by one second each time it is read, so two a reading; the thread never gets to tick."""
    readings = iter(range(10_000))
    monkeypatch.setattr(sampling, "boottime", lambda: float(next(readings)))
    for file in (battery, hwmon, iio, odpm):
        monkeypatch.setattr(file, "HERTZ", 0.001)


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


def test_a_counter_that_wraps_more_than_once_is_unrolled():
    register = sampling.Register(lambda: 0, 0.5, last=9)  # a range of 0..9, four units between readings
    assert register.count([0, 1, 2, 3, 4, 5], [0, 4, 8, 2, 6, 0]) == [0, 2, 4, 6, 8, 10]


def test_a_gap_in_which_a_counter_may_have_wrapped_twice_is_refused():
    register = sampling.Register(lambda: 0, 1.0, last=99)
    assert register.count([0, 1, 2, 10, 11], [0, 5, 10, 50, 55])[-1] == 55
    with pytest.raises(MeasureError, match="may have wrapped around twice") as caught:
        register.count([0, 1, 2, 12, 13], [0, 5, 10, 60, 65])
    assert "more often" in caught.value.hint


def test_the_polling_thread_reads_between_start_and_stop():
    values, enough = iter(range(0, 10**6, 2)), sampling.Event()

    def read():
        value = next(values)
        if value >= 10:
            enough.set()
        return value

    probe = sampling.CounterProbe("c", [sampling.Register(read, 1.0)], hertz=500)
    probe.start()
    assert enough.wait(10)
    assert probe.stop() >= 10
    assert len(probe.trace().at) >= 4


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
    assert [counter.address, sampled.address] == ["ina226/energy1", "ina226/VDD_IN"]
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
        assert file.WHERE in ("device", "beside")
        assert file.WHERE == "device" or (hasattr(file, "connect") and not file.WHOLE)
        assert file.TESTED
    beside = ["command", "joulescope", "monsoon", "ppk2", "shelly", "tasmota"]
    assert names == sorted(["battery", "hwmon", "iio", "nvml", "odpm", "rapl", *beside])
    chosen, reason = energy.choose_meter(tmp_path)
    assert chosen is None
    assert all((name in reason) == (name not in beside) for name in names)
    assert energy.meters(tmp_path) == []


def test_meters_are_found_under_the_root(tmp_path):
    tree(rapl_tree(tmp_path, 1), BATTERY | {f"{BAT}/power_now": 1})
    assert [p.name.split(",")[0] for p in energy.meters(tmp_path)] == ["battery BAT0", "RAPL package-0"]


# --- what a gauge of a phone may be ---------------------------------------------------------------


def drawn(probe, root, readings, name="current_now"):
    """The watts of a gauge's readings: the first and last by start and stop, those between as the thread would."""
    write = (root / BAT / name).write_text
    write(str(readings[0]))
    probe.start()
    for raw in readings[1:-1]:
        write(str(raw))
        probe._take()
    write(str(readings[-1]))
    probe.stop()
    return probe.trace().values


@pytest.mark.parametrize(
    ("volts", "raw", "watts"),
    [
        (3_850_000, -1_000_000, 3.85),  # as the class is defined
        (3_850_000, 1_000_000, 3.85),  # positive while discharging
        (3_850_000, -1_000, 3.85),  # milliamperes
        (3_850, -1_000, 3.85),  # both in thousandths
        (3_850, -1_000_000, 3.85),
        (4_000_000, 12_000, 0.048),  # asleep: 48 mW, which no phone draws a thousand times of
    ],
)
def test_sign_and_scale_of_a_gauge_are_found_out(tmp_path, seconds, volts, raw, watts):
    (probe,) = battery.find(tree(tmp_path, BATTERY | {f"{BAT}/voltage_now": volts, f"{BAT}/current_now": raw}))
    assert drawn(probe, tmp_path, [raw, raw, raw]) == pytest.approx([watts] * 3)


def test_a_gauge_of_which_both_scales_are_possible_gives_no_number(tmp_path, seconds):
    gauge = {f"{BAT}/voltage_now": 4_000_000, f"{BAT}/current_now": 6_000}  # 24 mW or 24 W
    (probe,) = battery.find(tree(tmp_path, BATTERY | gauge))
    probe.start()
    with pytest.raises(MeasureError, match=r"either 0\.024 W or 24 W") as caught:
        probe.stop()
    assert "external meter" in caught.value.hint


@pytest.mark.parametrize(("fall", "watts"), [(3_333, 0.024), (3_333_000, 24.0)])
def test_the_charge_counter_decides_between_the_scales(tmp_path, seconds, fall, watts):
    """6000 in current_now for 8 s takes 13.3 uAh from the battery, or 13,333."""
    gauge = {f"{BAT}/voltage_now": 4_000_000, f"{BAT}/current_now": 6_000, f"{BAT}/charge_counter": 4_000_000_000}
    (probe,) = battery.find(tree(tmp_path, BATTERY | gauge))
    probe.start()
    for step in range(1, 4):
        (tmp_path / BAT / "charge_counter").write_text(str(4_000_000_000 - step * fall // 1000))
        probe._take()
    (tmp_path / BAT / "charge_counter").write_text(str(4_000_000_000 - 4 * fall // 1000))
    probe.stop()
    assert probe.trace().values == pytest.approx([watts] * 5)


def test_a_charge_counter_that_contradicts_the_current_is_told(tmp_path, seconds):
    gauge = {f"{BAT}/voltage_now": 4_000_000, f"{BAT}/current_now": 500_000, f"{BAT}/charge_counter": 4_000_000}
    (probe,) = battery.find(tree(tmp_path, BATTERY | gauge))
    probe.start()
    for step in range(1, 5):
        (tmp_path / BAT / "charge_counter").write_text(str(4_000_000 - step * 30_000))
        probe._take()
    with pytest.raises(MeasureError, match="disagree"):
        probe.stop()


def test_a_current_that_turns_round_is_a_charger(tmp_path, seconds):
    (probe,) = battery.find(tree(tmp_path, BATTERY | {f"{BAT}/voltage_now": 4_000_000, f"{BAT}/current_now": 1}))
    with pytest.raises(MeasureError, match="changed its direction") as caught:
        drawn(probe, tmp_path, [-900_000, -800_000, 300_000])
    assert "adb over Wi-Fi" in caught.value.hint


def test_a_phone_on_a_cable_has_no_energy_even_if_it_says_discharging(tmp_path):
    usb = {"sys/class/power_supply/usb/type": "USB", "sys/class/power_supply/usb/online": 1}
    (probe,) = battery.find(tree(tmp_path, BATTERY | usb | {f"{BAT}/power_now": 9}))
    got = energy.meter_energy(probe, lambda: 1, idle_seconds=0.01)
    assert got.kind == "none"
    assert "usb is online" in got.reason
    assert "adb over Wi-Fi, or use an external meter" in got.reason


@pytest.mark.parametrize(
    ("gauge", "joules"),
    [
        ({f"{BAT}/energy_full": 50_000_000}, 180_000),
        ({f"{BAT}/charge_full": 4_000_000, f"{BAT}/voltage_now": 4_000_000}, 57_600),
        ({f"{BAT}/charge_full": 4_000, f"{BAT}/voltage_now": 4_000}, 57_600),
        ({}, None),
    ],
)
def test_a_full_charge_in_joules(tmp_path, gauge, joules):
    tree(tmp_path, BATTERY | {f"{BAT}/power_now": 9} | gauge)
    assert battery.charge_joules(tmp_path) == (joules if joules is None else pytest.approx(joules))


# --- rails and shunts -----------------------------------------------------------------------------

INA3221 = "sys/class/hwmon/hwmon1"


def test_the_ina3221_has_no_power_so_volts_and_amperes_are_multiplied(tmp_path, seconds):
    rails = {f"{INA3221}/name": "ina3221"}
    for n, (label, millivolts, milliamperes) in enumerate([("VDD_IN", 19_000, 500), ("VDD_CPU", 5_000, 1_200)], 1):
        rails |= {f"{INA3221}/in{n}_label": label, f"{INA3221}/in{n}_input": millivolts}
        rails |= {f"{INA3221}/curr{n}_input": milliamperes}
    rails |= {f"{INA3221}/in4_input": 5, f"{INA3221}/curr5_input": 7}  # a shunt's volts; a current alone
    total, processor = hwmon.find(tree(tmp_path, rails))
    assert [total.address, processor.address] == ["ina3221/VDD_IN", "ina3221/VDD_CPU"]
    total.start()
    assert total.stop() == pytest.approx(9.5 * 2)
    processor.start()
    assert processor.stop() == pytest.approx(6 * 2)


def test_two_chips_of_one_name_have_two_addresses(tmp_path):
    for n in (1, 2):
        tree(tmp_path, {f"sys/class/hwmon/hwmon{n}/name": "ina226", f"sys/class/hwmon/hwmon{n}/power1_input": 5})
    assert [p.address for p in hwmon.find(tmp_path)] == ["ina226 hwmon1/power1", "ina226 hwmon2/power1"]


def test_a_current_that_flows_backwards_is_no_power(tmp_path, seconds):
    chip = {f"{INA3221}/name": "ina3221", f"{INA3221}/in1_input": 5_000, f"{INA3221}/curr1_input": -100}
    (probe,) = hwmon.find(tree(tmp_path, chip))
    probe.start()
    with pytest.raises(MeasureError, match="less than zero") as caught:
        probe.stop()
    assert "other way round" in caught.value.hint


ADC = "sys/bus/iio/devices/iio:device0"


def test_iio_by_power_and_its_scale(tmp_path, seconds):
    files = {f"{ADC}/name": "ina226", f"{ADC}/in_power2_raw": 400, f"{ADC}/in_power2_scale": "6.250000000"}
    files |= {f"{ADC}/in_voltage1_raw": 1, f"{ADC}/in_voltage1_scale": "1.25", f"{ADC}/in_current3_raw": 1}
    (probe,) = iio.find(tree(tmp_path, files))
    assert probe.address == "ina226/power2"
    probe.start()
    assert probe.stop() == pytest.approx(2.5 * 2)
    assert probe.trace().resolution == pytest.approx(6.25e-3)


def test_iio_by_volts_and_amperes_with_offset_and_input(tmp_path, seconds):
    files = {f"{ADC}/name": "adc", f"{ADC}/in_voltage0_raw": 9, f"{ADC}/in_voltage1_raw": 3_900}
    files |= {f"{ADC}/in_voltage1_offset": 100, f"{ADC}/in_voltage1_scale": "1.25", f"{ADC}/in_current0_input": 500}
    (probe,) = iio.find(tree(tmp_path, files))
    probe.start()
    assert probe.stop() == pytest.approx(5 * 0.5 * 2)


PIXEL = "t=349894\nCH0(T=349894)[S2M_VDD_CPUCL2], {}\nCH1(T=349894)[VSYS_PWR_MODEM], 29110940\n"


def test_odpm_counts_the_rails_that_are_named(tmp_path):
    file = f"{ADC}/energy_value"
    other = "sys/bus/iio/devices/iio:device1/energy_value"
    tree(tmp_path, {file: PIXEL.format(5_000_000), other: "t=1\nCH3(T=1)[S4M_VDD_CPUCL0], 7000000"})
    assert [p.address for p in odpm.find(tmp_path)] == ["S2M_VDD_CPUCL2", "VSYS_PWR_MODEM", "S4M_VDD_CPUCL0"]
    probe = energy.open_meter("odpm:S2M_VDD_CPUCL2+S4M_VDD_CPUCL0", tmp_path)
    probe.start()
    (tmp_path / file).write_text(PIXEL.format(6_500_000))
    (tmp_path / other).write_text("t=9\nCH3(T=9)[S4M_VDD_CPUCL0], 7250000\n")
    assert probe.stop() == pytest.approx(1.75)
    assert "S2M_VDD_CPUCL2+S4M_VDD_CPUCL0" in probe.covers
    with pytest.raises(MeasureError, match="no rail S2M") as caught:
        energy.open_meter("odpm:S2M_VDD_CPUCL1", tmp_path)
    assert "did you mean 'S2M_VDD_CPUCL2'" in caught.value.hint
    probe.start()
    (tmp_path / other).write_text("t=9\n")
    with pytest.raises(MeasureError, match="not there any more"):
        probe.stop()


# --- by name --------------------------------------------------------------------------------------


def test_a_meter_is_opened_by_name_and_address(tmp_path):
    tree(rapl_tree(tmp_path, 1), BATTERY | {f"{BAT}/power_now": 1})
    for n in (1, 2):
        tree(tmp_path, {"sys/class/hwmon/hwmon0/name": "pmic", f"sys/class/hwmon/hwmon0/power{n}_input": n})
    assert energy.open_meter("rapl", tmp_path).name == "RAPL package-0"
    assert energy.open_meter("hwmon:pmic/power2", tmp_path).name.startswith("hwmon pmic power2")
    for name, message, hint in (
        ("hwmon", "there are several", "hwmon:pmic/power1, hwmon:pmic/power2"),
        ("hwmon:pmic/power9", "no meter 'hwmon:pmic/power9'", "did you mean 'hwmon:pmic/power"),
        ("iio", "has no meter 'iio'", "edgekit power list"),
        ("bttery", "no meter is called 'bttery'", "did you mean 'battery'"),
        ("", "no meter is called ''", "known: battery"),
    ):
        with pytest.raises(MeasureError) as caught:
            energy.open_meter(name, tmp_path)
        assert message in caught.value.message
        assert hint in caught.value.hint
