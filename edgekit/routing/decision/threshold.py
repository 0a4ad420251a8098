"""The threshold that keeps a promise: exact binomial bounds, and a sequence of tests whose order is fixed beforehand.

The promise: with confidence 1 - delta, at most alpha of the answers served locally are wrong. Learn then Test
(Angelopoulos et al., arXiv 2110.01052) with fixed-sequence testing: hypotheses are tested in an order that does not
depend on the labels they are tested with, each at the whole level delta, until the first that is not rejected. A false
promise needs the first false one of the sequence to be rejected, which happens with probability delta at most, however
many candidates there are. So everything that orders or picks candidates is read off the fitting split alone.
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
"""Candidates: enough to leave little coverage unused, few enough that one step adds more than a single answer."""


@dataclass(frozen=True)
class Rule:
    """Serve what is at most ``threshold`` likely to be wrong; give up above ``give_up`` after the first tokens."""

    threshold: float
    give_up: float = inf


@dataclass(frozen=True)
class Infeasible:
    """No rule kept the promise. The numbers are of the rule that was likeliest to.

    ``needed``: answers that must be served, at the share of failures seen, for the bound to clear alpha; ``examples``:
    lines of the threshold's split that serve as many, at the coverage seen. None where no number would do, because the
    share of failures is alpha or more.
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
    """The exact one-sided upper bound (Clopper-Pearson) at confidence 1 - ``delta``; 1.0 where nothing was served."""
    from scipy.special import betaincinv

    if failures >= served:
        return 1.0
    return float(betaincinv(failures + 1, served - failures, 1 - delta))


def exact_interval(failures: int, served: int, level: float = 0.95) -> Interval | None:
    """The share of failures with its exact two-sided interval (Clopper-Pearson); None where nothing was served."""
    if not served:
        return None
    tail = (1 - level) / 2
    low = 1 - upper_bound(served - failures, served, tail) if failures else 0.0
    return Interval(failures / served, low, upper_bound(failures, served, tail))


def least_served(failures: int, alpha: float, delta: float) -> int:
    """Fewest served answers of which ``failures`` are wrong for the bound to be alpha or less."""
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
    """Served answers needed for the bound to clear alpha where ``failure_rate`` of them, rounded up, are wrong.

    None where it is alpha or more: then no number is enough.
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
            f"a guarantee of {alpha:g} at confidence {1 - delta:g}: both must lie between 0 and 1",
            "0.05@0.95: at most 5 % of the answers served locally are wrong, with confidence 95 %",
        )


def plan_sequence(
    probabilities: NDArray[np.float64], wrong: NDArray[np.bool_], n: int, *, alpha: float, delta: float
) -> tuple[float, ...]:
    """Thresholds to be tested on ``n`` other examples, in the order of the tests: each looser than the one before.

    They are quantiles of the fitting split's probabilities. The strictest serve too few for any bound to clear alpha,
    and a sequence that began there would end there. So it begins at the one that is likeliest to pass, by the fitting
    split's own counts: its served, its failures. The labels of the ``n`` have no part in it.

    Args:
        probabilities: of being wrong, of the fitting split [F]; best those of examples that were held out.
        wrong: its labels [F].
        n: size of the split on which the sequence is tested.
        alpha: greatest share of failures among the served.
        delta: 1 - confidence.
    """
    from scipy.stats import binom

    known = probabilities[np.isfinite(probabilities)]
    if not len(known):
        return ()
    # "higher": values that occur, so that a step serves what its quantile says although many are tied.
    grid = np.unique(np.quantile(known, np.linspace(0, 1, STEPS + 1)[1:], method="higher"))
    chances, rates = [], []
    for threshold in grid:
        held = probabilities <= threshold
        served = round(held.mean() * n)
        allowed = _most_failures(served, alpha, delta)
        rate = (wrong[held].sum() + 0.5) / (held.sum() + 1)
        rates.append(rate)
        chances.append(float(binom.cdf(allowed, served, rate)) if allowed >= 0 else 0.0)
    # Where none has a chance the one with the fewest failures is tested: it says best what would be needed.
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
    """Test rules in their order; return the last that passed before the first that did not.

    A rule passes if the bound clears alpha for what it serves with and without giving up early: to reject both at level
    delta each is to reject their union at level delta, and whoever uses the rule may switch giving up off. The numbers
    returned are of the worse of the two.

    Args:
        rules: from the strictest on, chosen without these labels.
        probabilities: of being wrong [N], of examples that fitted nothing.
        wrong: labels [N].
        alpha: greatest share of failures among the served.
        delta: 1 - confidence.
        prefix: the probability after the first tokens [N]; NaN where the answer was over by then.
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
    """Most failures among ``served`` with which the bound clears alpha; -1 where even none is too many."""
    low, high = -1, served
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if upper_bound(middle, served, delta) <= alpha else (low, middle)
    return low
