"""Whatever an endpoint does wrong ends within its deadline, in an error that says what to do and nothing private."""

from __future__ import annotations

import gzip
import json
import re
import socket
import threading
import time
import traceback
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
import trustme

from edgekit.errors import CloudError
from tests.cloud.loopback import KEY, PROMPT, SSE, question, secure, serve, trusting


def fail(far, request=None) -> tuple[CloudError, list[str], float]:
    """The error, the text that was shown before it, and the seconds it took."""
    shown: list[str] = []
    started = time.monotonic()
    with pytest.raises(CloudError) as failed:
        for piece in (reply := far.ask(request or question())):
            shown.append(piece)  # noqa: PERF402 - what came before the error counts
    seconds = time.monotonic() - started
    error = failed.value
    assert reply.finish == "error"
    assert reply.seconds <= seconds
    assert error.shown == bool(shown)
    said = "".join(traceback.format_exception(error)) + repr(error) + error.message + error.hint
    assert error.__cause__ is None
    assert error.__context__ is None
    assert KEY not in said
    assert KEY[:10] not in said
    assert "Mustermann" not in said
    assert error.message.startswith("tier 'far' ")
    assert error.hint
    return error, shown, seconds


@pytest.mark.parametrize(
    ("status", "code", "message", "down"),
    [
        (400, None, "does not accept the request", False),
        (401, "invalid_api_key", r"does not accept the key \(401: invalid_api_key", True),
        (402, None, "requires payment", True),
        (403, None, "refuses this account", True),
        (404, "model_not_found", "has no model 'big-model'", True),
        (413, None, "does not accept the request", False),
        (418, None, "does not accept the request", False),
        (422, None, "does not accept the request", False),
        (429, None, "limits the rate of requests", False),
        (429, "insufficient_quota", "requires payment", True),
        (500, None, "failed", False),
        (503, None, "failed", False),
    ],
)
def test_a_status_becomes_an_error_that_says_what_to_do(endpoint, status, code, message, down):
    said = f"Incorrect API key provided: {KEY}. You asked: {PROMPT}"
    with serve(lambda c: c.error(status, said, code)) as server:
        far = endpoint(server.url)
        error, _, _ = fail(far)
        assert error.status == status
        assert bool(far.down()) == down
        assert len(server.heard) == 1
    assert re.search(message, error.message)


@pytest.mark.parametrize(
    ("said", "excerpt"),
    [
        ("the moon is in the way", ": the moon is in the way)"),
        (f"key {KEY} is bad", ": key *** is bad)"),
        (f"key {KEY[:7]}...{KEY[-8:]} is bad", ": key *** is bad)"),
        ("key sk-other-people is bad", ": key *** is bad)"),
        ("two\nlines\x1b[31m red\u202e", ": two lines [31m red)"),
        (f"cannot read '{PROMPT[4:30]}'", "(500)"),
        (f"cannot read {PROMPT.upper()}", "(500)"),
        ("long " * 100, "..."),
        (None, "(500)"),
        ({"deep": PROMPT}, "(500)"),
    ],
)
def test_what_an_endpoint_says_is_quoted_shortly_and_without_secrets(endpoint, said, excerpt):
    with serve(lambda c: c.error(500, said)) as server:
        error, _, _ = fail(endpoint(server.url))
    assert excerpt in error.message
    assert len(error.message) < 200


def test_a_key_of_any_form_is_masked(endpoint):
    key = "9f8e7d6c5b4a39281706"
    with serve(lambda c: c.error(401, f"key {key} or {key[4:16]} is bad")) as server:
        error, _, _ = fail(endpoint(server.url, options={"environment": {"FAR_KEY": key}}))
    assert "is bad" in error.message
    assert not any(key[i : i + 6] in error.message for i in range(15))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "0.5"}, 0.5),
        ({"retry_after_ms": "250"}, 0.25),
        ({"retry_after": "Wed, 21 Oct 2015 07:28:30 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 30.0),
        ({"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "-1"}, None),
        ({"retry_after": "nan"}, None),
        ({"retry_after": "1e99"}, None),
        ({"retry_after": "9" * 400}, None),
        ({}, None),
    ],
)
def test_retry_after_in_all_its_forms(endpoint, headers, seconds):
    with serve(lambda c: c.error(429, **headers)) as server:
        error, _, _ = fail(endpoint(server.url))
    assert error.retry_after == seconds


def test_a_redirect_is_not_followed(endpoint):
    with serve(lambda c: c.answer("stolen")) as other:
        for status in (301, 302, 303, 307, 308):
            with serve(lambda c, s=status: c.plain(s, "", location=f"{other.url}/chat/completions")) as server:
                error, _, _ = fail(endpoint(server.url))
                assert error.status == status
                assert "redirects to another URL" in error.message
        assert other.connections == 0


def test_a_connection_cut_in_mid_stream(endpoint):
    def script(c):
        c.stream()
        c.say("half an ")
        c.cut()

    with serve(script) as server:
        error, shown, _ = fail(endpoint(server.url, retries=3))
        assert len(server.heard) == 1, "text had been shown: nothing may be tried again"
    assert shown == ["half an "]
    assert "cut the connection after part of the answer was shown" in error.message


def test_a_stream_that_only_stops_is_cut_too(endpoint):
    def script(c):
        c.stream()
        c.say("half an ")
        c.event(b"[DONE]")
        c.socket.sendall(b"0\r\n\r\n")

    with serve(script) as server:
        error, shown, _ = fail(endpoint(server.url))
    assert shown == ["half an "]
    assert "cut the connection" in error.message


@pytest.mark.parametrize(
    "garbage",
    [
        b"{not json",
        b"[1, 2]",
        b'"text"',
        b'{"choices": 5}',
        b'{"choices": [5]}',
        b'{"choices": [{"delta": 5}]}',
        b'{"choices": [{"delta": {"content": 5}}]}',
        b'{"choices": [{"delta": {"tool_calls": [5]}}]}',
        b'{"choices": [{"delta": {}, "finish_reason": 5}]}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
    ],
)
def test_garbage_in_the_stream(endpoint, garbage):
    def script(c):
        c.stream()
        c.event(garbage)
        c.end()

    with serve(script) as server:
        error, shown, _ = fail(endpoint(server.url, retries=3))
        assert len(server.heard) == 1
    assert shown == []
    assert "violates the protocol" in error.message


def test_bytes_that_are_no_http(endpoint):
    with serve(lambda c: (c.socket.sendall(b"\x00\x01garbage\r\n\r\n"), c.cut())) as server:
        error, _, _ = fail(endpoint(server.url))
    assert "cut the connection" in error.message


@pytest.mark.parametrize("kind", ["text/html", "application/json", ""])
def test_an_answer_of_another_kind(endpoint, kind):
    with serve(lambda c: c.plain(200, '{"choices": []}', kind)) as server:
        error, _, _ = fail(endpoint(server.url))
    assert "did not answer with a stream" in error.message


@pytest.mark.parametrize("script", [
    lambda c: (c.stream(), c.end()),
    lambda c: (c.stream(), c.say("", ""), c.end()),
])  # fmt: skip
def test_an_empty_answer(endpoint, script):
    with serve(script) as server:
        error, _, _ = fail(endpoint(server.url))
    assert "sent an empty answer" in error.message


def test_thinking_without_an_answer_says_what_to_do(endpoint):
    with serve(lambda c: (c.stream(), c.end("length"))) as server:
        error, _, _ = fail(endpoint(server.url))
    assert "more tokens" in error.hint


def test_an_answer_that_was_withheld(endpoint):
    with serve(lambda c: (c.stream(), c.end("content_filter"))) as server:
        far = endpoint(server.url)
        error, _, _ = fail(far)
        assert far.down() == ""
    assert "withheld" in error.message


def test_an_error_as_an_event_of_the_stream(endpoint):
    def script(c):
        c.stream()
        c.say("half")
        c.event({"error": {"message": f"out of memory, key {KEY}", "type": "server_error", "code": 500}})

    with serve(script) as server:
        error, shown, _ = fail(endpoint(server.url, retries=2))
        assert len(server.heard) == 1
    assert shown == ["half"]
    assert "out of memory, key ***" in error.message


# --- time ---------------------------------------------------------------------------------------


def test_a_stall_before_the_answer(endpoint):
    with serve(lambda c: c.hang()) as server:
        error, _, seconds = fail(endpoint(server.url, stall=0.3, retries=3))
        assert len(server.heard) == 1, "it may be at work: it is not asked twice"
    assert "sent nothing for 300 ms" in error.message
    assert seconds < 3


def test_a_stall_in_the_middle(endpoint):
    def script(c):
        c.stream()
        c.say("half")
        c.hang()

    with serve(script) as server:
        error, shown, seconds = fail(endpoint(server.url, stall=0.3))
    assert shown == ["half"]
    assert "sent nothing for 300 ms after part" in error.message
    assert seconds < 3


@pytest.mark.parametrize("drip", [b": still here\n\n", b"x"])
def test_a_drip_does_not_outlive_the_deadline(endpoint, drip):
    def script(c):
        c.stream()
        while not c.stopping.wait(0.05):
            c.chunk(drip)

    with serve(script) as server:
        error, _, seconds = fail(endpoint(server.url, deadline=0.5, stall=0.3))
    assert "longer than its deadline of 500 ms" in error.message
    assert seconds < 3


def test_a_server_that_accepts_and_never_reads(endpoint):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        error, _, seconds = fail(endpoint(url, deadline=0.4, stall=5.0), question("x" * 30_000_000))
    assert "deadline" in error.message
    assert seconds < 4


def test_a_handshake_that_never_comes(endpoint):
    with serve(lambda c: None) as server:
        url = server.url.replace("http:", "https:")
        error, _, seconds = fail(endpoint(url, deadline=0.5, stall=0.2))
    assert "could not be reached in time" in error.message
    assert seconds < 3
    assert server.heard == []


# --- getting there ------------------------------------------------------------------------------


def test_a_refused_connection(endpoint):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error, _, _ = fail(endpoint(f"http://127.0.0.1:{port}/v1"))
    assert "refused the connection" in error.message


def test_a_name_without_an_address(endpoint, monkeypatch):
    asked = []

    def nothing(host, *rest, **more):
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nothing)
    error, _, _ = fail(endpoint("https://nowhere.invalid/v1", retries=3))
    assert "has no address" in error.message
    assert asked == ["nowhere.invalid"]


def test_a_name_server_that_does_not_answer(endpoint, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [str(released.wait(5))][1:])
    error, _, seconds = fail(endpoint("https://slow.invalid/v1", deadline=0.4, stall=0.2))
    released.set()
    assert "could not be reached in time" in error.message
    assert seconds < 3


def test_the_next_address_is_tried(endpoint, monkeypatch):
    # Nothing listens on the second loopback address; the first answer of the resolver is often IPv6.
    places = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 0)) for ip in ("127.0.0.2", "127.0.0.1")]
    real = socket.getaddrinfo

    def resolve(host, port, *rest, **more):
        return places if host == "localhost" else real(host, port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with serve(lambda c: c.answer("here")) as server:
        assert "".join(endpoint(server.url.replace("127.0.0.1", "localhost")).ask(question())) == "here"


def test_tls_with_a_certificate_that_is_trusted(endpoint):
    ca = trustme.CA()
    with serve(lambda c: c.answer("sealed"), tls=secure(ca)) as server:
        assert "".join(endpoint(server.url, options=trusting(ca)).ask(question())) == "sealed"


@pytest.mark.parametrize("given", [False, True], ids=["certifi's", "given"])
def test_keys_of_connections_are_written_nowhere(endpoint, monkeypatch, tmp_path, given):
    ca = trustme.CA()
    (tmp_path / "ca.pem").write_bytes(ca.cert_pem.bytes())
    monkeypatch.setattr("certifi.where", lambda: str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    with serve(lambda c: c.answer("sealed"), tls=secure(ca)) as server:
        options = trusting(ca) if given else {}
        before = (tmp_path / "keys").stat().st_size if given else None  # ssl writes a line as it makes a context
        assert "".join(endpoint(server.url, options=options).ask(question())) == "sealed"
        assert (tmp_path / "keys").exists() == given
        assert not given or (tmp_path / "keys").stat().st_size == before
        # The same connection by ssl's own context is written down.
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            trusting(ca)["verify"].wrap_socket(raw, server_hostname="127.0.0.1").close()
    assert "CLIENT_" in (tmp_path / "keys").read_text()


@pytest.mark.parametrize(
    ("name", "trusted", "more", "why"),
    [
        ("127.0.0.1", True, {"not_after": datetime.now(UTC) - timedelta(days=1)}, "certificate has expired"),
        ("127.0.0.1", False, {}, "unable to get local issuer certificate"),
        ("other.example", True, {}, "IP address mismatch"),
    ],
)
def test_a_certificate_that_is_not_accepted(endpoint, name, trusted, more, why):
    ca = trustme.CA()
    with serve(lambda c: c.answer("stolen"), tls=secure(ca, name, **more)) as server:
        far = endpoint(server.url, options=trusting(ca) if trusted else {}, retries=3)
        error, _, _ = fail(far)
        assert server.connections == 1
        assert server.heard == [], "not one byte of the question may arrive"
        assert far.down()
    assert why in error.message


def test_closing_wakes_a_reader_behind_tls(endpoint):
    ca = trustme.CA()
    waiting = threading.Event()

    def script(c):
        c.stream()
        c.say("one")
        waiting.set()
        c.hang()

    with serve(script, tls=secure(ca)) as server:
        reply = endpoint(server.url, stall=30.0, deadline=30.0, options=trusting(ca)).ask(question())
        got: list[str] = []
        thread = threading.Thread(target=lambda: got.extend(reply))
        thread.start()
        assert waiting.wait(5)
        time.sleep(0.05)
        reply.close()
        thread.join(5)
        assert not thread.is_alive()
        assert server.gone.wait(2)
    assert (got, reply.finish) == (["one"], "cancelled")


# --- size ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [b"data: " + b"x" * 10_000, b": " + b"x" * 10_000 + b"\n\n"])
def test_an_oversized_answer(endpoint, piece):
    def script(c):
        c.stream()
        while not c.stopping.is_set():
            c.chunk(piece)

    with serve(script) as server:
        error, _, _ = fail(endpoint(server.url, options={"most_bytes": 100_000}))
    assert "more bytes than an answer may have" in error.message


def test_an_oversized_error_is_cut_short(endpoint):
    def script(c):
        c.head(500, content_type="text/html")
        for _ in range(100):
            c.chunk(b"x" * 10_000)
        c.hang()

    with serve(script) as server:
        error, _, seconds = fail(endpoint(server.url, options={"most_bytes": 900_000}))
    assert error.status == 500
    assert seconds < 3


def test_a_compressed_answer_is_not_unpacked(endpoint):
    bomb = gzip.compress(b"x" * 1_000_000)
    for status in (200, 500):

        def script(c, status=status):
            c.head(
                status, length=len(bomb), content_encoding="gzip", **{k.replace("-", "_"): v for k, v in SSE.items()}
            )
            c.socket.sendall(bomb)

        with serve(script) as server:
            error, _, _ = fail(endpoint(server.url))
            assert server.heard[0].headers["accept-encoding"] == "identity"
        assert "compressed its answer" in error.message


def test_streams_damaged_at_random_end_in_an_answer_or_in_a_clear_error(endpoint):
    random = Random(7)
    events = (
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "He"}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"content": "llo"}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f"}}]}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
    )
    whole = b"".join(b"data: " + json.dumps(e).encode() + b"\n\n" for e in events) + b"data: [DONE]\n\n"

    def damaged(c):
        data = bytearray(whole)
        for _ in range(random.randint(1, 3)):
            place = random.randrange(len(data) - 40)
            what = random.choice((b"null", b"[]", b"\n\n", b"data:", b"\xff", b"1e999", b'"', b"", b"{}"))
            data[place : place + random.choice((0, 1, 20))] = what
        c.stream()
        c.chunk(bytes(data))
        c.socket.sendall(b"0\r\n\r\n" if random.random() < 0.5 else b"zz\r\n")

    ends = set()
    with serve(damaged) as server:
        far = endpoint(server.url, stall=0.5)
        for _ in range(150):
            far.breaker.succeed()
            reply = far.ask(question())
            try:
                list(reply)
            except CloudError as error:
                assert KEY not in error.message
            ends.add(reply.finish)
    assert ends == {"stop", "error"}
