"""``edgekit power``: the list of meters, and a meter's trace in a file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekit.cli import run
from edgekit.cli.documents import MeterList
from edgekit.errors import MeasureError
from edgekit.measure.recording import read_trace
from edgekit.measure.trace import joules

METER = """
import sys, time
t, limit = 0.0, float(sys.argv[1])
while t < limit:
    print(f"{t:.3f} {2 + t}", flush=True)
    time.sleep(0.01)
    t += 0.01
"""


@pytest.fixture
def meter(tmp_path):
    """The ``--meter`` of a program that runs for a number of seconds of its own."""
    path = tmp_path / "meter.py"
    path.write_text(METER)
    return lambda seconds=1e9: f"command:{sys.executable} {path} {seconds}"


def test_a_trace_is_recorded_and_shown(tmp_path, meter, capsys):
    out = tmp_path / "new" / "trace.jsonl"
    assert run(["power", "record", "--meter", meter(), "-o", str(out), "--seconds", "0.4", "--json"]) == 0
    recorded = json.loads(capsys.readouterr().out)
    trace = read_trace(out)
    assert len(trace.at) == recorded["readings"] > 10
    assert (trace.unit, trace.lag, trace.covers) == ("W", 0.02, "whatever the program measures")
    assert trace.at[-1] - trace.at[0] >= 0.3
    assert recorded["joules"] == pytest.approx(joules(trace).value)
    assert recorded["error_joules"] > 0
    assert list(out.parent.iterdir()) == [out]
    assert run(["power", "show", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == recorded
    assert run(["power", "show", str(out)]) == 0
    assert "wrong by at most" in capsys.readouterr().out


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_with_a_whole_file(tmp_path, meter, ending):
    out = tmp_path / "trace.jsonl"
    command = [sys.executable, "-m", "edgekit", "power", "record", "--meter", meter(), "-o", str(out)]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - a suite in the background ignores it
    )
    started = tmp_path / "pid"
    while not started.exists():  # the meter's program runs: so does the recording
        here = subprocess.run(["pgrep", "-P", str(child.pid)], capture_output=True, text=True, check=False).stdout
        if here.strip():
            started.write_text(here)
        assert child.poll() is None
        time.sleep(0.05)
    time.sleep(0.7)
    assert not out.exists()
    child.send_signal(ending)
    told, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    assert "readings" in told
    assert len(read_trace(out).at) > 5
    assert out.read_bytes().endswith(b"}\n")
    for pid in started.read_text().split():
        assert not Path(f"/proc/{pid}").exists()


def test_a_meter_that_ends_leaves_what_it_has_read(tmp_path, meter, capsys):
    out = tmp_path / "trace.jsonl"
    assert run(["power", "record", "--meter", meter(0.3), "-o", str(out)]) == 1
    told = capsys.readouterr().err
    assert "ended with exit code 0" in told
    assert f"readings until then are in {out}" in told
    assert len(read_trace(out).at) > 10


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["--meter", "rappl", "-o", "t"], "no meter is called 'rappl'", "did you mean 'rapl'"),
        (["--meter", "joulescpe", "-o", "t"], "no meter is called", "did you mean 'joulescope'"),
        (["--meter", "command:no-such-meter", "-o", "t"], "cannot be run", "name and path"),
        (["--meter", "command:true", "-o", "t"], "ended with exit code 0", "run it by hand"),
        (["--meter", "command:true", "-o", "."], "cannot be written: it is a folder", "another folder"),
        (["--meter", "command:true", "-o", "file/t"], "cannot be written", "another folder"),
        (["--meter", "ppk2:x", "-o", "t"], "no PORT@MILLIVOLTS", "3700"),
        (["--meter", "command:yes 1 2", "-o", "t", "--seconds", "0.2"], "its time goes", "print the time"),
    ],
)
def test_bad_input_is_told_and_leaves_nothing(tmp_path, monkeypatch, capsys, arguments, message, hint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert run(["power", "record", *arguments]) == 1
    told = capsys.readouterr().err
    assert message in told
    assert hint in told
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [], "is no trace"),
        (lambda lines: lines[1:], "is no trace"),
        (lambda lines: [*lines[:-1], lines[-1][:-4]], "is no trace"),
        (lambda lines: [lines[0].replace('"schema":1', '"schema":2'), *lines[1:]], "version 2"),
        (lambda lines: lines[:2] + lines[1:2], "its time goes"),
        (lambda lines: [*lines, '{"at":1e9,"value":1e12}'], "jumps"),
        (lambda lines: [*lines, '{"at":1e9,"value":NaN}'], "is no trace"),
    ],
)
def test_a_stranger_s_trace_is_checked(tmp_path, meter, change, message):
    out = tmp_path / "trace.jsonl"
    assert run(["power", "record", "--meter", meter(), "-o", str(out), "--seconds", "0.2"]) == 0
    out.write_text("\n".join(change(out.read_text().splitlines())))
    with pytest.raises(MeasureError, match=message):
        read_trace(out)
    with pytest.raises(MeasureError, match="cannot be read"):
        read_trace(tmp_path / "none")


def test_the_list_names_every_kind_and_what_is_here(tmp_path, capsys):
    assert run(["power", "list", "--json"]) == 0
    kinds = {kind["name"]: kind for kind in json.loads(capsys.readouterr().out)["kinds"]}
    assert kinds["battery"]["default"] is True
    assert kinds["shelly"]["address"] == "HOST[/CHANNEL]"
    assert run(["power", "list"]) == 0
    assert "ppk2:PORT@MILLIVOLTS" in capsys.readouterr().out
    chip = tmp_path / "sys/class/hwmon/hwmon0"
    chip.mkdir(parents=True)
    for name, content in {"name": "pmic", "power1_input": "5000000", "power2_input": "x"}.items():
        (chip / name).write_text(content)
    good, bad = MeterList.here_of(tmp_path).here
    assert (good.meter, good.trouble) == ("hwmon:pmic/power1", "")
    assert "cannot be read as a number" in bad.trouble
