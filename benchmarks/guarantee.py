"""Test whether the guarantee of `edgekit route calibrate --guarantee` holds, by simulation and on real answers.

    python -m benchmarks.guarantee [--answers FILE.jsonl ...] [--splits 200] [--n 500] [--output FILE]

Each split draws ``n`` answers, fits a score on 40 % of them, sets the threshold on the others, and measures the share
of wrong answers among those served from the remaining data. The guarantee is that it exceeds alpha in at most delta of
the splits. The usual method is run for comparison: the loosest threshold that kept alpha on the same examples, without
a bound.

``synthetic``: the distribution is known, and so is the true failure rate of any threshold. ``resampled``: a file of
real answers (a `--store` of `edgekit route calibrate`) is the population, n answers are drawn with replacement, and the
failure rate is that of the whole file, as in the theorem. ``the rest``: n answers are removed, and the failure rate is
that of the others, as in a manual check; its own sampling error comes on top. ``p``: exact binomial test against delta;
a small value means that the guarantee is violated.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from edgekit.record import to_json
from edgekit.routing.decision.calibration_fit import FITTING_FOR_GUARANTEE, split
from edgekit.routing.decision.fit import Fitted, fit_score
from edgekit.routing.decision.score import cautious_probability
from edgekit.routing.decision.threshold import Infeasible, Rule, fixed_sequence, plan_sequence
from edgekit.routing.evaluation.collect import read_collected
from edgekit.types.calibration import Score, Signals

ALPHAS = (0.05, 0.1, 0.2, 0.3)
DELTAS = (0.05, 0.1)
POPULATION = 4000
"""Synthetic answers on which the true risk is computed."""

Columns = tuple[NDArray[np.float64], NDArray[np.bool_]]
"""Probabilities of being wrong, and labels."""


@dataclass(frozen=True)
class Row:
    """One guarantee on one kind of data. ``exceeded`` of ``splits``; ``coverage`` is a mean over the feasible splits.

    ``n`` answers calibrate; failures are counted on ``outside`` others.
    ``tuned``: splits in which the threshold without a bound exceeded alpha.
    """

    data: str
    alpha: float
    delta: float
    n: int
    outside: int
    splits: int
    infeasible: int
    exceeded: int
    p: float
    coverage: float | None
    tuned: int
    tuned_coverage: float


@dataclass(frozen=True)
class Result:
    """The whole run."""

    benchmark: str
    seed: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Draw:
    """One split: a fitted score, the examples for its threshold, and the remaining answers.

    ``risk`` [M]: labels of the remaining answers, or their true probabilities of being wrong if these are known.
    """

    fitted: Fitted
    fit_wrong: NDArray[np.bool_]
    test: Columns
    outside: NDArray[np.float64]
    risk: NDArray[np.float64]


def difficulty(random: np.random.Generator, n: int) -> tuple[list[Signals], NDArray[np.float64]]:
    """Synthetic answers and their true probability of being wrong: 0.3 % for the surest, 60 % for the least sure."""
    u = random.random(n)
    told = []
    for x in u:
        a, b, c, d, e = random.standard_normal(5)
        lp = -2.0 * x + 0.3 * a
        told.append(
            Signals(
                tokens=int(random.integers(1, 40)), mean_logprob=lp, q05=lp - 1 + 0.3 * b, q10=lp - 0.7 + 0.3 * b,
                q25=lp - 0.3, min_logprob=lp - 1.5 + 0.5 * c, mean_prob_margin=1 - 0.8 * x + 0.2 * d,
                mean_entropy=3 * x + 0.8 * e, first_entropy=3 * x + b, first_logprob=lp + c,
                first_prob_margin=1 - x + 0.5 * d,
            )
        )  # fmt: skip
    return told, 0.003 + 0.6 * u**3


def probabilities(score: Score, told: list[Signals]) -> NDArray[np.float64]:
    return np.asarray([cautious_probability(score, s) for s in told])


def fit_half(told: list[Signals], wrong: NDArray[np.bool_], seed: int) -> tuple[Fitted, NDArray[np.bool_], Columns]:
    parts = split(wrong, FITTING_FOR_GUARANTEE, seed)
    fitted = fit_score([told[i] for i in parts.fit], [bool(w) for w in wrong[parts.fit]], seed=seed)
    test = probabilities(fitted.score, [told[i] for i in parts.threshold])
    return fitted, wrong[parts.fit], (test, wrong[parts.threshold])


def draw_synthetic(seed: int, n: int, population: tuple[list[Signals], NDArray[np.float64]]) -> Draw:
    random = np.random.default_rng([seed, 1])
    told, p = difficulty(random, n)
    fitted, fit_wrong, test = fit_half(told, random.random(n) < p, seed)
    return Draw(fitted, fit_wrong, test, probabilities(fitted.score, population[0]), population[1])


def draw_real(seed: int, n: int, told: list[Signals], wrong: NDArray[np.bool_], *, replace: bool) -> Draw:
    random = np.random.default_rng([seed, 2])
    rows = random.choice(len(told), size=n, replace=replace)
    fitted, fit_wrong, test = fit_half([told[i] for i in rows], wrong[rows], seed)
    rest = np.arange(len(told)) if replace else np.setdiff1d(np.arange(len(told)), rows)
    outside = probabilities(fitted.score, [told[i] for i in rest])
    return Draw(fitted, fit_wrong, test, outside, wrong[rest].astype(float))


def risk_of(draw: Draw, threshold: float) -> tuple[float, float]:
    """(share of failures among the served, coverage) outside the split; 0 failures if nothing is served."""
    served = draw.outside <= threshold
    return (float(draw.risk[served].mean()) if served.any() else 0.0), float(served.mean())


def tuned_threshold(draw: Draw, alpha: float) -> float:
    """The usual method: the loosest threshold whose share of failures on the split is at most alpha."""
    p, wrong = draw.test
    order = np.argsort(p)
    kept = np.flatnonzero(np.cumsum(wrong[order]) <= alpha * np.arange(1, len(p) + 1))
    return float(p[order][kept[-1]]) if len(kept) else -1.0


def judge(name: str, draws: list[Draw], n: int, alpha: float, delta: float) -> Row:
    infeasible = exceeded = tuned = 0
    coverages, usual = [], []
    for draw in draws:
        p, wrong = draw.test
        order = plan_sequence(draw.fitted.probabilities, draw.fit_wrong, len(wrong), alpha=alpha, delta=delta)
        found = fixed_sequence([Rule(t) for t in order], p, wrong, alpha=alpha, delta=delta)
        if isinstance(found, Infeasible):
            infeasible += 1
        else:
            risk, coverage = risk_of(draw, found[0].threshold)
            exceeded += risk > alpha
            coverages.append(coverage)
        risk, coverage = risk_of(draw, tuned_threshold(draw, alpha))
        tuned += risk > alpha
        usual.append(coverage)
    test = binomtest(exceeded, len(draws), delta, alternative="greater")
    return Row(
        name, alpha, delta, n, len(draws[0].outside), len(draws), infeasible, exceeded, float(test.pvalue),
        float(np.mean(coverages)) if coverages else None, tuned, float(np.mean(usual)),
    )  # fmt: skip


def read_answers(path: Path) -> tuple[list[Signals], NDArray[np.bool_]]:
    answers = read_collected(path)
    return [a.signals for a in answers], np.asarray([not a.right for a in answers], bool)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path, nargs="*", default=[], help="files of collected answers")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--n", type=int, default=500, help="answers per split to calibrate on")
    parser.add_argument("--population", type=int, default=POPULATION)
    parser.add_argument("--output", type=Path, help="append the JSON line to this file")
    options = parser.parse_args()
    population = difficulty(np.random.default_rng(7), options.population)
    kinds = {"synthetic": [draw_synthetic(s, options.n, population) for s in range(options.splits)]}
    for path in options.answers:
        told, wrong = read_answers(path)
        n = min(options.n, len(told) // 2)
        for kind, replace in (("resampled", True), ("the rest", False)):
            kinds[f"{path.stem}, {kind}"] = [
                draw_real(s, n, told, wrong, replace=replace) for s in range(options.splits)
            ]  # fmt: skip
    rows = []
    head = f"{'data':24} {'alpha':>6} {'delta':>6} {'none':>5} {'exceeded':>9} {'p':>6} {'served':>7}"
    print(f"{head} | tuned: {'exceeded':>8} {'served':>7}   of {options.splits} splits")
    for name, draws in kinds.items():
        n = sum(map(len, (draws[0].fit_wrong, draws[0].test[1])))
        for alpha in ALPHAS:
            for delta in DELTAS:
                row = judge(name, draws, n, alpha, delta)
                rows.append(row)
                served = "" if row.coverage is None else f"{100 * row.coverage:.1f} %"
                print(
                    f"{name:24} {alpha:6} {delta:6} {row.infeasible:5} {row.exceeded:9} {row.p:6.3f} {served:>7} | "
                    f"{row.tuned:15} {100 * row.tuned_coverage:5.1f} %",
                    flush=True,
                )
    line = to_json(Result("guarantee", 0, tuple(rows)))
    if options.output:
        with options.output.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    print(line)
    # Bonferroni: with many tests, some are below 5 % by chance, but none should be below 1 % / their number.
    exact = [r for r in rows if "the rest" not in r.data]
    return int(any(r.p < 0.01 / len(exact) for r in exact))


if __name__ == "__main__":
    sys.exit(main())
