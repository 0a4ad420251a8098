"""What a request leaves out, and what the model cannot be fed: the real router, a tiny model, an endpoint beside it."""

import json
from contextlib import contextmanager

import httpx
import openai
import pytest

from edgekit import build_bundle
from edgekit.routing.router import open_router
from edgekit.serve.replies import describe_verdict
from edgekit.testing import tiny_checkpoint
from edgekit.types.routing import AnswerRules, Expected, Finding, OnDevice, Policy, Privacy, Tier, Verdict
from tests.serve.doubles import ScriptedRouter, site

CONTEXT = 128
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
)
RULES = AnswerRules(repetition=False, cut_off=False)


def bundle_of(folder, template, **config):
    model = tiny_checkpoint(folder / "tiny", max_position_embeddings=CONTEXT, **config)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings.pop("chat_template")
    if template is not None:
        settings["chat_template"] = template
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    return build_bundle(str(model), precision="fp32", out=folder / "bundle")


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    return bundle_of(tmp_path_factory.mktemp("strict"), STRICT)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return bundle_of(tmp_path_factory.mktemp("bare"), None)


@contextmanager
def client_of(bundle, **policy):
    """(OpenAI's client of a server with the bundle and one endpoint, what that endpoint has seen)"""
    far = ScriptedRouter()
    with site(far) as endpoint:
        tier = Tier("edge", "private", f"{endpoint.url}/v1", "edgekit", retries=0, deadline=30)
        rule = Policy("left out", tiers=(tier,), **{"answers": RULES, **policy})
        with (
            open_router(bundle, rule, threads=1) as router,
            site(router) as server,
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
        ):
            yield client, far.seen


def say(client, *messages, **more):
    turns = [{"role": role, "content": text} for role, text in messages]
    return client.chat.completions.create(model="edgekit", messages=turns, **more)


@pytest.mark.parametrize("words", [1, 50, 121])
def test_without_a_limit_the_answer_takes_what_the_context_has_left(strict, words):
    with client_of(strict) as (client, seen):
        answer = say(client, ("user", "a" * words))
        assert answer.usage.prompt_tokens > words // 4
        assert answer.choices[0].finish_reason in ("length", "stop")
        if answer.choices[0].finish_reason == "length":
            # The last token is not fed.
            assert answer.usage.total_tokens == CONTEXT + 1
        assert seen == []


def test_a_limit_that_is_asked_for_is_a_need(strict):
    """A length that the request names is never cut: who has room for it is asked."""
    with client_of(strict) as (client, seen):
        local = say(client, ("user", "hi"), max_tokens=CONTEXT // 2)
        assert (local.usage.completion_tokens <= CONTEXT // 2, seen) == (True, [])
        say(client, ("user", "hi"), max_tokens=4096)
        assert [request.sampling.max_new_tokens for request in seen] == [4096]
    with client_of(strict, privacy=Privacy("device")) as (client, seen):
        with pytest.raises(openai.APIStatusError, match="4,096 new ones do not fit"):
            say(client, ("user", "hi"), max_tokens=4096)
        assert seen == []


def test_without_a_limit_the_policys_holds(strict):
    with client_of(strict, device=OnDevice(max_output=3)) as (client, seen):
        assert say(client, ("user", "hi")).usage.completion_tokens <= 3
        assert seen == []
        # One who asks for more is told, or goes where there is more.
        say(client, ("user", "hi"), max_tokens=5)
        assert [r.sampling.max_new_tokens for r in seen] == [5]


def test_what_is_not_said_is_not_said_to_an_endpoint_either(strict):
    with client_of(strict) as (client, seen):
        say(client, ("user", "word " * 300))
        assert seen[0].sampling.max_new_tokens is None
        assert seen[0].sampling.temperature is None
        assert seen[0].sampling.seed is None


def refused(call):
    with pytest.raises(openai.BadRequestError) as caught:
        call()
    return caught.value


def test_the_templates_own_words_and_nothing_leaves(strict):
    with client_of(strict) as (client, seen):
        error = refused(lambda: say(client, ("system", "Be brief."), ("user", "hi")))
        assert error.code == "template_refused"
        assert "System role not supported" in error.message
        assert seen == []


def test_a_conversation_for_a_model_without_a_template(bare):
    with client_of(bare) as (client, seen):
        error = refused(lambda: say(client, ("user", "hi")))
        assert error.code == "no_chat_template"
        assert "the model has no chat template" in error.message
        assert client.completions.create(model="edgekit", prompt="hi", max_tokens=2).usage.completion_tokens
        assert seen == []


@pytest.mark.parametrize("prompt", ["", [""]])
def test_an_empty_prompt(bare, prompt):
    with client_of(bare) as (client, seen):
        error = refused(lambda: client.completions.create(model="edgekit", prompt=prompt))
        assert (error.status_code, error.code, error.param) == (400, "empty_prompt", "prompt")
        assert seen == []


def test_the_second_turn_of_openais_own_client(strict):
    with client_of(strict) as (client, _):
        first = say(client, ("user", "hi"), max_tokens=3)
        turns = [{"role": "user", "content": "hi"}, first.choices[0].message.model_dump()]
        turns += [{"role": "user", "content": "more"}]
        answer = client.chat.completions.create(model="edgekit", messages=turns, max_tokens=3)
        assert answer.usage.prompt_tokens > first.usage.prompt_tokens, "the first turn is part of the prompt"
        assert 1 <= answer.usage.completion_tokens <= 3


def test_explain_says_the_same(strict):
    with open_router(strict, Policy("alone"), threads=1) as router, site(router) as server:
        turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
        told = httpx.post(f"{server.url}/api/explain", json={"model": "edgekit", "messages": turns}).json()
        assert (told["tier"], told["code"]) == ("", "template")


def test_a_number_that_is_none_is_a_word_in_a_verdict():
    finding = Finding("latency", "device", "fail", "endless", float("inf"), float("nan"), "s")
    verdict = Verdict("", "latency", "endless", (finding,), Expected(seconds=float("inf"), cost=0.5))
    told = json.loads(json.dumps(describe_verdict(verdict), allow_nan=False))
    assert (told["findings"][0]["value"], told["findings"][0]["limit"]) == ("inf", "nan")
    assert (told["expected"]["seconds"], told["expected"]["cost"]) == ("inf", 0.5)
