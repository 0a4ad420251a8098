"""Meters beside the device, against what speaks their protocol: pseudo-terminal, HTTP on loopback, programs.

Joulescope and Monsoon speak USB: their makers' packages are replaced by stand-ins, so their protocols are not tested.
"""

from __future__ import annotations

import json
import os
import pty
import struct
import sys
import threading
import time
import tty
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from select import select
from types import ModuleType, SimpleNamespace

import pytest

from edgekit.errors import MeasureError
from edgekit.measure import energy, sampling
from edgekit.measure.power import monsoon, ppk2


def record(meter, seconds=0.3):
    probe = energy.open_meter(meter) if isinstance(meter, str) else meter
    probe.start()
    time.sleep(seconds)
    probe.stop()
    return probe.trace()


# --- any program ----------------------------------------------------------------------------------


def program(tmp_path, body):
    """A meter's program that says each tick's time on a clock of its own."""
    path = tmp_path / "meter.py"
    path.write_text(f"import sys, time\nt = 5000.0\nprint('# seconds watts', flush=True)\n{body}")
    return f"command:{sys.executable} {path}"


RUNNING = "while True:\n    print(t, {}, flush=True)\n    time.sleep(0.01)\n    t += 0.01\n"


def test_a_program_that_prints_time_and_watts(tmp_path):
    trace = record(program(tmp_path, RUNNING.format(4.5)))
    assert set(trace.values) == {4.5}
    steps = [b - a for a, b in zip(trace.at, trace.at[1:], strict=False)]
    assert steps == pytest.approx([0.01] * len(steps))  # its own times, moved to this machine's clock
    assert abs(trace.at[0] - sampling.boottime()) < 60


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("print('12.5 watts')", "printed '12.5 watts'"),
        ("print('1 2 3')", "printed '1 2 3'"),
        ("sys.exit(3)", "ended with exit code 3"),
        (RUNNING.format("'nan'"), "reads nan W"),
        (RUNNING.format("-1"), "less than zero"),
        (RUNNING.format("1e9"), "jumps to 1e"),
        ("for t in (1, 2, 1.5, 3, 4):\n    print(t, 1, flush=True)\ntime.sleep(30)", "its time goes from 2 s to 1.5 s"),
        ("while True:\n    print('nan 1')", "its time goes from -inf s to nan s"),
        ("print(t, 1, flush=True)\nprint(t + 0.001, 1, flush=True)\nsys.exit(0)", "ended with exit code 0"),
    ],
)
def test_a_program_that_prints_nonsense_is_refused(tmp_path, body, message):
    with pytest.raises(MeasureError) as caught:
        record(program(tmp_path, body), 0.1)
    assert message in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("address", "message"),
    [("no-such-program", "cannot be run"), ("", "names no program"), ("'open", "No closing quotation")],
)
def test_a_program_that_is_not_there(address, message):
    with pytest.raises(MeasureError, match=message):
        record(f"command:{address}")


def test_a_program_is_ended_with_its_children(tmp_path):
    pid = tmp_path / "pid"
    child = f"import subprocess\nopen({str(pid)!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid))\n"
    record(program(tmp_path, child + RUNNING.format(1)))
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with suppress(ProcessLookupError, FileNotFoundError):
            if Path(f"/proc/{pid.read_text()}/stat").read_text().split()[2] != "Z":
                time.sleep(0.02)
                continue
        return
    raise AssertionError("the program's child is still there")


# --- sockets by HTTP ------------------------------------------------------------------------------


@contextmanager
def appliance(answers):
    """Answer GET requests by path and query; a status alone is an error."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            found = answers.get(self.path, 404)
            body = b"" if isinstance(found, int) else found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(found if isinstance(found, int) else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


GEN2 = {
    "/shelly": {"id": "shellyplusplugs-0", "gen": 2, "app": "PlusPlugS"},
    "/rpc/Shelly.GetStatus": {"switch:0": {"id": 0}, "sys": {}},
    "/rpc/Switch.GetStatus?id=0": {"id": 0, "output": True, "apower": 8.4, "voltage": 230.1, "current": 0.05},
}
GEN2_PM = {
    "/shelly": {"gen": 3},
    "/rpc/Shelly.GetStatus": {"pm1:0": {"id": 0}},
    "/rpc/PM1.GetStatus?id=0": {"id": 0, "apower": 5.5},
}
GEN1 = {
    "/shelly": {"type": "SHPLG-S", "auth": False},
    "/status": {"meters": [{"power": 3.0, "is_valid": True}, {"power": 7.25}]},
}
SENSORS = "/cm?cmnd=Status+10"
TASMOTA = {SENSORS: {"StatusSNS": {"Time": "2026-01-01T00:00:00", "ENERGY": {"Power": 6, "Voltage": 230}}}}
CHANNELS = {SENSORS: {"StatusSNS": {"ENERGY": {"Power": [6, 9.5]}}}}


@pytest.mark.parametrize(
    ("name", "answers", "channel", "watts"),
    [
        ("shelly", GEN2, "", 8.4),
        ("shelly", GEN2_PM, "", 5.5),
        ("shelly", GEN1, "", 3.0),
        ("shelly", GEN1, "/1", 7.25),
        ("tasmota", TASMOTA, "", 6.0),
        ("tasmota", CHANNELS, "/1", 9.5),
    ],
)
def test_a_socket_in_the_network(name, answers, channel, watts):
    with appliance(answers) as (host, asked):
        trace = record(f"{name}:{host}{channel}", 0.6)
    assert set(trace.values) == {watts}
    assert trace.lag >= 1.0
    assert asked.count("/shelly") == (name == "shelly")


@pytest.mark.parametrize(
    ("meter", "answers", "message", "hint"),
    [
        ("shelly:{}", {"/shelly": 401}, "wants a password", "switch"),
        ("shelly:{}", {}, "answered 404 to /shelly", "right address"),
        ("shelly:{}", {"/shelly": b"<html>"}, "no JSON object", "right address"),
        ("shelly:{}", {"/shelly": [1]}, "no JSON object", "right address"),
        ("shelly:{}/4", GEN1, "tells no meters.4.power", "right channel"),
        ("shelly:{}", GEN2 | {"/rpc/Switch.GetStatus?id=0": {"apower": True}}, "tells no apower", "meters power"),
        ("shelly:{}", GEN2 | {"/rpc/Switch.GetStatus?id=0": b'{"apower": NaN}'}, "reads nan W", "check"),
        ("tasmota:{}", {SENSORS: {"StatusSNS": {}}}, "tells no Power", "meters power"),
        ("tasmota:{}", {SENSORS: {"Command": "Unknown"}}, "tells no Power", "meters power"),
        ("tasmota:{}/x", {}, "is no HOST/CHANNEL", "tasmota:192"),
        ("shelly:/1", {}, "is no HOST/CHANNEL", "shelly:192"),
        ("shelly:{}@[", {}, "", "address"),
    ],
)
def test_a_socket_that_answers_nonsense(meter, answers, message, hint):
    with appliance(answers) as (host, _), pytest.raises(MeasureError) as caught:
        record(meter.format(host), 0.05)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_socket_that_is_not_there():
    with appliance({}) as (host, _):
        pass
    with pytest.raises(MeasureError, match="does not answer") as caught:
        record(f"tasmota:{host}")
    assert "in this network" in caught.value.hint


# --- PPK2 on a pseudo-terminal, through ppk2-api --------------------------------------------------

METADATA = (
    "Calibrated: 0\nR0: 1000.0\nR1: 100.0\nR2: 10.0\nR3: 1.0\nR4: 0.05\nGS3: 0.0\nGI3: 1.0\nHW: 9173\nIA: 56\nEND"
)


class Kit(threading.Thread):
    """Speaks the kit's serial protocol: metadata, and 4-byte readings of a constant code in the fourth range."""

    def __init__(self, code=5000, rate=20_000, lost=0.0, metadata=METADATA, falls_silent_after=1e9):
        super().__init__(daemon=True)
        self.host, self._device = pty.openpty()
        tty.setraw(self.host)
        self.port = os.ttyname(self._device)
        self.heard = b""
        self._word = struct.pack("<I", code | 3 << 14)
        self._rate, self._lost, self._metadata, self._silent = rate, lost, metadata, falls_silent_after
        self._over = threading.Event()

    def run(self):
        began, sent = None, 0
        while not self._over.is_set():
            if select([self.host], [], [], 0.005)[0]:
                said = os.read(self.host, 64)
                self.heard += said
                if b"\x19" in said:
                    os.write(self.host, self._metadata.encode())
                if b"\x06" in said:
                    began = time.monotonic()
                if b"\x07" in said:
                    began = None
            if began is not None:
                due = int(min(time.monotonic() - began, self._silent) * self._rate * (1 - self._lost)) - sent
                while due > 0 and not self._over.is_set():
                    count = min(due, 500)
                    os.write(self.host, self._word * count)
                    due, sent = due - count, sent + count

    def close(self):
        self._over.set()
        self.join()
        os.close(self.host)
        os.close(self._device)


@contextmanager
def kit(monkeypatch, **facts):
    pytest.importorskip("ppk2_api", reason="ppk2-api is missing: pip install 'edgekit[meters]'")
    monkeypatch.setattr(ppk2, "RATE", 20_000)
    made = Kit(**facts)
    made.start()
    try:
        yield made
    finally:
        made.close()


# The kit's own formula, with offset 0, linear, gain 1: code * 4 * 1.8 / 163840 / R.
AMPERES = 5000 * 4 * 1.8 / 163840 / 1.0


def test_ppk2_counts_joules_at_the_volts_that_were_given(monkeypatch):
    with kit(monkeypatch) as made:
        trace = record(f"ppk2:{made.port}@3700", 0.5)
        time.sleep(0.05)
        assert made.heard.startswith(b"\x19")
        assert b"\x11\x01" in made.heard  # an ampere meter; the regulator is only told the volts for its calibration
        assert b"\x0c\x01" in made.heard
        assert made.heard.endswith(b"\x07")
    assert trace.unit == "J"
    watts = (trace.values[-1] - trace.values[0]) / (trace.at[-1] - trace.at[0])
    assert watts == pytest.approx(AMPERES * 3.7, rel=0.35)  # a busy machine reads late; the count is exact:
    steps = {round(b - a, 9) / (AMPERES * 3.7 / 20_000) for a, b in zip(trace.values, trace.values[1:], strict=False)}
    assert all(abs(n - round(n)) < 0.01 for n in steps)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"metadata": "hello"}, "does not answer as a PPK2"),
        ({"lost": 0.9}, "were lost"),
        ({"falls_silent_after": 0.1}, "has stopped sending|were lost"),
    ],
)
def test_ppk2_that_is_wrong(monkeypatch, facts, message):
    monkeypatch.setattr(ppk2, "SILENCE", 0.2)
    with kit(monkeypatch, **facts) as made, pytest.raises(MeasureError, match=message) as caught:
        record(f"ppk2:{made.port}@3700", 1.0)
    assert caught.value.hint


@pytest.mark.parametrize("address", ["", "/dev/ttyACM0", "/dev/ttyACM0@", "@3700", "/dev/ttyACM0@12000", "/dev/x@5V"])
def test_ppk2_wants_a_port_and_its_volts(address):
    with pytest.raises(MeasureError, match="no PORT@MILLIVOLTS") as caught:
        energy.open_meter(f"ppk2:{address}")
    assert "3700" in caught.value.hint


def test_ppk2_that_is_not_there():
    pytest.importorskip("ppk2_api", reason="ppk2-api is missing: pip install 'edgekit[meters]'")
    with pytest.raises(MeasureError, match="cannot be opened") as caught:
        record("ppk2:/dev/ttyACM77@3700")
    assert "dialout" in caught.value.hint


# --- stand-ins for makers' packages ---------------------------------------------------------------


def stand_in_joulescope(monkeypatch, paths, values):
    """As much of pyjoulescope_driver.Driver as is used; publishes what its examples publish."""
    said = []

    class Driver:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            said.append("exit")

        def device_paths(self):
            return paths

        def open(self, path):
            said.append(("open", path))

        def close(self, path):
            said.append(("close", path))

        def publish(self, topic, value):
            said.append((topic, value))

        def subscribe(self, topic, flags, call):
            said.append((topic, flags))

            def send():
                for value in values:
                    call(topic, {"accumulators": {"energy": {"value": value, "units": "J"}}})
                    time.sleep(0.01)

            threading.Thread(target=send, daemon=True).start()

    monkeypatch.setitem(sys.modules, "pyjoulescope_driver", SimpleNamespace(Driver=Driver))
    return said


def test_joulescope_adds_up_itself(monkeypatch):
    said = stand_in_joulescope(monkeypatch, ["u/js220/000123"], [10 + 0.05 * n for n in range(400)])
    trace = record("joulescope")
    assert trace.unit == "J"
    assert joined(trace) == pytest.approx([0.05] * (len(trace.at) - 1))
    assert ("u/js220/000123/s/stats/scnt", 20_000) in said
    assert ("u/js220/000123/s/stats/ctrl", 1) in said
    assert said[-2:] == [("close", "u/js220/000123"), "exit"]


def joined(trace):
    return [b - a for a, b in zip(trace.values, trace.values[1:], strict=False)]


@pytest.mark.parametrize(
    ("meter", "paths", "message", "hint"),
    [
        ("joulescope", [], "0 Joulescopes are connected", "USB permissions"),
        ("joulescope", ["u/js220/1", "u/js110/2"], "2 Joulescopes", "joulescope:u/js220/1, joulescope:u/js110/2"),
        ("joulescope:u/js220/9", ["u/js220/1"], "no Joulescope at u/js220/9", "joulescope:u/js220/1"),
    ],
)
def test_joulescope_that_is_not_there(monkeypatch, meter, paths, message, hint):
    stand_in_joulescope(monkeypatch, paths, [])
    with pytest.raises(MeasureError, match=message) as caught:
        record(meter)
    assert hint in caught.value.hint


def stand_in_monsoon(monkeypatch, batch, opens=True):
    """As much of Monsoon.HVPM and Monsoon.sampleEngine as is used."""
    said = []

    class Meter:
        def setup_usb(self, serial):
            said.append(serial)
            if not opens:
                raise RuntimeError("no backend available")

        def fillStatusPacket(self):
            pass

        def closeDevice(self):
            said.append("closed")

    class Engine:
        def __init__(self, meter):
            self.enableChannel = self.ConsoleOutput = lambda _: None
            self.disableCSVOutput = lambda: None

        def periodicStartSampling(self):
            return [[0.0], [1.0], [], [], [4.0], []]

        def periodicCollectSamples(self, samples):
            time.sleep(0.01)
            assert samples == monsoon.BATCH
            return batch

        def periodicStopSampling(self):
            said.append("stopped")

    package = ModuleType("Monsoon")
    package.HVPM = SimpleNamespace(Monsoon=Meter)
    package.sampleEngine = SimpleNamespace(SampleEngine=Engine, channels=SimpleNamespace(MainCurrent=1, MainVoltage=4))
    monkeypatch.setitem(sys.modules, "Monsoon", package)
    return said


def test_monsoon_s_batches_are_averaged(monkeypatch):
    said = stand_in_monsoon(monkeypatch, [[0.1, 0.2], [500.0, 1500.0], [0, 0], [0, 0], [4.0, 4.0], [0, 0]])
    trace = record("monsoon:12345")
    assert set(trace.values) == {4.0}
    assert said == [12345, "stopped", "closed"]


def test_monsoon_that_is_wrong(monkeypatch):
    stand_in_monsoon(monkeypatch, [[]] * 6)
    with pytest.raises(MeasureError, match="stopped sending"):
        record("monsoon")
    stand_in_monsoon(monkeypatch, [], opens=False)
    with pytest.raises(MeasureError, match="no backend available"):
        record("monsoon")
    with pytest.raises(MeasureError, match="no serial number"):
        energy.open_meter("monsoon:abc")


@pytest.mark.parametrize(
    ("package", "meter"),
    [
        ("ppk2_api.ppk2_api", "ppk2:/dev/ttyACM0@3700"),
        ("pyjoulescope_driver", "joulescope"),
        ("Monsoon", "monsoon"),
        ("httpx", "shelly:127.0.0.1"),
        ("httpx", "tasmota:127.0.0.1"),
    ],
)
def test_a_missing_package_is_told_with_its_extra(monkeypatch, package, meter):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MeasureError, match="is not installed") as caught:
        record(meter)
    assert caught.value.hint == "pip install 'edgekit[meters]'"
