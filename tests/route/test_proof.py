from dataclasses import replace

import numpy as np
import pytest

from edgekit.errors import RouteError
from edgekit.record import from_json, to_json
from edgekit.routing.decision import proof
from edgekit.routing.decision.calibration_fit import calibrate
from edgekit.routing.decision.drift import measure_drift, stability_index
from edgekit.routing.decision.proof import Case, Proof, operate_router, pair_cases, prove
from edgekit.routing.decision.score import cautious_probability
from edgekit.types.calibration import Calibration
from tests.route.answered import cloud_answers, local_answers
from tests.route.cases import PREFIX, SCORE, SIGNALS
from tests.route.cases import calibration as recorded


def calibration(*, prefix: bool = True) -> Calibration:
    found = calibrate(local_answers(1000, seed=5), prefix_tokens=16 if prefix else 0)
    return Calibration(
        "a", "cpu", (), "", "", "", "", found.n_fit, found.n_threshold, found.right, found.score, found.threshold,
        None, found.prefix, found.scores, found.auroc, found.ece, found.brier,
    )  # fmt: skip


@pytest.fixture(scope="module")
def proven():
    local = local_answers(600, seed=8)
    made = calibration()
    cases = pair_cases(local, cloud_answers(local), made, joules=[2.0] * 600)
    return cases, prove(cases, made.threshold)


def test_the_router_lies_between_random_and_the_oracle(proven):
    _, found = proven
    router, random, oracle = (found.get(n) for n in (proof.ROUTER, proof.RANDOM, proof.ORACLE))
    assert random.apgr == pytest.approx(0.5, abs=1e-12)
    assert 0.6 < router.apgr < oracle.apgr
    assert oracle.cost95 < router.cost95 < random.cost95
    assert oracle.cpt80 < router.cpt80 < random.cpt80
    assert random.operation.quality < router.operation.quality < oracle.operation.quality
    assert random.aurc == pytest.approx(1 - found.local_quality)


def test_the_margins_are_paired_and_exclude_zero_where_they_should(proven):
    _, found = proven
    cost, entropy, logprob = found.margins
    assert cost.difference.high < 0
    assert cost.difference.value == pytest.approx(
        found.get(proof.ROUTER).cost95 - found.get(proof.RANDOM).cost95, abs=1e-9
    )
    assert entropy.difference.low > 0
    assert (entropy.beside, logprob.beside) == (proof.ENTROPY, proof.LOGPROB)


def test_all_strategies_answer_the_same_share_on_the_device(proven):
    cases, found = proven
    coverage = found.get(proof.ROUTER).operation.coverage
    assert coverage == np.mean([c.wrong <= found.threshold and c.given_up is None for c in cases])
    for name in (proof.ENTROPY, proof.LOGPROB, proof.RANDOM, proof.ORACLE):
        assert found.get(name).operation.coverage == pytest.approx(coverage)
    assert found.get(proof.LOCAL).operation.coverage == 1
    assert found.get(proof.CLOUD).operation.coverage == 0


def test_served_failures_have_an_exact_interval(proven):
    cases, found = proven
    served = [c for c in cases if c.wrong <= found.threshold and c.given_up is None]
    failures = found.get(proof.ROUTER).operation.failures
    assert failures.value == np.mean([not c.local_right for c in served])
    assert failures.low < failures.value < failures.high
    assert found.get(proof.CLOUD).operation.failures is None


def test_wasted_local_time_counts():
    base = Case("", True, True, 0.1, 0.0, 0.0, 0.0, 1.0, None, 10.0, 5.0, 0.25)
    sent, early = replace(base, wrong=0.9, raw=1.0), replace(base, wrong=0.2, raw=2.0, given_up=0.25)
    found = prove([base, base, sent, early], 0.5)
    router, random, cloud = (found.get(n).operation for n in (proof.ROUTER, proof.RANDOM, proof.CLOUD))
    assert router.coverage == 0.5
    assert router.p95 == 6.0  # a whole local answer, and then the cloud's
    assert router.wasted == pytest.approx((1.0 + 0.25) / 4)
    assert router.joules == pytest.approx(1000 * (10 + 10 + 10 + 2.5) / 4)
    assert router.cost == pytest.approx(1000 * 0.5 / 4)
    assert random.p95 == cloud.p95 == 5.0
    assert random.wasted == 0
    assert random.joules == pytest.approx(1000 * 10 / 2)
    assert cloud.cost == 250
    assert cloud.joules == 0


def test_what_is_not_known_is_none():
    unknown = Case("", True, True, 0.1, 0.0, 0.0, 0.0, 1.0, None, None, None, None)
    other = replace(unknown, local_right=False, wrong=0.9, raw=1.0)
    found = prove([unknown, other], 0.5)
    router = found.get(proof.ROUTER).operation
    assert (router.joules, router.p50, router.cost, found.priced) == (None, None, None, False)
    assert found.get(proof.LOCAL).operation.p95 == 1.0
    assert found.get(proof.ROUTER).cost95 == pytest.approx(0.45)  # of calls: half of them, less what 95 % spares
    worse = prove([replace(unknown, cloud_right=False), replace(other, cloud_right=False)], 0.5)
    assert worse.get(proof.ROUTER).apgr is None
    assert worse.get(proof.ROUTER).cpt95 is None


def test_every_signal_sends_the_doubtful_first_and_before_them_who_cannot_be_judged():
    base = Case("", True, True, 0.1, 0.0, 0.0, 0.0, 1.0, None, 10.0, 5.0, 0.25)
    right = [replace(base, raw=0.1 * i, entropy=0.1 * i, logprob=-0.1 * i) for i in range(10)]
    doubtful = replace(base, local_right=False, raw=2.0, entropy=2.0, logprob=-2.0)
    unjudged = replace(base, local_right=False, wrong=1.0, raw=float("nan"), entropy=-9.0, logprob=9.0)
    for wrong in (doubtful, unjudged):
        found = prove([*right, wrong], 0.5)
        for name in (proof.ROUTER, proof.ENTROPY, proof.LOGPROB):
            assert found.get(name).auroc.value == 1, name
            assert found.get(name).apgr == pytest.approx(1 - 0.5 / 11), name


def test_who_is_exactly_at_a_threshold_stays():
    at = Case("", True, True, 0.5, 0.0, 0.0, 0.0, 1.0, None, None, None, None)
    assert operate_router([at], 0.5).coverage == 1
    assert operate_router([at], np.nextafter(0.5, 0)).coverage == 0
    begun = replace(local_answers(1)[0], prefix=SIGNALS, prefix_seconds=0.5)
    likely = cautious_probability(SCORE, SIGNALS)
    for limit, given_up in ((likely, None), (np.nextafter(likely, 0), 0.5)):
        known = recorded(prefix=replace(PREFIX, threshold=limit))
        (case,) = pair_cases([begun], cloud_answers([begun]), known)
        assert case.given_up == given_up


def test_a_proof_is_a_record(proven):
    assert from_json(Proof, to_json(proven[1])) == proven[1]


def test_answers_that_are_not_there_are_named():
    local = local_answers(10)
    with pytest.raises(RouteError, match="2 of 10 examples have no cloud answer, among them 'q0-8'"):
        pair_cases(local, cloud_answers(local)[:8], calibration(prefix=False))
    with pytest.raises(RouteError, match="no examples"):
        prove([], 0.5)


# --- drift --------------------------------------------------------------------------------------


def test_scores_of_the_same_kind_are_not_stale():
    random = np.random.default_rng(0)
    then = random.beta(2, 5, 500)
    stale = sum(measure_drift(random.beta(2, 5, 300), then).stale for _ in range(100))
    assert stale <= 1


def test_another_kind_of_question_is_stale():
    random = np.random.default_rng(0)
    found = measure_drift(random.beta(4, 3, 300), random.beta(2, 5, 500))
    assert found.stale
    assert found.p < 1e-6
    assert found.ks > 0.3
    assert found.psi > 0.25
    assert found.words.startswith("stale")
    assert "calibrate again" in found.words


def test_either_measure_is_enough_and_neither_counts_what_is_small_or_chance():
    random = np.random.default_rng(1)
    then = random.random(5000)
    bent = measure_drift(random.random(1000) ** 1.5, then)
    assert bent.stale
    assert bent.ks > 0.1
    assert bent.psi < 0.25, "the distribution functions alone"
    gaps = measure_drift(np.floor(10 * random.random(100)) // 2 / 5 + 0.1 * random.random(100), then)
    assert gaps.stale
    assert gaps.p > 0.001
    assert gaps.psi > 0.25, "the shares of the bins alone"
    sure = measure_drift(0.95 * random.random(20_000), then)
    assert sure.p < 1e-6
    assert sure.ks < 0.1
    assert not sure.stale, "as sure as it is small"
    few = [measure_drift(random.random(100), random.random(100)) for _ in range(100)]
    assert sum(found.psi > 0.25 for found in few) > 10
    assert sum(found.stale for found in few) < 5, "two samples of one distribution differ too"


def test_a_few_answers_say_nothing():
    assert measure_drift([0.1] * 99, [0.1] * 500).psi is None
    assert measure_drift([0.1] * 100, [0.1] * 500).psi is not None
    found = measure_drift([0.9] * 20, [0.1] * 500)
    assert (found.ks, found.p, found.psi, found.stale) == (None, None, None, False)
    assert "20 of 100" in found.words


def test_the_stability_index_by_hand():
    then = np.repeat([0.0, 1.0], 50)
    now = np.repeat([0.0, 1.0], [25, 75])
    a, b = np.asarray([25.5, 75.5]) / 101, np.asarray([50.5, 50.5]) / 101
    assert stability_index(now, then, bins=2) == pytest.approx(float(np.sum((a - b) * np.log(a / b))))
    assert stability_index(then, then) == 0
