"""The program that says what each signal is worth: it counts, ranks, and goes on from what it kept."""

import json
import subprocess
import sys
from pathlib import Path

from edgekit import build_bundle
from edgekit.routing.evaluation.collect import read_collected
from edgekit.testing import tiny_checkpoint

PROGRAM = Path(__file__).parents[2] / "benchmarks/signals.py"


def test_signals_are_ranked(tmp_path):
    bundle = build_bundle(str(tiny_checkpoint(tmp_path / "m")), precision="fp32", out=tmp_path / "b")
    store, data = tmp_path / "answers.jsonl", tmp_path / "data.jsonl"
    lines = [
        {"prompt": f"The quick {i}", "raw": True, "answer": "nothing", "grading": "contains", "max_tokens": 17 + i % 2}
        for i in range(12)
    ]
    for _ in range(2):
        data.write_text("".join(json.dumps(line) + "\n" for line in lines))
        command = [sys.executable, str(PROGRAM), str(bundle.path), str(store), str(data)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        # Now half of them are right: what the model said is the answer.
        for line, answer in list(zip(lines, read_collected(store), strict=True))[::2]:
            line |= {"answer": answer.text, "grading": "exact"}
    assert "12 answers, 6 right (50.0%)" in done.stdout
    # Every second answer is a token shorter, and these are the right ones.
    assert done.stdout.count("tokens         1.000") == 1
    assert "first tokens: 12 answers, 6 right" in done.stdout
    assert len(read_collected(store)) == 12
