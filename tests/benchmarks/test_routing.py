"""The benchmark of the router runs on a tiny model: what it writes has the right shape and adds up. No timings."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.routing import Answered, look
from edgekit import build_bundle
from edgekit.routing.decision.grading import is_right
from edgekit.routing.evaluation.collect import collect_local
from edgekit.routing.evaluation.examples import read_examples
from edgekit.testing import tiny_checkpoint
from tests.route.answered import local_answers

ROOT = Path(__file__).parents[2]
DEV, TEST = 120, 60
SPLITS = ("dev", "test")


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def lines(split: str, n: int, *, raw: bool = True) -> list[dict]:
    rows = [
        {"id": f"{split}-{i}", "prompt": f"{split} {i} and then", "answer": "none", "max_tokens": 5} for i in range(n)
    ]
    return [row | ({"raw": True} if raw else {}) for row in rows]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(bundle, data, folder): the model is right at every second question of 'half', and at none of 'none'.

    Two clouds have answered 'half'. 'other' is the same, and nobody has.
    """
    folder = tmp_path_factory.mktemp("routing")
    bundle = build_bundle(str(tiny_checkpoint(folder / "m")), precision="int4", out=folder / "b")
    data = folder / "data"
    data.mkdir()
    for split, n in (("dev", DEV), ("test", TEST)):
        rows = lines(split, n)
        said = collect_local(bundle, read_examples(write(folder / "plain.jsonl", rows)))
        for i, (row, answer) in enumerate(zip(rows, said, strict=True)):
            # Some of what a random model says is nothing that an answer could be held against.
            usable = answer.text.strip() and answer.text.isprintable() and is_right(answer.text, [answer.text], "exact")
            row["answer"] = answer.text if i % 2 and usable else "none"
        write(data / f"half-{split}.jsonl", rows)
        write(data / f"other-{split}.jsonl", [row | {"id": f"other-{row['id']}"} for row in rows])
        write(data / f"none-{split}.jsonl", lines(f"none-{split}", n, raw=False))
    rows = read(data / "half-test.jsonl")
    write(data / "half-test-good.jsonl", [{"id": r["id"], "answer": r["answer"]} for r in rows])
    write(data / "half-test-bad.jsonl", [{"id": r["id"], "answer": "neither"} for r in rows])
    return bundle, data, folder


def bench(world, *more: str) -> subprocess.CompletedProcess[str]:
    bundle, data, folder = world
    command = ["-m", "benchmarks.routing", str(data), str(bundle.path), "--store", str(folder / "store"), *more]
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, cwd=ROOT)


def test_in_small(world, tmp_path):
    results, picture = tmp_path / "routing.jsonl", tmp_path / "routing.svg"
    done = bench(world, "--sets", "half", "other", "none", "--output", str(results), "--picture", str(picture))
    assert done.returncode == 0, done.stdout + done.stderr
    half, other, none = read(results)
    right = {split: sum(row["answer"] != "none" for row in read(world[1] / f"half-{split}.jsonl")) for split in SPLITS}
    assert (half["dev"], half["dev_right"]) == (DEV, right["dev"])
    assert (half["test"], half["test_right"]) == (TEST, right["test"])
    assert [d["opponent"] for d in half["duels"]] == ["bad: published answers", "good: published answers"]
    assert [d["opponent"] for d in other["duels"]] == ["reference answers: an endpoint that is always right"]
    bad, good, reference = *(d["proof"] for d in half["duels"]), other["duels"][0]["proof"]
    assert (bad["cloud_quality"], good["cloud_quality"], reference["cloud_quality"]) == (0, 1, 1)
    for proof in (good, reference):
        by = {s["name"]: s for s in proof["strategies"]}
        assert by["random"]["apgr"] == pytest.approx(0.5)
        assert by["oracle"]["apgr"] == pytest.approx(1 - (1 - right["test"] / TEST) / 2)
        assert by["oracle"]["cost95"] <= by["calibrated router"]["cost95"]
        assert [m["beside"] for m in proof["margins"]] == ["random", "raw entropy", "raw mean log-probability"]
    assert all(s["apgr"] is None for s in bad["strategies"])
    # The same answers, the same cloud: the same proof.
    assert {s["name"]: s["apgr"] for s in good["strategies"]} == {s["name"]: s["apgr"] for s in reference["strategies"]}
    # What is right does not depend on the signals here: none can be kept, and each says why.
    assert all(p["refused"] and p["served"] is None for p in half["promises"])
    assert [p["alpha"] for p in half["promises"]] == [0.05, 0.1, 0.2, 0.3]
    assert 0 < half["decision_us"][0] <= half["decision_us"][1]
    assert "all 120 answers are wrong" in none["refused"]
    assert (none["duels"], none["promises"], none["raw"][0][1]) == ([], [], None)
    assert none["clouds"] == [["reference answers: an endpoint that is always right", 1.0]]
    svg = picture.read_text()
    assert "half: bad" in svg
    assert "other: reference answers" in svg
    for text in (results.read_text(), svg):
        assert str(world[2]) not in text
    for word in ("AUROC of", "cost at 95 %", "refused", "decide and judge"):
        assert word in done.stdout


def test_a_promise_that_is_kept_counts_what_the_test_split_says(world):
    dev, test = local_answers(1500), local_answers(800, seed=1)
    answered = Answered("made", world[1] / "half-dev.jsonl", (), dev, test)
    found = look(answered, world[0], None, (0.2, 0.05), seed=0)
    assert found.refused == ""
    assert found.bound <= 0.2
    assert 0.2 < found.test_coverage < 1
    assert found.test_coverage == found.served / len(test)
    assert 0 < found.failures < found.served
    assert found.wrong.value == found.failures / found.served
    assert found.wrong.low < 0.2
    assert sum(not a.right for a in test) / len(test) > 0.3, "what is not served is wrong more often"
    impossible = look(answered, world[0], None, (0.001, 0.05), seed=0)
    assert impossible.refused
    assert impossible.served is None


def test_a_second_opinion_is_one_more_signal(world, tmp_path):
    bundle, _, folder = world
    other = build_bundle(str(tiny_checkpoint(tmp_path / "m", seed=1)), precision="int4", out=tmp_path / "other")
    results = tmp_path / "routing.jsonl"
    done = bench(world, "--sets", "half", "--second", str(other.path), "--output", str(results))
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = read(results)
    assert (row["second"], row["bundle"]) == ("other", bundle.path.name)
    kept = read(folder / "store" / "half-second.jsonl")
    assert len(kept) == DEV + TEST
    assert all(line["answer"]["signals"]["second_logprob"] < 0 for line in kept)


def test_a_real_server_is_asked_and_what_it_said_is_kept(world, tmp_path):
    results, store = tmp_path / "routing.jsonl", world[2] / "store" / "half-cloud.jsonl"
    options = ("--sets", "half", "--stronger", str(world[0].path), "--asked", "7", "--output", str(results))
    options += ("--first", "50")
    for _ in range(2):
        done = bench(world, *options)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(store.read_text().splitlines()) == 7
    first, second = read(results)
    served = first["duels"][-1]
    assert served["n"] == 7
    assert (first["dev"], first["test"], first["duels"][0]["n"]) == (50, 50, 50)
    assert served["opponent"] == "b: a server that was asked"
    # It is the same bundle, and it answers greedily: it is right where the bundle was.
    assert served["proof"]["cloud_quality"] == served["proof"]["local_quality"] > 0
    assert second["duels"][-1]["proof"]["strategies"] == served["proof"]["strategies"]
