"""A bundle, a policy and endpoints, joined: a real tiny model here, a real server on loopback there."""

import contextlib
import socket
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from time import monotonic

import pytest
import trustme

from edgekit import build_bundle
from edgekit.bundle import record
from edgekit.errors import ConfigError, RouteError
from edgekit.routing.device import LocalModel
from edgekit.routing.endpoints import Endpoint
from edgekit.routing.evaluation.calibrate import Binding
from edgekit.routing.retrieval import Grounding
from edgekit.routing.router import Router
from edgekit.serve.assembly import Plan, _open_router
from edgekit.testing import FakeProbe, tiny_checkpoint
from edgekit.types import Sampling
from edgekit.types.calibration import Calibration, PrefixScore, Score
from edgekit.types.routing import (
    DEVICE,
    AnswerRules,
    Budget,
    Message,
    Opening,
    Piece,
    Policy,
    Price,
    Privacy,
    PrivacyRule,
    Request,
    Routed,
    Tier,
)
from tests.cloud.loopback import secure, serve, trusting
from tests.made import measurement

CLOUD = ("from ", "the ", "cloud")
QUESTION = Request((Message("user", "Rome?"),), sampling=Sampling(max_new_tokens=12))
LENIENT = AnswerRules(cut_off=False, repetition=False)
"""A tiny random model never comes to its end."""


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("router")
    return build_bundle(tiny_checkpoint(folder / "model"), precision="int8", out=folder / "bundle")


def always(p: float) -> Score:
    """Every answer is wrong with this probability."""
    return Score(("mean_logprob",), (0.0,), 0.0, "isotonic", ((0.0, p),))


def calibrated(bundle, wrong: float, *, threshold: float = 0.5, prefix: float | None = None):
    binding = Binding.of(bundle)
    early = None if prefix is None else PrefixScore(4, always(prefix), 0.5, 1.0, 0.0)
    return record(
        bundle,
        calibration=Calibration(
            binding.bundle_sha256, binding.provider, binding.runtime, binding.template_sha256, "2026-01-01", "d",
            "0" * 64, 200, 200, 100, always(wrong), threshold, None, early, (0.1, 0.9), None, 0.0, 0.0,
        ),
    )  # fmt: skip


def tier(url: str, name: str = "far", **fields) -> Tier:
    given = {"price": Price(1.0, 2.0), "context": 4096, "deadline": 5.0, "stall": 2.0, "retries": 0, **fields}
    return Tier(name, given.pop("trust", "third-party"), url, "big", **given)


@pytest.fixture
def router(plain):
    """router(policy, bundle=...) -> a Router with endpoints for the policy's tiers."""
    opened = []

    def make(policy: Policy, bundle=plain, *, trust=None, **options) -> Router:
        endpoints = [Endpoint(t, environment={}, **(trust or {})) for t in policy.tiers]
        opened.append(Router(LocalModel(bundle), policy, endpoints=endpoints, **options))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def told(events) -> tuple[list, str, Routed]:
    """The events, the text that was shown, and the last of them; their order is checked."""
    events = list(events)
    last = events[-1]
    assert isinstance(last, Routed)
    assert all(isinstance(e, Piece) for e in events[1:-1])
    if len(events) > 1:
        assert isinstance(events[0], Opening)
    shown = "".join(e.text for e in events if isinstance(e, Piece))
    if not last.broken:
        assert shown == last.text
    return events, shown, last


def test_without_endpoints_the_device_answers_and_streams(router):
    events, shown, last = told(router(Policy("alone", answers=LENIENT)).answer(QUESTION))
    assert shown
    assert len(events) > 4
    assert (last.verdict.tier, last.verdict.code, last.verdict.degraded) == (DEVICE, "local", False)
    assert (last.new_tokens, last.finish, last.cost) == (12, "length", 0.0)
    assert last.signals.tokens == 12
    assert last.device_seconds > 0


def test_the_answer_is_the_runners_own(router, plain):
    from edgekit.run import Tokenizer, generate, load_runner

    tokenizer, runner = Tokenizer.of(plain), load_runner(plain)
    prompt = tokenizer.encode(tokenizer.render_chat([{"role": "user", "content": "Rome?"}]))
    alone = "".join(e.text for e in generate(runner, tokenizer, prompt, QUESTION.sampling))
    runner.close()
    assert told(router(Policy("alone", answers=LENIENT)).answer(QUESTION))[1] == alone


def test_an_answer_that_stands_is_not_passed_on(router, plain):
    with serve(lambda c: c.answer(*CLOUD)) as server:
        _, shown, last = told(router(Policy("p", (tier(server.url),), answers=LENIENT)).answer(QUESTION))
        assert server.heard == []
    assert last.verdict.tier == DEVICE
    assert shown
    assert last.spared == pytest.approx(Price(1.0, 2.0).cost(dict_of(last, router)["far"], 12))


def dict_of(last, router) -> dict:
    """Tokens of the question as each tier counts them."""
    return dict(router(Policy("count", (tier("http://127.0.0.1:9/v1"),))).prepare(QUESTION).tokens)


def test_an_answer_that_was_cut_off_is_passed_on_and_never_shown(router):
    with serve(lambda c: c.answer(*CLOUD)) as server:
        events, shown, last = told(router(Policy("p", (tier(server.url),))).answer(QUESTION))
    assert shown == "from the cloud"
    assert (last.verdict.tier, last.verdict.code) == ("far", "ended")
    assert [a.tier for a in last.attempts] == [DEVICE, "far"]
    assert last.cost == pytest.approx(Price(1.0, 2.0).cost(11, 3))
    assert last.device_seconds > 0
    assert events[0].verdict.tier == "far"


def test_wrong_with_a_high_probability_is_passed_on(router, plain):
    with serve(lambda c: c.answer(*CLOUD)) as server:
        policy = Policy("p", (tier(server.url),), answers=LENIENT)
        _, shown, last = told(router(policy, calibrated(plain, 0.9)).answer(QUESTION))
        assert (shown, last.verdict.code, last.wrong) == ("from the cloud", "quality", 0.9)
        _, _, last = told(router(policy, calibrated(plain, 0.2)).answer(QUESTION))
        assert (last.verdict.tier, last.wrong) == (DEVICE, 0.2)
        assert len(server.heard) == 1


def test_a_clear_case_is_given_up_after_its_first_tokens(router, plain):
    with serve(lambda c: c.answer(*CLOUD)) as server:
        policy = Policy("p", (tier(server.url),), answers=LENIENT)
        _, shown, last = told(router(policy, calibrated(plain, 0.9, prefix=0.9)).answer(QUESTION))
    assert shown == "from the cloud"
    assert last.verdict.code == "prefix"
    assert last.attempts[0].outcome == "gave up after 4 tokens"


def test_an_answer_that_is_over_is_not_given_up(router, plain):
    """The calibration's prefixes are of answers that went on; one of just as many tokens is judged whole."""
    with serve(lambda c: c.answer(*CLOUD)) as server:
        policy = Policy("p", (tier(server.url),), answers=LENIENT)
        four = replace(QUESTION, sampling=Sampling(max_new_tokens=4))
        _, _, last = told(router(policy, calibrated(plain, 0.1, prefix=0.9)).answer(four))
        assert server.heard == []
    assert last.verdict.tier == DEVICE
    assert last.new_tokens == 4


def test_joules_of_what_was_given_up_count(router, plain):
    with serve(lambda c: c.answer(*CLOUD)) as server:
        made = router(Policy("p", (tier(server.url),), answers=LENIENT), calibrated(plain, 0.9, prefix=0.9))
        made._meter = FakeProbe(5.0)
        _, _, last = told(made.answer(QUESTION))
    assert last.verdict.code == "prefix"
    assert last.joules > 0


FAULTS = {
    "401": lambda c: c.error(401),
    "402": lambda c: c.error(402),
    "429": lambda c: c.error(429, retry_after="30"),
    "500": lambda c: c.error(500),
    "garbage": lambda c: (c.stream(), c.event(b"{not json")),
    "no http": lambda c: c.socket.sendall(b"nonsense\r\n\r\n"),
    "cut before the answer": lambda c: c.cut(),
    "stall": lambda c: (c.stream(), c.hang()),
    "silence": lambda c: c.hang(),
}


@pytest.mark.parametrize("resort", ["answer", "refuse"])
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_befalls_an_endpoint_ends_as_the_policy_says(router, fault, resort):
    with serve(FAULTS[fault]) as server:
        policy = Policy("p", (tier(server.url, stall=0.3, deadline=2.0),), last_resort=resort)
        _, shown, last = told(router(policy).answer(QUESTION))
    assert last.verdict.tier == (DEVICE if resort == "answer" else "")
    assert bool(shown) == (resort == "answer")
    assert last.attempts[-1].tier == "far"
    assert last.attempts[-1].seconds < 10
    assert not last.broken


def test_an_endpoint_without_an_address_or_with_an_expired_certificate(router, monkeypatch):
    def no_address(*_: object, **__: object):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    ca = trustme.CA()
    yesterday = datetime.now(UTC) - timedelta(days=1)
    with serve(lambda c: c.answer(*CLOUD), tls=secure(ca, not_after=yesterday)) as server:
        _, shown, last = told(router(Policy("p", (tier(server.url),)), trust=trusting(ca)).answer(QUESTION))
        assert server.heard == []
    assert "certificate has expired" in last.attempts[-1].outcome
    assert (last.verdict.tier, last.verdict.degraded, bool(shown)) == (DEVICE, True, True)
    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    _, shown, last = told(router(Policy("p", (tier("https://nowhere.invalid/v1"),))).answer(QUESTION))
    assert (last.verdict.tier, last.verdict.degraded, bool(shown)) == (DEVICE, True, True)


def test_what_came_before_the_caller_went_was_paid_for(router):
    with serve(lambda c: (c.stream(), c.say("one", " two"), c.hang())) as server:
        made = router(Policy("p", (tier(server.url),), budget=Budget(per_day=1.0)))
        events = made.answer(QUESTION)
        assert isinstance(next(events), Opening)
        assert next(events).text == "one"
        events.close()
    assert made.status().spent_today > 0


def test_given_up_and_nobody_there_it_is_answered_here_after_all(router, plain):
    policy = Policy("p", (tier("http://127.0.0.1:9/v1"),), answers=LENIENT)
    _, _, last = told(router(policy, calibrated(plain, 0.9, prefix=0.9)).answer(QUESTION))
    assert last.verdict.tier == DEVICE
    assert last.verdict.degraded
    assert last.new_tokens == 12
    assert [a.tier for a in last.attempts] == [DEVICE, "far", DEVICE]


def test_shown_after_its_prefix_it_stands(router, plain):
    with serve(lambda c: c.answer(*CLOUD)) as server:
        policy = Policy("p", (tier(server.url),), answers=LENIENT, show="prefix")
        events, _, last = told(router(policy, calibrated(plain, 0.9, prefix=0.1)).answer(QUESTION))
        assert server.heard == []
    assert len(events) >= 4
    assert last.verdict.tier == DEVICE
    assert last.verdict.degraded
    assert last.verdict.code == "quality"


def test_at_once_is_at_once(router, plain):
    with serve(lambda c: c.answer(*CLOUD)) as server:
        policy = Policy("p", (tier(server.url),), answers=LENIENT, show="at-once")
        events, _, last = told(router(policy, calibrated(plain, 0.9, prefix=0.9)).answer(QUESTION))
        assert server.heard == []
    assert len(events) > 4
    assert last.verdict.degraded


@pytest.mark.parametrize("resort", ["answer", "refuse"])
def test_an_endpoint_that_fails_leaves_the_local_answer_or_nothing_as_the_policy_says(router, resort):
    with serve(lambda c: c.error(500)) as server:
        policy = Policy("p", (tier(server.url),), last_resort=resort)
        _, shown, last = told(router(policy).answer(QUESTION))
        assert len(server.heard) == 1
    if resort == "answer":
        assert last.verdict.tier == DEVICE
        assert last.verdict.degraded
        assert shown
        assert [a.tier for a in last.attempts] == [DEVICE, "far"]
    else:
        assert last.verdict.tier == ""
        assert shown == ""
        assert last.finish == "error"


def test_the_next_of_the_ladder_is_asked(router):
    with serve(lambda c: c.error(503)) as bad, serve(lambda c: c.answer(*CLOUD)) as good:
        policy = Policy("p", (tier(bad.url, "near"), tier(good.url, "far")))
        _, shown, last = told(router(policy).answer(QUESTION))
    assert shown == "from the cloud"
    assert last.verdict.tier == "far"
    assert [a.tier for a in last.attempts] == [DEVICE, "near", "far"]


def test_half_an_answer_is_never_followed_by_another(router):
    def half(c):
        c.stream()
        c.say("half")
        c.cut()

    with serve(half) as bad, serve(lambda c: c.answer(*CLOUD)) as good:
        policy = Policy("p", (tier(bad.url, "near"), tier(good.url, "far")))
        _, shown, last = told(router(policy).answer(QUESTION))
        assert good.heard == []
    assert shown == "half"
    assert last.broken
    assert last.finish == "error"
    assert last.cost > 0


@pytest.mark.parametrize(
    "request_",
    [
        replace(QUESTION, private="the document notes.md is private"),
        replace(QUESTION, override="local-only"),
        replace(QUESTION, messages=(Message("user", "Patient 12 of Rome?"),)),
    ],
    ids=["private", "local-only", "rule"],
)
def test_what_is_private_stays_whatever_becomes_of_the_answer(router, plain, request_):
    with serve(lambda c: c.answer(*CLOUD)) as server:
        privacy = Privacy(rules=(PrivacyRule("patients", r"patient \d+", "device"),))
        policy = Policy("p", (tier(server.url),), privacy=privacy)
        _, shown, last = told(router(policy, calibrated(plain, 0.99)).answer(request_))
        assert server.heard == []
        assert server.connections == 0
    assert shown
    assert last.verdict.tier == DEVICE


def test_the_days_budget_holds_for_requests_at_once(router):
    with serve(lambda c: c.answer(*CLOUD)) as server:
        one = Price(0.0, 0.0, per_request=1.0)
        policy = Policy("p", (tier(server.url, price=one),), budget=Budget(per_day=3.0))
        made = router(policy)
        results = []
        threads = [threading.Thread(target=lambda: results.append(told(made.answer(QUESTION))[2])) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.heard) == 3
    assert sum(r.cost for r in results) == pytest.approx(3.0)
    assert made.status().spent_today == pytest.approx(3.0)
    assert sum(r.verdict.tier == "far" for r in results) == 3


def test_stopped_while_it_is_made_here(router):
    stop = threading.Event()
    events = router(Policy("alone", answers=LENIENT)).answer(QUESTION, stop=stop)
    assert isinstance(next(events), Opening)
    stop.set()
    *_, last = events
    assert last.finish == "cancelled"
    assert last.new_tokens < 12


def test_stopped_while_an_endpoint_is_silent(router):
    with serve(lambda c: (c.stream(), c.hang())) as server:
        made = router(Policy("p", (tier(server.url, stall=30.0, deadline=60.0),)))
        stop = threading.Event()
        threading.Timer(0.5, stop.set).start()
        begun = monotonic()
        *_, last = made.answer(QUESTION, stop=stop)
        assert monotonic() - begun < 10
        assert server.gone.wait(60)
    assert last.finish == "cancelled"


def test_answers_come_one_after_another_in_order(router):
    made = router(Policy("alone", answers=LENIENT))
    first = made.answer(QUESTION)
    next(first)
    order = []
    stop = threading.Event()

    def ask(name, **options):
        events = made.answer(QUESTION, **options)
        next(events)
        order.append(name)  # still its turn
        list(events)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
    for i, thread in enumerate(threads):
        thread.start()
        while made.status().waiting < i + 2:
            pass
    gone = threading.Thread(target=ask, args=("gone",), kwargs={"stop": stop})
    gone.start()
    stop.set()
    gone.join(5)
    assert order == ["gone"]
    list(first)
    for thread in threads:
        thread.join()
    assert order == ["gone", 0, 1, 2]
    assert made.status().waiting == 0


def test_the_time_in_line_is_no_part_of_an_answers_own(router):
    made = router(Policy("alone", answers=LENIENT))
    made.measurement = measurement(0.01, "fp32")  # so slow that the time of the test counts for nothing
    first = made.answer(QUESTION)
    one = next(first).verdict.expected.seconds
    second = threading.Thread(target=list, args=(made.answer(QUESTION),))
    second.start()
    while made.status().waiting < 2:
        pass
    assert made._local.waiting() == pytest.approx(2 * one, rel=0.05)
    list(first)
    second.join()
    assert made._local.waiting() == 0


def test_a_caller_that_goes_away_leaves_the_model_free(router):
    made = router(Policy("alone", answers=LENIENT))
    events = made.answer(QUESTION)
    next(events)
    events.close()
    assert made.status().waiting == 0
    assert told(made.answer(QUESTION))[2].new_tokens == 12


def test_a_prompt_longer_than_everybodys_context_is_refused(router):
    with serve(lambda c: c.answer(*CLOUD)) as server:
        policy = Policy("p", (tier(server.url, context=600),))
        _, _, last = told(router(policy).answer(replace(QUESTION, messages=(Message("user", "Rome? " * 2000),))))
        assert server.heard == []
    assert (last.verdict.tier, last.verdict.code) == ("", "context")


def test_json_that_was_asked_for_is_checked(router):
    with serve(lambda c: c.answer('{"a": 1}')) as server:
        policy = Policy(
            "p", (tier(server.url, can=frozenset({"json-schema"})),), answers=LENIENT,
        )  # fmt: skip
        policy = replace(policy, device=replace(policy.device, can=frozenset({"json-schema"})))
        wants = replace(QUESTION, schema='{"type": "object"}', needs=frozenset({"json-schema"}))
        _, shown, last = told(router(policy).answer(wants))
        assert (shown, last.verdict.code) == ('{"a": 1}', "schema")
        with pytest.raises(RouteError, match="not JSON"):
            list(router(policy).answer(replace(wants, schema="{")))


def test_a_calibration_of_something_else_is_refused(router, plain):
    other = calibrated(plain, 0.5)
    stale = replace(other.manifest.calibration, bundle_sha256="0" * 64)
    with pytest.raises(RouteError, match="other"):
        router(Policy("p"), replace(other, manifest=replace(other.manifest, calibration=stale)))


def test_explain_calls_nobody(router):
    with serve(lambda c: c.answer(*CLOUD)) as server:
        verdict = router(Policy("p", (tier(server.url),))).explain(QUESTION)
        assert server.connections == 0
    assert verdict.tier == DEVICE
    assert verdict.ladder == ("far",)


def test_a_key_that_is_not_there_is_found_before_anything_is_asked(plain):
    with pytest.raises(ConfigError):
        Endpoint(tier("http://127.0.0.1:9/v1", key_env="NO_SUCH_KEY"), environment={})


@pytest.fixture
def documents(tmp_path):
    folder = tmp_path / "documents"
    (folder / "private").mkdir(parents=True)
    (folder / "rome.md").write_text("Rome has seven hills, among them the Palatine and the Aventine.\n")
    (folder / "private" / "diary.md").write_text("My safe in Verona opens with the number seven two nine four one.\n")
    return folder


def grounded(router, policy, folder):
    made = router(policy)
    made.grounding = Grounding(folder, context=made.bundle.manifest.context_length, count=len)
    return made


def test_a_public_document_may_ride_along(router, documents):
    with serve(lambda c: c.answer(*CLOUD)) as server:
        made = grounded(router, Policy("p", (tier(server.url),)), documents)
        told(made.answer(replace(QUESTION, messages=(Message("user", "How many hills has Rome?"),))))
        assert "Palatine" in server.heard[0].body["messages"][-1]["content"]


def test_a_private_document_keeps_the_question_here(router, documents):
    with serve(lambda c: c.answer(*CLOUD)) as server:
        made = grounded(router, Policy("p", (tier(server.url),)), documents)
        asked = replace(QUESTION, override="cloud-ok", messages=(Message("user", "What opens my safe in Verona?"),))
        assert "seven two nine" in made.prepare(asked).messages[-1].content
        _, shown, last = told(made.answer(asked))
        assert last.verdict.tier == DEVICE
        assert "the document private/diary.md is private" in str(last.verdict.findings)
        # The conversation comes back with what was answered from it.
        back = (*asked.messages, Message("assistant", shown), Message("user", "Thanks. And the capital of Peru?"))
        *_, last = told(made.answer(replace(QUESTION, messages=back)))
        assert last.verdict.tier == DEVICE
        # So does a passage that the user pastes.
        pasted = Message("user", "Translate: My safe in Verona opens with the number seven two nine four one.")
        told(made.answer(replace(QUESTION, messages=(pasted,))))
        assert server.connections == 0


def test_what_answers_draw_on_is_said(plain, documents):
    (documents / "photo.png").write_bytes(b"png")
    plan = Plan(plain.path, documents, docs=documents)
    with contextlib.closing(_open_router(plan, plain, Policy("alone"), 0.0)) as made:
        said = made.status().documents
    assert said.startswith("Answers use 2 documents, 1 of them private: questions about those stay on this device.")
    assert "photo.png" in said
