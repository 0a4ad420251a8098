import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from edgekit.routing.decision import curves, metrics


def world(n=400, seed=0, cloud=0.9):
    random = np.random.default_rng(seed)
    score = random.random(n)
    return score, random.random(n) > score, random.random(n) < cloud, 0.5 + random.random(n)


# --- curves -------------------------------------------------------------------------------------


def test_random_is_one_half_exactly():
    _, local, cloud, cost = world()
    curve = curves.trace(np.zeros(400), local, cloud, cost)
    assert curves.area_recovered(curve) == pytest.approx(0.5, abs=1e-12)
    assert curves.share_needed(curve, 0.8) == pytest.approx(0.8)
    assert np.allclose(curves.gap_recovered(curve), curve.share)
    gap = curve.cloud - curve.local
    share = (0.95 * curve.cloud - curve.local) / gap
    assert curves.cost_needed(curve) == pytest.approx(share * cost.mean())


def test_random_orders_come_out_at_one_half_within_their_error():
    _, local, cloud, cost = world()
    random = np.random.default_rng(1)
    areas = [curves.area_recovered(curves.trace(random.random(400), local, cloud, cost)) for _ in range(300)]
    assert abs(np.mean(areas) - 0.5) < 4 * np.std(areas) / np.sqrt(300)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_above_the_oracle(seed):
    score, local, cloud, cost = world(seed=seed)
    best = curves.trace(curves.oracle_score(local, cloud), local, cloud, cost)
    shares = np.linspace(0, 1, 401)
    for other in (score, -score, np.zeros(400)):
        curve = curves.trace(other, local, cloud, cost)
        top, its = (np.interp(shares, c.share, c.quality) for c in (best, curve))
        assert (its <= top + 1e-12).all()
        assert curves.area_recovered(curve) < curves.area_recovered(best)
        for goal in (0.5, 0.8, 0.95):
            assert curves.share_needed(curve, goal) >= curves.share_needed(best, goal)


def test_a_good_score_and_its_reverse_lie_around_random():
    score, local, cloud, cost = world()
    good = curves.area_recovered(curves.trace(score, local, cloud, cost))
    bad = curves.area_recovered(curves.trace(-score, local, cloud, cost))
    assert bad < 0.45 < 0.55 < good


def test_by_hand():
    local = np.asarray([True, True, False, False])
    cloud = np.asarray([True, False, True, True])
    curve = curves.trace(np.asarray([0.1, 0.2, 0.3, 0.4]), local, cloud, np.asarray([1.0, 1, 2, 4]))
    assert curve.quality.tolist() == [0.5, 0.75, 1.0, 0.75, 0.75]
    assert curve.cost.tolist() == [0, 1, 1.5, 1.75, 2]
    assert curves.gap_recovered(curve).tolist() == [0, 1, 2, 1, 1]
    assert curves.area_recovered(curve) == pytest.approx((0.5 + 1.5 + 1.5 + 1) / 4)
    assert curves.share_needed(curve, 0.5) == pytest.approx(0.125)
    assert curves.cost_needed(curve, 0.95) == pytest.approx((0.7125 - 0.5) / 0.25)
    # Hull: (0, .5), (1.5, 1), (2, 1); the corner (1, .75) lies under it.
    assert curves.hull_area(curve) == pytest.approx((1.5 * 0.75 + 0.5) / 2)


def test_ties_are_straight_lines_whatever_the_order_of_the_data():
    score, local, cloud, cost = world()
    tied = np.round(score, 1)
    mixed = np.random.default_rng(2).permutation(400)
    one = curves.trace(tied, local, cloud, cost)
    other = curves.trace(tied[mixed], local[mixed], cloud[mixed], cost[mixed])
    assert np.allclose(one.quality, other.quality)
    assert len(one.share) == len(np.unique(tied)) + 1


def test_a_cloud_that_is_not_better_defines_nothing():
    score, local, _, cost = world()
    for cloud in (local, np.zeros(400, bool)):
        curve = curves.trace(score, local, cloud, cost)
        assert curves.area_recovered(curve) is None
        assert curves.gap_recovered(curve) is None
        assert curves.share_needed(curve, 0.5) is None
        assert curves.cost_needed(curve) == 0


def test_calls_that_cost_nothing_have_no_area_over_cost():
    score, local, cloud, _ = world()
    assert curves.hull_area(curves.trace(score, local, cloud, np.zeros(400))) is None


# --- metrics ------------------------------------------------------------------------------------


def test_auroc_is_scikit_learn_s_ties_included():
    score, local, _, _ = world()
    for values in (score, np.round(score, 1), -score):
        assert metrics.auroc(values, ~local) == pytest.approx(roc_auc_score(~local, values))
    assert metrics.auroc(score, np.ones(400, bool)) is None
    assert metrics.auroc_interval(score, np.ones(400, bool)) is None


def test_intervals_cover_the_truth_as_often_as_they_say():
    """AUROC of x + 1 against x, both uniform on (0, 1.5) and (0, 1): known by simulation of a large sample."""

    def sample(n, seed):
        random = np.random.default_rng(seed)
        wrong = np.arange(n) % 2 == 0
        return random.standard_normal(n) + wrong, wrong

    truth = metrics.auroc(*sample(200_000, 99))
    inside = 0
    for seed in range(100):
        found = metrics.auroc_interval(*sample(200, seed), seed=seed)
        inside += found.low <= truth <= found.high
    assert 88 <= inside <= 100


def test_a_paired_difference_is_narrower_than_two_intervals():
    random = np.random.default_rng(0)
    wrong = random.random(400) < 0.5
    first = wrong + random.standard_normal(400)
    second = first + 0.1 * random.standard_normal(400)
    gap = metrics.auroc_difference(first, second, wrong)
    alone = metrics.auroc_interval(first, wrong)
    assert gap.high - gap.low < (alone.high - alone.low) / 3
    assert gap.low < 0.02
    same = metrics.auroc_difference(first, first, wrong)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_an_interval_is_as_wide_as_95_percent_of_a_normal_distribution():
    values = np.random.default_rng(5).standard_normal(400)
    found = metrics.bootstrap(lambda rows: values[rows].mean(axis=1), 400, draws=4000)
    error = values.std() / np.sqrt(400)
    assert (found.value - found.low, found.high - found.value) == pytest.approx((1.96 * error,) * 2, rel=0.08)


def test_a_difference_is_the_first_less_the_second():
    wrong = np.arange(40) < 15
    assert metrics.auroc_difference(wrong.astype(float), -wrong.astype(float), wrong).value == 1


def test_what_most_resamples_do_not_define_has_no_interval():
    """Defined in 40 and in 60 % of them, and on the examples themselves."""
    for share, known in ((0.4, False), (0.6, True)):
        random = np.random.default_rng(0)
        found = metrics.bootstrap(
            lambda rows, random=random, share=share: np.where(
                (random.random(len(rows)) < share) | (len(rows) == 1), rows.mean(axis=1), np.nan
            ),
            50,
        )
        assert (found is not None) == known


def test_a_bootstrap_in_blocks_draws_as_often_as_in_one(monkeypatch):
    """Memory is bounded by drawing in blocks; the last is what is left."""
    sizes = []

    def mean(rows):
        sizes.append(rows.shape)
        return rows.mean(axis=1)

    monkeypatch.setattr(metrics, "_AT_ONCE", 35)
    found = metrics.bootstrap(mean, 10, draws=8)
    assert sizes == [(1, 10), (3, 10), (3, 10), (2, 10)]
    assert found.low < found.value == 4.5 < found.high


def test_ece_by_hand():
    probability = np.repeat([0.1, 0.9], 50)
    wrong = np.concatenate([np.arange(50) < 10, np.arange(50) < 45])
    assert metrics.expected_calibration_error(probability, wrong) == pytest.approx(0.05)
    assert metrics.expected_calibration_error(np.full(10, 0.3), np.arange(10) < 3) == pytest.approx(0)
    assert metrics.expected_calibration_error(np.asarray([0.2]), np.asarray([True])) == pytest.approx(0.8)


def test_ece_has_fifteen_bins_of_equal_mass():
    """Errors of opposite sign in one bin cancel, across bins they add up."""
    probability = np.linspace(0, 1, 150)
    wrong = np.zeros(150, bool)
    wrong[-10:] = True
    by_bin = [abs(p.mean() - w.mean()) for p, w in zip(np.split(probability, 15), np.split(wrong, 15), strict=True)]
    assert metrics.expected_calibration_error(probability, wrong) == pytest.approx(np.mean(by_bin))


def test_brier_by_hand():
    assert metrics.brier(np.asarray([0.0, 0.5, 1.0]), np.asarray([False, True, False])) == pytest.approx(1.25 / 3)


def test_risk_over_coverage_by_hand():
    wrong = np.asarray([False, True, False, True])
    assert metrics.risk_coverage(np.asarray([1.0, 3, 2, 4]), wrong).tolist() == [0, 0, 1 / 3, 0.5]
    assert metrics.aurc(np.asarray([1.0, 3, 2, 4]), wrong) == pytest.approx((1 / 3 + 0.5) / 4)
    assert metrics.aurc(np.zeros(4), wrong) == pytest.approx(0.5)
