"""The machine as a decision sees it, and whose numbers count."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from edgekit import __version__
from edgekit.estimate.memory import RUNTIME_BYTES, held_bytes, workspace_bytes
from edgekit.estimate.needs import kv_bytes_per_position
from edgekit.host.processor import processor_name
from edgekit.measure import read_conditions
from edgekit.routing import state
from edgekit.routing.state import Gauge, find_measurement, read_state
from edgekit.run import physical_cores
from edgekit.types import Bundle
from edgekit.types.routing import DeviceState
from tests import made


def machine(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


PHONE = {
    "proc__meminfo": "MemTotal:  8000 kB\nMemAvailable:   5000 kB\n",
    "sys__class__power_supply__BAT0__type": "Battery\n",
    "sys__class__power_supply__BAT0__capacity": "41\n",
    "sys__class__power_supply__BAT0__status": "Discharging\n",
    "sys__class__thermal__thermal_zone0__type": "cpu-thermal\n",
    "sys__class__thermal__thermal_zone0__temp": "61500\n",
}


def test_conditions(tmp_path: Path) -> None:
    seen = read_conditions(machine(tmp_path, **PHONE))
    assert (seen.free_memory, seen.battery_percent, seen.on_battery, seen.temperature_c) == (
        5_120_000,
        41.0,
        True,
        61.5,
    )
    nothing = read_conditions(tmp_path / "absent")
    assert (nothing.free_memory, nothing.battery_percent, nothing.on_battery, nothing.temperature_c) == (None,) * 4


def test_the_state_of_a_machine(tmp_path: Path) -> None:
    manifest = made.bundle().manifest
    gauge = Gauge(manifest, loaded=True, context=4096, root=machine(tmp_path, **PHONE))
    seen = gauge.read(300, waiting=2.0, spent_today=0.5, unreachable=(("box", "down"),))
    assert seen == DeviceState(
        4096, 5_120_000, gauge.memory_needed(300), 41.0, True, 61.5, 2.0, 0.5, (("box", "down"),)
    )
    assert Gauge(manifest, loaded=True, context=10**9, root=tmp_path).context == 8192
    assert read_state(manifest, 300, root=tmp_path).context == 8192


def test_memory_is_what_footprint_says(tmp_path: Path) -> None:
    manifest = made.bundle().manifest
    spec = manifest.spec
    cache = 2 * kv_bytes_per_position(spec)  # past and present are two copies on this target
    cold, warm = (Gauge(manifest, loaded=loaded, root=tmp_path) for loaded in (False, True))
    assert warm.memory_needed(300) == 300 * cache + workspace_bytes(spec, 300)
    weights = held_bytes(manifest.tensors, tied=spec.tied)
    assert cold.memory_needed(300) == warm.memory_needed(300) + weights + RUNTIME_BYTES
    # No answer is longer than the context.
    assert warm.memory_needed(10**9) == warm.memory_needed(8192)
    shared = replace(manifest, target=replace(manifest.target, shared_kv=True))
    assert Gauge(shared, loaded=True, root=tmp_path).memory_needed(300) == 150 * cache + workspace_bytes(spec, 300)


def test_the_prompts_graph_holds_its_weights_once_more(tmp_path: Path) -> None:
    from edgekit.types import Int8Repack, Prefill, Region

    manifest = made.bundle().manifest
    region = Region(0, 1)
    own = Prefill("onnx/p.onnx", (Int8Repack("w", 1000, 2000, 4, 32, region, region, True, None),))
    one, two = (Gauge(m, loaded=False, root=tmp_path) for m in (manifest, replace(manifest, prefill=own)))
    assert two.memory_needed(10) - one.memory_needed(10) == 2_000_000
    small = Gauge(replace(manifest, prefill=own), loaded=False, small_memory=True, root=tmp_path)
    assert small.memory_needed(10) == one.memory_needed(10)


def test_the_machine_is_looked_at_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(state, "monotonic", lambda: clock[0])
    gauge = Gauge(made.bundle().manifest, loaded=True, root=machine(tmp_path, **PHONE))
    machine(tmp_path, sys__class__power_supply__BAT0__capacity="12\n")
    clock[0] += 0.5
    assert gauge.read(1).battery_percent == 41.0
    clock[0] += 1.0
    assert gauge.read(1).battery_percent == 12.0


HERE = (("edgekit", __version__), ("onnxruntime", version("onnxruntime")))
OLD = (("edgekit", "0.0.1"), HERE[1])
OTHER = (HERE[0], ("onnxruntime", "1.1.0"))


def measured_here(bundle: Bundle) -> Bundle:
    latency = bundle.manifest.latency
    assert latency is not None
    environment = replace(latency.environment, cpu=processor_name(), cores=physical_cores(), runtime=HERE)
    ours = replace(latency, bundle_sha256=bundle.sha256, environment=environment)
    return replace(bundle, manifest=replace(bundle.manifest, latency=ours))


def test_only_a_measurement_of_these_files_on_this_kind_of_machine_counts() -> None:
    here = measured_here(made.bundle())
    latency = here.manifest.latency
    assert latency is not None
    assert find_measurement(here)[0] == latency
    assert latency.time in find_measurement(here)[1]
    for other, said in (
        (None, "none recorded"),
        (replace(latency, bundle_sha256="0" * 64), "of other files"),
        (replace(latency, environment=replace(latency.environment, cpu="Z80")), "is from Z80 with"),
        (
            replace(latency, environment=replace(latency.environment, cores=1000)),
            "with 1000 cores, and this machine is",
        ),
        (replace(latency, environment=replace(latency.environment, runtime=OLD)), "is from edgekit 0.0.1, and this is"),
        (replace(latency, environment=replace(latency.environment, runtime=OTHER)), "is from onnxruntime 1.1.0, and"),
        (replace(latency, environment=replace(latency.environment, runtime=())), "of an unknown version"),
    ):
        found, why = find_measurement(replace(here, manifest=replace(here.manifest, latency=other)))
        assert found is None
        assert said in why
        assert "edgekit bench --record" in why
