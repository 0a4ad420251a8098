"""Rows: what they hold and what they never hold; a database that fails."""

import logging
import stat
import time
from dataclasses import replace

import httpx
import pytest
from sqlalchemy import create_engine, select, text

from edgekit.errors import ConfigError
from edgekit.serve.history import REQUESTS, History, default_url
from edgekit.types.routing import Message, Request
from tests.serve.doubles import LEFT, routed, site

ASKED = Request(messages=(Message("user", "my secret question"),))


def rows(path):
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        found = [row._mapping for row in connection.execute(select(REQUESTS))]
    engine.dispose()
    return found


def open_history(path, **more):
    return History(f"sqlite:///{path}", **more)


def test_a_row_a_request_written_by_the_end(tmp_path):
    path = tmp_path / "state" / "h.sqlite"
    history = open_history(path)
    for i in range(1000):
        history.add(ASKED, routed(LEFT, "a secret answer", cost=i / 1000))
    history.close()
    found = rows(path)
    assert len(found) == 1000
    assert history.lost == 0
    row = found[5]
    assert (row["tier"], row["code"], row["cost"], row["prompt_tokens"]) == ("edge", "quality", 0.005, 7)
    assert abs(row["time"] - time.time()) < 60
    assert row["joules"] is None
    assert b"secret" not in path.read_bytes()


def test_the_file_is_its_owners(tmp_path):
    path = tmp_path / "h.sqlite"
    open_history(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_prompts_only_where_asked(tmp_path):
    path = tmp_path / "h.sqlite"
    history = open_history(path, store_prompts=True)
    history.add(ASKED, routed(text="an answer"))
    history.close()
    assert (rows(path)[0]["prompt"], rows(path)[0]["answer"]) == ("my secret question", "an answer")


@pytest.mark.parametrize("stored", [False, True])
def test_a_reason_that_may_quote_the_answer_is_kept_only_where_answers_are(tmp_path, stored):
    path = tmp_path / "h.sqlite"
    history = open_history(path, store_prompts=stored)
    quoting = replace(LEFT, code="schema", reason="it does not satisfy the schema: 'secret' is not of type 'integer'")
    history.add(ASKED, routed(quoting))
    history.add(ASKED, routed(LEFT))
    history.close()
    assert [row["reason"] for row in rows(path)] == [quoting.reason if stored else "", LEFT.reason]


def test_what_was_spent_survives_a_restart(tmp_path):
    path = tmp_path / "h.sqlite"
    history = open_history(path)
    history.add(ASKED, routed(LEFT, cost=0.5))
    history.add(ASKED, routed(LEFT, cost=0.25))
    history.close()
    again = open_history(path)
    assert again.spent_since(time.time() - 60) == 0.75
    assert again.spent_since(time.time() + 60) == 0.0
    again.close()


def test_two_servers_may_write_into_one_file(tmp_path):
    both = [open_history(tmp_path / "h.sqlite") for _ in range(2)]
    for i in range(200):
        both[i % 2].add(ASKED, routed())
    for history in both:
        history.close()
    assert len(rows(tmp_path / "h.sqlite")) == 200


def test_a_database_that_fails_is_reported_once_and_counted(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    path = tmp_path / "h.sqlite"
    history = open_history(path)
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE edgekit_requests"))
    engine.dispose()
    for expected in (1, 2, 3):
        history.add(ASKED, routed())
        end = time.monotonic() + 10
        while history.lost < expected and time.monotonic() < end:
            time.sleep(0.01)
    assert history.lost == 3
    assert len(caplog.records) == 1
    assert "secret" not in caplog.text
    with pytest.raises(ConfigError, match="cannot be read"):
        history.spent_since(0)
    history.close()


def test_answers_go_on_without_the_database(tmp_path, router):
    history = open_history(tmp_path / "h.sqlite")
    history._engine.dispose()
    (tmp_path / "h.sqlite").unlink()
    with site(router, history=history) as server:
        body = {"model": "edgekit", "prompt": "hi"}
        assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 200
        assert server.wait_until(lambda: history.lost == 1)
        assert httpx.get(f"{server.url}/api/live").json()["history_lost"] == 1
    history.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("not a url", "not an SQLAlchemy URL"),
        ("sqlite:////proc/nowhere/h.sqlite", "cannot be opened"),
        ("nothing+nodriver://u:hunter2@host/db", "cannot be opened"),
        ("postgresql+psycopg9://u:hunter2@host/db", "cannot be opened"),
    ],
)
def test_a_history_that_cannot_be_opened(url, message):
    with pytest.raises(ConfigError, match=message) as caught:
        History(url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.hint


def test_a_table_of_another_edgekit(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path}/h.sqlite")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE edgekit_requests (id INTEGER PRIMARY KEY)"))
    engine.dispose()
    with pytest.raises(ConfigError, match="no such column"):
        open_history(tmp_path / "h.sqlite")


def test_by_default_it_is_the_users_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_url() == f"sqlite:///{tmp_path}/edgekit/history.sqlite"
