"""Many at once, those who leave, those who are too many, and the end."""

import asyncio
import gc
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

from edgekit.serve import async_bridge as crossing_module
from edgekit.serve.admission import Admission
from edgekit.serve.api_errors import Refusal
from edgekit.serve.app import Settings
from edgekit.serve.async_bridge import Crossing
from edgekit.types.routing import Piece, Request, Routed
from tests.serve.doubles import routed, site


def chat(text, **more):
    return {"model": "edgekit", "messages": [{"role": "user", "content": text}], **more}


def in_background(url, body):
    found = []

    def post():
        found.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60))

    thread = threading.Thread(target=post)
    thread.start()
    return thread, found


def test_32_streams_at_once_are_not_mixed_up(server):
    texts = [" ".join(f"{i}-{j}" for j in range(200)) for i in range(32)]

    async def ask(client, text):
        chunks = await client.chat.completions.create(**chat(text), stream=True)
        return "".join([c.choices[0].delta.content or "" async for c in chunks])

    async def everyone():
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, text) for text in texts))

    assert asyncio.run(everyone()) == [f"{text} " for text in texts]
    assert server.wait_until(lambda: server.service.admission.active == 0)


def test_one_too_many_is_turned_away_with_a_time(router):
    with site(router, Settings(queue=2)) as server:
        waiting = [in_background(server.url, chat("wait")) for _ in range(2)]
        assert server.wait_until(lambda: server.service.admission.active == 2)
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=chat("hi"))
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "queue_full"
        assert answer.json()["error"]["type"] == "rate_limit_error"
        # Looking goes on while the queue is full.
        assert httpx.get(f"{server.url}/health").status_code == 200
        live = httpx.get(f"{server.url}/api/live").json()
        assert (live["active"], live["queue"], live["turned_away"]) == (2, 2, 1)
        assert 'edgekit_rejected_total{status="429"} 1.0' in httpx.get(f"{server.url}/metrics").text
        router.gate.set()
        for thread, found in waiting:
            thread.join(20)
            assert found[0].status_code == 200
        assert httpx.post(f"{server.url}/v1/chat/completions", json=chat("hi")).status_code == 200


def test_the_official_client_comes_again_by_itself(router):
    with site(router, Settings(queue=1)) as server, OpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
        thread, _ = in_background(server.url, chat("wait"))
        assert server.wait_until(lambda: server.service.admission.active == 1)
        threading.Timer(0.3, router.gate.set).start()
        assert client.chat.completions.create(**chat("hi")).choices[0].message.content == "hi "
        thread.join(20)


def test_retry_after_follows_what_was_seen():
    async def play():
        now = 0.0
        door = Admission(2, clock=lambda: now)
        first, second = door.enter(), door.enter()
        first.__enter__()
        second.__enter__()
        now = 7.0
        told = [door.retry_after()]  # nothing has ended: as long as the oldest has been under way
        for end in (8.0, 10.0, 13.0, 15.0):
            now = end
            first.__exit__(None, None, None)
            first = door.enter()
            first.__enter__()
        told.append(door.retry_after())  # ends came 2, 3 and 2 seconds apart
        for _ in range(2):
            with pytest.raises(Refusal) as caught, door.enter():
                pass
            told.append(caught.value.retry_after)  # the second one after the first
        now = 25.0
        told.append(door.retry_after())  # nothing for 10 seconds, for the third in line
        now = 26.0
        first.__exit__(None, None, None)
        first = door.enter()
        first.__enter__()
        told.append(door.retry_after())  # ends came 2, 3, 2 and 11 seconds apart, and nobody has been turned away since
        now = 26.0 + 601
        told.append(door.retry_after())  # beyond ten minutes nobody knows
        told.append(Admission(1).retry_after())  # at once is a second
        return told

    assert asyncio.run(play()) == [7, 2, 2, 4, 30, 3, 600, 1]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_stops_its_answer(server, router, stream):
    with httpx.Client() as client:
        body = chat("forever and ever", stream=stream)
        if stream:
            with client.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
                assert next(answer.iter_lines()).startswith("data: ")
                assert server.service.admission.active == 1
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{server.url}/v1/chat/completions", json=body, timeout=0.5)
    assert server.wait_until(lambda: router.stopped == ["forever and ever"])
    assert server.wait_until(lambda: server.service.admission.active == 0)


def test_a_client_that_goes_away_before_the_first_word(server, router):
    with httpx.Client() as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"{server.url}/v1/chat/completions", json=chat("wait for me"), timeout=0.3)
    assert server.wait_until(lambda: router.stopped == ["wait for me"])
    assert server.wait_until(lambda: server.service.admission.active == 0)


def test_a_reader_who_takes_nothing_holds_the_router_back_and_is_given_up():
    produced = []

    class Talker:
        def answer(self, request, *, stop):
            while not stop.is_set():
                produced.append(1)
                yield Piece("x")
            yield routed()

    outcomes = []

    async def read_nothing():
        crossing = Crossing(Talker(), Request(), lambda _q, r: outcomes.append(r), ahead=4, patience=0.3)
        with ThreadPoolExecutor(1) as executor:
            crossing.start(executor)
            await crossing._done.wait()
        events = []
        while (event := await crossing.next()) is not None:
            events.append(event)
        return events

    events = asyncio.run(read_nothing())
    assert events == [Piece("x")] * 4
    assert len(produced) == 5
    assert isinstance(outcomes[0], Routed)


def test_the_end_finishes_what_was_begun_and_begins_nothing(router):
    with site(router) as server, httpx.Client(base_url=server.url) as kept:
        assert kept.get("/health").json()["status"] == "ok"
        thread, found = in_background(server.url, chat("wait to the end", stream=True))
        assert server.wait_until(lambda: server.service.admission.active == 1)
        server.running.end()
        assert server.wait_until(lambda: server.service.admission.closing)
        refused = kept.post("/v1/chat/completions", json=chat("hi"))
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "shutting_down"
        assert kept.get("/health").status_code == 503
        assert server.thread.is_alive()
        router.gate.set()
        thread.join(20)
        assert found[0].text.endswith("data: [DONE]\n\n")
        server.thread.join(20)
        assert not server.thread.is_alive()


def test_asked_to_end_twice_it_stops_answers_and_says_so(router):
    with site(router) as server:
        thread, found = in_background(server.url, chat("forever", stream=True))
        assert server.wait_until(lambda: server.service.admission.active == 1)
        server.running.end()
        server.running.end()
        thread.join(20)
        server.thread.join(20)
        assert not server.thread.is_alive()
        last = json.loads(found[0].text.strip().splitlines()[-1].removeprefix("data: "))
        assert last["error"]["code"] == "stopped"


def test_numbers_for_the_page_and_for_prometheus(server):
    for text in ("one", "left", "refuse context"):
        httpx.post(f"{server.url}/v1/chat/completions", json=chat(text))
    live = httpx.get(f"{server.url}/api/live").json()
    assert (live["answered"], live["local"]) == (2, 1)
    assert live["left"] == [{"code": "quality", "words": "local answer probably wrong", "count": 1}]
    assert live["refused"][0]["code"] == "context"
    assert (live["cost"], live["spared"], live["joules"], live["currency"]) == (0.25, 0.125, None, "EUR")
    assert live["seconds_to_first"] == {"p50": 0.1, "p95": 0.1, "n": 2}
    text = httpx.get(f"{server.url}/metrics").text
    assert 'edgekit_requests_total{code="quality",degraded="false",tier="edge"} 1.0' in text
    assert 'edgekit_requests_total{code="context",degraded="false",tier="none"} 1.0' in text
    assert 'edgekit_seconds_count{tier="device"} 1.0' in text
    assert "edgekit_active 0.0" in text


def test_explaining_asks_nobody(server, router):
    verdict = httpx.post(f"{server.url}/api/explain", json=chat("would it have left")).json()
    assert (verdict["tier"], verdict["code"]) == ("edge", "quality")
    assert verdict["findings"][1]["limit"] == 0.2
    assert router.seen == []


def test_the_access_log_holds_no_prompt(server, caplog):
    caplog.set_level(logging.INFO)
    httpx.post(f"{server.url}/v1/chat/completions?key=hidden", json=chat("my secret"))

    def told():
        return [r.getMessage() for r in caplog.records if r.name.startswith("edgekit")]

    assert server.wait_until(told)
    assert len(told()) == 1
    assert told()[0].startswith("POST '/v1/chat/completions' 200 ")


def test_the_first_words_get_out_before_the_model_goes_on(monkeypatch):
    monkeypatch.setattr(crossing_module, "_HEAD_START", 60.0)
    produced = []

    class Talker:
        def answer(self, request, *, stop):
            for number in range(3):
                produced.append(number)
                yield Piece(str(number))
            yield routed()

    async def read():
        crossing = Crossing(Talker(), Request(), lambda _q, _r: None)
        with ThreadPoolExecutor(1) as executor:
            crossing.start(executor)
            while not crossing._ready.qsize():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            before = len(produced)
            events = [await crossing.next()]
            while (event := await crossing.next()) is not None:
                events.append(event)
        return before, len(events)

    assert asyncio.run(read()) == (1, 4)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_leaves_no_circle_behind(server, stream):
    """What waits for a collection piles up: few objects, and an answer's whole memory with them."""
    gc.collect()
    gc.disable()
    try:
        httpx.post(f"{server.url}/v1/chat/completions", json=chat("one two three") | {"stream": stream})
        assert server.wait_until(lambda: not [o for o in gc.get_objects() if type(o) is Crossing])
    finally:
        gc.enable()


def test_a_long_request_is_made_ready_beside_all_others(router):
    begun, gate = threading.Event(), threading.Event()

    def prepare(request):
        begun.set()
        assert gate.wait(30)
        return request

    router.prepare = prepare
    with site(router, Settings(queue=2)) as server:
        long = [in_background(server.url, chat("word " * 20_000)) for _ in range(2)]
        assert begun.wait(20)
        assert httpx.post(f"{server.url}/v1/chat/completions", json=chat("hi")).status_code == 200
        assert server.wait_until(lambda: server.service._long.active == 2)
        # As many may wait as may be answered.
        assert httpx.post(f"{server.url}/v1/chat/completions", json=chat("word " * 20_000)).status_code == 429
        gate.set()
        for thread, found in long:
            thread.join(30)
            assert found[0].status_code == 200
    assert [len(q.text) for q in router.seen] == [2, 100_000, 100_000]


def test_threads_are_renewed_and_answers_go_on(server, router):
    def threads():
        return {t.ident for t in threading.enumerate() if t.name.startswith("edgekit-answer")}

    others = threads()
    thread, found = in_background(server.url, chat("wait"))
    assert server.wait_until(lambda: server.service.admission.active == 1)
    old = threads() - others
    server.running._loop.call_soon_threadsafe(server.service.tidy)
    assert httpx.post(f"{server.url}/v1/chat/completions", json=chat("hi")).status_code == 200
    router.gate.set()
    thread.join(20)
    assert found[0].status_code == 200
    assert server.wait_until(lambda: not old & threads())
