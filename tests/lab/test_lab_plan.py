"""The plan of a night: every run once, in an order that is interleaved, seeded and the same after a resume."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.lab_emulated import WORKLOADS, emulated_lab
from edgekit.lab.file import Workload
from edgekit.lab.plan import plan_runs

LAB = emulated_lab()


def test_every_run_once_and_each_repetition_is_a_block() -> None:
    plan = plan_runs(LAB, "n")
    assert len(plan.runs) == len({run.id for run in plan.runs}) == 8 * 4 * 3 * 3
    everything = {(b.name, w.name) for b in LAB.bundles for w in LAB.workloads}
    orders = set()
    for device in LAB.devices:
        runs = plan.of(device.name)
        for repetition in range(3):
            block = runs[12 * repetition : 12 * repetition + 12]
            assert {run.repetition for run in block} == {repetition}
            assert {(run.bundle.name, run.workload.name) for run in block} == everything
            orders.add(tuple((run.bundle.name, run.workload.name) for run in block))
    assert len(orders) == 24, "each block has an order of its own"


def test_the_order_and_the_ids_follow_from_what_is_run() -> None:
    ids = [run.id for run in plan_runs(LAB, "n").runs]
    assert [run.id for run in plan_runs(LAB, "n").runs] == ids
    assert not {run.id for run in plan_runs(LAB, "m").runs} & set(ids)
    other = plan_runs(replace(LAB, seed=1), "n")
    assert {run.id for run in other.runs} == set(ids)
    assert [run.id for run in other.runs] != ids
    # A bundle with other bytes, or a workload with other numbers, is another run; the rest stays.
    bundles = (replace(LAB.bundles[0], sha256="f" * 64), *LAB.bundles[1:])
    kept = {run.id for run in plan_runs(replace(LAB, bundles=bundles), "n").runs} & set(ids)
    assert len(kept) == len(ids) * 3 // 4
    workloads = (replace(LAB.workloads[0], pp=(64,)), *LAB.workloads[1:])
    kept = {run.id for run in plan_runs(replace(LAB, workloads=workloads), "n").runs} & set(ids)
    assert len(kept) == len(ids) * 2 // 3


def test_the_listed_order_is_the_files() -> None:
    runs = plan_runs(replace(LAB, order="listed"), "n").of("jetson")
    assert [run.repetition for run in runs] == [0, 1, 2] * 12
    assert [run.workload.name for run in runs] == [w.name for w in WORKLOADS for _ in range(12)]


def test_a_workload_may_be_for_some_devices() -> None:
    some = Workload("some", on=("jetson", "elsewhere"))
    plan = plan_runs(replace(LAB, workloads=(some, WORKLOADS[0])), "n")
    assert {run.device.name for run in plan.runs if run.workload is some} == {"jetson"}
    assert plan_runs(replace(LAB, workloads=(replace(some, on=("board",)),)), "n").of("imx8")


def test_the_time_is_that_of_the_slowest_device_and_comes_from_earlier_runs() -> None:
    known = {("jetson", b.name, w.name): 100.0 for b in LAB.bundles for w in LAB.workloads}
    plan = plan_runs(replace(LAB, devices=tuple(d for d in LAB.devices if d.name == "jetson")), "n", known)
    assert plan.seconds == 36 * 100.0
    assert not any(run.estimated for run in plan.runs)
    both = plan_runs(LAB, "n", known)
    assert both.seconds > 36 * 100.0
    assert {run.device.name for run in both.runs if run.estimated} == {d.name for d in LAB.devices} - {"jetson"}
    hot = next(run for run in both.runs if run.workload.sustained and run.estimated)
    assert hot.seconds == 630.0
