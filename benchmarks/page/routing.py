"""The router: AMX/routing.jsonl, of `python -m benchmarks.routing`, and guarantee.jsonl, of benchmarks.guarantee."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.page.records import ends, interval, need, percents, pick, read_lines, reading
from benchmarks.peers.tables import lay_out

if TYPE_CHECKING:
    from pathlib import Path

TITLES = {"sst2": "SST-2, 4 examples in the prompt", "lambada": "LAMBADA, last word"}
BOUND = 0.1
"""Alpha of the guarantee that the table shows."""


def figures(folder: Path) -> dict[str, str]:
    """Tables and numbers of the router."""
    path = folder / "AMX" / "routing.jsonl"
    with reading(path):
        lines = read_lines(path)
        sets = {name: pick(lines, data=name) for name in TITLES}
        found = {"routing.table": routing_table(list(sets.values()))} | latency(list(sets.values()))
        for name, line in sets.items():
            asked = line["duels"][1]["proof"]
            found[f"routing.{name}.fp32"] = f"{100 * asked['cloud_quality']:.1f}"
            found[f"routing.{name}.int4"] = f"{100 * asked['local_quality']:.1f}"
            found[f"routing.{name}.asked"] = str(asked["n"])
        weak, lambada = pick(lines, data="gsm8k"), sets["lambada"]
        router = strategy(lambada, "calibrated router")
        found |= {
            "gsm8k.right": f"{weak['test_right']} of {weak['test']}",
            "gsm8k.refusal": weak["refused"].partition(";")[0],
            "lambada.wrong": f"{100 * router['operation']['failures']['value']:.0f} %",
            "lambada.threshold": f"{lambada['duels'][0]['proof']['threshold']:g}",
        }
    path = folder / "guarantee.jsonl"
    with reading(path):
        return found | guarantee(pick(read_lines(path), benchmark="guarantee")["rows"])


def strategy(line: dict[str, Any], name: str) -> dict[str, Any]:
    """One rule against the reference answers."""
    return pick(line["duels"][0]["proof"]["strategies"], name=name)


def margin(line: dict[str, Any], beside: str) -> dict[str, Any]:
    """The router less another rule."""
    difference: dict[str, Any] = pick(line["duels"][0]["proof"]["margins"], beside=beside)["difference"]
    return difference


def routing_table(lines: list[dict[str, Any]]) -> str:
    """A column a data set."""
    routers = [strategy(line, "calibrated router") for line in lines]
    randoms = [strategy(line, "random") for line in lines]
    rows = [
        ["questions: calibration, test", *(f"{line['dev']}, {line['test']}" for line in lines)],
        ["right on the device", *(f"{100 * line['test_right'] / line['test']:.1f} %" for line in lines)],
        ['AUROC of "wrong": calibrated score', *(interval(router["auroc"], 3) for router in routers)],
        ["that, less raw entropy's", *(interval(margin(line, "raw entropy"), 3, "+") for line in lines)],
        [
            "that, less raw mean log-probability's",
            *(interval(margin(line, "raw mean log-probability"), 3, "+") for line in lines),
        ],
        [
            "calls needed for 95 % of the cloud's quality, of 100",
            *(
                f"{100 * a['cost95']:.1f}; random {100 * b['cost95']:.1f}"
                for a, b in zip(routers, randoms, strict=True)
            ),
        ],
        ["that, less random", *(percents(margin(line, "random")) for line in lines)],
        ["APGR (random 0.5)", *(f"{router['apgr']:.3f}" for router in routers)],
        [f'guarantee "at most {100 * BOUND:.0f} % wrong", confidence 95 %', *map(promise, lines)],
    ]
    return lay_out(["", *TITLES.values()], rows)


def promise(line: dict[str, Any]) -> str:
    """Kept, broken or refused, on questions that nothing was fitted on."""
    (kept,) = (p for p in line["promises"] if p["alpha"] == BOUND)
    if kept["refused"]:
        most = max(p["alpha"] for p in line["promises"] if p["refused"])
        return f"refused, as is {100 * most:.0f} %"
    word = "kept" if kept["failures"] <= BOUND * kept["served"] else "broken"
    return f"{word}: {kept['failures']} of {kept['served']} served wrong, {100 * kept['test_coverage']:.0f} % served"


def latency(lines: list[dict[str, Any]]) -> dict[str, str]:
    """Deciding and judging together, in ms."""
    times = [need(line["decision_us"]) for line in lines]
    low, high = ends([middle / 1e3 for middle, _ in times], 2)
    return {"decide.low": low, "decide.high": high, "decide.p99": f"{max(p99 for _, p99 in times) / 1e3:.1f}"}


def guarantee(rows: list[dict[str, Any]]) -> dict[str, str]:
    """How often the bound did not hold, beside thresholds that were tuned without one."""
    low, high = ends([row["tuned"] for row in rows if row["tuned"]], 0)
    found = {"guarantee.splits": str(rows[0]["splits"]), "guarantee.tuned.low": low, "guarantee.tuned.high": high}
    for delta in (0.05, 0.1):
        most = max(row["exceeded"] for row in rows if row["delta"] == delta)
        found[f"guarantee.exceeded.{100 * delta:.0f}"] = str(most)
    alphas = sorted({row["alpha"] for row in rows})
    return found | {"guarantee.alphas": f"{alphas[0]:g} to {alphas[-1]:g}"}
