"""MLPerf LoadGen's names beside ours, for the SingleStream scenario.

Names: ``result_*`` of loadgen's mlperf_log_detail.txt (loadgen/results.cc). edgekit runs no LoadGen and claims no
MLPerf result: these are edgekit's own samples under the names that LoadGen gives to the same quantities.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from edgekit.lab.results import joules_per_token
from edgekit.types import Series

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgekit.types import LabRun

NAME = "mlperf.json"
LEAST_QUERIES = 64
"""Queries below which LoadGen's early stopping gives no 90th percentile."""


def export(runs: Iterable[LabRun]) -> bytes:
    """One JSON document: for each run with a measurement, LoadGen's names and ours."""
    rows = [_row(run) for run in runs if run.measurement]
    return (json.dumps({"loadgen": "names only, no LoadGen was run", "runs": rows}, indent=1) + "\n").encode()


def _row(run: LabRun) -> dict[str, object]:
    assert run.measurement
    series = {s.name: s for s in run.measurement.series}
    named: dict[str, object] = {"requested_scenario": "SingleStream"}
    pp = max((int(m[1]) for name in series if (m := re.fullmatch(r"ttft(\d+)", name))), default=0)
    tg = min(((int(m[2]), int(m[1])) for name in series if (m := re.fullmatch(r"tg(\d+)@(\d+)", name))), default=None)
    if pp:
        named |= _nanoseconds("result_first_token_", "latency_ns", series[f"ttft{pp}"])
    if tg and f"tpot@{tg[0]}" in series:
        steps = series[f"tpot@{tg[0]}"]
        named["result_time_per_output_token_90.00_percentile_ns"] = round(1e9 * steps.percentile(90))
        named["result_time_to_output_token_mean"] = round(1e9 * steps.mean)
        named["result_token_throughput"] = series[f"tg{tg[1]}@{tg[0]}"].mean
    query = _queries(series, pp)
    if query:
        named |= _nanoseconds("result_", "latency_ns", query)
        named["result_qps_without_loadgen_overhead"] = 1 / query.mean
        named["qsl_reported_performance_count"] = query.n
        named["early_stopping_met"] = query.n >= LEAST_QUERIES
    return {
        "id": run.id,
        "device": run.device,
        "bundle": run.bundle,
        "workload": run.workload,
        "status": run.status,
        "mlperf": named,
        "edgekit": {name: s.percentile(50) for name, s in series.items()}
        | {"joules_per_token": joules_per_token(run), "prompt_tokens": pp or None},
    }


def _queries(series: dict[str, Series], pp: int) -> Series | None:
    """Seconds of whole queries: a prompt of ``pp`` tokens, then the tokens decoded behind a context of that length.

    None where the workload did not measure decoding at that depth: two different contexts make no query.
    """
    found = [int(m[1]) for name in series if (m := re.fullmatch(rf"tg(\d+)@{pp}", name))]
    if not pp or not found:
        return None
    first, answers = series[f"ttft{pp}"], series[f"tg{min(found)}@{pp}"]
    pairs = zip(first.samples, answers.samples, strict=False)
    return Series("query", "s", tuple(start + min(found) / speed for start, speed in pairs))


def _nanoseconds(start: str, end: str, series: Series) -> dict[str, object]:
    named = {
        f"{start}{what}_{end}": value for what, value in (("min", min(series.samples)), ("max", max(series.samples)))
    }
    named[f"{start}mean_{end}"] = series.mean
    named |= {f"{start}{p}.00_percentile_{end}": series.percentile(p) for p in (50, 90, 99)}
    return {name: round(1e9 * value) for name, value in named.items()}
