"""What runs say together: levels, spread, changes, and which device can be relied on."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log
from pathlib import Path

import numpy as np
import pytest

from benchmarks.lab_emulated import emulated_lab, run_emulated
from edgekit.config import measured
from edgekit.errors import LabError
from edgekit.lab.records import keep_records
from edgekit.lab.results import compare, load_fleet, summarize
from edgekit.lab.steady import find_level, find_throttling, spread_of
from edgekit.lab.store import DATABASE, opened, parse_run, read_folder, read_night
from edgekit.record import to_json
from edgekit.types.lab import Rate


def rates(speeds: list[float]) -> list[Rate]:
    return [Rate(100.0 + second + 1, 1.0, round(1000 * speed)) for second, speed in enumerate(speeds)]


def test_a_curve_levels_off_where_it_was_made_to() -> None:
    random = np.random.default_rng(0)
    falling = [20 - 8 * second / 120 for second in range(120)]
    speeds = [v + random.normal(0, 0.2) for v in [*falling, *[12.0] * 480]]
    level = find_level(rates(speeds))
    assert level
    assert 105 <= level.after <= 135
    assert level.tok_s / 1000 == pytest.approx(12.0, abs=0.1)
    assert level.low / 1000 < 12.0 < level.high / 1000
    assert find_throttling(rates(speeds), (), ()) == "speed fell from 1.974e+04 to 1.2e+04 tok/s"


def test_a_quiet_curve_levels_off_where_the_rest_is_too_little_to_matter() -> None:
    """A fall with a time constant of 90 s, without noise: after three of them 5 % of the fall are left."""
    level = find_level(rates([13 + 11 * 2.718281828 ** (-second / 90) for second in range(600)]))
    assert level
    assert 150 < level.after <= 300
    assert level.tok_s / 1000 == pytest.approx(13.0, rel=0.03)


def test_a_flat_curve_is_level_at_once_and_a_falling_one_never() -> None:
    random = np.random.default_rng(1)
    flat = find_level(rates([9 + random.normal(0, 0.1) for _ in range(300)]))
    assert flat
    assert flat.after < 60
    assert find_throttling(rates([9.0] * 300), (), ()) == ""
    assert find_level(rates([20 - second / 40 for second in range(600)])) is None
    assert find_level(rates([20 - second / 300 for second in range(600)])) is None, "10 % in ten minutes"
    assert find_level(rates([9.0] * 20)) is None, "too short to tell"
    late = [20.0] * 400 + [12.0] * 200
    assert find_level(rates(late)) is None, "a step in the second half is no level"


def test_the_interval_holds_the_level_as_often_as_it_says() -> None:
    """A 95 % interval: of 300 curves with a known level, at least 90 % hold it (the batches are independent here)."""
    random = np.random.default_rng(2)
    held = 0
    for _ in range(300):
        level = find_level(rates([12 + random.normal(0, 0.5) for _ in range(300)]))
        held += bool(level and level.low <= 12_000 <= level.high)
    assert held / 300 > 0.85


def test_spread() -> None:
    assert spread_of([10.0, 11.0, 12.0]) == pytest.approx(2 / 11)
    assert spread_of([10.0]) is None


def test_a_change_is_noise_unless_its_interval_says_otherwise() -> None:
    before, after = [log(10.0), log(10.1), log(9.9)], [log(9.0), log(9.1), log(8.9)]
    ratio = compare(before, after)
    assert ratio
    assert ratio.value == pytest.approx(0.9, abs=0.01)
    # Welch's t on these logarithms by hand: difference -0.1054, standard error 0.00865, 3.96 degrees of freedom.
    assert (ratio.low, ratio.high) == pytest.approx(
        (exp(-0.1054 - 2.788 * 0.00865), exp(-0.1054 + 2.788 * 0.00865)), rel=1e-3
    )
    assert compare([1.0], after) is None
    same = compare([1.0, 1.0], [2.0, 2.0])
    assert same
    assert same.low == same.high == pytest.approx(exp(1))


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab") / "results"
    lab = emulated_lab()
    short = replace(
        lab, workloads=(lab.workloads[0], replace(lab.workloads[2], sustained=300.0)), bundles=lab.bundles[:2]
    )
    run_emulated(folder, short)
    run_emulated(folder, short, drift=0.8)
    return folder


def test_two_nights_of_a_fleet(nights: Path) -> None:
    fleet = load_fleet(str(nights))
    assert len(fleet.nights) == 2
    assert len(fleet.results) == 8 * 2 * 2
    states = {d.device: d.state for d in fleet.devices}
    assert states["laptop"] == "broken"
    assert states["pi5-a"] == "well"
    laptop = next(d for d in fleet.devices if d.device == "laptop")
    assert laptop.reasons == ("12 times failed: ssh:emulated@laptop does not answer",)
    assert {(c.before, c.after) for c in fleet.changes} == {fleet.nights}
    verdicts = {c.device: c.verdict for c in fleet.changes if c.workload == "chat" and c.bundle == "smollm2-int4"}
    assert verdicts["pi5-a"] == "slower"
    assert "laptop" not in verdicts
    hot = next(r for r in fleet.results if r.device == "phone-a" and r.curve)
    assert hot.curve
    assert hot.curve.throttled
    assert hot.joules
    assert len(hot.curve.points) > 200
    assert hot.curve.points[-1].celsius
    assert hot.curve.points[-1].watts


def test_noise_between_runs_is_no_result(nights: Path) -> None:
    strict = summarize(read_folder(nights), most_spread=1e-6)
    assert {r.status for r in strict.results if r.decode} == {"noisy"}
    assert {d.state for d in strict.devices} == {"shaky", "broken"}
    lax = summarize(read_folder(nights), most_spread=10.0)
    assert {r.status for r in lax.results} == {"result", "none"}


def test_the_database_and_the_lines_say_the_same(nights: Path) -> None:
    assert load_fleet(f"sqlite:///{nights / DATABASE}") == load_fleet(str(nights))


def test_a_database_that_was_left_behind_catches_up(nights: Path) -> None:
    from sqlalchemy import create_engine, text

    engine = create_engine(f"sqlite:///{nights / DATABASE}")
    with engine.begin() as connection:
        gone = connection.execute(
            text("delete from edgekit_lab_runs where night = :n"), {"n": min(p.name for p in nights.glob("emulated@*"))}
        )
        assert gone.rowcount == 96
    engine.dispose()
    with opened(nights) as store:
        store.catch_up()
    assert load_fleet(f"sqlite:///{nights / DATABASE}") == load_fleet(str(nights))


@pytest.mark.parametrize(
    ("asked", "lab", "said"),
    [
        ("nowhere", "", "nowhere holds no results of a lab"),
        ("sqlite://", "", "holds no results"),
        ("{}", "emulate", "of a lab 'emulate'"),
    ],
)
def test_results_that_are_not_there(nights: Path, asked: str, lab: str, said: str) -> None:
    with pytest.raises(LabError, match=said):
        load_fleet(asked.format(nights), lab)


def test_a_damaged_line_is_named(nights: Path) -> None:
    run = next(iter(read_folder(nights)))
    assert parse_run(to_json(run), "x") == run
    for line, said, hint in (
        (to_json(run).replace('"status":"', '"status":"un'), r"x: not a run of a lab: \$\.status", "remove the line"),
        (to_json(run).replace('"schema":1', '"schema":99,"new":1'), "unknown key", "upgrade"),
        ("{", "not JSON", "remove the line"),
    ):
        with pytest.raises(LabError, match=said) as raised:
            parse_run(line, "x")
        assert hint in raised.value.hint


def test_results_become_the_targets_efficiency(nights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit.config.target import load_target

    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    pi = load_target("raspberry-pi-5")
    assert measured.read_records() == ()
    assert measured.with_measured(pi, measured.measured_speeds(pi, measured.read_records())) == pi
    lab = emulated_lab()
    lab = replace(lab, devices=tuple(replace(d, target=pi.name if d.name == "pi5-a" else "") for d in lab.devices))
    fleet = load_fleet(str(nights))
    runs = read_night(nights / fleet.nights[-1])
    kept = keep_records(lab, fleet, runs)
    assert kept == sum(r.status == "result" and r.workload == "chat" for r in fleet.results)
    assert keep_records(lab, fleet, runs) == kept
    records = measured.read_records()
    assert len(records) == kept, "the newest takes the place of the one before"
    speeds = measured.measured_speeds(pi, records)
    assert {s.device for s in speeds} == {"pi5-a"}
    fast = max(speeds, key=lambda s: s.tok_s)
    run = next(r for r in reversed(runs) if (r.device, r.bundle, r.workload) == ("pi5-a", fast.model, "chat"))
    series = run.measurement and run.measurement.get("tg32@0")
    assert run.measurement
    assert series
    assert fast.tok_s == series.mean
    expected = series.mean * (80_000_000 + 46_080 * 16.5) / 17.1e9
    assert fast.efficiency == pytest.approx(expected)
    assert measured.efficiency_range(speeds, "int4") == (
        min(s.efficiency or 0 for s in speeds),
        pytest.approx(expected),
    )
    assert measured.efficiency_range(speeds, "int8") is None
    shown = measured.with_measured(pi, speeds)
    assert shown.verified == "measured"
    assert "pi5-a" in (shown.source("verified") or pytest.fail("no source")).text
    # What is damaged or another's does not count.
    folder = tmp_path / "cache" / "measured"
    first = min(folder.iterdir())
    first.write_text("{")
    assert len(measured.read_records()) == kept - 1
    folder.chmod(0o777)
    assert measured.read_records() == ()
