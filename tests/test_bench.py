"""A bundle measured end to end: the record is complete, strict JSON, and honest about what was left out."""

from __future__ import annotations

import pytest

from edgekit import measure
from edgekit.bench import latency as bench
from edgekit.bench.latency import bench_bundle
from edgekit.build.pipeline import build_bundle
from edgekit.errors import MeasureError
from edgekit.estimate import needs
from edgekit.measure import energy
from edgekit.record import from_json, to_json
from edgekit.testing import FakeProbe, tiny_checkpoint
from edgekit.types import Ceilings, Measurement, Series

SMALL = {"pp": (32,), "tg": (4,), "depth": (0, 16, 4096), "repetitions": 2, "threads": 1}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    return build_bundle(str(tiny_checkpoint(folder / "m")), target="cpu", precision="int4", out=folder / "b")


@pytest.fixture
def no_meter(monkeypatch):
    monkeypatch.setattr(measure, "choose_meter", lambda: (None, "no meter here"))


def test_the_record_is_complete_and_survives_json(bundle, no_meter):
    m = bench_bundle(bundle, **SMALL)
    assert [s.name for s in m.series] == [
        "load", "pp32", "ttft32", "tg4@0", "tpot@0", "tg4@16", "tpot@16",
    ]  # fmt: skip
    assert (m.get("pp32").n, m.get("tpot@16").n, m.get("load").n) == (2, 8, 3)
    assert "left out: tg4@4096" in m.workload
    assert m.bundle_sha256 == bundle.sha256
    assert (m.model, m.precision, m.device, m.warmup) == (bundle.manifest.provenance.id, "int4", "cpu", 1)
    assert m.environment.threads == 1
    assert dict(m.environment.runtime).keys() == {"edgekit", "onnxruntime", "numpy"}
    assert m.nodes_on_cpu > 0
    assert m.peak_rss_bytes > 10_000_000
    assert m.weight_bytes == sum(t.bytes for t in bundle.manifest.tensors)
    assert {name for name, _ in m.roofline} == {"pp32", "tg4@0", "tg4@16"}
    assert all(0 < fraction <= 1 for _, fraction in m.roofline)
    assert (m.energy.kind, m.energy.reason, m.energy.gross_joules) == ("none", "no meter here", None)
    line = to_json(m)
    assert "\n" not in line
    assert from_json(Measurement, line) == m


def test_energy_with_a_meter(bundle, monkeypatch):
    monkeypatch.setattr(bench, "ENERGY_SECONDS", 0.001)
    monkeypatch.setattr(energy, "sleep", lambda seconds: None)
    m = bench_bundle(bundle, meter=FakeProbe(5.0), **SMALL)
    assert m.energy.kind == "measured"
    assert m.energy.tokens % 128 == 0
    assert m.energy.gross_joules > 0
    assert "decoding 128 tokens" in m.energy.formula


def test_a_number_above_the_ceiling_is_refused(bundle, no_meter, monkeypatch):
    slow = Ceilings(Series("read", "B/s", (1.0,)), Series("gemm", "FLOP/s", (1.0,)))
    monkeypatch.setattr(measure, "measure_ceilings", lambda threads, working_set: slow)
    with pytest.raises(MeasureError, match="times this machine's limit"):
        bench_bundle(bundle, **SMALL)


def test_the_probes_use_the_runners_threads_and_the_models_size(bundle, no_meter, monkeypatch):
    asked = []
    wide = Ceilings(Series("read", "B/s", (1e18,)), Series("gemm", "FLOP/s", (1e18,)))
    monkeypatch.setattr(measure, "measure_ceilings", lambda *given: asked.append(given) or wide)
    bench_bundle(bundle, **SMALL | {"threads": 2})
    assert asked == [(2, needs.weight_bytes(bundle.manifest.tensors, tied=bundle.manifest.spec.tied))]


def test_a_probes_array_is_not_the_models_memory(bundle, no_meter, monkeypatch):
    order = []
    for name in ("reset_peak_memory", "measure_load", "measure_latency", "peak_memory", "measure_ceilings"):
        real = getattr(measure, name)
        monkeypatch.setattr(measure, name, lambda *a, _n=name, _r=real, **k: (order.append(_n), _r(*a, **k))[1])
    bench_bundle(bundle, **SMALL)
    assert order == ["reset_peak_memory", "measure_load", "measure_latency", "peak_memory", "measure_ceilings"]
