"""What others read: JUnit XML, LoadGen's names, Perfetto traces."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lab_emulated import emulated_lab, run_emulated
from edgekit.lab.exports import junit, mlperf, trace
from edgekit.lab.exports.folder import export_night
from edgekit.lab.store import read_night
from edgekit.types import LabRun

junitparser = pytest.importorskip("junitparser")
pytest.importorskip("perfetto")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[LabRun]:
    folder = tmp_path_factory.mktemp("lab")
    lab = emulated_lab(repetitions=1)
    devices = tuple(d for d in lab.devices if d.name in ("jetson", "laptop"))
    hot = replace(lab.workloads[2], sustained=60.0)
    plan = run_emulated(
        folder, replace(lab, devices=devices, bundles=lab.bundles[:1], workloads=(*lab.workloads[:2], hot))
    )
    return read_night(folder / plan.night)


def of(runs: list[LabRun], device: str, workload: str) -> LabRun:
    return next(run for run in runs if (run.device, run.workload) == (device, workload))


def test_junit(runs: list[LabRun], tmp_path: Path) -> None:
    given = [*runs, replace(runs[0], status="noisy", reason="\x1b[31m spreads"), replace(runs[0], status="refused")]
    (tmp_path / "junit.xml").write_bytes(junit.export(given))
    xml = junitparser.JUnitXml.fromfile(str(tmp_path / "junit.xml"))
    assert (xml.tests, xml.errors, xml.failures, xml.skipped) == (8, 3, 1, 1)
    suites = {suite.name: suite for suite in xml}
    assert set(suites) == {"jetson", "laptop"}
    case = next(iter(suites["laptop"]))
    assert case.result[0].message == "ssh:emulated@laptop does not answer"
    assert "hint: switch it on" in case.result[0].text
    assert case.classname == "laptop.smollm2-int4"
    assert "tok/s: " in next(iter(suites["jetson"])).system_out


def test_mlperf(runs: list[LabRun]) -> None:
    rows = {row["workload"]: row for row in json.loads(mlperf.export(runs))["runs"] if row["device"] == "jetson"}
    assert set(rows) == {"chat", "summary"}, "a sustained run has no queries"
    run = of(runs, "jetson", "summary")
    assert run.measurement
    first, answers = run.measurement.get("ttft512"), run.measurement.get("tg64@512")
    steps = run.measurement.get("tpot@512")
    assert first
    assert answers
    assert steps
    named = rows["summary"]["mlperf"]
    assert named["requested_scenario"] == "SingleStream"
    assert named["result_first_token_90.00_percentile_latency_ns"] == round(1e9 * first.percentile(90))
    assert named["result_time_per_output_token_90.00_percentile_ns"] == round(1e9 * steps.percentile(90))
    assert named["result_time_to_output_token_mean"] == round(1e9 * steps.mean)
    query = max(t + 64 / speed for t, speed in zip(first.samples, answers.samples, strict=True))
    assert named["result_max_latency_ns"] == round(1e9 * query)
    assert named["early_stopping_met"] is False
    assert rows["summary"]["edgekit"]["joules_per_token"] == pytest.approx(
        (run.energy.net_joules or 0) / (run.energy.tokens or 1)
    )


def test_a_query_has_one_context(runs: list[LabRun]) -> None:
    run = of(runs, "jetson", "chat")
    assert run.measurement
    series = tuple(s for s in run.measurement.series if not s.name.endswith("@128"))
    alone = replace(run, measurement=replace(run.measurement, series=series))
    named = json.loads(mlperf.export([alone]))["runs"][0]["mlperf"]
    assert "result_first_token_mean_latency_ns" in named
    assert "result_mean_latency_ns" not in named


def tracks(data: bytes) -> dict[str, list[Any]]:
    """The events of each track, by its name."""
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace

    parsed = Trace()
    parsed.ParseFromString(data)
    names = {p.track_descriptor.uuid: p.track_descriptor.name for p in parsed.packet if p.HasField("track_descriptor")}
    found: dict[str, list[Any]] = {name: [] for name in names.values()}
    for packet in parsed.packet:
        if packet.HasField("track_event"):
            found[names[packet.track_event.track_uuid]].append(packet)
    return found


def test_a_trace_of_a_bench(runs: list[LabRun]) -> None:
    run = of(runs, "jetson", "chat")
    assert run.measurement
    found = tracks(trace.export(run))
    tokens = [p.track_event.name for p in found["tokens"] if p.track_event.name]
    assert len(tokens) == 2 * 3 * 32
    steps = run.measurement.get("tpot@0")
    assert steps
    begin = next(mark.at for mark in run.marks if mark.name == "tg32@0 begin")
    starts = sorted(p.timestamp for p in found["tokens"] if p.track_event.type == 1)
    assert starts[0] == round(1e9 * begin)
    assert starts[1] == pytest.approx(1e9 * (begin + steps.samples[0]), abs=2)
    assert {p.track_event.name for p in found["work"] if p.track_event.name} == {"tg32@0", "tg32@128"}
    power = [p.track_event.double_counter_value for p in found["power (W)"]]
    assert power == [p.value for p in run.power]
    assert [p.track_event.double_counter_value for p in found["temperature cpu-thermal (°C)"]] == [45.0] * 6
    assert {f"clock {core} (MHz)" for core in range(4)} < set(found)


def test_a_trace_of_a_sustained_run(runs: list[LabRun]) -> None:
    run = of(runs, "jetson", "hot")
    found = tracks(trace.export(run))
    assert len([p for p in found["tokens"] if p.track_event.name]) == len(run.rates)
    assert len(found["speed (tok/s)"]) == len(run.rates)
    assert "background (cores)" in found


def test_perfetto_s_own_trace_processor_opens_it(runs: list[LabRun], tmp_path: Path) -> None:
    binary = shutil.which("trace_processor_shell")
    if binary is None:
        pytest.skip("needs trace_processor_shell in PATH: the perfetto wheel fetches it from the network")
    from perfetto.trace_processor import TraceProcessor, TraceProcessorConfig

    path = tmp_path / "run.pftrace"
    path.write_bytes(trace.export(of(runs, "jetson", "chat")))
    with TraceProcessor(trace=str(path), config=TraceProcessorConfig(bin_path=binary)) as processor:
        (row,) = processor.query("select count(*) as n from slice where name like 'token %'")
        assert row.n == 192


def test_a_night_s_exports_are_made_once_and_again(runs: list[LabRun], tmp_path: Path) -> None:
    made = export_night(runs, tmp_path)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in made) == [
        "junit.xml",
        "mlperf.json",
        *sorted(f"traces/{run.id}.pftrace" for run in runs if run.device == "jetson"),
    ]
    assert all(path.stat().st_size for path in made)
    assert export_night(runs, tmp_path) == made
