"""What clients may send wrongly: each gets a clear error in OpenAI's shape, and nothing is asked of the router."""

import json
import socket
import subprocess

import httpx
import pytest

from edgekit.serve.api_errors import Refusal
from edgekit.serve.protocol import (
    MOST_MEMBERS,
    MOST_MESSAGES,
    MOST_PARTS,
    MOST_STOPS,
    MOST_TOOLS,
    MOST_VALUES,
    Chat,
    Completion,
)
from edgekit.types import Sampling

USER = [{"role": "user", "content": "hi"}]
CHAT = {"model": "edgekit", "messages": USER}


def read(form=Chat, **fields):
    usual = CHAT if form is Chat else {"model": "edgekit", "prompt": "hi"}
    return form.read(json.dumps(usual | fields).encode())


def request(form=Chat, **fields):
    return read(form, **fields).request(header=None, local_model="tiny")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"stop": ["x"] * 10_000}, "stop", "too_many_stops"),
        ({"stop": ["x", ""]}, "stop", "empty_stop"),
        ({"stop": ""}, "stop", "empty_stop"),
        ({"n": 2}, "n", "unsupported_value"),
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"top_logprobs": 3}, "logprobs", "unsupported_parameter"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "unsupported_parameter"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"edgekit": {"overide": "local-only"}}, "edgekit.overide", "unknown_parameter"),
        ({"edgekit": {"override": "cloud-only"}}, "edgekit.override", "invalid_value"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages.0.role", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_schema"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing_content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "missing_content"),
        ({"messages": [*USER, {"role": "system", "content": []}]}, "messages.1.content", "missing_content"),
        ({"messages": [*USER, {"role": "tool", "tool_call_id": "c"}]}, "messages.1.content", "missing_content"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_value"),
        ({"model": None}, "model", "invalid_value"),
    ],
)
def test_a_field_that_cannot_be_served(fields, param, code):
    with pytest.raises(Refusal) as caught:
        read(**fields)
    error = caught.value.body["error"]
    assert caught.value.status == 400
    assert error["param"] == param
    assert error["code"] == code
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 300


def test_content_may_be_empty_and_an_assistants_left_out():
    read(messages=[{"role": "user", "content": ""}])
    read(messages=[*USER, {"role": "assistant", "content": None}, *USER], modalities=["text"])
    read(messages=[*USER, {"role": "assistant", "refusal": "no"}, *USER], modalities=None)


def test_an_unknown_field_is_met_with_the_known_one():
    with pytest.raises(Refusal, match="did you mean 'temperature'"):
        read(temprature=1)


def test_what_is_invalid_is_not_repeated():
    with pytest.raises(Refusal) as caught:
        read(messages=[{"role": "user", "content": {"secret": "my prompt"}}])
    assert "my prompt" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 1}, "logprobs"),
        ({"best_of": 2}, "best_of"),
    ],
)
def test_a_text_field_that_cannot_be_served(fields, param):
    with pytest.raises(Refusal) as caught:
        read(Completion, **fields)
    assert caught.value.param == param


def test_what_is_accepted_and_changes_nothing():
    asked = read(
        user="me", metadata={"a": "b"}, store=False, n=1, logprobs=False, frequency_penalty=0, stream=None,
        response_format={"type": "text"}, stop=None, temperature=None,
    )  # fmt: skip
    assert asked.request(header=None, local_model="tiny") == request()


def test_what_is_not_said_stays_unsaid():
    assert request().sampling == request(Completion).sampling == Sampling()
    assert Sampling() == Sampling(temperature=None, top_p=1.0, seed=None, max_new_tokens=None, stop=())
    nulls = dict.fromkeys(
        ("temperature", "top_p", "max_tokens", "seed", "stop", "stream", "stream_options", "n", "user", "edgekit")
    )
    assert request(**nulls, max_completion_tokens=None, response_format=None, audio=None) == request()
    assert request(stream_options={"include_usage": None}, edgekit={"private": None}) == request()
    assert request(temperature=0, seed=0).sampling == Sampling(temperature=0.0, seed=0)
    assert request(max_tokens=5, max_completion_tokens=7).sampling.max_new_tokens == 7


def function(**parameters):
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        (lambda n: {"stop": ["x"] * n}, MOST_STOPS),
        (lambda n: {"messages": USER * n}, MOST_MESSAGES),
        (lambda n: {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * n}]}, MOST_PARTS),
        (lambda n: {"tools": [function()] * n}, MOST_TOOLS),
        (lambda n: {"tools": [function(properties={f"p{i}": {} for i in range(n)})]}, MOST_MEMBERS),
        (lambda n: {"tools": [function(enum=[1] * (n - CHAT_COMMAS + 1))]}, MOST_VALUES),
    ],
    ids=["stops", "messages", "parts", "tools", "members", "values"],
)
def test_as_many_as_are_allowed_are_taken_and_not_one_more(fields, most):
    assert request(**fields(most)).messages
    with pytest.raises(Refusal) as caught:
        read(**fields(most + 1))
    assert caught.value.status == 400


CHAT_COMMAS = json.dumps(CHAT | {"tools": [function(enum=[1])]}).count(",")


def test_commas_in_a_text_are_not_values():
    text = "," * (MOST_VALUES + 1)
    values = [function(enum=[1] * (MOST_VALUES - CHAT_COMMAS + 1))]
    assert request(messages=[{"role": "user", "content": text}], tools=values).messages[0].content == text


def test_a_seed_is_taken_as_it_is_and_none_is_made_up():
    assert request(temperature=1).sampling == Sampling(temperature=1)
    assert request(temperature=1, seed=42, top_p=0.9).sampling == Sampling(temperature=1, top_p=0.9, seed=42)
    assert request(temperature=1, seed=-1).sampling.seed == 2**63 - 1


ANSWER = {
    "role": "assistant", "content": "Hi!", "refusal": None, "annotations": [], "audio": None, "function_call": None,
    "tool_calls": None, "parsed": None, "reasoning_content": "They greet me.", "reasoning": "They greet me.",
}  # fmt: skip
"""A message as OpenAI's client, or a server of a reasoning model, gives it."""


def test_an_answer_may_be_sent_back_as_it_came():
    plain = {"role": "assistant", "content": "Hi!"}
    assert request(messages=[*USER, ANSWER, *USER]) == request(messages=[*USER, plain, *USER])
    call = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    called = ANSWER | {"content": None, "tool_calls": call}
    told = json.loads(request(messages=[*USER, called, *USER]).passthrough)["messages"][1]
    assert told == {"role": "assistant", "content": None, "tool_calls": call}
    part = {"type": "text", "text": "hi", "cache_control": None}
    assert request(messages=[{"role": "user", "content": [part], "name": None}]) == request()


TEXT = {"type": "text", "text": "hi"}


@pytest.mark.parametrize(
    ("message", "param", "code", "said"),
    [
        ({"content": [TEXT | {"cache_control": {"type": "ephemeral"}}]}, "content.0.cache_control", "unknown", "cache"),
        ({"content": [TEXT, {"type": "input_audio", "input_audio": {}}]}, "content.1.type", "unsupported", "'input_au"),
        ({"content": [{"type": "file", "file": {}}]}, "content.0.type", "unsupported", "'text', 'refusal', 'image"),
        ({"content": [{"text": "hi"}]}, "content.0.type", "missing", "content.0.type"),
        ({"content": [{"type": "text"}]}, "content.0.text", "missing", "content.0.text"),
        ({"content": [{"type": "text", "text": 5}]}, "content.0.text", "invalid", "string"),
        ({"content": 5}, "content", "invalid", "string"),
        ({"content": "hi", "reasoning_content": "private"}, "reasoning_content", "unknown", "reasoning_content"),
        ({"role": "assistant", "content": "hi", "audio": {"id": "a"}}, "audio", "unknown", "audio"),
        (
            {"role": "assistant", "content": "hi", "function_call": {"name": "f"}},
            "function_call",
            "unknown",
            "function",
        ),
        ({"content": "hi", "tool_calls": ["f"]}, "tool_calls.0", "invalid", "tool_calls.0"),
    ],
)
def test_a_message_that_cannot_be_taken_is_named_by_its_place(message, param, code, said):
    with pytest.raises(Refusal, match=said) as caught:
        read(messages=[*USER, {"role": "user"} | message])
    assert caught.value.param == f"messages.1.{param}"
    assert caught.value.code.startswith(code)
    assert "private" not in caught.value.message


@pytest.mark.parametrize(
    ("prompt", "code"),
    [([1, 2], "unsupported_value"), ([[1, 2]], "unsupported_value"), ("", "empty_prompt"), ([""], "empty_prompt")],
)
def test_a_prompt_that_is_no_text(prompt, code):
    with pytest.raises(Refusal) as caught:
        read(Completion, prompt=prompt)
    assert (caught.value.param, caught.value.code) == ("prompt", code)
    assert ("token ids" in caught.value.message) == (code == "unsupported_value")


def test_what_a_request_needs():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    seen = request(messages=[{"role": "user", "content": [{"type": "text", "text": "what is it?"}, image]}])
    assert seen.needs == {"images"}
    assert seen.messages[0].content == "what is it?"
    assert json.loads(seen.passthrough)["messages"][0]["content"][1] == image
    assert request(tools=[tool]).needs == {"tools"}
    assert json.loads(request(tools=[tool], tool_choice="auto").passthrough) == {"tools": [tool], "tool_choice": "auto"}
    assert request(tools=[tool], tool_choice="none").needs == frozenset()
    call = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    turn = [*USER, {"role": "assistant", "content": None, "tool_calls": call}]
    turn += [{"role": "tool", "content": "5", "tool_call_id": "c"}]
    assert request(messages=turn).needs == {"tools"}
    assert json.loads(request(messages=turn).passthrough)["messages"][1]["tool_calls"] == call


def test_json_wanted():
    assert request(response_format={"type": "json_object"}).schema == "{}"
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "array"}, "strict": True}}
    wanted = request(response_format=form)
    assert json.loads(wanted.schema) == {"type": "array"}
    assert wanted.needs == {"json-schema"}
    assert json.loads(wanted.passthrough) == {"response_format": form}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"\xff\xfe{}", "invalid_utf8"),
        (b'{"model": "edg', "invalid_json"),
        (b'{"model": "edgekit", "temperature": NaN}', "invalid_json"),
        (b'{"model": "\\ud800"}', "invalid_json"),
        (b"[" * 200_000, "invalid_json"),
        (b"[]", None),
        (b"", "invalid_json"),
    ],
)
def test_a_body_that_is_no_request(server, router, body, code):
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == code
    assert router.seen == []


def test_a_body_of_50_megabytes_is_refused_clearly(server, router):
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=b"x" * 50_000_000)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"
    assert router.seen == []


def test_a_body_without_a_length_is_counted_while_it_comes(server):
    def endless():
        for _ in range(40):
            yield b"x" * 50_000

    answer = httpx.post(f"{server.url}/v1/chat/completions", content=endless())
    assert answer.status_code == 413


def test_who_asks_first_is_told_before_sending(server):
    """curl sends `Expect: 100-continue` for large bodies: it hears 413 and sends nothing."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50000000\r\n"
        raw.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("length", ["abc", "-5", "1e3"])
def test_a_length_that_is_no_number(server, length):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 400")


def test_unknown_places_and_methods(server):
    assert httpx.get(f"{server.url}/v1/embeddings").json()["error"]["code"] == "not_found"
    wrong = httpx.get(f"{server.url}/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


def test_curl_streams(server):
    command = ["curl", "-sN", f"{server.url}/v1/chat/completions", "-d", json.dumps(CHAT | {"stream": True})]
    told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    lines = [line for line in told.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[1][6:])["choices"][0]["delta"] == {"content": "hi "}


def test_curl_asks_and_reads_the_verdict(server):
    command = ["curl", "-si", f"{server.url}/v1/completions", "-d", '{"model":"edgekit","prompt":"left"}']
    told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    assert 'x-edgekit-verdict: {"tier":"edge","code":"quality"' in told
    assert json.loads(told.splitlines()[-1])["choices"][0]["text"] == "left "
