"""A local answer, looked at: each check, and who goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from math import nextafter
from typing import Any

import pytest

from edgekit.errors import ConfigError, RouteError
from edgekit.routing.decision.answer_checks import Judgement, check_calibrated, judge, judge_prefix
from edgekit.routing.decision.decide import decide
from edgekit.routing.decision.loops import Loop
from edgekit.routing.decision.schema import LONGEST as LONGEST_SCHEMA
from edgekit.routing.decision.schema import check_schema
from edgekit.types.routing import DEVICE, AnswerRules, Finding, OnDevice, Policy, Unknown
from tests.route.cases import GUARANTEE, POLICY, PREFIX, REQUEST, SCORE, SIGNALS, STATE, calibration

PERSON = json.dumps(
    {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"], "additionalProperties": False}
)
TRYING = replace(POLICY, device=OnDevice(can=frozenset({"json-schema"})))


def judged(policy: Policy = POLICY, schema: str = "", **changes: Any) -> Judgement:
    request = replace(REQUEST, schema=schema)
    verdict = decide(request, policy, STATE)
    assert verdict.tier == DEVICE
    given: dict[str, Any] = {
        "text": "Paris.", "finish": "eos", "repeated": None, "signals": SIGNALS, "calibration": calibration(),
    }  # fmt: skip
    return judge(verdict, request, policy, STATE, **{**given, **changes})


def found(judgement: Judgement, check: str) -> Finding:
    (finding,) = [f for f in judgement.findings if f.check == check]
    assert finding in judgement.verdict.findings
    return finding


def test_an_answer_that_stands() -> None:
    j = judged()
    assert (j.verdict.tier, j.verdict.code, j.verdict.degraded) == (DEVICE, "local", False)
    assert [f.check for f in j.findings] == ["ended", "repetition", "quality"]
    assert j.wrong == pytest.approx(0.12)
    assert found(j, "quality").detail == "the probability of being wrong is 0.12, at most 0.25"


@pytest.mark.parametrize(
    ("finish", "allowed", "tier"),
    [
        ("eos", False, DEVICE),
        ("stop", True, DEVICE),
        ("length", True, "box"),
        ("length", False, DEVICE),
        ("context", True, "box"),
        ("cancelled", False, "box"),
        ("something else", False, "box"),
    ],
)
def test_the_end(finish: str, allowed: bool, tier: str) -> None:
    policy = replace(POLICY, answers=AnswerRules(cut_off=allowed))
    j = judged(policy, finish=finish)
    assert j.verdict.tier == tier
    assert j.verdict.code == ("local" if tier == DEVICE else "ended")


def test_a_loop() -> None:
    j = judged(repeated=Loop(4, 80))
    assert (j.verdict.tier, j.verdict.code) == ("box", "repetition")
    assert j.verdict.reason == "the answer repeats itself: the last 80 tokens repeat the same 4: box answers"
    kept = judged(replace(POLICY, answers=AnswerRules(repetition=False)), repeated=Loop(4, 80))
    assert kept.verdict.tier == DEVICE


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"age": 3}', ""),
        ('{"age": "x"}', "the answer does not satisfy the schema at ['age']: 'x' is not of type 'integer'"),
        ("{}", "the answer does not satisfy the schema: 'age' is a required property"),
        ('```json\n{"age": 3}\n```', "the answer is not JSON"),
        ('{"age": NaN}', "the answer is not JSON: NaN is not JSON"),
        ("[" * 100_000, "the answer is not JSON"),
        ("", "the answer is not JSON"),
    ],
)
def test_a_schema(text: str, said: str) -> None:
    j = judged(TRYING, PERSON, text=text)
    assert found(j, "schema").outcome == ("fail" if said else "pass")
    assert said in found(j, "schema").detail
    assert (j.verdict.tier, j.verdict.code) == (("box", "schema") if said else (DEVICE, "local"))


@pytest.mark.parametrize("schema", ["{", '{"$ref": "#"}', '{"$ref": "https://example.com/x"}', '{"type": 7}', "3"])
def test_a_schema_that_nobody_looked_at_fails_and_does_not_raise(schema: str) -> None:
    assert found(judged(TRYING, schema, text="{}"), "schema").outcome == "fail"


def test_any_json_will_do_where_the_schema_says_so() -> None:
    assert judged(TRYING, "{}", text="[1]").verdict.tier == DEVICE
    assert judged(TRYING, "{}", text="one").verdict.tier == "box"


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "is not an object"),
        ('{"type": "objekt"}', "is not valid"),
        ('{"$ref": "https://example.com/s.json"}', "refers to https://example.com/s.json"),
        ('{"properties": {"a": {"$ref": "file:///x"}}}', "refers to file:///x"),
        ('{"properties": {"a": {"pattern": "(?=a)"}}}', "pattern '(?=a)' is not supported"),
        ('{"patternProperties": {"(a)\\\\1": {}}}', "is not supported"),
        ('{"a": "' + "x" * LONGEST_SCHEMA + '"}', "characters"),
        ('{"not": ' * 5000 + "{}" + "}" * 5000, "nested"),
    ],
)
def test_schemas_refused_before_anything_is_asked(schema: str, said: str) -> None:
    with pytest.raises(RouteError, match="JSON schema") as caught:
        check_schema(schema)
    assert said in caught.value.message
    assert caught.value.hint


def test_schemas_that_are_fine() -> None:
    for schema in (PERSON, "{}", "true", '{"$defs": {"a": {}}, "$ref": "#/$defs/a", "pattern": "^a+$"}'):
        check_schema(schema)


def test_quality_against_the_policy_or_the_calibration() -> None:
    likely = replace(SIGNALS, mean_logprob=-0.75)  # wrong with probability 0.5
    j = judged(signals=likely)
    assert (j.verdict.tier, j.verdict.code, j.wrong) == ("box", "quality", pytest.approx(0.5))
    assert j.verdict.reason == "the probability of being wrong is 0.50, above 0.25: box answers"
    lenient = replace(POLICY, answers=AnswerRules(most_wrong=0.6))
    assert judged(lenient, signals=likely).verdict.tier == DEVICE
    # A guarantee holds for its own threshold only.
    assert judged(lenient, signals=likely, calibration=calibration(guarantee=GUARANTEE)).verdict.tier == "box"
    strict = replace(POLICY, answers=AnswerRules(most_wrong=0.1))
    assert judged(strict).verdict.tier == "box"


def test_a_probability_of_exactly_the_limit_is_served() -> None:
    """As it was counted when the threshold was chosen (decision/threshold.py)."""
    limit = judged().wrong
    assert limit is not None
    for outcome, most in (("pass", limit), ("fail", nextafter(limit, 0))):
        by_policy = replace(POLICY, answers=AnswerRules(most_wrong=most))
        assert found(judged(by_policy), "quality").outcome == outcome
        for promised in (None, GUARANTEE):
            known = calibration(threshold=most, guarantee=promised)
            assert found(judged(calibration=known), "quality").outcome == outcome
        begun = judge_prefix(SIGNALS, calibration(prefix=replace(PREFIX, threshold=most)), POLICY)
        assert begun is not None
        assert begun.outcome == outcome
    assert judge_prefix(replace(SIGNALS, tokens=PREFIX.tokens), calibration(prefix=PREFIX), POLICY) is not None
    covered = replace(POLICY, answers=AnswerRules(most_wrong=limit))
    check_calibrated(covered, calibration(threshold=limit, guarantee=GUARANTEE))


@pytest.mark.parametrize(
    "changes",
    [
        {"calibration": None},
        {"signals": None},
        {"calibration": calibration(score=replace(SCORE, features=("unheard",)))},
        {"calibration": calibration(score=replace(SCORE, features=("q10", "q25")))},
    ],
)
def test_without_a_probability_it_falls_as_the_policy_says(changes: dict[str, Any]) -> None:
    stays = judged(**changes)
    assert stays.verdict.tier == DEVICE
    assert stays.wrong is None
    assert found(stays, "quality").outcome == "unknown"
    leaves = judged(replace(POLICY, unknown=Unknown(quality="cloud")), **changes)
    assert (leaves.verdict.tier, leaves.verdict.code) == ("box", "quality")


def test_signals_that_are_no_numbers_count_as_wrong() -> None:
    broken = replace(SIGNALS, mean_logprob=float("nan"))
    j = judged(signals=broken)
    assert (j.verdict.tier, j.verdict.code, j.wrong) == ("box", "quality", 1.0)
    given_up = judge_prefix(broken, calibration(prefix=PREFIX), POLICY)
    assert given_up is not None
    assert given_up.outcome == "fail"


def test_a_failed_answer_that_nobody_else_may_give() -> None:
    alone = replace(POLICY, tiers=())
    assert (judged(alone, finish="length").verdict.tier, judged(alone, finish="length").verdict.degraded) == (
        DEVICE,
        True,
    )
    refused = judged(replace(alone, last_resort="refuse"), finish="length").verdict
    assert (refused.tier, refused.code) == ("", "ended")


def test_a_degraded_verdict_is_kept() -> None:
    policy = replace(POLICY, tiers=(), unknown=Unknown(memory="cloud"))
    verdict = decide(REQUEST, policy, replace(STATE, free_memory=None))
    assert verdict.degraded
    j = judge(verdict, REQUEST, policy, STATE, text="", finish="length", repeated=None, signals=None, calibration=None)
    assert (j.verdict.tier, j.verdict.degraded, j.verdict.code) == (DEVICE, True, "memory")
    assert found(j, "ended").outcome == "fail"


def test_the_first_tokens() -> None:
    known = calibration(prefix=PREFIX)
    doubtful = replace(SIGNALS, tokens=16, mean_logprob=-0.9)
    given_up = judge_prefix(doubtful, known, POLICY)
    assert given_up is not None
    assert (given_up.check, given_up.outcome, given_up.limit) == ("prefix", "fail", 0.5)
    assert given_up.detail == "after 16 tokens the probability of being wrong is 0.68, above 0.50"
    goes_on = judge_prefix(SIGNALS, known, POLICY)
    assert goes_on is not None
    assert goes_on.outcome == "pass"
    for signals, record, policy in (
        (doubtful, None, POLICY),
        (doubtful, calibration(), POLICY),
        (doubtful, known, replace(POLICY, answers=AnswerRules(prefix=False))),
        (replace(doubtful, tokens=15), known, POLICY),
        (doubtful, calibration(prefix=replace(PREFIX, score=replace(SCORE, knots=()))), POLICY),
    ):
        assert judge_prefix(signals, record, policy) is None


def test_more_than_a_guarantee_covers_is_refused() -> None:
    lenient = replace(POLICY, answers=AnswerRules(most_wrong=0.3))
    with pytest.raises(ConfigError, match=r"most_wrong is 0\.3") as caught:
        check_calibrated(lenient, calibration(guarantee=GUARANTEE))
    assert "5.0 % wrong holds only up to 0.25" in caught.value.message
    for policy, record in (
        (lenient, calibration()),
        (lenient, None),
        (POLICY, calibration(guarantee=GUARANTEE)),
        (replace(POLICY, answers=AnswerRules(most_wrong=0.2)), calibration(guarantee=GUARANTEE)),
    ):
        check_calibrated(policy, record)
