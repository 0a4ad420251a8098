"""Who answers: plain cases by hand, and what must hold of any input."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from random import Random

import pytest

from edgekit.routing.decision.decide import decide, escalate
from edgekit.routing.decision.prechecks import DEVICE_CHECKS, HARD, TIER_CHECKS
from edgekit.types import Sampling
from edgekit.types.routing import (
    DEVICE,
    TRUST,
    Bounds,
    Budget,
    Finding,
    OnDevice,
    Policy,
    Price,
    Privacy,
    PrivacyRule,
    Request,
    Unfit,
    Unknown,
    Verdict,
)
from tests.route.cases import (
    BOX,
    CLOUD,
    COUNTS,
    OPEN,
    POLICY,
    REQUEST,
    STATE,
    measured,
    random_policy,
    random_request,
    random_state,
)


def finding(verdict: Verdict, tier: str, check: str) -> Finding:
    (found,) = [f for f in verdict.findings if (f.tier, f.check) == (tier, check)]
    return found


def test_nothing_against_the_device() -> None:
    verdict = decide(REQUEST, POLICY, STATE, measured())
    assert (verdict.tier, verdict.code, verdict.degraded) == (DEVICE, "local", False)
    assert verdict.ladder == ("box", "cloud", "premium")
    assert verdict.reason == "the device passes all checks"
    assert verdict.expected.seconds is not None
    assert "unknown: latency" in decide(REQUEST, replace(POLICY, bounds=Bounds(seconds=9)), STATE).reason


def test_a_prompt_that_does_not_fit_goes_to_the_first_that_it_fits() -> None:
    long = replace(REQUEST, tokens=(("device", 3012), ("box", 40000), ("cloud", 3916), ("premium", 3916)))
    verdict = decide(long, POLICY, STATE)
    assert (verdict.tier, verdict.code, verdict.ladder) == ("cloud", "context", ("premium",))
    assert verdict.reason == (
        "the prompt's 3,012 tokens and 256 new ones do not fit the device's context of 2,048: cloud answers"
    )
    assert finding(verdict, "box", "context").detail == (
        "the prompt's about 40,000 tokens and 256 new ones do not fit box's context of 32,768"
    )
    assert finding(verdict, DEVICE, "context").value == 3268
    assert finding(verdict, DEVICE, "context").limit == 2048
    assert verdict.expected.cost == CLOUD.price.cost(3916, 256)  # type: ignore[union-attr]
    assert verdict.expected.seconds == pytest.approx(0.5 + 255 / 100)


def test_longer_than_every_tier() -> None:
    verdict = decide(replace(REQUEST, tokens=tuple((name, 10**6) for name, _ in COUNTS)), POLICY, STATE)
    assert (verdict.tier, verdict.code, verdict.ladder, verdict.degraded) == ("", "context", (), False)
    for limit in ("2,048", "32,768", "128,000"):
        assert limit in verdict.reason
    assert verdict.reason.endswith("no tier can answer")


SECRET = Privacy(rules=(PrivacyRule("r", "secret", "device"),))


@pytest.mark.parametrize(
    ("request_", "privacy", "allowed"),
    [
        (REQUEST, Privacy("device"), ()),
        (REQUEST, Privacy("private"), ("box",)),
        (REQUEST, Privacy(), ("box", "cloud", "premium")),
        (replace(REQUEST, override="cloud-ok"), Privacy("device"), ("box", "cloud", "premium")),
        (replace(REQUEST, override="local-only"), Privacy(), ()),
        (replace(REQUEST, private="a.txt is private"), Privacy(), ()),
        (replace(REQUEST, private="a.txt is private", override="cloud-ok"), Privacy(), ()),
        (REQUEST, Privacy(rules=(PrivacyRule("r", "CAPITAL of", "device"),)), ()),
        (REQUEST, Privacy(rules=(PrivacyRule("r", "capital", "private"),)), ("box",)),
        (replace(REQUEST, override="cloud-ok"), Privacy("device", (PrivacyRule("r", "capital", "private"),)), ("box",)),
        (REQUEST, Privacy(rules=(PrivacyRule("a", "capital", "private"), PrivacyRule("b", "france", "device"))), ()),
        (replace(REQUEST, passthrough='{"t": "sec\\u0072et"}'), SECRET, ()),
        (replace(REQUEST, schema='{"title": "secret"}'), SECRET, ()),
        (replace(REQUEST, sampling=Sampling(stop=("secret",))), SECRET, ()),
        (REQUEST, Privacy(rules=(PrivacyRule("r", "(", "device"),)), ()),
        (REQUEST, Privacy(rules=(PrivacyRule("r", "berlin", "device"),)), ("box", "cloud", "premium")),
    ],
)  # fmt: skip
def test_privacy_stands_above_everything(request_: Request, privacy: Privacy, allowed: tuple[str, ...]) -> None:
    policy = replace(POLICY, privacy=privacy, device=OnDevice(can=frozenset({"json-schema"})))
    assert decide(request_, policy, STATE).ladder == allowed
    # Where the device cannot answer either, nobody else sees it.
    broken = decide(request_, policy, replace(STATE, context=1))
    assert broken.tier == (allowed[0] if allowed else "")
    assert broken.code == "context"


def test_a_tier_with_the_trust_of_the_device_is_another_program_all_the_same() -> None:
    policy = Policy("p", (replace(BOX, trust="device"),))
    assert decide(REQUEST, policy, STATE).ladder == ("box",)
    assert decide(replace(REQUEST, override="local-only"), policy, STATE).ladder == ()


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"battery_percent": 12.0, "on_battery": True}, "battery", "the battery is at 12 %, below 20 %"),
        ({"celsius": 91.2}, "thermal", "the processor is at 91 °C, above 80 °C"),
        ({"free_memory": 1 << 28}, "memory", "answering needs 268 MB of 268 MB free, 100 MB of which must stay free"),
        ({"waiting": 30.0}, "latency", "30.3 s expected to the first token, above 5 s (30 s of it waiting)"),
    ],
)
def test_the_moment_may_stand_against_the_device(changes: dict[str, float], code: str, said: str) -> None:
    bounds = Bounds(seconds_to_first=5, least_battery=20, most_celsius=80, free_memory=100_000_000)
    cool = replace(STATE, battery_percent=90.0, on_battery=True, celsius=50.0)
    policy = replace(POLICY, bounds=bounds)
    assert decide(REQUEST, policy, cool, measured()).tier == DEVICE
    verdict = decide(REQUEST, policy, replace(cool, **changes), measured())
    assert (verdict.tier, verdict.code) == ("box", code)
    assert verdict.reason == f"{said}: box answers"
    alone = decide(REQUEST, replace(policy, tiers=()), replace(cool, **changes), measured())
    assert alone.code == code
    # Without memory it would be killed; the rest it can do badly.
    assert (alone.tier, alone.degraded) == (("", False) if code == "memory" else (DEVICE, True))
    refused = decide(REQUEST, replace(policy, tiers=(), last_resort="refuse"), replace(cool, **changes), measured())
    assert (refused.tier, refused.degraded) == ("", False)


def test_a_charger_is_enough() -> None:
    policy = replace(POLICY, bounds=Bounds(least_battery=20))
    low = replace(STATE, battery_percent=5.0, on_battery=False)
    assert decide(REQUEST, policy, low).tier == DEVICE
    assert finding(decide(REQUEST, policy, low), DEVICE, "battery").detail == "a charger is connected"
    assert finding(decide(REQUEST, policy, replace(low, on_battery=None)), DEVICE, "battery").outcome == "unknown"


@pytest.mark.parametrize(
    ("check", "words"),
    [("latency", "no measurement"), ("battery", "is unknown"), ("thermal", "is unknown"),
     ("memory", "is unknown"), ("language", "could not be detected")],
)  # fmt: skip
def test_unknown_falls_as_the_policy_says(check: str, words: str) -> None:
    policy = replace(
        POLICY,
        bounds=Bounds(seconds=9, least_battery=20, most_celsius=80),
        device=OnDevice(languages=frozenset({"en"})),
    )
    blind = replace(STATE, free_memory=None)
    stays = decide(REQUEST, policy, blind)
    assert stays.tier == DEVICE
    assert finding(stays, DEVICE, check).outcome == "unknown"
    assert "is 'local'" in finding(stays, DEVICE, check).detail
    leaves = decide(REQUEST, replace(policy, unknown=Unknown(**{check: "cloud"})), blind)  # type: ignore[arg-type]
    assert (leaves.tier, leaves.code) == ("box", check)
    assert "'cloud'" in leaves.reason
    assert words in leaves.reason
    alone = replace(policy, unknown=Unknown(**{check: "cloud"}), tiers=())  # type: ignore[arg-type]
    assert decide(REQUEST, alone, blind).degraded


def test_capability_and_language() -> None:
    tools = decide(replace(REQUEST, needs=frozenset({"tools", "images"})), POLICY, STATE)
    assert (tools.tier, tools.code) == ("cloud", "capability")
    assert tools.reason == "the request needs images and tools, which the device does not support: cloud answers"
    schema = decide(replace(REQUEST, schema="{}"), POLICY, STATE)
    assert (schema.tier, schema.code) == ("box", "capability")
    english = replace(POLICY, device=OnDevice(languages=frozenset({"en"})))
    finnish = decide(replace(REQUEST, language="fi"), english, STATE)
    assert (finnish.tier, finnish.code) == ("box", "language")
    assert finnish.reason == "the request is in 'fi'; the device's languages are en: box answers"
    # Nobody speaks it: the device answers as the last resort.
    nobody = replace(english, tiers=(replace(BOX, languages=frozenset({"en"})),))
    assert decide(replace(REQUEST, language="fi"), nobody, STATE).degraded


def test_longer_answers_than_a_tier_writes() -> None:
    policy = replace(POLICY, device=OnDevice(max_output=100), tiers=(replace(BOX, max_output=200), CLOUD))
    verdict = decide(REQUEST, policy, STATE)
    assert (verdict.tier, verdict.code) == ("cloud", "context")
    assert verdict.reason.startswith("256 new tokens are more than the device's max_output of 100")
    assert finding(verdict, "box", "context").limit == 200


def test_an_answer_without_a_limit_stays_where_the_prompt_fits() -> None:
    """Not said is not a value: neither a usual length nor the whole context is held against the device."""
    for prompt, tier in ((2047, DEVICE), (2048, "box")):
        long = replace(OPEN, tokens=(("device", prompt), *COUNTS[1:]))
        verdict = decide(long, POLICY, STATE, measured())
        assert (verdict.tier, verdict.code) == (tier, "local" if tier == DEVICE else "context")
        assert finding(verdict, DEVICE, "context").value == prompt + 1
    strict = replace(POLICY, device=OnDevice(max_output=100), bounds=Bounds(seconds=1, seconds_to_first=1))
    verdict = decide(OPEN, strict, STATE, measured())
    assert (verdict.tier, verdict.expected.most_new) == (DEVICE, 100)
    assert finding(verdict, DEVICE, "latency").outcome == "unknown"
    assert "does not limit its answer" in finding(verdict, DEVICE, "latency").detail
    assert decide(OPEN, replace(strict, unknown=Unknown(latency="cloud")), STATE, measured()).code == "latency"
    late = replace(strict, bounds=Bounds(seconds_to_first=0.1))
    assert decide(OPEN, late, STATE, measured()).code == "latency"


@pytest.mark.parametrize(
    ("changes", "budget", "spent", "told", "cost"),
    [
        ({}, Budget(), 0.0, None, (130 + 4 * 127_870) / 1e6),
        ({"context": None}, Budget(), 0.0, None, None),
        ({"max_output": 1000}, Budget(), 0.0, 1000, (130 + 4 * 1000) / 1e6),
        ({"max_output": 200_000}, Budget(), 0.0, 127_870, (130 + 4 * 127_870) / 1e6),
        ({}, Budget(per_request=0.04013), 0.0, 10_000, 0.04013),
        ({}, Budget(per_request=9.0), 0.0, None, (130 + 4 * 127_870) / 1e6),
        ({"context": None}, Budget(per_day=1.0), 0.95987, 10_000, 0.04013),
        ({"context": None, "price": Price(1, 0)}, Budget(per_day=1.0), 0.0, None, 0.00013),
    ],
)
def test_what_an_endpoint_is_told_where_nobody_limits_the_answer(changes, budget, spent, told, cost) -> None:
    tier = replace(CLOUD, **changes)
    policy = replace(POLICY, tiers=(tier,), budget=budget)
    verdict = decide(OPEN, policy, replace(STATE, context=1, spent_today=spent))
    assert verdict.tier == "cloud"
    assert verdict.expected.most_new == told
    assert verdict.expected.cost == (None if cost is None else pytest.approx(cost))
    assert verdict.expected.seconds is None


def test_a_budget_that_buys_no_token_is_spent() -> None:
    policy = replace(POLICY, tiers=(CLOUD,), budget=Budget(per_day=1.0))
    verdict = decide(OPEN, policy, replace(STATE, context=1, spent_today=1.0))
    assert verdict.tier == ""
    assert finding(verdict, "cloud", "money").outcome == "fail"


@pytest.mark.parametrize("check", ["template", "no-template", "empty"])
def test_what_the_model_cannot_be_fed_does_not_leave_for_that_alone(check) -> None:
    unfit = replace(OPEN, tokens=COUNTS[1:], unfit=Unfit(check, "System role not supported"))
    # What was not counted has no number, and that is no reason either.
    for policy in (POLICY, replace(POLICY, bounds=Bounds(seconds=1), unknown=Unknown(latency="cloud"))):
        verdict = decide(unfit, policy, STATE, measured())
        assert (verdict.tier, verdict.code, verdict.ladder) == ("", check, ())
        assert verdict.reason == "System role not supported"
        assert decide(unfit, replace(policy, tiers=()), STATE).code == check
    tools = decide(replace(unfit, needs=frozenset({"tools"})), POLICY, STATE)
    assert (tools.tier, tools.code) == ("cloud", "capability")
    hot = decide(unfit, replace(POLICY, bounds=Bounds(most_celsius=50)), replace(STATE, celsius=99.0))
    assert (hot.tier, hot.code) == ("box", "thermal")
    # It is no last resort: there is nothing to feed it.
    lone = decide(unfit, replace(POLICY, tiers=(), bounds=Bounds(most_celsius=50)), replace(STATE, celsius=99.0))
    assert (lone.tier, lone.degraded) == ("", False)


def test_money() -> None:
    big = replace(REQUEST, needs=frozenset({"tools"}), sampling=Sampling(max_new_tokens=10_000))
    # cloud: 130 tokens at 1 and 10,000 at 4 a million.
    dear = decide(big, replace(POLICY, budget=Budget(per_request=0.04)), STATE)
    assert (dear.tier, dear.code) == ("", "capability")
    assert finding(dear, "cloud", "money").value == pytest.approx(0.04013)
    assert finding(dear, "cloud", "money").detail == "up to 0.04 USD for one request, above 0.04"
    assert decide(big, replace(POLICY, budget=Budget(per_request=0.05)), STATE).tier == "cloud"
    spent = decide(big, replace(POLICY, budget=Budget(per_day=1.0)), replace(STATE, spent_today=0.97))
    assert spent.tier == ""
    assert "0.97 of today's 1.00 already spent" in spent.reason
    blind = replace(POLICY, tiers=(replace(CLOUD, price=None),), budget=Budget(per_day=1.0))
    assert finding(decide(big, blind, STATE), "cloud", "money").outcome == "fail"
    assert decide(big, replace(blind, budget=Budget()), STATE).tier == "cloud"


def test_who_is_down_is_passed_over() -> None:
    state = replace(STATE, context=1, unreachable=(("box", "no answer since 12:03"),))
    verdict = decide(REQUEST, POLICY, state)
    assert (verdict.tier, verdict.ladder) == ("cloud", ("premium",))
    assert finding(verdict, "box", "reachable").detail == "box is unavailable: no answer since 12:03"


def test_what_is_not_known_of_a_tier_does_not_stand_against_it() -> None:
    bare = replace(BOX, context=None, price=None)
    verdict = decide(replace(REQUEST, tokens=(("device", 9999),)), Policy("p", (bare,)), STATE)
    assert verdict.tier == "box"
    assert finding(verdict, "box", "context").outcome == "unknown"
    counted = decide(replace(REQUEST, tokens=(("device", 9999), ("box", 9999))), Policy("p", (bare,)), STATE)
    assert finding(counted, "box", "context").detail.endswith("the context is unknown")


def test_a_prompt_the_device_cannot_count_is_none_it_can_answer() -> None:
    verdict = decide(replace(REQUEST, tokens=COUNTS[1:]), POLICY, STATE)
    assert (verdict.tier, verdict.code) == ("box", "context")


def test_a_slow_tier_is_better_than_nobody() -> None:
    policy = replace(POLICY, tiers=(CLOUD,), bounds=Bounds(seconds=1))
    verdict = decide(REQUEST, policy, replace(STATE, context=1))
    assert (verdict.tier, verdict.degraded) == ("cloud", False)
    assert "cloud answers as the last resort" in verdict.reason
    assert decide(REQUEST, replace(policy, last_resort="refuse"), replace(STATE, context=1)).tier == ""


QUALITY = Finding("quality", DEVICE, "fail", "the probability of being wrong is 0.40, above 0.25", 0.4, 0.25)
DOWN = Finding("reachable", "box", "fail", "box is unavailable: timed out")


def test_up_the_ladder_to_its_end_and_back_to_the_device() -> None:
    verdict = decide(REQUEST, POLICY, STATE)
    for step, found in (("box", QUALITY), ("cloud", DOWN), ("premium", replace(DOWN, tier="cloud"))):
        verdict = escalate(verdict, found, REQUEST, POLICY, STATE)
        assert (verdict.tier, verdict.code) == (step, "quality")
        assert verdict.reason == f"{found.detail}: {step} answers"
    assert verdict.ladder == ()
    last = escalate(verdict, replace(DOWN, tier="premium", detail="premium is down"), REQUEST, POLICY, STATE)
    assert (last.tier, last.degraded, last.code) == (DEVICE, True, "reachable")
    assert last.reason.endswith("the device answers as the last resort")
    assert finding(last, "box", "reachable") == DOWN
    refusing = replace(POLICY, last_resort="refuse")
    assert escalate(verdict, replace(DOWN, tier="premium"), REQUEST, refusing, STATE).tier == ""


def test_memory_is_what_is_free_less_what_stays_free() -> None:
    policy = replace(POLICY, bounds=Bounds(free_memory=100))
    for free, outcome in ((1099, "fail"), (1100, "pass")):
        state = replace(STATE, memory_needed=1000, free_memory=free)
        found = finding(decide(REQUEST, policy, state), DEVICE, "memory")
        assert (found.outcome, found.value, found.limit) == (outcome, 1000.0, free - 100.0)
    for missing, words in (("free_memory", "the free memory"), ("memory_needed", "the memory needed to answer")):
        blind = decide(REQUEST, policy, replace(STATE, **{missing: None}))  # type: ignore[arg-type]
        assert f"{words} is unknown" in finding(blind, DEVICE, "memory").detail


def test_a_limit_of_seconds_may_be_reached_and_not_passed() -> None:
    expected = finding(decide(REQUEST, replace(POLICY, bounds=Bounds(seconds=1e6)), STATE), "cloud", "latency").value
    assert expected
    for seconds, outcome in ((expected, "pass"), (expected * (1 - 1e-9), "fail")):
        policy = replace(POLICY, bounds=Bounds(seconds=seconds))
        assert finding(decide(REQUEST, policy, STATE), "cloud", "latency").outcome == outcome


def test_who_answers_next_is_told_with_its_own_expectation() -> None:
    quick, slow = replace(CLOUD, name="quick", tokens_per_second=400), replace(CLOUD, name="slow", tokens_per_second=1)
    policy = replace(POLICY, tiers=(quick, slow))
    next_one = escalate(decide(REQUEST, policy, STATE), QUALITY, REQUEST, policy, STATE)
    assert (next_one.tier, next_one.ladder) == ("quick", ("slow",))
    alone = escalate(decide(REQUEST, policy, STATE), QUALITY, REQUEST, replace(policy, tiers=(quick,)), STATE)
    assert next_one.expected == alone.expected


def test_an_endpoint_whose_answer_failed_is_not_asked_again() -> None:
    policy = replace(POLICY, tiers=(replace(BOX, languages=frozenset({"en"})),))
    asked = replace(REQUEST, language="fi")
    verdict = decide(asked, policy, replace(STATE, context=1))
    assert verdict.tier == "box"
    cut = Finding("ended", "box", "fail", "the answer was cut off at its token limit")
    assert escalate(verdict, cut, asked, policy, replace(STATE, context=1)).tier == ""


def test_escalation_looks_at_money_reach_and_privacy_again() -> None:
    verdict = decide(REQUEST, replace(POLICY, budget=Budget(per_day=1.0)), STATE)
    broke = escalate(
        verdict, QUALITY, REQUEST, replace(POLICY, budget=Budget(per_day=1.0)), replace(STATE, spent_today=1.0)
    )
    assert (broke.tier, broke.ladder) == ("box", ())  # box is free
    down = escalate(verdict, QUALITY, REQUEST, POLICY, replace(STATE, unreachable=(("box", "x"), ("cloud", "y"))))
    assert (down.tier, down.ladder) == ("premium", ())
    private = escalate(verdict, QUALITY, replace(REQUEST, private="a.txt"), POLICY, STATE)
    assert (private.tier, private.degraded) == (DEVICE, True)


def test_a_device_that_broke_down_is_no_last_resort() -> None:
    verdict = decide(REQUEST, replace(POLICY, tiers=()), STATE)
    broken = Finding("reachable", DEVICE, "fail", "the session died")
    assert escalate(verdict, broken, REQUEST, replace(POLICY, tiers=()), STATE).tier == ""


@pytest.mark.parametrize("seed", range(600))
def test_what_holds_of_any_input(seed: int) -> None:
    random = Random(seed)
    policy = random_policy(random)
    request, state = random_request(random, policy), random_state(random, policy)
    measurement = random.choice([None, measured()])
    verdict = decide(request, policy, state, measurement)
    decide(REQUEST, POLICY, STATE)  # what was decided before has no part in it
    assert repr(verdict) == repr(decide(*deepcopy((request, policy, state, measurement))))
    places = [(f.tier, f.check) for f in verdict.findings]
    assert len(set(places)) == len(places)
    assert len(places) == bool(request.unfit) + len(DEVICE_CHECKS) + len(TIER_CHECKS) * len(policy.tiers)
    while True:
        _hold(verdict, request, policy)
        if (verdict.tier in ("", DEVICE) and verdict.degraded) or verdict.tier == "":
            break
        failed = Finding(random.choice(["quality", "ended"]) if verdict.tier == DEVICE else "reachable",
                         verdict.tier, "fail", "it failed")  # fmt: skip
        state = random_state(random, policy)
        before, verdict = verdict, escalate(verdict, failed, request, policy, state, measurement)
        assert verdict.tier != before.tier or verdict.degraded
        assert set(verdict.ladder) <= set(before.ladder)
        assert failed in verdict.findings


def test_the_random_inputs_lead_everywhere() -> None:
    verdicts = []
    for seed in range(600):
        random = Random(seed)
        policy = random_policy(random)
        request, state = random_request(random, policy), random_state(random, policy)
        verdicts.append(decide(request, policy, state, random.choice([None, measured()])))
    assert {v.code for v in verdicts} == {"local", "capability", "language", "context", "memory", *_SOFT, *_UNFIT}
    for plain in (lambda v: v.tier == "", lambda v: v.degraded, lambda v: v.tier == DEVICE and not v.degraded):
        assert sum(map(plain, verdicts)) > 40
    assert sum(v.tier.startswith("t") for v in verdicts) > 50
    assert sum(len(v.ladder) > 1 for v in verdicts) > 50


_SOFT = ("latency", "battery", "thermal")
_UNFIT = ("template", "empty")


def _hold(verdict: Verdict, request: Request, policy: Policy) -> None:
    tiers = {tier.name: tier for tier in policy.tiers}
    order = list(tiers)
    assert verdict.reason
    assert verdict.tier in ("", DEVICE, *order)
    places = [(f.tier, f.check) for f in verdict.findings]
    assert len(set(places)) == len(places)
    for name in (*([verdict.tier] if verdict.tier in tiers else []), *verdict.ladder):
        # Privacy, computed anew from its definition.
        assert not request.private
        assert request.override != "local-only"
        text = request.text + request.passthrough + request.schema
        for rule in policy.privacy.rules:
            if rule.match in text and len(text) < 1000 and '"data:' not in text:
                assert TRUST.index(tiers[name].trust) <= TRUST.index(rule.ceiling)
                assert rule.ceiling != DEVICE
        if request.override != "cloud-ok":
            assert policy.privacy.ceiling != DEVICE
            assert TRUST.index(tiers[name].trust) <= TRUST.index(policy.privacy.ceiling)
    for name in verdict.ladder:
        assert not [f for f in verdict.findings if f.tier == name and f.outcome == "fail"]
    places = [order.index(name) for name in verdict.ladder]
    assert places == sorted(set(places))
    if verdict.tier in tiers and places:
        assert order.index(verdict.tier) < places[0]
    if verdict.tier:
        assert not [f for f in verdict.findings if f.tier == verdict.tier and f.outcome == "fail" and f.check in HARD]
    if verdict.degraded:
        assert (verdict.tier, verdict.ladder, policy.last_resort) == (DEVICE, (), "answer")
        assert verdict.code != "local"
    if verdict.tier == DEVICE and not verdict.degraded:
        assert not [f for f in verdict.findings if f.tier == DEVICE and f.outcome == "fail"]
        assert verdict.code == "local"
