"""Who may ask: hosts, origins, tokens; and the socket."""

import json
import signal
import socket

import httpx
import pytest

from edgekit.errors import ConfigError
from edgekit.serve.app import Settings
from edgekit.serve.running import address_of, bind, is_loopback, read_token
from tests.serve.doubles import ScriptedRouter, site

TOKEN = "a-token-of-some-length"
BODY = {"model": "edgekit", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "", "127.0.0.1.nip.io"])
def test_other_names_than_loopbacks_are_not_answered(server, host):
    answer = httpx.get(f"{server.url}/v1/models", headers={"host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "127.0.0.1", "[::1]:8080", "LOCALHOST"])
def test_loopbacks_names_are(server, host):
    assert httpx.get(f"{server.url}/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"},
     {"origin": "http://localhost:1"}],
)  # fmt: skip
def test_other_sites_may_not_post(server, router, headers):
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=BODY, headers=headers)
    assert answer.status_code == 403
    assert router.seen == []


def test_the_page_itself_may_and_nobody_gets_cors(server):
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=BODY, headers={"origin": server.url})
    assert answer.status_code == 200
    preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    asked = httpx.options(f"{server.url}/v1/chat/completions", headers=preflight)
    assert asked.status_code == 403
    assert not any(name.startswith("access-control") for name in (*answer.headers, *asked.headers))


@pytest.fixture(scope="module")
def guarded():
    with site(ScriptedRouter(), Settings(token=TOKEN, any_host=True)) as server:
        yield server


PATHS = ["/", "/page.js", "/v1/models", "/metrics", "/api/live", "/nowhere", "//health", "/health/"]


@pytest.mark.parametrize("path", PATHS)
def test_a_token_is_asked_for_everything(guarded, path):
    with httpx.Client() as client:
        assert client.get(guarded.url + path).status_code == 401
        for token, refused in (("wrong-token-of-length", True), (TOKEN, False)):
            answer = client.get(guarded.url + path, headers={"authorization": f"Bearer {token}"})
            assert (answer.status_code == 401) == refused


def test_but_not_for_health(guarded):
    assert httpx.get(f"{guarded.url}/health").json()["status"] == "ok"


@pytest.mark.parametrize("header", ["Bearer", "Bearer \xff", "Basic !!!", "Basic /w==", f"Token {TOKEN}", TOKEN])
def test_what_is_no_token(guarded, header):
    answer = httpx.get(f"{guarded.url}/v1/models", headers=[(b"authorization", header.encode("latin-1"))])
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_a_browser_asks_for_it_itself(guarded):
    asked = httpx.get(guarded.url, headers={"accept": "text/html"})
    assert asked.headers["www-authenticate"].startswith("Basic")
    assert httpx.get(guarded.url, auth=("anyone", TOKEN)).status_code == 200
    assert httpx.get(guarded.url, auth=("anyone", "wrong")).status_code == 401


def test_a_token_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("EDGEKIT_TOKEN", raising=False)
    assert read_token(None) == ""
    monkeypatch.setenv("EDGEKIT_TOKEN", TOKEN)
    assert read_token(None) == TOKEN
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}-2\n")
    file.chmod(0o600)
    assert read_token(file) == f"{TOKEN}-2"
    file.write_text("a" * 16)
    assert read_token(file) == "a" * 16
    file.write_text("a" * 15)
    with pytest.raises(ConfigError, match="at least 16"):
        read_token(file)


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [(TOKEN, 0o644, "other users can read"), (TOKEN, 0o640, "other users can read"), ("short", 0o600, "at least 16"),
     ("with a space in it, too", 0o600, "without spaces"), ("", 0o600, "at least 16")],
)  # fmt: skip
def test_a_token_that_is_none(tmp_path, content, mode, message):
    file = tmp_path / "token"
    file.write_text(content)
    file.chmod(mode)
    with pytest.raises(ConfigError, match=message) as caught:
        read_token(file)
    assert caught.value.hint
    if content:
        assert content not in str(caught.value)


def test_a_token_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "nowhere")


def test_a_port_in_use():
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: the port is in use") as caught:
            bind("127.0.0.1", port)
    assert "`port=0`" in caught.value.hint


def test_an_address_of_another_machine():
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1"):
        bind("192.0.2.1", 0)


def test_addresses():
    assert [is_loopback(h) for h in ("localhost", "127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "10.0.0.1", "pi")] == [
        True, True, True, True, False, False, False,
    ]  # fmt: skip
    with bind("127.0.0.1", 0) as listener:
        assert address_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_of_exactly_the_limit_is_taken_and_one_byte_more_is_not(router, announced):
    body = json.dumps(BODY).encode()
    with site(router, Settings(body_limit=1000)) as server:
        for size, status in ((999, 200), (1000, 200), (1001, 413)):
            padded = body.ljust(size)
            content = padded if announced else iter([padded[:600], padded[600:]])
            assert httpx.post(f"{server.url}/v1/chat/completions", content=content).status_code == status, size


def test_a_signal_lets_the_answers_finish(router, monkeypatch):
    with site(router) as server:
        server.running.handle_exit(signal.SIGTERM, None)
        server.thread.join(20)
        assert not server.thread.is_alive()
        assert server.running._captured_signals == []
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=1):
            pass
