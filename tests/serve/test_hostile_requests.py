"""What anybody may send to the port: every value of every header, every path, and nothing at all for a long time."""

import contextlib
import gc
import json
import logging
import socket
import threading
import time

import httpx
import pytest

from edgekit.serve import connections, guard
from edgekit.serve.api_errors import Refusal
from edgekit.serve.app import Settings
from edgekit.serve.async_bridge import Crossing
from edgekit.serve.connections import Stage
from tests.serve.doubles import ScriptedRouter, site

TOKEN = "a-token-of-some-length"
CHAT = "/v1/chat/completions"
ASKED = b'{"model":"edgekit","messages":[{"role":"user","content":"hi"}]}'

HOSTILE = [
    b"", b"[", b"http://[", b"http://[::1", b"]", b"//", b"\x80\xff", "über".encode(), b"%00", b"%", b"a" * 8000,
    b"a" * 65536, b"a,b;c=d", b'"', b"\\", b"-1", b"1e3", b"9" * 19, b"9" * 5000, b"0x10", b"null", b"*", b"a b",
    b"x@localhost", b"localhost/health?", b"localhost:99999999", b"localhost:x", b"../../etc/passwd",
    b"Basic \xff", b"Basic !!!", b"Basic /w==", b"Basic \xc3\xa9", b"Bearer \xff", b"Bearer", b"gzip, chunked",
    b"chunked, chunked", b"identity", b"websocket", b"\x1b]52;c;Zm9v\x07", b"a\x00b", b"a\tb",
]  # fmt: skip
SPOKEN = [
    "Host", "Origin", "Authorization", "Content-Type", "Content-Length", "Transfer-Encoding", "Accept",
    "Last-Event-ID", "Cookie", "Expect", "Upgrade", "Connection", "Sec-Fetch-Site", "X-Edgekit-Override",
    "X-Forwarded-For", "Accept-Encoding", "Content-Encoding", "Range", "Te", "Trailer",
]  # fmt: skip
REFUSED = ("Host", "Origin", "Content-Length", "Transfer-Encoding")
"""Headers of which no hostile value is harmless."""

PATHS = [
    "/", "/page.js", "/page.css", CHAT, "/v1/completions", "/v1/models", "/v1/models/edgekit", "/v1/models/%00%1b[2J",
    "/api/explain", "/api/live", "/metrics", "/health", "/nowhere", "/../../etc/passwd", "/..%2f..%2fetc%2fpasswd",
    "/%2e%2e/page.html", "/page.html", "/page.js/", "//", "//evil.example/", "/health/", "/HEALTH", "/%", "/%zz",
    "/%0d%0aX-Evil:%201", "/%1b]52;c;Zm9v%07", "/\\..\\", "/" + "a" * 8000, "/" + "a" * 70000, "/?" + "&=%" * 1000,
    "/metrics?\xff", "/v1/models?x=[%5B", "*", "http://[/", "http://evil.example/v1/models", "localhost:80", "/%ff",
    "/v1//models",
]  # fmt: skip
METHODS = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "CONNECT",
    "BREW",
    "get",
    "G\x01T",
    "A" * 5000,
]
OPEN = b'{"model":"edgekit","messages":[{"role":"user","content":"hi"}]'
BODIES = [
    b"", b"{", b"null", b"[" * 5000, b'{"a":' * 5000, b"9" * 100_000, b"NaN", b"\xff", b'{"x":1e999}',
    b'{"model":' + b"9" * 100_000 + b"}", b'{"model":"\\ud800","messages":[{"role":"user","content":"hi"}]}',
    b"[" + b"1," * 100_000 + b"1]", OPEN + b',"model":"edgekit"}', OPEN + b',"max_tokens":' + b"9" * 300 + b"}",
    b'{"model":"edgekit","messages":[' + b'{"role":"user","content":""},' * 3000 + b'{"role":"user","content":""}]}',
    b'{"model":"edgekit","messages":[{"role":"user","content":"hi","name":"' + b"n" * 100 + b'"}]}',
    OPEN + b',"tools":[' + b"{}," * 200 + b"{}]}", OPEN + b',"stop":"' + b"s" * 1000 + b'"}',
    OPEN + b',"' + b"f" * 100_000 + b'":1}', OPEN + b',"tools":[{"a":1e999}]}', OPEN + b',"n":5}',
    OPEN + b',"edgekit":{' + b",".join(b'"%d":1' % i for i in range(2000)) + b"}}",
]  # fmt: skip


def say(port: int, sent: bytes) -> bytes:
    """All that comes back; nothing more is sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        with contextlib.suppress(ConnectionError):
            raw.sendall(sent)
        told = b""
        with contextlib.suppress(ConnectionError):
            while not is_whole(told) and (more := raw.recv(65536)):
                told += more
        return told


def is_whole(told: bytes) -> bool:
    """Whether an answer with a length has come; a connection that is kept would say nothing more."""
    top, end, body = told.partition(b"\r\n\r\n")
    length = next((line[16:] for line in top.lower().split(b"\r\n") if line.startswith(b"content-length: ")), b"")
    return bool(end) and length.isdigit() and len(body) >= int(length)


def request(path=CHAT, method="POST", body=ASKED, **headers: bytes) -> bytes:
    usual = {"Host": b"localhost", "Content-Length": b"%d" % len(body), "Connection": b"close"}
    named = usual | {name.replace("_", "-"): value for name, value in headers.items()}
    if "Transfer-Encoding" in headers:
        del named["Content-Length"]
    lines = [f"{method} {path} HTTP/1.1".encode("latin-1"), *(b"%s: %s" % (n.encode(), v) for n, v in named.items())]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def check(told: bytes, *, head: bool = False) -> int:
    """The status of an answer; an error must have the shape of the API's."""
    top, _, body = told.partition(b"\r\n\r\n")
    status = int(top.split()[1])
    assert status < 500, told[:300]
    if status >= 400 and not head:
        error = json.JSONDecoder().raw_decode(body.decode())[0]["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
    return status


@pytest.fixture(scope="module")
def open_site():
    with site(ScriptedRouter()) as server:
        yield server


@pytest.fixture(scope="module")
def guarded():
    with site(ScriptedRouter(), Settings(token=TOKEN, any_host=True)) as server:
        yield server


@pytest.fixture(autouse=True)
def clean_log(caplog):
    """Nothing that was sent may be an error of ours, or reach a terminal through the log."""
    caplog.set_level(logging.INFO)
    yield
    for record in caplog.records:
        assert record.levelno < logging.ERROR, record.getMessage()
        assert record.exc_info is None
        assert all(letter.isprintable() for letter in record.getMessage()), record.getMessage()


@pytest.mark.parametrize("name", SPOKEN)
def test_hostile_headers(open_site, guarded, name):
    for value in HOSTILE:
        status = check(say(open_site.port, request(**{name.replace("-", "_"): value})))
        if name in REFUSED:
            assert 400 <= status < 500, (name, value)
        token = b"Bearer " + TOKEN.encode()
        status = check(say(guarded.port, request(**{"Authorization": token, name.replace("-", "_"): value})))
        if name == "Authorization":
            assert status in (400, 401), value
        assert check(say(guarded.port, request(**{name.replace("-", "_"): value}))) in (400, 401), (name, value)


@pytest.mark.parametrize("method", METHODS)
def test_every_path_by_every_method(open_site, guarded, method):
    fine = {
        "GET": {"/", "/page.js", "/page.css", "/v1/models", "/v1/models/edgekit", "/api/live", "/metrics", "/health"}
    }
    fine["HEAD"] = fine["GET"]
    fine["POST"] = {CHAT, "/v1/completions", "/api/explain"}
    for path in PATHS:
        body = b'{"model":"edgekit","prompt":"hi"}' if path == "/v1/completions" else ASKED
        status = check(say(open_site.port, request(path, method, body)), head=method == "HEAD")
        served = path.partition("?")[0] in fine.get(method, ()) and "\xff" not in path
        assert (status == 200) == served, (method, path, status)
        status = check(say(guarded.port, request(path, method, body)), head=method == "HEAD")
        assert status in ((200, 405) if path == "/health" and "\x01" not in method else (400, 401)), (
            method,
            path,
            status,
        )


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/api/explain"])
def test_hostile_bodies(open_site, path):
    for body in BODIES:
        assert 400 <= check(say(open_site.port, request(path, body=body))) < 500, body[:60]


@pytest.mark.parametrize(
    "sent",
    [b"\x16\x03\x01\x02\x00\x01", b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
     b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
     b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
     b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nA\r\n\r\n",
     request(Transfer_Encoding=b"chunked", body=b"zz\r\n"), request(Transfer_Encoding=b"chunked", body=b"-1\r\nx\r\n"),
     request(Transfer_Encoding=b"chunked", body=b"5;" + b"x" * 70000),
     b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
     b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
     b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n"],
)  # fmt: skip
def test_what_is_not_http(open_site, sent):
    assert 400 <= check(say(open_site.port, sent)) < 500


def head(length: int, *, token: str = "", more: str = "") -> bytes:
    lines = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{more}"
    return (lines + (f"Authorization: Bearer {token}\r\n" if token else "") + "\r\n").encode()


@contextlib.contextmanager
def many(port: int, count: int, sent: bytes):
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)) for _ in range(count)]
        for raw in opened:
            with contextlib.suppress(ConnectionError):
                raw.sendall(sent)
        yield opened


def is_closed(raw: socket.socket, seconds: float) -> bool:
    raw.settimeout(seconds)
    try:
        while raw.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


@pytest.fixture
def hurried(monkeypatch):
    for stage in connections.LIMITS:
        monkeypatch.setitem(connections.LIMITS, stage, 0.5)
    monkeypatch.setattr(guard, "_SLOWEST_BODY", 0.5)


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", head(100), head(100) + b"{", head(10**6)]
)
def test_who_never_ends_what_he_began_is_dropped(guarded, open_site, hurried, sent):
    for server in (guarded, open_site):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw:
            raw.sendall(sent)
            assert is_closed(raw, 15)


def test_a_byte_now_and_then_is_no_help(guarded, hurried):
    for sent in (b"GET / HTTP/1.1\r\nX: ", head(10**5), head(10**5, token=TOKEN)):
        with socket.create_connection(("127.0.0.1", guarded.port), timeout=20) as raw:
            raw.sendall(sent)
            end = time.monotonic() + 15
            with pytest.raises(ConnectionError):
                while time.monotonic() < end:
                    raw.sendall(b"x")
                    time.sleep(0.05)


def test_a_body_that_does_not_come_is_told_so(open_site, hurried):
    with socket.create_connection(("127.0.0.1", open_site.port), timeout=20) as raw:
        raw.sendall(head(100))
        assert raw.recv(1000).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(("length", "token", "status"), [(100, "", 401), (10**12, "", 401), (10**12, TOKEN, 413)])
def test_an_answer_that_needs_no_body_waits_for_none(guarded, length, token, status):
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=20) as raw:
        raw.sendall(head(length, token=token))
        assert raw.recv(1000).startswith(b"HTTP/1.1 %d" % status)
    assert guarded.service.admission.active == 0


def test_a_long_answer_is_not_cut_and_connections_are_kept(open_site, hurried):
    router = open_site.service.answerer
    router.gate.clear()
    threading.Timer(3, router.gate.set).start()
    with httpx.Client(base_url=open_site.url, timeout=30) as client:
        body = {"model": "edgekit", "messages": [{"role": "user", "content": "wait a while"}], "stream": True}
        assert client.post(CHAT, json=body).text.endswith("[DONE]\n\n")
        before = len(open_site.running.connections)
        assert client.get("/health").status_code == 200
        assert len(open_site.running.connections) == before


def test_who_does_not_read_his_answer_loses_it(open_site, hurried):
    router = open_site.service.answerer
    router.stopped.clear()
    with socket.create_connection(("127.0.0.1", open_site.port), timeout=20) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps({"model": "edgekit", "messages": [{"role": "user", "content": "forever"}], "stream": True})
        raw.sendall(head(len(body)) + body.encode())
        assert open_site.wait_until(lambda: router.stopped == ["forever"], 30)
    assert open_site.wait_until(lambda: open_site.service.admission.active == 0)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nX: ", head(100)])
def test_strangers_are_in_nobodys_way(guarded, monkeypatch, sent):
    monkeypatch.setattr(guarded.running.connections, "most", 16)
    headers = {"authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=guarded.url, headers=headers, timeout=20) as kept:
        assert kept.get("/v1/models").status_code == 200
        with many(guarded.port, 50, sent):
            for _ in range(3):
                assert httpx.get(f"{guarded.url}/v1/models", headers=headers, timeout=20).status_code == 200
            assert len(guarded.running.connections) <= 16
            # Who has shown his token keeps his connection, and it was not opened anew.
            assert kept.get("/v1/models").status_code == 200
            assert sum(c.proved for c in guarded.running.connections._proved) >= 1


def test_half_a_request_makes_room_for_a_whole_one(open_site, monkeypatch):
    monkeypatch.setattr(open_site.running.connections, "most", 16)
    with many(open_site.port, 40, head(100)):
        for _ in range(3):
            assert httpx.get(f"{open_site.url}/v1/models", timeout=20).status_code == 200


def test_where_everybody_is_being_answered_there_is_no_place(monkeypatch):
    router = ScriptedRouter()
    with site(router) as server, contextlib.ExitStack() as stack:
        monkeypatch.setattr(server.running.connections, "most", 4)
        body = b'{"model":"edgekit","messages":[{"role":"user","content":"wait"}]}'
        waiting = []
        for number in range(4):
            waiting += stack.enter_context(many(server.port, 1, head(len(body)) + body))
            assert server.wait_until(lambda n=number: server.service.admission.active == n + 1)
        assert say(server.port, request("/health", "GET", b"")).startswith(b"HTTP/1.1 503")
        router.gate.set()
        assert all(raw.recv(1000).startswith(b"HTTP/1.1 200") for raw in waiting)


def test_addresses_that_are_one_persons():
    told = ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "somewhere"]
    found = [connections._network(host) for host in told]
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert len(set(found)) == 4


@pytest.mark.parametrize("body", [b"{", b"", json.dumps({"model": "edgekit", "messages": [], "n": 3}).encode()])
def test_a_refusal_leaves_no_circle_behind(open_site, body):
    """What waits for a collection piles up, and a refusal held its whole connection."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            httpx.post(open_site.url + CHAT, content=body)
        left = (Refusal, Crossing)
        assert open_site.wait_until(lambda: not [o for o in gc.get_objects() if type(o) in left])
    finally:
        gc.enable()


def test_a_closed_connection_leaves_no_circle_behind(open_site):
    def left():
        return [o for o in gc.get_objects() if type(o).__name__ == "_SelectorSocketTransport"]

    assert open_site.wait_until(lambda: not len(open_site.running.connections))
    gc.collect()
    gc.disable()
    try:
        before = len(left())
        for _ in range(5):
            say(open_site.port, request("/health", "GET", b""))
        assert open_site.wait_until(lambda: len(left()) <= before)
    finally:
        gc.enable()


def test_all_stages_have_a_limit_but_the_answer():
    assert set(Stage) - set(connections.LIMITS) == {Stage.ANSWER}
