"""Find a threshold with a guarantee, by exact binomial bounds and fixed-sequence testing.

The guarantee: with confidence 1 - delta, at most alpha of the answers served locally are wrong. Learn then Test
(Angelopoulos et al., arXiv 2110.01052) with fixed-sequence testing: hypotheses are tested in an order that does not
depend on the labels they are tested with, each at the full level delta, until the first that is not rejected. A false
guarantee requires that the first true null hypothesis of the sequence is rejected, which has probability at most
delta, however many candidates there are. So everything that orders or selects candidates uses the fitting split only.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf, log
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import RouteError
from edgekit.types.calibration import Guarantee
from edgekit.types.interval import Interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

STEPS = 40
"""Number of candidates: enough to use most of the coverage, few enough that a step adds more than one answer."""


@dataclass(frozen=True)
class Rule:
    """Serve answers with a probability of being wrong of at most ``threshold``; give up above ``give_up`` early on."""

    threshold: float
    give_up: float = inf


@dataclass(frozen=True)
class Infeasible:
    """No rule passed. The numbers are those of the rule that was most likely to pass.

    ``needed``: number of answers that must be served, at the observed share of failures, for the bound to reach alpha;
    ``examples``: size of the threshold's split that serves that many, at the observed coverage. None if no number is
    enough, because the share of failures is alpha or more.
    """

    alpha: float
    delta: float
    n: int
    served: int
    failures: int
    bound: float
    needed: int | None
    examples: int | None


def upper_bound(failures: int, served: int, delta: float) -> float:
    """The exact one-sided upper bound (Clopper-Pearson) at confidence 1 - ``delta``; 1.0 if nothing was served."""
    from scipy.special import betaincinv

    if failures >= served:
        return 1.0
    return float(betaincinv(failures + 1, served - failures, 1 - delta))


def exact_interval(failures: int, served: int, level: float = 0.95) -> Interval | None:
    """The share of failures with its exact two-sided interval (Clopper-Pearson); None if nothing was served."""
    if not served:
        return None
    tail = (1 - level) / 2
    low = 1 - upper_bound(served - failures, served, tail) if failures else 0.0
    return Interval(failures / served, low, upper_bound(failures, served, tail))


def least_served(failures: int, alpha: float, delta: float) -> int:
    """The fewest served answers, ``failures`` of them wrong, for which the bound is at most alpha."""
    if not failures:
        return ceil(log(delta) / log(1 - alpha))  # (1 - alpha)^n <= delta
    low, high = failures, 2 * failures
    while upper_bound(failures, high, delta) > alpha:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if upper_bound(failures, middle, delta) <= alpha else (middle, high)
    return high


def examples_needed(alpha: float, delta: float, failure_rate: float) -> int | None:
    """The fewest served answers, ``failure_rate`` of them (rounded up) wrong, for which the bound is at most alpha.

    None if the rate is alpha or more: then no number is enough.
    """
    check_level(alpha, delta)
    if failure_rate >= alpha:
        return None
    if failure_rate <= 0:
        return least_served(0, alpha, delta)

    def fits(failures: int) -> bool:
        return ceil(least_served(failures, alpha, delta) * failure_rate - 1e-9) <= failures

    high = 1
    while not fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return least_served(high, alpha, delta)


def check_level(alpha: float, delta: float) -> None:
    """Raise RouteError unless both lie strictly between 0 and 1."""
    if not (0 < alpha < 1 and 0 < delta < 1):
        raise RouteError(
            f"`guarantee`: {alpha:g} and the confidence {1 - delta:g} must be between 0 and 1",
            "0.05@0.95 means: at most 5 % of the answers served are wrong, with confidence 95 %",
        )


def plan_sequence(
    probabilities: NDArray[np.float64], wrong: NDArray[np.bool_], n: int, *, alpha: float, delta: float
) -> tuple[float, ...]:
    """Return the thresholds to test on ``n`` other examples, in the order of the tests, strictest first.

    They are quantiles of the fitting split's probabilities. The strictest serve too few answers for the bound to reach
    alpha, so the sequence would end there. It therefore starts at the threshold most likely to pass by the fitting
    split's counts of served and failures. The labels of the ``n`` examples are not used.

    Args:
        probabilities: the fitting split's probabilities of being wrong [F], preferably held-out.
        wrong: the fitting split's labels [F].
        n: size of the split on which the sequence is tested.
        alpha: greatest share of failures among the served.
        delta: 1 - confidence.
    """
    from scipy.stats import binom

    known = probabilities[np.isfinite(probabilities)]
    if not len(known):
        return ()
    # "higher" selects values that occur, so each step serves its quantile even with many ties.
    grid = np.unique(np.quantile(known, np.linspace(0, 1, STEPS + 1)[1:], method="higher"))
    chances, rates = [], []
    for threshold in grid:
        held = probabilities <= threshold
        served = round(held.mean() * n)
        allowed = _most_failures(served, alpha, delta)
        rate = (wrong[held].sum() + 0.5) / (held.sum() + 1)
        rates.append(rate)
        chances.append(float(binom.cdf(allowed, served, rate)) if allowed >= 0 else 0.0)
    # If none has a chance, test the one with the fewest failures: it gives the best estimate of what is needed.
    first = int(np.argmax(chances)) if max(chances) > 0 else int(np.argmin(rates))
    return tuple(float(t) for t in grid[first:])


def fixed_sequence(
    rules: Sequence[Rule],
    probabilities: NDArray[np.float64],
    wrong: NDArray[np.bool_],
    *,
    alpha: float,
    delta: float,
    prefix: NDArray[np.float64] | None = None,
) -> tuple[Rule, Guarantee] | Infeasible:
    """Test rules in order; return the last that passed before the first that failed.

    A rule passes if the bound is at most alpha for what it serves both with and without giving up early, as a policy
    may switch that off: rejecting both at level delta rejects their union at level delta. The returned numbers are
    those of the worse of the two.

    Args:
        rules: strictest first, chosen without these labels.
        probabilities: probabilities of being wrong [N], of examples that fitted nothing.
        wrong: labels [N].
        alpha: greatest share of failures among the served.
        delta: 1 - confidence.
        prefix: probabilities after the first tokens [N]; NaN for shorter answers.
    """
    check_level(alpha, delta)
    passed: tuple[Rule, Guarantee] | None = None
    failed = Guarantee(alpha, delta, len(wrong), 0, 0, 1.0, 0.0)
    for rule in rules:
        served = probabilities <= rule.threshold
        sets = [served] if prefix is None else [served, served & ~(prefix > rule.give_up)]
        worst = max((_guarantee(s, wrong, alpha, delta) for s in sets), key=lambda g: g.bound)
        if worst.bound > alpha:
            failed = worst
            break
        passed = rule, worst
    return passed or _infeasible(failed)


def _guarantee(served: NDArray[np.bool_], wrong: NDArray[np.bool_], alpha: float, delta: float) -> Guarantee:
    count, failures = int(served.sum()), int((served & wrong).sum())
    coverage = count / len(wrong) if len(wrong) else 0.0
    return Guarantee(alpha, delta, len(wrong), count, failures, upper_bound(failures, count, delta), coverage)


def _infeasible(seen: Guarantee) -> Infeasible:
    rate = seen.failures / seen.served if seen.served else 0.0
    needed = examples_needed(seen.alpha, seen.delta, rate)
    examples = None if needed is None or not seen.coverage else ceil(needed / seen.coverage)
    return Infeasible(seen.alpha, seen.delta, seen.n, seen.served, seen.failures, seen.bound, needed, examples)


def _most_failures(served: int, alpha: float, delta: float) -> int:
    """Most failures among ``served`` for which the bound is at most alpha; -1 if even 0 is too many."""
    low, high = -1, served
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if upper_bound(middle, served, delta) <= alpha else (low, middle)
    return low
