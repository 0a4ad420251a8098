import numpy as np
import pytest
from scipy.stats import binom, binomtest

from edgekit.errors import RouteError
from edgekit.routing.decision.threshold import (
    STEPS,
    Infeasible,
    Rule,
    exact_interval,
    examples_needed,
    fixed_sequence,
    least_served,
    plan_sequence,
    upper_bound,
)


@pytest.mark.parametrize(("failures", "served"), [(0, 59), (1, 93), (4, 181), (12, 386), (7, 20), (19, 20)])
def test_the_bound_is_clopper_and_pearson_s(failures, served):
    expected = binomtest(failures, served).proportion_ci(0.90, method="exact").high
    assert upper_bound(failures, served, 0.05) == pytest.approx(expected, abs=1e-9)


def test_nothing_served_or_nothing_right_bounds_nothing():
    assert upper_bound(0, 0, 0.05) == 1.0
    assert upper_bound(5, 5, 0.05) == 1.0


def test_the_exact_interval_is_scipy_s():
    for failures, served in ((0, 10), (3, 10), (10, 10)):
        found, expected = exact_interval(failures, served), binomtest(failures, served).proportion_ci(0.95)
        assert (found.value, found.low, found.high) == pytest.approx(
            (failures / served, expected.low, expected.high), abs=1e-9
        )
    assert exact_interval(0, 0) is None


@pytest.mark.parametrize(
    ("alpha", "rate", "needed"),
    [(0.05, 0, 59), (0.05, 0.01, 93), (0.05, 0.02, 181), (0.05, 0.03, 361), (0.1, 0.05, 116), (0.1, 0.07, 298)],
)
def test_as_many_are_needed_as_the_bound_says_and_no_fewer(alpha, rate, needed):
    assert examples_needed(alpha, 0.05, rate) == needed
    clears = [n for n in range(1, needed + 1) if upper_bound(int(np.ceil(n * rate - 1e-9)), n, 0.05) <= alpha]
    assert clears == [needed]


def test_a_share_of_failures_that_is_a_fraction_of_what_is_served_needs_not_one_more():
    """203 * (13 / 203) is a little more than 13 in floating point."""
    assert 203 * (13 / 203) > 13
    assert examples_needed(0.1, 0.05, 13 / 203) == least_served(13, 0.1, 0.05) == 203


def test_twelve_failures_need_386():
    assert least_served(12, 0.05, 0.05) == 386
    assert upper_bound(12, 386, 0.05) <= 0.05 < upper_bound(12, 385, 0.05)


def test_no_number_is_enough_for_a_rate_of_alpha():
    assert examples_needed(0.05, 0.05, 0.05) is None
    assert examples_needed(0.05, 0.05, 0.2) is None
    assert examples_needed(0.05, 0.05, 0.0499) > 100_000


@pytest.mark.parametrize(
    ("alpha", "delta"), [(0, 0.05), (1, 0.05), (0.05, 0), (0.05, 1), (-1, 0.05), (0.05, -1), (2, 0.05), (0.05, 2)]
)
def test_a_promise_of_nothing_is_refused(alpha, delta):
    with pytest.raises(RouteError, match="between 0 and 1"):
        examples_needed(alpha, delta, 0.01)


def test_the_sequence_stops_at_the_first_failure():
    """Ten wrong ones in the second hundred: the third rule would pass again if it were tested."""
    probabilities = np.repeat([0.1, 0.2, 0.3], [100, 100, 2000])
    wrong = np.zeros(2200, bool)
    wrong[100:120] = True
    rules = [Rule(0.1), Rule(0.2), Rule(0.3)]
    rule, kept = fixed_sequence(rules, probabilities, wrong, alpha=0.05, delta=0.05)
    assert upper_bound(20, 2200, 0.05) < 0.05
    assert rule.threshold == 0.1
    assert (kept.served, kept.failures, kept.n) == (100, 0, 2200)
    assert kept.coverage == 100 / 2200
    assert kept.bound == upper_bound(0, 100, 0.05) <= 0.05


def test_an_infeasible_promise_says_what_it_would_take():
    wrong = np.zeros(100, bool)
    wrong[0] = True
    found = fixed_sequence([Rule(0.5)], np.repeat([0.1, 0.9], 50), wrong, alpha=0.05, delta=0.05)
    assert isinstance(found, Infeasible)
    assert (found.served, found.failures) == (50, 1)
    assert found.needed == examples_needed(0.05, 0.05, 0.02) == 181
    assert found.examples == 362
    hopeless = fixed_sequence([Rule(0.5)], np.full(100, 0.1), np.ones(100, bool), alpha=0.05, delta=0.05)
    assert hopeless.needed is None
    assert hopeless.examples is None


def test_a_rule_must_hold_with_and_without_giving_up_early():
    """Giving up the right ones leaves the wrong: the share of failures among the rest is above alpha."""
    wrong = np.zeros(200, bool)
    wrong[:5] = True
    prefix = np.where(np.arange(200) < 50, 0.1, 0.9)
    served = np.full(200, 0.1)
    assert upper_bound(5, 200, 0.05) < 0.1 < upper_bound(5, 50, 0.05)
    assert not isinstance(fixed_sequence([Rule(0.5)], served, wrong, alpha=0.1, delta=0.05), Infeasible)
    found = fixed_sequence([Rule(0.5, 0.5)], served, wrong, alpha=0.1, delta=0.05, prefix=prefix)
    assert isinstance(found, Infeasible)
    assert (found.served, found.failures) == (50, 5)
    over = np.full(200, np.nan)  # all over before their first tokens were complete: nothing is given up
    assert not isinstance(
        fixed_sequence([Rule(0.5, 0.5)], served, wrong, alpha=0.1, delta=0.05, prefix=over), Infeasible
    )


def test_what_is_exactly_at_a_limit_is_within_it():
    """A probability of exactly the threshold is served, one of exactly ``give_up`` goes on, a bound of alpha keeps."""
    alpha = upper_bound(0, 100, 0.05)
    at, right = np.full(100, 0.5), np.zeros(100, bool)
    _, kept = fixed_sequence([Rule(0.5, 0.5)], at, right, alpha=alpha, delta=0.05, prefix=at)
    assert (kept.served, kept.bound) == (100, alpha)
    for over in (Rule(np.nextafter(0.5, 0), 0.5), Rule(0.5, np.nextafter(0.5, 0))):
        found = fixed_sequence([over], at, right, alpha=alpha, delta=0.05, prefix=at)
        assert isinstance(found, Infeasible)
    below = np.nextafter(alpha, 0)
    assert isinstance(fixed_sequence([Rule(0.5)], at, right, alpha=below, delta=0.05), Infeasible)


def test_giving_up_the_wrong_ones_early_does_not_save_the_promise():
    """The five wrong ones are given up after their first tokens; whoever switches that off serves them all."""
    wrong = np.zeros(100, bool)
    wrong[:5] = True
    prefix = np.where(wrong, 0.9, 0.1)
    served = np.full(100, 0.1)
    assert upper_bound(0, 95, 0.05) < 0.05 < upper_bound(5, 100, 0.05)
    found = fixed_sequence([Rule(0.5, 0.5)], served, wrong, alpha=0.05, delta=0.05, prefix=prefix)
    assert isinstance(found, Infeasible)
    assert (found.served, found.failures) == (100, 5)
    _, kept = fixed_sequence([Rule(0.5, 0.5)], served, wrong, alpha=0.15, delta=0.05, prefix=prefix)
    assert (kept.served, kept.failures, kept.bound) == (100, 5, upper_bound(5, 100, 0.05))


def test_a_sequence_begins_where_enough_is_served():
    random = np.random.default_rng(0)
    probabilities = random.random(400)
    wrong = random.random(400) < 0.3 * probabilities**2
    order = plan_sequence(probabilities, wrong, 400, alpha=0.05, delta=0.05)
    assert list(order) == sorted(set(order))
    assert (probabilities <= order[0]).mean() * 400 >= 59
    assert order[-1] == probabilities.max()


@pytest.mark.parametrize(("fitted", "n"), [(300, 75), (300, 1200), (500, 300)])
def test_a_sequence_begins_at_the_rule_that_is_likeliest_to_pass(fitted, n):
    """By brute force: with as many failures as the bound allows among the served of the other split."""
    random = np.random.default_rng(fitted + n)
    probabilities = random.random(fitted)
    wrong = random.random(fitted) < 0.1 * probabilities**2

    def chance(threshold):
        held = probabilities <= threshold
        served, rate = round(held.mean() * n), (wrong[held].sum() + 0.5) / (held.sum() + 1)
        allowed = max((k for k in range(served) if upper_bound(k, served, 0.05) <= 0.05), default=-1)
        return binom.cdf(allowed, served, rate)

    candidates = np.quantile(probabilities, np.linspace(0, 1, STEPS + 1)[1:], method="higher")
    order = plan_sequence(probabilities, wrong, n, alpha=0.05, delta=0.05)
    assert chance(order[0]) == max(map(chance, candidates)) > 0
    assert order == tuple(c for c in candidates if c >= order[0])


def test_where_none_has_a_chance_the_one_with_the_fewest_failures_is_tested():
    """20 are too few for any bound of 5 %; the refusal is to tell of the surest, not of all."""
    probabilities = np.linspace(0, 1, 40)
    wrong = np.arange(40) >= 20
    order = plan_sequence(probabilities, wrong, 20, alpha=0.05, delta=0.05)
    assert order[0] == probabilities[19]
    assert plan_sequence(np.full(40, np.nan), wrong, 20, alpha=0.05, delta=0.05) == ()


def test_the_promise_holds_on_resampled_splits():
    """The true share of failures among the served exceeds alpha in at most delta of the splits; untested, in more."""
    alpha, delta, splits = 0.1, 0.1, 600
    population = np.linspace(0, 1, 20_001)  # P(wrong) of an answer with score u is u^2 / 2
    risk = np.cumsum(population**2 / 2) / np.arange(1, len(population) + 1)
    broken = untested = kept = 0
    for seed in range(splits):
        random = np.random.default_rng(seed)
        u = random.random(400)
        wrong = random.random(400) < u**2 / 2
        order = plan_sequence(u[:200], wrong[:200], 200, alpha=alpha, delta=delta)
        found = fixed_sequence([Rule(t) for t in order], u[200:], wrong[200:], alpha=alpha, delta=delta)
        if not isinstance(found, Infeasible):
            kept += 1
            broken += risk[round(found[0].threshold * 20_000)] > alpha
        passing = [t for t in u[200:] if wrong[200:][u[200:] <= t].mean() <= alpha]
        untested += risk[round(max(passing, default=0) * 20_000)] > alpha
    assert kept > 0.5 * splits
    assert binom.sf(broken - 1, splits, delta) > 0.01, f"{broken} of {splits} splits broke the promise"
    assert untested > 3 * broken
