"""The benchmark of learned weights runs on a tiny model, and compares only what may be compared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.learn.table import REFERENCE, comparable, newest, quality_table, trained_on
from benchmarks.page.learn import brief_table
from benchmarks.peers.records import Run

ROOT = Path(__file__).parents[2]


def quality(kld, text="a.txt", tokens=4088):
    interval = {"value": kld, "low": 0.9 * kld, "high": 1.1 * kld}
    return {
        "text": text, "text_sha256": f"of {text}", "window": 512, "tokens": tokens, "kld_mean": interval,
        "top1": {"value": 0.8, "low": 0.7, "high": 0.9},
    }  # fmt: skip


def line(row, *qualities, recipe="int4", reference=REFERENCE, sources=()):
    return {
        "row": row, "name": f"{recipe} {row}", "recipe": recipe, "bytes": 95_000_000, "reference_sha256": reference,
        "data": {"sources": [{"name": name} for name in sources]} if sources else None, "qualities": list(qualities),
        "spent": {"cpu_seconds": 90.0, "rss_bytes": 2e9}, "lambada": None, "training": None,
    }  # fmt: skip


def test_rows_of_a_tiny_model(tmp_path):
    results = tmp_path / "learn.jsonl"
    command = [sys.executable, "-m", "benchmarks.learn", "--smoke", "--row", "data-free", "--row", "calibrated"]
    done = subprocess.run(
        [*command, "--results", str(results)], capture_output=True, text=True, check=False, cwd=ROOT
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    free, fitted = map(json.loads, results.read_text().splitlines())
    assert (free["row"], free["data"], fitted["row"]) == ("data-free", None, "calibrated")
    assert trained_on(fitted) == "packaged"
    assert free["bytes"] == pytest.approx(fitted["bytes"], rel=0.02)
    assert free["qualities"][0]["kld_mean"]["value"] != fitted["qualities"][0]["kld_mean"]["value"]
    assert min(free["spent"]["cpu_seconds"], fitted["spent"]["cpu_seconds"]) > 0
    assert free["lambada"]["asked"] == 2
    assert "1.00x" in done.stdout


def test_a_command_that_fails_is_told(tmp_path):
    command = [sys.executable, "-m", "benchmarks.learn", "--smoke", "--row", "data-free", "--recipe", "none-such"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert "error: edgekit build" in done.stderr
    assert "none-such" in done.stderr


def test_the_share_is_of_the_same_recipe_text_and_reference():
    free = line("data-free", quality(0.1), quality(0.3, "b.txt"))
    others = [line("data-free", quality(9), recipe="small"), line("data-free", quality(9), reference="another")]
    fitted = line("calibrated", quality(0.05), quality(0.18, "b.txt"), quality(7, "c.txt"), sources=["x.txt"])
    shares = [row.split("|")[6].strip() for row in quality_table([free, *others, fitted]).splitlines()[-3:]]
    assert shares == ["0.50x", "0.60x", "-"]
    last = brief_table([free, *others, fitted]).splitlines()[-1]
    assert [cell.strip() for cell in last.split("|")[1:-1]] == [
        "int4 calibrated", "x.txt", "0.0500, 0.50x of 0.1000", "0.1800, 0.60x of 0.3000", "7.0000",
        "1.5 CPU min, 2.0 GB",
    ]  # fmt: skip


def test_the_newest_line_of_the_same_data_counts():
    older, newer = (line("calibrated", quality(kld), sources=["x.txt"]) for kld in (0.2, 0.1))
    other = line("calibrated", quality(0.3), sources=["the second half of CPython 3.11 pydoc_data.topics"])
    assert newest([older, other, newer]) == [newer, other]
    assert trained_on(other) == "packaged"


def test_only_what_was_scored_like_the_peers_stands_beside_them():
    run = Run([{"what": "quality", "contender": "genai", "title": "genai", "quality": quality(0.4)}])
    good = line("calibrated", quality(0.2, "c.txt"), quality(0.05), sources=["x.txt"])
    wrong = [
        line("calibrated", quality(0.05), reference="another"),
        line("recovered", quality(0.05, tokens=2044)),
        line("data-free", quality(0.05)),
    ]
    assert [(found["name"], kld["value"]) for found, kld in comparable([good, *wrong], run)] == [
        ("int4 calibrated", 0.05)
    ]
