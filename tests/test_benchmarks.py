"""The benchmark of large models runs at a tiny size; its numbers have the right shape."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_large_models_in_small(tmp_path):
    results = tmp_path / "large.jsonl"
    command = [sys.executable, str(ROOT / "benchmarks/large.py"), "--smoke", "--results", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = map(json.loads, results.read_text().splitlines())
    assert row["tool"] == "edgekit"
    assert row["reason"] == ""
    assert row["read_bytes"] >= row["source_bytes"] > 0
    assert row["written_bytes"] >= 0.9 * row["out_bytes"] > 0
    assert row["peak_rss_bytes"] > 10_000_000
    assert "tiny" in done.stdout
