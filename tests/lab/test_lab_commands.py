"""`edgekit lab` at the command line, with devices that exist only here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.lab_emulated import EmulatedStation
from edgekit.cli import run
from edgekit.errors import LinkLost
from edgekit.lab import check, file, seat
from edgekit.lab.file import LabDevice

LAB = """
name = "desk"
bundles = ["smollm2-int4"]
repetitions = 2
[limits]
most_spread = 0.5
[[device]]
name = "jetson"
address = "local:/tmp/nowhere"
target = "jetson-orin-nano"
[[workload]]
name = "chat"
pp = [8]
tg = [4]
repetitions = 2
[[workload]]
name = "hot"
sustained = "60s"
"""


def station(device: LabDevice, stopped: Callable[[], bool]) -> EmulatedStation:
    return EmulatedStation(device, stopped, 0.0, 1.0)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lab file whose device is emulated; the current folder is empty."""
    monkeypatch.setattr(seat, "open_seat", station)
    loaded = file.load_lab
    monkeypatch.setattr(file, "load_lab", lambda path, **given: loaded(path, digest=lambda _: "a" * 64))
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "smollm2-int4").mkdir()
    (tmp_path / "lab.toml").write_text(LAB)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "lab.toml"


def test_a_night_from_the_plan_to_the_page(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lab", "run", "lab.toml", "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [(d["device"], d["runs"], d["left"], d["estimated"]) for d in plan["devices"]] == [("jetson", 4, 4, True)]
    assert not list(Path("desk-results").glob("desk@*")), "a plan begins no night"

    assert run(["lab", "run", "lab.toml", "--json"]) == 0
    told = capsys.readouterr()
    night = json.loads(told.out)
    assert night["ended"] == [["done", 4]]
    assert {(r["workload"], r["status"]) for r in night["fleet"]["results"]} == {("chat", "result"), ("hot", "result")}
    assert "jetson: smollm2-int4 chat 0 done" in told.err
    folder = Path(night["folder"])
    lines = (folder / "runs.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert {p.name for p in folder.iterdir()} == {"runs.jsonl", "plan.json", "junit.xml", "mlperf.json", "traces"}
    assert len(list((folder / "traces").iterdir())) == 4

    assert run(["lab", "report", "desk-results", "-o", "page.html", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fleet"]["lab"] == "desk"
    assert "jetson" in Path("page.html").read_text()

    # A second night is planned with the times of the first, and compared with it.
    assert run(["lab", "run", "lab.toml"]) == 0
    assert len(list(Path("desk-results").glob("desk@*"))) == 2


def test_what_is_no_result_ends_with_3(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    desk.write_text(LAB.replace("most_spread = 0.5", "most_spread = 1e-9"))
    assert run(["lab", "run", "lab.toml"]) == 3
    told = capsys.readouterr()
    assert "error: not everything is a result: 2 noisy" in told.err
    assert "hint: see `edgekit lab report desk-results`" in told.err
    assert "tg4@0 spreads by" in told.out
    assert "spread" in told.out


def test_a_results_folder_in_use_names_the_flag(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edgekit.lab.store import opened

    with opened(Path("desk-results")):
        assert run(["lab", "run", "lab.toml"]) == 1
    assert "hint: wait until it has ended, or pass another folder as --out" in capsys.readouterr().err


def test_bad_urls_hide_their_password(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lab", "run", "lab.toml", "--database", "nonsense secret"]) == 1
    told = capsys.readouterr().err
    assert "--database is not an SQLAlchemy URL" in told
    assert "secret" not in told
    assert run(["lab", "run", "lab.toml", "--database", "nosuch://me:secret@there/db"]) == 1
    assert "secret" not in capsys.readouterr().err


def test_devices_that_do_not_answer(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["lab", "devices", "lab.toml", "--json"]) == 0
    (seen,) = json.loads(capsys.readouterr().out)["devices"]
    assert (seen["name"], seen["address"], seen["error"]) == ("jetson", "local:/tmp/nowhere", "")
    assert seen["facts"]["machine"]

    def gone(address: str) -> object:
        raise LinkLost(f"{address} does not answer", "switch it on")

    monkeypatch.setattr(check, "connect", gone)
    assert run(["lab", "devices", "lab.toml", "ssh:pi@board"]) == 3
    told = capsys.readouterr()
    assert "ssh:pi@board does not answer" in told.out
    assert "error: 2 of 2 devices do not answer" in told.err


def test_an_unknown_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lab", "check", "shh:pi@board"]) == 1
    told = capsys.readouterr().err
    assert "unknown transport 'shh'" in told
    assert "did you mean 'ssh'?" in told


def test_measured_shows_in_targets(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets", "show", "raspberry-pi-5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measured"] == []
    desk.write_text(LAB.replace("jetson-orin-nano", "raspberry-pi-5"))
    assert run(["lab", "run", "lab.toml"]) == 0
    capsys.readouterr()
    assert run(["targets", "show", "raspberry-pi-5", "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["target"]["verified"] == "measured"
    (speed,) = card["measured"]
    assert (speed["device"], speed["precision"], speed["host"]) == ("jetson", "int4", "jetson")
    assert 0 < speed["efficiency"] < 1
    assert speed["joules_per_token"] > 0
    assert run(["targets", "show", "raspberry-pi-5"]) == 0
    assert "measured" in capsys.readouterr().out


def test_checks_of_a_device() -> None:
    from edgekit.lab.check import Meter, _energy, _state
    from edgekit.types import Sample

    phone = Sample(0.0, (("battery", 31.0), ("cpu", 39.5)), (1800.0, 2400.0), "schedutil", 80.0, "usb", 0.1, None)
    checks = {c.name: c for c in _state(phone)}
    assert checks["temperature"].detail == "39.5 °C at cpu, 2 zones"
    assert checks["battery"].detail == "80 %, plugged into usb"
    (meter, energy) = _energy(phone, (Meter("battery", ""),))
    assert (meter.status, energy.status) == ("pass", "skip")
    assert "charges" in energy.detail
    assert "Wi-Fi" in energy.hint
    unplugged = replace(phone, plugged="")
    assert [c.name for c in _energy(unplugged, (Meter("battery", ""),))] == ["meter"]
    assert [c.status for c in _energy(unplugged, (Meter("rapl", "no permission"),))] == ["skip", "skip"]
