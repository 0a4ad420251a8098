"""An endpoint that means harm: each wrong type in each field, and bytes that no server should send.

Whatever it does ends in an answer or in a CloudError with a hint, soon, and within some megabytes.
"""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
import zlib
from contextlib import suppress
from itertools import count

import pytest

from edgekit.errors import CloudError
from edgekit.routing.endpoints.answer import Answer
from edgekit.routing.endpoints.failures import read_retry_after
from tests.cloud.loopback import question, serve

CHUNK = {
    "id": "x",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "system_fingerprint": "f",
    "choices": [
        {
            "index": 0,
            "delta": {
                "role": "assistant",
                "content": "x",
                "refusal": None,
                "tool_calls": [
                    {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            "text": "x",
            "finish_reason": "stop",
            "logprobs": {"content": [{"token": "x", "logprob": -1.0, "bytes": [1], "top_logprobs": []}]},
        }
    ],
    "usage": {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 0},
    },
}
PROBLEM = {"error": {"message": "no", "type": "server_error", "code": "unsupported_parameter", "param": "max_tokens"}}
WRONG = [
    *(None, True, False, 0, -1, 1.5, 10**30, float("nan"), float("inf"), -float("inf"), "", "text", "\x1b]0;x\x07"),
    *([], {}, [None], [[]], [{}], {"a": 1}, [1, "x", None], {"": None}, "9" * 5000, [[[[[]]]]], 10**4000),
]


def places(value, at=()):
    yield at
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*at, key))


def put(value, at, wrong):
    if not at:
        return wrong
    value = json.loads(json.dumps(value))
    inner = value
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = wrong
    return value


def missing(value, at):
    value = json.loads(json.dumps(value))
    inner = value
    for key in at[:-1]:
        inner = inner[key]
    del inner[at[-1]]
    return value


def damaged(value):
    for at in places(value):
        yield from (put(value, at, wrong) for wrong in WRONG)
        if at:
            yield missing(value, at)


def sound(answer: Answer) -> None:
    for tokens in (answer.prompt_tokens, answer.new_tokens):
        assert tokens is None or (type(tokens) is int and 0 <= tokens < 2**32)
    assert isinstance(json.loads(answer.message() or "{}"), dict)
    assert answer.finish in ("", "stop", "length", "tool_calls", "content_filter")


def test_every_field_of_a_streams_event_may_be_of_any_type():
    text_only = {**CHUNK, "choices": [{k: v for k, v in CHUNK["choices"][0].items() if k != "text"}]}
    number = 0
    for event in (*damaged(CHUNK), *damaged(text_only)):
        answer = Answer()
        with suppress(ValueError):
            assert isinstance(answer.take(event), str)
            assert isinstance(answer.take(event), str)
        sound(answer)
        number += 1
    assert number > 1000


@pytest.mark.parametrize("kind", ["an event", "an answer", 400, 429, 500])
def test_every_field_may_be_of_any_type_on_the_wire(endpoint, kind):
    events = [*damaged(PROBLEM), *list(damaged(CHUNK))[:: 1 if kind == "an event" else 40]]
    turns = iter(events)

    def script(c):
        event = next(turns, CHUNK)
        if kind == "an event":
            c.stream()
            c.event(event)
            c.end()
        else:
            c.plain(200 if kind == "an answer" else kind, json.dumps(event))

    with serve(script) as server:
        far = endpoint(server.url)
        for _ in events:
            reply = far.ask(question())
            try:
                assert "".join(reply).isprintable() or kind == "an event"
            except CloudError as error:
                assert error.hint, error.message
                assert "\x1b" not in error.message
            assert reply.finish
            far.breaker.succeed()


# --- bytes --------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
BOMB = b"0" * 30_000_000


def encoded(name: bytes, data: bytes) -> bytes:
    return HEAD + b"content-encoding: %s\r\ncontent-length: %d\r\n\r\n" % (name, len(data)) + data


def sse(*lines: bytes) -> bytes:
    body = b"".join(lines)
    return CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


ANSWERED = b'data: {"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
BYTES = {
    "one header of 10 MB": HEAD + b"x: " + b"a" * 10_000_000 + b"\r\n\r\n",
    "a million headers": HEAD + b"x: y\r\n" * 1_000_000 + b"\r\n",
    "no status line": b"hello\r\n\r\n",
    "nothing but zeros": b"\0" * 100_000,
    "status 999": b"HTTP/1.1 999 What\r\ncontent-length: 0\r\n\r\n",
    "status 99999": b"HTTP/1.1 99999 What\r\ncontent-length: 0\r\n\r\n",
    "status 0": b"HTTP/1.1 000 What\r\ncontent-length: 0\r\n\r\n",
    "HTTP 9": b"HTTP/9.9 200 OK\r\ncontent-length: 0\r\n\r\n",
    "HTTP 2's preface": b"\0\0\x12\4\0\0\0\0\0" * 10,
    "a switch of protocols": b"HTTP/1.1 101 Switching\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
    + b"x" * 100,
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "early hints without end": b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 400_000,
    "a length below zero": HEAD + b"content-length: -1\r\n\r\nx",
    "a length of many digits": HEAD + b"content-length: " + b"9" * 5000 + b"\r\n\r\nx",
    "two lengths": HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
    "a length and chunks": HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\nabcdef",
    "an endless chunk": CHUNKED + b"F" * 16 + b"\r\nabc",
    "a chunk that is none": CHUNKED + b"xyz\r\n",
    "a chunk's endless extension": CHUNKED + b"5;" + b"a" * 5_000_000,
    "a chunk's wrong end": CHUNKED + b"5\r\nabcdeXX0\r\n\r\n",
    "endless trailers": CHUNKED + b"0\r\n" + b"x: y\r\n" * 1_000_000,
    "bytes of Latin-1 in a header": HEAD + b"x: \xff\xfe\r\ncontent-length: 0\r\n\r\n",
    "a header with zero": HEAD + b"x: a\0b\r\n\r\n",
    "gzip": encoded(b"gzip", gzip.compress(BOMB)),
    "deflate": encoded(b"deflate", zlib.compress(BOMB)),
    "br": encoded(b"br", b"\x1b" + b"\0" * 1000),
    "zstd": encoded(b"zstd", b"\x28\xb5\x2f\xfd" + b"\0" * 1000),
    "gzip twice": encoded(b"gzip, gzip", gzip.compress(gzip.compress(BOMB))),
    "gzip after identity": encoded(b"identity, gzip", gzip.compress(BOMB)),
    "gzip in another header": HEAD
    + b"content-encoding: identity\r\n"
    + encoded(b"gzip", gzip.compress(BOMB))[len(HEAD) :],
    "gzip of an error": encoded(b"gzip", gzip.compress(BOMB)).replace(b"200 OK", b"500 Oh"),
    "a transfer that is gzip": HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n" + gzip.compress(BOMB),
    "a line of 20 MB": sse(b"data: " + b"a" * 20_000_000),
    "a text of 20 MB": sse(b'data: {"choices": [{"delta": {"content": "' + b"a" * 20_000_000 + b'"}}]}\n\n'),
    "a million lines": sse(b"data: x\n" * 1_000_000),
    "a million comments": sse(b": x\n" * 1_000_000),
    "a million empty lines": sse(b"\n" * 1_000_000),
    "a million events": sse(b"data: {}\n\n" * 500_000),
    "a million calls": sse(
        *(b'data: {"choices": [{"delta": {"tool_calls": [{"index": %d}]}}]}\n\n' % n for n in range(100_000))
    ),
    "deep lists": sse(b"data: " + b"[" * 900_000 + b"\n\n"),
    "deep objects": sse(b"data: " + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"\n\n"),
    "as deep as can be read": sse(b"data: " + b"[" * 900 + b"]" * 900 + b"\n\n"),
    "a number of 10,000 digits": sse(b"data: " + b"9" * 10_000 + b"\n\n"),
    "no UTF-8": sse(b"data: \xff\xfe\xc0\n\n"),
    "no UTF-8 in a text": sse(b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n'),
    "half a pair": sse(b'data: {"choices": [{"delta": {"content": "\\ud800"}}]}\n\n'),
    "names of events": sse(b"event: error\ndata: []\n\nevent: thread.x\ndata: 5\n\nretry: 99\nid: \0\ndata: null\n\n"),
    "an error that is a word": sse(b'data: {"error": "no"}\n\n'),
    "an error that is a list": sse(b'data: {"error": [1]}\n\nevent: error\ndata: {"error": {"message": [1]}}\n\n'),
    "HTML": b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>",
    "a type of 60 kB": b"HTTP/1.1 200 OK\r\ncontent-type: " + b"a/" * 30_000 + b"\r\ncontent-length: 0\r\n\r\n",
    "an error of 20 MB": b"HTTP/1.1 500 Oh\r\ncontent-length: 20000000\r\n\r\n" + b'{"error": "' + b"a" * 20_000_000,
    "an error as deep as can be read": b"HTTP/1.1 400 Oh\r\nconnection: close\r\n\r\n"
    + b'{"error":' * 980
    + b"1"
    + b"}" * 980,
    "an error without UTF-8": b"HTTP/1.1 400 Oh\r\nconnection: close\r\ncontent-type: x/y; charset=\xff\r\n\r\n\xff",
    "an error in a codec": b"HTTP/1.1 400 Oh\r\nconnection: close\r\ncontent-type: x/y; charset=zlib_codec\r\n\r\nx",
    "a strange wait": b"HTTP/1.1 429 Oh\r\nretry-after: "
    + b"9" * 4000
    + b"\r\ndate: \xff\r\ncontent-length: 0\r\n\r\n",
    **{
        f"status {status} elsewhere": b"HTTP/1.1 %d Go\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
        % status
        for status in (300, 301, 302, 303, 307, 308)
    },
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_that_no_server_should_send(endpoint, name):
    def script(c):
        c.socket.sendall(BYTES[name])
        c.hang()

    with serve(script) as server:
        far = endpoint(server.url, deadline=3.0, stall=0.5)
        tracemalloc.start()
        began = time.monotonic()
        try:
            reply = far.ask(question())
            with pytest.raises(CloudError) as failed:
                list(reply)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert time.monotonic() - began < 60
    assert failed.value.hint
    assert failed.value.message.isprintable()
    assert len(failed.value.message) < 500
    assert peak < 150_000_000
    assert server.connections == 1
    assert failed.value.__cause__ is None


@pytest.mark.parametrize(
    "piece",
    [
        b": x\n",
        b"data: {}\n\n",
        b"a",
        b"\n",
        b'data: {"choices": []}\n\n',
        b'data: {"choices": [{"delta": {"content": ""}}]}\n\n',
    ],
)
def test_a_stream_without_end_ends(endpoint, piece):
    def script(c):
        c.stream()
        with suppress(OSError):
            for _ in count():
                c.chunk(piece * 100)

    with serve(script) as server:
        far = endpoint(server.url, deadline=1.0, stall=1.0)
        began = time.monotonic()
        with pytest.raises(CloudError) as failed:
            list(far.ask(question()))
    assert time.monotonic() - began < 30
    assert failed.value.hint


def test_headers_without_end_end(endpoint):
    def script(c):
        c.socket.sendall(HEAD)
        with suppress(OSError):
            while True:
                c.socket.sendall(b"x")
                time.sleep(0.05)

    with serve(script) as server, pytest.raises(CloudError) as failed:
        list(endpoint(server.url, deadline=1.0, stall=1.0).ask(question()))
    assert "deadline" in failed.value.message


def test_cookies_are_not_kept(endpoint):
    def script(c):
        c.socket.sendall(HEAD + b"set-cookie: a=b; Path=/\r\nconnection: close\r\n\r\n" + ANSWERED)
        c.cut()

    with serve(script) as server:
        far = endpoint(server.url)
        assert [*far.ask(question()), *far.ask(question())] == ["x", "x"]
    assert [heard.headers.get("cookie") for heard in server.heard] == [None, None]


def test_a_count_that_cannot_be_true_costs_nothing(endpoint):
    def script(c):
        c.stream()
        c.say("x")
        c.event(
            {"choices": [{"finish_reason": "stop"}], "usage": {"prompt_tokens": 10**30, "completion_tokens": 10**12}}
        )
        c.event(b"[DONE]")

    with serve(script) as server:
        reply = endpoint(server.url).ask(question())
        assert list(reply) == ["x"]
    assert (reply.prompt_tokens, reply.new_tokens) == (None, None)


@pytest.mark.parametrize(
    "headers",
    [
        {"retry-after": value, "date": date}
        for value in (
            "",
            "x",
            "9" * 5000,
            "-1",
            "nan",
            "1e9",
            "Thu, 99 Foo 9999999999 99:99:99 GMT",
            "0 0 0 0 0 0",
            "," * 100,
            "\xff",
        )
        for date in ("", "x", "Mon, 01 Jan 0000 00:00:00 GMT", "\0")
    ],
)
def test_waits_that_are_none(headers):
    assert read_retry_after(headers) in (None, 0.0)
