"""The benchmark of the guarantee runs at a tiny size, and its verdict is the exact test's."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import guarantee
from edgekit.record import to_json
from edgekit.routing.decision.fit import Fitted
from edgekit.routing.evaluation.collect import Kept
from edgekit.types.calibration import Score
from tests.route.answered import local_answers

ROOT = Path(__file__).parents[2]


def test_in_small(tmp_path):
    answers = tmp_path / "made.jsonl"
    answers.write_text("".join(f"{to_json(Kept(a.id, a))}\n" for a in local_answers(240)))
    results = tmp_path / "guarantee.jsonl"
    command = ["-m", "benchmarks.guarantee", "--splits", "2", "--n", "120", "--population", "200"]
    done = subprocess.run(
        [sys.executable, *command, "--answers", str(answers), "--output", str(results)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = map(json.loads, results.read_text().splitlines())
    assert {r["data"] for r in line["rows"]} == {"synthetic", "made, resampled", "made, the rest"}
    assert len(line["rows"]) == 3 * len(guarantee.ALPHAS) * len(guarantee.DELTAS)
    assert all(r["n"] == 120 and r["splits"] == 2 for r in line["rows"])


def draw(risk: float) -> guarantee.Draw:
    """All 200 of the split are right; everybody else is wrong with this probability."""
    nothing = np.zeros(200, bool)
    score = Score(("mean_logprob",), (-1.0,), 0.0, "platt", ((0.0, 0.1),))
    same = np.full(200, 0.1)
    return guarantee.Draw(Fitted(score, same), nothing, (same, nothing), np.full(50, 0.1), np.full(50, risk))


@pytest.mark.parametrize(("risk", "exceeded", "p"), [(0.04, 0, 1.0), (0.06, 10, 0.05**10)])
def test_what_exceeds_alpha_counts(risk, exceeded, p):
    row = guarantee.judge("", [draw(risk)] * 10, 400, 0.05, 0.05)
    assert (row.exceeded, row.tuned, row.infeasible) == (exceeded, exceeded, 0)
    assert row.p == pytest.approx(p)
    assert row.coverage == 1


def test_nothing_served_exceeds_nothing():
    made, wrong = draw(0.5), np.ones(200, bool)
    hopeless = replace(made, fit_wrong=wrong, test=(made.test[0], wrong))
    row = guarantee.judge("", [hopeless], 400, 0.05, 0.05)
    assert (row.infeasible, row.exceeded, row.coverage, row.tuned) == (1, 0, None, 0)
