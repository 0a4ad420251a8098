"""What is asked of an endpoint, and what comes back when nothing goes wrong."""

from __future__ import annotations

import json
import logging
import threading
import time

import openai
import pytest

from edgekit.errors import CloudError, ConfigError
from edgekit.routing.endpoints import Endpoint
from edgekit.types import Sampling
from edgekit.types.routing import Request
from tests.cloud.loopback import KEY, PROMPT, cleared, question, serve, tier


def test_an_answer_comes_in_pieces_and_says_what_it_took(endpoint):
    with serve(lambda c: c.answer("Go ", "to ", "", "Würzburg 🙂")) as server:
        reply = endpoint(server.url).ask(question())
        assert list(reply) == ["Go ", "to ", "Würzburg 🙂"]
    assert (reply.finish, reply.prompt_tokens, reply.new_tokens, reply.message) == ("stop", 11, 3, "")
    assert reply.tries == 1
    assert 0 < reply.seconds_to_first <= reply.seconds < 5


def test_nothing_is_sent_before_the_first_piece_is_wanted(endpoint):
    with serve(lambda c: c.answer("x")) as server:
        reply = endpoint(server.url).ask(question())
        time.sleep(0.05)
        assert server.connections == 0
        assert "".join(reply) == "x"
        assert server.connections == 1


def test_the_body_of_a_conversation(endpoint):
    sampling = Sampling(temperature=0.7, top_p=0.9, seed=7, max_new_tokens=50, stop=("END",), top_k=40)
    with serve(lambda c: c.answer("x")) as server:
        list(endpoint(server.url).ask(question(sampling=sampling)))
    assert server.heard[0].path == "/v1/chat/completions"
    assert server.heard[0].body == {
        "model": "big-model",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 50,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 7,
        "stop": ["END"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_text_is_continued_as_it_is(endpoint):
    with serve(lambda c: c.answer(" a time")) as server:
        reply = endpoint(server.url, max_output=20).ask(cleared(Request(prompt="Once upon", sampling=Sampling())))
        assert "".join(reply) == " a time"
    assert server.heard[0].path == "/v1/completions"
    body = server.heard[0].body
    assert (body["prompt"], body["max_tokens"]) == ("Once upon", 20)
    assert not {"messages", "temperature", "seed", "top_p", "stop", "n"} & set(body)


@pytest.mark.parametrize(
    ("sampling", "told"),
    [
        (Sampling(), {}),
        (Sampling(temperature=0.0, seed=5), {"temperature": 0.0}),
        (Sampling(seed=0), {"seed": 0}),
        (Sampling(temperature=1.0, seed=0), {"temperature": 1.0, "seed": 0}),
        (Sampling(max_new_tokens=7), {"max_tokens": 7}),
    ],
)
def test_what_nobody_asked_for_is_not_sent(endpoint, sampling, told):
    with serve(lambda c: c.answer("x")) as server:
        list(endpoint(server.url).ask(question(sampling=sampling)))
    said = {"temperature", "seed", "top_p", "stop", "max_tokens", "max_completion_tokens"}
    assert {name: value for name, value in server.heard[0].body.items() if name in said} == told


def test_what_is_passed_through_stands_above_the_rest_but_not_above_the_tier(endpoint):
    parts = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": "data:,x"}}]
    passed = {
        "messages": [{"role": "user", "content": parts}],
        "tools": [{"type": "function", "function": {"name": "look"}}],
        "temperature": 0.2,
        "max_completion_tokens": 9,
        "model": "another-model",
        "stream": False,
        "stream_options": None,
        "n": 5,
    }
    with serve(lambda c: c.answer("x")) as server:
        list(endpoint(server.url).ask(question(passthrough=json.dumps(passed))))
    body = server.heard[0].body
    assert body["messages"] == passed["messages"]
    assert body["tools"] == passed["tools"]
    assert (body["temperature"], body["max_completion_tokens"]) == (0.2, 9)
    assert (body["model"], body["stream"], body["stream_options"]) == ("big-model", True, {"include_usage": True})
    assert "n" not in body
    assert "max_tokens" not in body


@pytest.mark.parametrize("passed", ["[1]", "{", "[" * 100_000])
def test_what_cannot_be_passed_through_is_not_sent(endpoint, passed):
    with serve(lambda c: c.answer("x")) as server:
        with pytest.raises(CloudError, match="not a JSON object"):
            endpoint(server.url).ask(question(passthrough=passed))
        assert server.connections == 0


def test_a_question_without_words_is_not_sent(endpoint):
    with pytest.raises(CloudError, match="neither messages nor a prompt"):
        endpoint("http://127.0.0.1:9/v1").ask(cleared(Request()))


@pytest.mark.parametrize("fields", [{"private": "the document a.md is private"}, {"override": "local-only"}])
def test_what_must_stay_on_the_device_is_refused_here_too(endpoint, fields):
    with serve(lambda c: c.answer("x")) as server:
        with pytest.raises(CloudError, match="must not get the request") as failed:
            endpoint(server.url).ask(question(**fields))
        assert server.connections == 0
    assert PROMPT not in str(failed.value)


def test_tool_calls_are_put_together(endpoint):
    def script(c):
        c.stream()
        c.say("Let me look.")
        for delta in (
            {"tool_calls": [{"index": 0, "id": "a1", "function": {"name": "weather", "arguments": '{"ci'}}]},
            {"tool_calls": [{"index": 1, "id": "b2", "function": {"name": "time", "arguments": "{}"}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": 'ty":"Rome"}'}}]},
        ):
            c.event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        c.end("tool_calls")

    with serve(script) as server:
        reply = endpoint(server.url).ask(question())
        assert "".join(reply) == "Let me look."
    assert reply.finish == "tool_calls"
    assert json.loads(reply.message) == {
        "role": "assistant",
        "content": "Let me look.",
        "tool_calls": [
            {"id": "a1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}},
            {"id": "b2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
        ],
    }


def test_an_endpoint_that_does_not_count_leaves_that_open(endpoint):
    def script(c):
        c.stream()
        c.say("x")
        c.end("length", usage=None)

    with serve(script) as server:
        reply = endpoint(server.url).ask(question())
        list(reply)
    assert (reply.finish, reply.prompt_tokens, reply.new_tokens) == ("length", None, None)


def test_an_answer_that_ended_stands_though_its_usage_never_comes(endpoint):
    def script(c):
        c.stream()
        c.say("whole")
        c.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        c.cut()

    with serve(script) as server:
        reply = endpoint(server.url).ask(question())
        assert "".join(reply) == "whole"
    assert (reply.finish, reply.new_tokens) == ("stop", None)


def test_connections_are_used_again(endpoint):
    with serve(lambda c: c.answer("x", "y")) as server:
        far = endpoint(server.url)
        for _ in range(4):
            assert "".join(far.ask(question())) == "xy"
        assert server.connections == 1
        assert len(server.heard) == 4


@pytest.mark.parametrize(
    ("first", "gone", "there"),
    [
        (("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "unsupported_parameter"),
         "max_tokens", ("max_completion_tokens", 50)),
        (("max_tokens is gone, use max_completion_tokens", None), "max_tokens", ("max_completion_tokens", 50)),
        (("'temperature' does not support 0", "unsupported_value", "temperature"), "temperature", ("max_tokens", 50)),
    ],
)  # fmt: skip
def test_a_field_that_is_not_taken_is_learnt_once(endpoint, first, gone, there):
    def fussy(c):
        if gone in c.heard.body:
            c.error(400, *first)
        else:
            c.answer("fine")

    with serve(fussy) as server:
        far = endpoint(server.url)
        for _ in range(2):
            asked = question(sampling=Sampling(temperature=0.0, max_new_tokens=50))
            assert "".join(far.ask(asked)) == "fine"
    bodies = [h.body for h in server.heard]
    assert [gone in b for b in bodies] == [True, False, False]
    assert bodies[2][there[0]] == there[1]


def test_a_400_that_stays_one_is_an_error_of_the_request(endpoint):
    with serve(lambda c: c.error(400, "use max_completion_tokens, not max_tokens", "unsupported_parameter")) as server:
        far = endpoint(server.url)
        for _ in range(2):
            with pytest.raises(CloudError, match="does not accept the request") as failed:
                list(far.ask(question()))
        assert len(server.heard) == 3
        assert failed.value.status == 400
        assert far.down() == ""


def test_sixteen_at_once_get_their_own_text(endpoint):
    def script(c):
        said = c.heard.body["messages"][0]["content"]
        c.stream()
        for i in range(20):
            c.say(f"{said}.{i} ")
        c.end(usage=(int(said), 20))

    with serve(script) as server:
        far = endpoint(server.url)
        got: dict[int, tuple[str, int | None]] = {}
        start = threading.Barrier(16)

        def ask(n: int) -> None:
            start.wait(5)
            for again in range(3):
                number = n * 3 + again
                reply = far.ask(question(str(number)))
                got[number] = ("".join(reply), reply.prompt_tokens)

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert got == {n: ("".join(f"{n}.{i} " for i in range(20)), n) for n in range(48)}


# --- cancelling ---------------------------------------------------------------------------------


def test_closing_in_the_middle_cuts_the_connection(endpoint):
    def script(c):
        c.stream()
        c.say("one")
        c.hang()

    with serve(script) as server:
        far = endpoint(server.url, stall=4.0)
        reply = far.ask(question())
        assert next(reply) == "one"
        reply.close()
        reply.close()
        assert server.gone.wait(2)
        assert list(reply) == []
    assert reply.finish == "cancelled"
    assert far.down() == ""


@pytest.mark.parametrize("pieces", [0, 1])
def test_closing_from_another_thread_wakes_the_one_that_waits(endpoint, pieces):
    waiting = threading.Event()

    def script(c):
        if pieces:
            c.stream()
            c.say("one")
        waiting.set()
        c.hang()

    with serve(script) as server:
        reply = endpoint(server.url, stall=30.0, deadline=30.0).ask(question())
        got: list[str] = []
        thread = threading.Thread(target=lambda: got.extend(reply))
        thread.start()
        assert waiting.wait(5)
        time.sleep(0.05)
        reply.close()
        thread.join(5)
        assert not thread.is_alive()
        assert server.gone.wait(2)
    assert got == ["one"] * pieces
    assert reply.finish == "cancelled"


def test_an_answer_closed_before_it_began_sends_nothing(endpoint):
    with serve(lambda c: c.answer("x")) as server:
        with endpoint(server.url).ask(question()) as reply:
            pass
        assert list(reply) == []
        assert server.connections == 0
    assert reply.finish == "cancelled"


def test_closing_while_it_begins_sends_nothing(endpoint):
    replies = []

    def clock() -> float:
        if replies:  # the iteration has begun, and there is no connection yet
            thread = threading.Thread(target=replies.pop().close)
            thread.start()
            thread.join(5)
        return time.monotonic()

    with serve(lambda c: c.answer("x")) as server:
        reply = endpoint(server.url, options={"clock": clock}).ask(question())
        replies.append(reply)
        assert list(reply) == []
        assert server.heard == []
    assert reply.finish == "cancelled"


def test_closing_after_the_end_changes_nothing(endpoint):
    with serve(lambda c: c.answer("x")) as server:
        far = endpoint(server.url)
        reply = far.ask(question())
        list(reply)
        reply.close()
        assert reply.finish == "stop"
        assert "".join(far.ask(question())) == "x"
        assert server.connections == 1


def test_closing_ends_the_wait_before_a_retry(endpoint):
    with serve(lambda c: c.error(429, retry_after="20")) as server:
        reply = endpoint(server.url, deadline=60.0, retries=3).ask(question())
        thread = threading.Thread(target=lambda: list(reply))
        thread.start()
        for _ in range(100):
            if server.heard:
                break
            time.sleep(0.02)
        time.sleep(0.1)
        reply.close()
        thread.join(5)
        assert not thread.is_alive()
        assert len(server.heard) == 1
    assert reply.finish == "cancelled"


def test_a_closed_endpoint_breaks_off_and_says_so(endpoint):
    def script(c):
        c.stream()
        c.say("one")
        c.hang()

    with serve(script) as server:
        far = endpoint(server.url)
        reply = far.ask(question())
        assert next(reply) == "one"
        far.close()
        with pytest.raises(CloudError, match="cut the connection") as failed:
            next(reply)
        assert failed.value.shown
        with pytest.raises(CloudError, match="is closed"):
            far.ask(question())
        assert len(server.heard) == 1


# --- what is kept to ourselves ------------------------------------------------------------------


def test_nothing_of_the_environment_gets_into_a_request(endpoint, monkeypatch, tmp_path):
    foreign = {
        "OPENAI_API_KEY": "sk-foreign-key",
        "OPENAI_ADMIN_KEY": "sk-foreign-admin",
        "OPENAI_BASE_URL": "http://foreign.example/v1",
        "OPENAI_ORG_ID": "org-foreign",
        "OPENAI_PROJECT_ID": "proj-foreign",
        "OPENAI_WEBHOOK_SECRET": "foreign-hook",
        "OPENAI_CUSTOM_HEADERS": "X-Foreign: foreign-header",
        "AZURE_OPENAI_API_KEY": "foreign-azure",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "ALL_PROXY": "http://127.0.0.1:9",
        "SSL_CERT_FILE": str(tmp_path / "foreign.pem"),
        "NETRC": str(tmp_path / "netrc"),
    }
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login foreign password foreign")
    for name, value in foreign.items():
        monkeypatch.setenv(name, value)
    for fields, key in (({}, f"Bearer {KEY}"), ({"key_env": ""}, None)):
        with serve(lambda c: c.answer("x")) as server:
            assert "".join(endpoint(server.url, **fields).ask(question())) == "x"
        heard = server.heard[0]
        assert heard.headers.pop("authorization", None) == key
        assert set(heard.headers) == {
            "host", "accept", "accept-encoding", "connection", "content-type", "content-length", "user-agent",
        }  # fmt: skip
        assert "foreign" not in str(heard)


def test_the_connection_itself_knows_one_host_only():
    from edgekit.routing.endpoints import Key, wire

    with serve(lambda c: c.answer("stolen")) as other, serve(lambda c: c.answer("x")) as server:
        client = wire.open_client(server.url, stall=1.0, deadline=1.0, verify=None)
        call = wire.Call(time.monotonic() + 5, time.monotonic, 1000)
        with call.sending(Key(KEY)), pytest.raises(openai.APIConnectionError):
            client.post(f"{other.url}/chat/completions", cast_to=object, body={})
        assert call.ended == "elsewhere"
        with pytest.raises(openai.APIConnectionError):
            client.post("/chat/completions", cast_to=object, body={})
        assert (other.connections, server.connections) == (0, 0), "without a call there is no way out either"
        client.close()


def test_cookies_are_not_kept(endpoint):
    def script(c):
        c.stream(set_cookie="who=you; Path=/")
        c.say("x")
        c.end()

    with serve(script) as server:
        far = endpoint(server.url)
        list(far.ask(question()))
        list(far.ask(question()))
    assert "cookie" not in server.heard[1].headers


@pytest.mark.parametrize("status", [200, 401, 500])
def test_logs_at_debug_hold_neither_key_nor_prompt(endpoint, caplog, status):
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "openai._base_client", "httpx", "httpcore"):
        caplog.set_level(logging.DEBUG, logger=name)
    with serve(lambda c: c.answer("x") if status == 200 else c.error(status, f"bad key {KEY}")) as server:
        reply = endpoint(server.url).ask(question())
        if status == 200:
            list(reply)
        else:
            with pytest.raises(CloudError):
                list(reply)
    assert "httpx" in {r.name for r in caplog.records}
    said = caplog.text + "".join(f"{r.__dict__}" for r in caplog.records)
    assert KEY not in said
    assert "Mustermann" not in said


def test_the_clients_logs_are_otherwise_left_alone(endpoint, caplog):
    caplog.set_level(logging.DEBUG, logger="openai._base_client")
    endpoint("http://127.0.0.1:9/v1")
    logging.getLogger("openai._base_client").debug("somebody else's")
    assert "somebody else's" in caplog.text


def test_the_key_is_read_anew_for_every_request(endpoint):
    environment = {"FAR_KEY": "old-key-1234567"}
    with serve(lambda c: c.answer("x")) as server:
        far = endpoint(server.url, options={"environment": environment})
        list(far.ask(question()))
        environment["FAR_KEY"] = "new-key-1234567"
        list(far.ask(question()))
    assert [h.headers["authorization"][-15:] for h in server.heard] == ["old-key-1234567", "new-key-1234567"]


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("ftp://host/v1", "http or https"),
        ("host/v1", "http or https"),
        ("https:///v1", "http or https"),
        ("https://host:99999/v1", "is invalid"),
        ("https://me:sk-abc@host/v1", "user name, a password or a query"),
        ("https://host/v1?key=sk-abc", "user name, a password or a query"),
        ("http://api.example.com/v1", "unencrypted"),
    ],
)
def test_a_url_that_is_not_asked(url, match):
    with pytest.raises(ConfigError, match=match) as failed:
        Endpoint(tier(url), environment={"FAR_KEY": KEY})
    assert "sk-abc" not in str(failed.value) + failed.value.hint


def test_an_edge_box_may_be_asked_without_tls(endpoint):
    assert endpoint("http://box.local:8080/v1", trust="private").down() == ""


def test_importing_the_room_loads_nothing_heavy():
    import subprocess
    import sys

    code = "import edgekit.routing.endpoints, sys; print({'openai', 'httpx', 'httpcore'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
