"""The real router with a tiny bundle behind the server, and a real endpoint on loopback behind the router."""

import threading
from pathlib import Path

import httpx
import pytest

from edgekit import build_bundle
from edgekit.routing.router import open_router
from edgekit.serve.history import History
from edgekit.testing import tiny_checkpoint
from edgekit.types.routing import AnswerRules, Policy, Price, Tier
from tests.serve.doubles import ScriptedRouter, site
from tests.serve.test_history import rows


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    model = tiny_checkpoint(tmp_path_factory.mktemp("line") / "tiny", max_position_embeddings=16384)
    return build_bundle(str(model), precision="fp32", out=model.parent / "tiny-fp32")


def policy(url: str) -> Policy:
    tier = Tier("edge", "private", f"{url}/v1", "edgekit", context=4096, price=Price(1.0, 2.0), retries=0, deadline=30)
    return Policy("line", tiers=(tier,), answers=AnswerRules(repetition=False))


def chat(text, **more):
    return {"model": "edgekit", "messages": [{"role": "user", "content": text}], "max_tokens": 5, **more}


@pytest.fixture(scope="module")
def line(bundle, tmp_path_factory):
    """(the server, its endpoint's router, the history's file)"""
    path = tmp_path_factory.mktemp("history") / "h.sqlite"
    far = ScriptedRouter()
    with site(far) as endpoint, open_router(bundle, policy(endpoint.url), threads=1) as router:
        history = History(f"sqlite:///{path}")
        with site(router, history=history) as server:
            yield server, far, path
        history.close()


def ask(server, text, **more):
    return httpx.post(f"{server.url}/v1/chat/completions", json=chat(text, **more), timeout=60)


def test_an_answer_that_was_cut_off_is_asked_of_the_endpoint(line):
    server, far, _ = line
    answer = ask(server, "say it again").json()
    assert answer["choices"][0]["message"]["content"] == "say it again "
    assert answer["edgekit"]["code"] == "ended"
    assert [a["tier"] for a in answer["edgekit"]["attempts"]] == ["device", "edge"]
    assert answer["edgekit"]["cost"] > 0
    assert answer["edgekit"]["device_seconds"] > 0
    assert answer["model"] == "edgekit"
    assert far.seen[-1].messages[0].content == "say it again"


def test_it_stays_where_it_must_and_says_that_a_check_failed(line):
    server, far, _ = line
    before = len(far.seen)
    answer = ask(server, "stay here", edgekit={"override": "local-only"}).json()
    assert (answer["edgekit"]["tier"], answer["edgekit"]["degraded"]) == ("device", True)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 5
    assert len(far.seen) == before


def test_a_stream_that_left_is_the_endpoints_alone(line):
    server, _, _ = line
    text = ask(server, "word by word", stream=True).text
    assert '"content":"word "' in text
    assert text.endswith("data: [DONE]\n\n")
    assert '"code":"ended"' in text


def test_many_at_once_get_what_each_gets_alone(line):
    server, _, _ = line
    texts = [f"question {i} of many" for i in range(12)]
    here = {"edgekit": {"override": "local-only"}}
    alone = [ask(server, t, **here).json()["choices"][0]["message"]["content"] for t in texts]
    found: dict[str, str] = {}

    def one(text):
        found[text] = ask(server, text, **here).json()["choices"][0]["message"]["content"]

    threads = [threading.Thread(target=one, args=(t,)) for t in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found.get(t) for t in texts] == alone
    assert len(set(alone)) > 6


def test_who_goes_away_frees_the_model(line):
    server, _, _ = line
    here = chat("on and on", edgekit={"override": "local-only"}, max_tokens=16000)
    with httpx.Client() as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"{server.url}/v1/chat/completions", json=here, timeout=1)
    assert server.wait_until(lambda: server.service.admission.active == 0)
    assert ask(server, "next", edgekit={"override": "local-only"}).status_code == 200


def test_too_long_for_everybody(line):
    server, _, _ = line
    answer = ask(server, "word " * 9000)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_a_private_request_that_only_others_could_answer(line):
    server, far, _ = line
    before = len(far.seen)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    answer = ask(server, "call f", tools=tools, edgekit={"private": True})
    assert answer.status_code in (400, 403)
    assert answer.json()["edgekit"]["tier"] == ""
    assert len(far.seen) == before


def test_the_page_has_its_numbers_and_the_history_its_rows(line):
    server, _, path = line
    live = httpx.get(f"{server.url}/api/live").json()
    assert live["endpoints"] == [{"name": "edge", "trust": "private", "model": "edgekit", "down": ""}]
    assert live["spent_today"] == pytest.approx(live["cost"])
    assert live["spent_today"] > 0
    assert server.wait_until(lambda: any(row["tier"] == "edge" for row in rows(path)))
    assert all(row["prompt"] is None for row in rows(path))


def test_an_endpoint_that_is_down_leaves_the_local_answer(bundle):
    with open_router(bundle, policy("http://127.0.0.1:1"), threads=1) as router, site(router) as server:
        answer = ask(server, "anyone there").json()
        assert answer["edgekit"]["degraded"] is True
        assert answer["edgekit"]["tier"] == "device"
        assert "failed" in answer["edgekit"]["attempts"][1]["outcome"]


def test_answers_come_from_the_users_own_documents(bundle, tmp_path: Path):
    (tmp_path / "garden.md").write_text("The gate to the garden opens at seven in the morning.")
    alone = Policy("alone")
    with open_router(bundle, alone, threads=1, documents=tmp_path) as router, site(router) as server:
        asked = "When does the gate to the garden open?"
        with_documents = ask(server, asked).json()["usage"]["prompt_tokens"]
    with open_router(bundle, alone, threads=1) as router, site(router) as server:
        assert with_documents > ask(server, asked).json()["usage"]["prompt_tokens"] + 10
