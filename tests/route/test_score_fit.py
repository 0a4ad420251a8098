from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from edgekit.errors import RouteError
from edgekit.record import from_json, to_json
from edgekit.routing.decision import calibration_fit
from edgekit.routing.decision.calibration_fit import FITTING, CalibrationFit, calibrate, split
from edgekit.routing.decision.fit import describe_prefix, fit_prefix, fit_score, give_up_above, require_enough
from edgekit.routing.decision.metrics import auroc
from edgekit.routing.decision.score import cautious_probability, raw_score, wrong_probability
from edgekit.routing.decision.signals import digest_answer
from edgekit.routing.decision.threshold import fixed_sequence, plan_sequence
from edgekit.types.calibration import Signals
from tests.route.answered import local_answers, probability, signals


def columns(answers):
    return [a.signals for a in answers], [not a.right for a in answers]


def spread_of(score):
    """Distance of the fitted probability from the true one, over difficulties."""
    random = np.random.default_rng(0)
    us = np.linspace(0.05, 0.95, 200)
    found = np.asarray([wrong_probability(score, signals(u, random, noise=0.0)) for u in us])
    return float(np.abs(found - probability(us)).mean())


@pytest.mark.parametrize(("n", "method", "most"), [(3000, "isotonic", 0.05), (120, "platt", 0.15)])
def test_a_fit_recovers_the_truth(n, method, most):
    fitted = fit_score(*columns(local_answers(n, seed=3)))
    assert fitted.score.method == method
    assert spread_of(fitted.score) < most
    ys = [y for _, y in fitted.score.knots]
    xs = [x for x, _ in fitted.score.knots]
    assert all(a <= b for a, b in pairwise(ys))
    assert all(a < b for a, b in pairwise(xs))
    assert 0 < ys[0] < ys[-1] < 1


@pytest.mark.parametrize("n", [250, 1000])
def test_the_one_signal_that_says_all_is_enough(n):
    assert fit_score(*columns(local_answers(n, noise=0.0))).score.features == ("mean_logprob",)


def test_the_simpler_is_preferred_only_where_examples_are_few(monkeypatch):
    told, wrong = columns(local_answers(400, seed=1, noise=0.3))
    assert len(fit_score(told, wrong).score.features) > 1
    monkeypatch.setattr("edgekit.routing.decision.fit.EVENTS", 1000)
    assert len(fit_score(told, wrong).score.features) == 1


def test_a_second_opinion_is_weighed_where_all_answers_have_one():
    answers = local_answers(1200, noise=1.5)
    random = np.random.default_rng(3)
    opinions = [(1.0 if a.right else -1.0) + random.standard_normal() for a in answers]
    told, wrong = columns(answers)
    asked = [replace(s, second_logprob=o) for s, o in zip(told, opinions, strict=True)]
    score = fit_score(asked, wrong).score
    assert "second_logprob" in score.features
    assert score.weights[score.features.index("second_logprob")] < 0
    half = [*asked[:-1], told[-1]]
    assert fit_score(half, wrong).score == fit_score(told, wrong).score
    assert "second_logprob" not in fit_score(told, wrong).score.features
    # Whoever cannot be asked any more counts as wrong.
    assert cautious_probability(score, told[0]) == 1.0


def test_several_weak_signals_are_combined():
    answers = local_answers(2000, noise=1.5)
    told, wrong = columns(answers)
    score = fit_score(told, wrong).score
    assert len(score.features) > 3
    fresh = local_answers(2000, seed=9, noise=1.5)
    bad = np.asarray([not a.right for a in fresh])
    combined = auroc(np.asarray([raw_score(score, a.signals) for a in fresh]), bad)
    alone = auroc(-np.asarray([a.signals.mean_logprob for a in fresh]), bad)
    assert combined > alone + 0.02


def test_the_same_seed_fits_the_same():
    told, wrong = columns(local_answers(300))
    assert fit_score(told, wrong, seed=4).score == fit_score(told, wrong, seed=4).score


def test_held_out_probabilities_are_of_all_examples_but_the_unusable():
    answers = list(local_answers(200))
    answers[7] = replace(answers[7], signals=replace(answers[7].signals, q05=float("nan")))
    answers[8] = replace(answers[8], signals=replace(answers[8].signals, min_logprob=-float("inf")))
    fitted = fit_score(*columns(answers))
    assert np.flatnonzero(np.isnan(fitted.probabilities)).tolist() == [7, 8]


def test_what_cannot_be_judged_is_not_trusted():
    score = fit_score(*columns(local_answers(200))).score
    broken = replace(local_answers(1)[0].signals, **{score.features[0]: float("nan")})
    assert cautious_probability(score, broken) == 1.0
    both = replace(broken, **dict.fromkeys(score.features, float("inf")))
    assert cautious_probability(score, both) == 1.0


def test_constant_signals_are_left_out():
    told, wrong = columns(local_answers(400, noise=1.5))
    told = [replace(s, tokens=1, first_logprob=-0.5) for s in told]
    features = fit_score(told, wrong).score.features
    assert len(features) > 3
    assert not {"log_tokens", "first_logprob"} & set(features)


def test_signals_that_are_all_alike_are_refused():
    told, wrong = columns(local_answers(100))
    with pytest.raises(RouteError, match="same signals"):
        fit_score([told[0]] * 100, wrong)
    other = replace(told[0], mean_logprob=told[0].mean_logprob - 1)
    with pytest.raises(RouteError, match="same signals"):
        fit_score([other] * 9 + [told[0]] * 91, wrong)
    assert fit_score([other] * 10 + [told[0]] * 90, wrong).score.features == ("mean_logprob",)


def test_those_tied_at_the_threshold_are_all_served():
    """Two probabilities only: the threshold is the lower one."""
    one, random = local_answers(1)[0].signals, np.random.default_rng(0)
    answers = []
    for i, a in enumerate(local_answers(600)):
        sure = i % 2 == 0
        right = bool(random.random() < (0.98 if sure else 0.4))
        answers.append(replace(a, right=right, signals=replace(one, mean_logprob=-0.1 if sure else -2.0)))
    found = calibrate(answers, guarantee=(0.1, 0.05))
    assert found.threshold in found.scores
    assert found.served == found.guarantee.served == sum(s <= found.threshold for s in found.scores) > 100


def test_ties_are_one_probability():
    """Two values only: two probabilities, and each is near the share of its own."""
    told, wrong = columns(local_answers(1000))
    sure = [bool(s.mean_logprob > -0.8) for s in told]
    two = [replace(told[0], mean_logprob=-0.1 if s else -2.0) for s in sure]
    score = fit_score(two, wrong).score
    for kind, value in ((True, -0.1), (False, -2.0)):
        share = np.mean([w for w, s in zip(wrong, sure, strict=True) if s is kind])
        assert wrong_probability(score, replace(told[0], mean_logprob=value)) == pytest.approx(share, abs=0.01)


def test_few_examples_that_are_told_apart_leave_as_much_doubt_as_platt_s_targets():
    """Two values, all of one right and all of the other wrong: (wrong + 1) / (wrong + 2), and 1 / (right + 2)."""
    one = local_answers(1)[0].signals
    wrong = [i < 20 for i in range(60)]
    score = fit_score([replace(one, mean_logprob=-2.0 if bad else -0.1) for bad in wrong], wrong).score
    assert score.method == "platt"
    for logprob, expected in ((-2.0, 21 / 22), (-0.1, 1 / 42)):
        assert wrong_probability(score, replace(one, mean_logprob=logprob)) == pytest.approx(expected, rel=0.01)


def test_a_score_that_says_nothing_gives_the_base_rate():
    random = np.random.default_rng(1)
    told = [signals(random.random(), random) for _ in range(1000)]
    wrong = [bool(random.random() < 0.3) for _ in told]
    score = fit_score(told, wrong).score
    assert np.mean([wrong_probability(score, s) for s in told]) == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize(
    ("n", "right", "words", "hint"),
    [
        (20, 10, "20 examples are too few", "at least 30"),
        (100, 100, "all 100 answers are right", "mixed difficulty"),
        (100, 0, "all 100 answers are wrong", "mixed difficulty"),
        (100, 98, "only 2 of 100 answers are wrong: at least 5", "more examples"),
    ],
)
def test_too_little_to_learn_from_says_how_much_it_takes(n, right, words, hint):
    told = [a.signals for a in local_answers(n)]
    with pytest.raises(RouteError, match=words) as raised:
        fit_score(told, [i >= right for i in range(n)])
    assert hint in raised.value.hint


# --- giving up early ----------------------------------------------------------------------------


def test_giving_up_loses_few_that_would_stand_and_catches_others():
    found = calibrate(local_answers(2000), prefix_tokens=16)
    assert found.prefix.tokens == 16
    assert found.prefix.lost < 0.06
    assert found.prefix.caught > 0.3


def test_without_a_prefix_nothing_is_given_up():
    assert calibrate(local_answers(200, prefix=False), prefix_tokens=16).prefix is None
    assert calibrate(local_answers(200), prefix_tokens=0).prefix is None
    assert fit_prefix([None] * 50, [True, False] * 25) is None


def test_a_prefix_that_catches_nothing_is_not_kept():
    score = fit_score(*columns(local_answers(200))).score
    served = np.arange(100) < 50
    prefix = np.full(100, 0.5)
    assert describe_prefix(16, score, 0.5, prefix, served) is None
    prefix[60:80] = 0.9
    kept = describe_prefix(16, score, 0.5, prefix, served)
    assert (kept.caught, kept.lost) == (0.4, 0.0)
    # One of the twenty that are passed on is just enough, none of 21 is more than that.
    served, prefix = np.arange(40) < 20, np.where(np.arange(40) == 30, 0.9, 0.5)
    assert describe_prefix(16, score, 0.5, prefix, served).caught == 0.05
    assert describe_prefix(16, score, 0.5, np.append(prefix, 0.5), np.append(served, False)) is None


def test_the_prefix_s_threshold_loses_two_percent_at_most():
    random = np.random.default_rng(0)
    prefix, whole = random.random(1000), random.random(1000)
    above = give_up_above(prefix, whole, 0.5)
    assert (prefix[whole <= 0.5] > above).mean() <= 0.02
    assert give_up_above(np.full(5, np.nan), whole[:5], 0.5) == float("inf")
    at_the_threshold = np.array([0.2, 0.5, 0.51])
    assert give_up_above(np.array([0.1, 0.8, 0.9]), at_the_threshold, 0.5) == 0.8


# --- calibrating --------------------------------------------------------------------------------


def test_the_split_has_right_and_wrong_ones_alike_and_each_example_once():
    wrong = np.arange(1001) % 7 == 0
    parts = split(wrong, 0.4, seed=2)
    assert sorted([*parts.fit, *parts.threshold]) == list(range(1001))
    assert len(parts.fit) == pytest.approx(400, abs=1)
    assert wrong[parts.fit].mean() == pytest.approx(wrong.mean(), abs=0.002)
    assert not np.array_equal(parts.fit, split(wrong, 0.4, seed=3).fit)


def test_a_calibration_says_how_good_it_is():
    found = calibrate(local_answers(1500))
    assert found.threshold == 0.5
    assert (found.guarantee, found.infeasible) == (None, None)
    assert found.n_fit + found.n_threshold == 1500
    assert found.right == sum(a.right for a in local_answers(1500))
    assert 0.75 < found.auroc.low < found.auroc.value < found.auroc.high < 0.95
    assert found.ece < 0.12
    assert found.n_threshold == 375
    assert found.brier < 0.2
    assert len(found.scores) == found.n_threshold
    assert list(found.scores) == sorted(found.scores)
    assert found.coverage == np.mean([s <= 0.5 for s in found.scores])
    entropy = found.contenders[0]
    assert entropy.signal == "mean_entropy"
    assert entropy.advantage.low > 0
    assert entropy.advantage.value == pytest.approx(found.auroc.value - entropy.auroc.value)
    assert from_json(CalibrationFit, to_json(found)) == found


def test_contenders_are_turned_so_that_larger_is_likelier_wrong():
    """Entropy rises with the chance of being wrong and the log-probability falls: either must be better than chance."""
    random = np.random.default_rng(99)
    answers = local_answers(1500)
    entropy, logprob = calibrate(answers).contenders
    assert (entropy.signal, logprob.signal) == ("mean_entropy", "mean_logprob")
    for contender in (entropy, logprob):
        assert contender.auroc.low > 0.6
        assert contender.advantage.value < 0.4
    # A signal that says nothing is neither.
    noise = [replace(a, signals=replace(a.signals, mean_entropy=float(random.random()))) for a in answers]
    blind, _ = calibrate(noise).contenders
    assert blind.auroc.low < 0.5 < blind.auroc.high
    assert blind.advantage.low > 0


def test_a_guarantee_holds_its_own_bound():
    found = calibrate(local_answers(3000), guarantee=(0.1, 0.05), prefix_tokens=16)
    kept = found.guarantee
    assert (kept.alpha, kept.delta, kept.n) == (0.1, 0.05, found.n_threshold)
    assert kept.bound <= 0.1
    assert kept.coverage == kept.served / kept.n > 0.1
    assert found.threshold < 0.5


def test_what_is_promised_is_of_what_is_served():
    found = calibrate(local_answers(3000), guarantee=(0.1, 0.05))
    kept = found.guarantee
    assert (found.served, found.failures) == (kept.served, kept.failures)
    assert 0 < found.failures < found.served < found.n_threshold
    assert found.coverage == found.served / found.n_threshold


def test_a_sequence_is_planned_for_the_other_part_and_tested_with_what_is_given_up(monkeypatch):
    planned, tested = [], []
    monkeypatch.setattr(
        calibration_fit, "plan_sequence", lambda *a, **more: planned.append(a) or plan_sequence(*a, **more)
    )
    monkeypatch.setattr(
        calibration_fit, "fixed_sequence", lambda *a, **more: tested.append((*a, more)) or fixed_sequence(*a, **more)
    )
    found = calibrate(local_answers(600), guarantee=(0.3, 0.1), prefix_tokens=16)
    ((probabilities, wrong, n),) = planned
    assert (len(probabilities), len(wrong), n) == (found.n_fit, found.n_fit, found.n_threshold)
    assert found.n_fit != found.n_threshold
    ((rules, probabilities, wrong, more),) = tested
    assert len(probabilities) == len(wrong) == len(more["prefix"]) == found.n_threshold
    assert np.isfinite(more["prefix"]).any()
    assert len({rule.give_up for rule in rules}) > 1, "each threshold has its own"


def test_an_infeasible_guarantee_serves_nothing():
    found = calibrate(local_answers(200), guarantee=(0.01, 0.05))
    assert found.guarantee is None
    assert found.infeasible.n == found.n_threshold
    assert (found.threshold, found.served) == (0.0, 0)


def test_unusable_answers_are_counted_and_never_served():
    answers = list(local_answers(400))
    nothing = Signals(0, *[float("nan")] * 10)
    answers[:9] = [replace(a, right=True, signals=nothing) for a in answers[:9]]
    found = calibrate(answers)
    assert found.unusable == 9
    wrong = np.asarray([not a.right for a in answers])
    test = split(wrong, FITTING, 0).threshold
    raws = np.asarray([raw_score(found.score, answers[i].signals) for i in test])
    assert found.auroc.value == auroc(np.where(np.isnan(raws), np.inf, raws), wrong[test]), "they are passed on first"
    of_test = sum(i < 9 for i in test)
    assert of_test > 0
    assert sum(s == 1.0 for s in found.scores) == of_test


def test_an_example_counts_once():
    answers = local_answers(100)
    with pytest.raises(RouteError, match="duplicate answer to 'q0-0'"):
        calibrate([*answers, answers[0]])


def test_both_parts_need_enough():
    with pytest.raises(RouteError, match="39 examples") as raised:
        calibrate(local_answers(39))
    assert "at least 40" in raised.value.hint
    with pytest.raises(RouteError, match="74 examples"):
        calibrate(local_answers(74), guarantee=(0.1, 0.1))
    require_enough(np.arange(30) < 5)
    require_enough(np.arange(60) >= 10, share=0.5)
    for wrong, share in (
        (np.arange(29) < 5, 1), (np.arange(30) < 4, 1), (np.arange(30) >= 4, 1),
        (np.arange(59) < 10, 0.5), (np.arange(60) < 9, 0.5), (np.arange(60) >= 9, 0.5),
    ):  # fmt: skip
        with pytest.raises(RouteError):
            require_enough(wrong, share=share)


def biased(n: int, seed: int, *, frequent: bool = True):
    """Two answers, equally sure of themselves; one of them is wrong three times as often."""
    random = np.random.default_rng(seed)
    found, wrong = [], []
    for i in range(n):
        yes = bool(random.random() < 0.5)
        answer = digest_answer("yes" if yes else "no", 1) if frequent else digest_answer(f"answer {i}", 3)
        found.append(replace(signals(random.random(), random), answer=answer))
        wrong.append(bool(random.random() < (0.6 if yes else 0.2)))
    return found, wrong


def test_an_answer_that_is_given_too_readily_is_trusted_less():
    fitted = fit_score(*biased(600, 1))
    assert {f for f in fitted.score.features if f.startswith("answer:")} == {
        f"answer:{digest_answer(word, 1)}" for word in ("yes", "no")
    }
    found, wrong = biased(600, 2)
    told = [wrong_probability(fitted.score, s) for s in found]
    assert auroc(np.asarray(told), np.asarray(wrong)) > 0.65
    yes, no = (replace(found[0], answer=digest_answer(word, 1)) for word in ("yes", "no"))
    other = replace(found[0], answer=digest_answer("perhaps", 1))
    assert wrong_probability(fitted.score, yes) > wrong_probability(fitted.score, other)
    assert wrong_probability(fitted.score, other) > wrong_probability(fitted.score, no)


@pytest.mark.parametrize("bad", ["yes", "no"])
def test_the_answer_may_be_all_that_varies(bad):
    """Two words, one of them too rarely right to be weighed: nothing says beforehand which way the other one points."""
    told = local_answers(1)[0].signals
    said = ["yes"] * 60 + ["no"] * 60
    wrong = [word == bad for word in said]
    for at, word in enumerate(said):
        # Six of "yes" turned out otherwise and two of "no", which are too few of a kind.
        if at % 60 < (6 if word == "yes" else 2):
            wrong[at] = not wrong[at]
    yes, no = (replace(told, answer=digest_answer(word, 1)) for word in ("yes", "no"))
    score = fit_score([yes if word == "yes" else no for word in said], wrong).score
    assert score.features == (f"answer:{yes.answer}",)
    found = {"yes": wrong_probability(score, yes), "no": wrong_probability(score, no)}
    assert max(found, key=lambda word: found[word]) == bad
    assert max(found.values()) > 0.8
    assert min(found.values()) < 0.2


def test_answers_that_come_once_are_not_weighed():
    fitted = fit_score(*biased(600, 1, frequent=False))
    assert not [f for f in fitted.score.features if f.startswith("answer:")]
