"""benchmarks/peers: the smoke run has the right shape and sane numbers, ratios are of rounds, a refusal is a row."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.contender import Place, feed_back
from benchmarks.peers.contenders import find_contenders
from benchmarks.peers.picture import draw
from benchmarks.peers.preparation import make_environment
from benchmarks.peers.records import Run, read_runs
from benchmarks.peers.session import Refusal, Session
from benchmarks.peers.tables import ratio_table, whole_report
from benchmarks.results import results_file

ROOT = Path(__file__).parents[2]
WORKLOADS = ["pp48", "tg16@48", "tg16@8"]
ENVIRONMENT = {"cpu": "a processor", "cores": 2, "threads": 2, "governor": ""}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The files and the output of one smoke run on one peer, with as many rounds as contenders."""
    if find_spec("onnxruntime_genai") is None:
        pytest.skip("onnxruntime-genai is not installed: pip install onnxruntime-genai")
    work = tmp_path_factory.mktemp("peers")
    command = [sys.executable, "-m", "benchmarks.peers", "--smoke", "--rounds", "2", "--work", work]
    chosen = ["--peers", "genai", "--variants", "edgekit-int4"]
    before = results_file("peers.jsonl").read_bytes() if results_file("peers.jsonl").exists() else b""
    done = subprocess.run([*command, *chosen], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    after = results_file("peers.jsonl").read_bytes() if results_file("peers.jsonl").exists() else b""
    assert after == before, "a smoke run has written to the results that are kept"
    return work, done.stdout


def test_smoke_measures_everything(smoke):
    work, _ = smoke
    (run,) = read_runs(work / "peers.jsonl")
    assert list(run.titles) == ["edgekit-int4", "genai"]
    assert run.workloads == WORKLOADS
    for name in run.titles:
        assert run.refusal(name) is None
        files = [f for f in (work / "models" / name).rglob("*") if f.is_file()]
        assert run.conversion(name)["bytes"] == sum(f.stat().st_size for f in files) > 60_000
        assert run.conversion(name)["seconds"] > 0
        for workload in WORKLOADS:
            assert run.speed(name, workload).n == 2
            assert math.isfinite(run.speed(name, workload).low)
            assert run.speed(name, workload).low > 0
        # An interpreter with numpy and a runtime, and nothing of the benchmark's own size.
        assert 3e7 < run.starts(name, "peak_rss_bytes").high < 1e9
        assert run.starts(name, "load_seconds").low > 0


def test_smoke_measures_quality_of_what_each_one_runs(smoke):
    work, _ = smoke
    (run,) = read_runs(work / "peers.jsonl")
    for name in run.titles:
        quality = run.quality(name)
        kld = quality["kld_mean"]
        # Four bits are neither exact nor noise: a uniform guess over this vocabulary is far above one nat.
        assert 1e-4 < kld["low"] <= kld["value"] <= kld["high"] < 0.6
        assert 0.3 < quality["top1"]["value"] < 1
        assert quality["tokens"] == 4 * 63
    assert run.quality("edgekit-int4")["kld_mean"] != run.quality("genai")["kld_mean"]


def test_smoke_says_how_each_sample_was_taken(smoke):
    work, _ = smoke
    lines = [json.loads(line) for line in (work / "peers.jsonl").read_text().splitlines()]
    samples = [line for line in lines if line["what"] == "speed"]
    assert [len(samples), len({line["run"] for line in lines})] == [2 * 2 * 3, 1]
    for line in lines:
        assert line["environment"]["cores"] >= 1
        assert "host" not in line["environment"]
    for sample in samples:
        assert dict(sample["environment"]["runtime"]).keys() & {"edgekit", "onnxruntime-genai"}
        assert sample["tokens"] == {"pp48": 48, "tg16@48": 16, "tg16@8": 16}[sample["workload"]]
    # The order turns: each contender is first once.
    assert {line["contender"] for line in samples if line["position"] == 0} == {"edgekit-int4", "genai"}


def test_smoke_prints_its_tables_and_draws(smoke):
    work, out = smoke
    for title in ("edgekit INT4", "onnxruntime-genai int4"):
        assert out.count(title) >= 4
        assert title in (work / "peers.svg").read_text()
    assert whole_report(read_runs(work / "peers.jsonl")[-1]) in out


def line(what, contender, **values):
    return {"run": "1", "what": what, "contender": contender, "title": contender.title(), **values} | {
        "environment": ENVIRONMENT
    }


def speeds(contender, seconds):
    return [
        line("speed", contender, round=i, position=0, workload="pp512", tokens=512, seconds=s, foreign_cores=0.0)
        for i, s in enumerate(seconds)
    ]


def quality(contender, kld):
    value = {"value": kld, "low": 0.9 * kld, "high": 1.1 * kld}
    told = {"kld_mean": value, "top1": value, "ppl_ratio": value, "text": "t", "tokens": 9, "window": 3}
    return line("quality", contender, quality=told)


def test_ratios_are_taken_inside_rounds():
    run = Run([*speeds("edgekit-a", [1.0, 2.0, 4.0]), *speeds("peer", [2.0, 2.0, 40.0])])
    ratio = run.ratio("edgekit-a", "peer", "pp512")
    assert (ratio.middle, ratio.low, ratio.high, ratio.n) == (2.0, 1.0, 10.0, 3)
    assert run.speed("peer", "pp512").middle == 256
    # A round that only one of them finished has no ratio.
    assert Run(run.records[:-1]).ratio("edgekit-a", "peer", "pp512").n == 2


def test_a_refusal_is_a_row_with_the_reason(tmp_path):
    made = line("conversion", "edgekit-a", seconds=1.0, rss_bytes=2e6, bytes=3e6)
    ours = [made, quality("edgekit-a", 0.1), *speeds("edgekit-a", [1.0])]
    run = Run([*ours, line("refused", "peer", reason="no wheel for this Python")])
    assert "no wheel for this Python" in ratio_table(run, "edgekit-a")
    assert whole_report(run).count("no wheel for this Python") == 2
    draw(run, tmp_path / "peers.svg")
    assert "Edgekit-A" in (tmp_path / "peers.svg").read_text()


def test_an_environment_that_does_not_install_is_a_refusal(tmp_path):
    def install(place: Place):
        return [[place.python, "-c", "import sys; sys.exit('Error: no such wheel')"]]

    peer = replace(find_contenders()["genai"], install=install)
    with pytest.raises(Refusal, match="ended with 1: Error: no such wheel"):
        make_environment(peer, tmp_path, here=False)
    # What failed is not taken for installed.
    with pytest.raises(Refusal, match="no such wheel"):
        make_environment(peer, tmp_path, here=False)


def test_a_process_that_ends_says_why(tmp_path):
    edgekit = find_contenders()["edgekit-int4"]
    with pytest.raises(Refusal, match=r"ended with 1: .*nowhere"):
        Session(edgekit, Place(sys.executable, tmp_path), tmp_path / "nowhere", 1, tmp_path / "log")


def test_what_runs_in_a_peers_environment_needs_no_edgekit():
    refuse = "import sys; sys.modules['edgekit'] = None; "
    imports = "import benchmarks.peers.driver, benchmarks.graph_runner; benchmarks.peers.driver.find_contenders()"
    done = subprocess.run(
        [sys.executable, "-c", refuse + imports], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_loop_feeds_back_the_likeliest_token():
    fed = []

    def logits(after: int) -> np.ndarray:
        return np.eye(10)[(after + 3) % 10]

    def step(token: int) -> np.ndarray:
        fed.append(token)
        return logits(token)

    timing = feed_back(lambda tokens: logits(tokens[-1]), step, [5, 1], 3)
    assert timing.tokens == (4, 7, 0, 3)
    assert fed == [4, 7, 0]


def test_every_contender_has_a_name_of_its_own_and_tells_its_versions():
    contenders = find_contenders()
    assert next(iter(contenders)).startswith("edgekit")
    assert {"genai", "llama.cpp", "openvino", "optimum"} <= contenders.keys()
    assert len({c.title for c in contenders.values()}) == len(contenders)
    assert all(c.packages and c.imports for c in contenders.values())
