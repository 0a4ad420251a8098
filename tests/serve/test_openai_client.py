"""The official client against a real server: chat, text, streams, models, errors."""

import json

import openai
import pytest

from edgekit.types.routing import Message
from tests.serve.doubles import LOCAL

SAY = [{"role": "user", "content": "hello there"}]


def test_a_chat_answer_with_its_verdict(client):
    raw = client.chat.completions.with_raw_response.create(model="edgekit", messages=SAY)
    answer = raw.parse()
    assert answer.choices[0].message.content == "hello there "
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 2, 9)
    assert answer.object == "chat.completion"
    assert answer.model == "tiny-int4"
    assert answer.edgekit["tier"] == "device"
    assert answer.edgekit["findings"][0]["value"] == 12
    assert answer.edgekit["spared"] == 0.125
    header = json.loads(raw.headers["x-edgekit-verdict"])
    assert header == {"tier": "device", "code": "local", "degraded": False, "reason": LOCAL.reason}


def test_the_header_is_ascii_whatever_the_reason(client):
    left = [{"role": "user", "content": "left"}]
    raw = client.chat.completions.with_raw_response.create(model="edgekit", messages=left)
    assert raw.headers["x-edgekit-verdict"].isascii()
    assert "über" in json.loads(raw.headers["x-edgekit-verdict"])["reason"]
    assert raw.parse().model == "big-model"


def test_a_chat_stream(client):
    raw = client.chat.completions.with_raw_response.create(
        model="edgekit", messages=SAY, stream=True, stream_options={"include_usage": True}
    )
    assert json.loads(raw.headers["x-edgekit-verdict"])["tier"] == "device"
    chunks = list(raw.parse())
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "hello there "
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 9
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-2].edgekit["tier"] == "device"
    assert len({c.id for c in chunks}) == 1


def test_a_stream_without_usage_has_none(client):
    chunks = list(client.chat.completions.create(model="edgekit", messages=SAY, stream=True))
    assert all(c.usage is None for c in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_text_whole_and_streamed(client, router):
    whole = client.completions.create(model="edgekit", prompt="once upon", max_tokens=5, stop=["x", "y"])
    assert whole.choices[0].text == "once upon "
    assert whole.object == "text_completion"
    pieces = client.completions.create(model="edgekit", prompt=["once upon"], stream=True)
    assert "".join(c.choices[0].text for c in pieces) == "once upon "
    asked = router.seen[0]
    assert (asked.prompt, asked.messages) == ("once upon", ())
    assert asked.sampling.max_new_tokens == 5
    assert asked.sampling.stop == ("x", "y")


def test_models(client):
    listed = list(client.models.list())
    assert [m.id for m in listed] == ["edgekit", "tiny-int4"]
    assert [t["name"] for t in listed[0].edgekit["tiers"]] == ["device", "edge"]
    assert client.models.retrieve("tiny-int4").id == "tiny-int4"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


def test_a_tool_call_comes_through(client):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    asked = {"model": "edgekit", "messages": [{"role": "user", "content": "tools"}], "tools": tools}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].finish_reason == "tool_calls"
    assert whole.choices[0].message.tool_calls[0].function.name == "f"
    assert whole.choices[0].message.content is None
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert chunks[-2].choices[0].delta.tool_calls[0].function.name == "f"
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_overrides_of_a_request(client, router):
    create = client.chat.completions.create
    create(model="edgekit", messages=SAY, extra_body={"edgekit": {"override": "cloud-ok", "private": True}})
    create(model="edgekit", messages=SAY, extra_headers={"x-edgekit-override": "local-only"})
    create(model="tiny-int4", messages=SAY)
    both = {"extra_body": {"edgekit": {"override": "cloud-ok"}}, "extra_headers": {"x-edgekit-override": "local-only"}}
    create(model="edgekit", messages=SAY, **both)
    create(model="edgekit", messages=SAY)
    assert [r.override for r in router.seen] == ["cloud-ok", "local-only", "local-only", "local-only", None]
    assert [bool(r.private) for r in router.seen] == [True, False, False, False, False]
    with pytest.raises(openai.BadRequestError, match="local-only, cloud-ok"):
        create(model="edgekit", messages=SAY, extra_headers={"x-edgekit-override": "anything"})


@pytest.mark.parametrize(
    ("code", "error", "told"),
    [
        ("context", openai.BadRequestError, "context_length_exceeded"),
        ("capability", openai.BadRequestError, "unsupported"),
        ("privacy", openai.PermissionDeniedError, "privacy"),
        ("money", openai.RateLimitError, "budget_exceeded"),
        ("quality", openai.UnprocessableEntityError, "answer_refused"),
        ("reachable", openai.InternalServerError, "unavailable"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_nobody_answers(client, code, error, told, stream):
    with pytest.raises(error) as caught:
        client.chat.completions.create(
            model="edgekit", messages=[{"role": "user", "content": f"refuse {code}"}], stream=stream
        )
    assert caught.value.code == told
    assert caught.value.response.json()["edgekit"]["findings"][0]["check"] == code
    assert json.loads(caught.value.response.headers["x-edgekit-verdict"])["tier"] == ""
    again = caught.value.response.headers.get("x-should-retry")
    assert again == (None if code == "reachable" else "false")


def test_a_stream_that_breaks_off_says_so(client, server):
    chunks = client.chat.completions.create(
        model="edgekit", messages=[{"role": "user", "content": "cut off here"}], stream=True
    )
    told = []
    with pytest.raises(openai.APIError, match="broke off"):
        told.extend(c.choices[0].delta.content for c in chunks)
    assert "".join(told) == "cut "


def test_what_we_did_not_foresee_tells_no_secret(client, caplog):
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="edgekit", messages=[{"role": "user", "content": "crash now"}])
    assert "secret" not in caught.value.response.text
    assert "ValueError" in caplog.text
    assert "doubles.py" in caplog.text
    assert "secret: crash" not in caplog.text


def test_a_schema_that_is_none_is_the_clients_mistake(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="edgekit", messages=[{"role": "user", "content": "misschema"}])
    assert caught.value.code == "invalid_schema"


def test_an_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=SAY)
    assert caught.value.code == "model_not_found"
    assert "'edgekit'" in caught.value.message


def test_messages_become_the_routers(client, router):
    client.chat.completions.create(
        model="edgekit",
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        ],
    )
    assert router.seen[0].messages == (Message("system", "be brief"), Message("user", "one\ntwo"))
    assert router.seen[0].passthrough == ""
