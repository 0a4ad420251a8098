"""The page, in headless Chromium."""

import re
from importlib.resources import files
from types import SimpleNamespace

import httpx
import pytest

from tests.serve.browser import CHROMIUM, chromium
from tests.serve.doubles import ScriptedRouter, Status, routed, site

pytestmark = pytest.mark.browser
IN_BROWSER = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page after some traffic, as a browser shows it."""
    with site(ScriptedRouter()) as server, chromium(tmp_path_factory.mktemp("profile")) as browser:
        for text in ("one two", "three", "five", "left", "refuse context"):
            body = {"model": "edgekit", "messages": [{"role": "user", "content": text}]}
            httpx.post(f"{server.url}/v1/chat/completions", json=body)
        browser.open(server.url)
        browser.wait("share", lambda text: "%" in text)
        yield browser, server


@IN_BROWSER
def test_it_shows_what_happened(page):
    browser, _ = page
    assert browser.text("model") == "tiny-int4"
    assert browser.text("share") == "75 %"
    assert browser.text("lead") == "3 of 4 answers stayed on this device."
    assert browser.text("left").split("\n")[0] == "local answer probably wrong"
    assert browser.text("refused") == "Not answered: 1 longer than this model's context."
    assert browser.text("first-p50") == "100 ms"
    assert browser.text("whole-p95") == "500 ms"
    assert browser.text("spent") == "0.25 EUR"
    assert browser.text("saved") == "0.38 EUR"
    assert browser.text("joules") == "no meter"
    assert "edge" in browser.text("endpoints")


@IN_BROWSER
def test_a_prompt_is_answered_with_its_verdict(page):
    browser, _ = page
    browser.run("$('prompt').value = 'left <b>not bold</b>'")
    browser.run("$('ask').click()")
    browser.wait("took", bool)
    assert browser.text("answer").strip() == "left <b>not bold</b>"
    assert browser.run("document.querySelector('#answer b')") is None
    assert browser.text("who") == "edge"
    assert browser.text("why").startswith("probably wrong")
    rows = browser.run("[...$('checks').tBodies[0].rows].map(r => [...r.cells].map(c => c.innerText))")
    assert rows[1] == ["quality", "this device", "failed", "probably wrong", "0.62", "0.2"]
    assert rows[0][4:] == ["12 tokens", "512 tokens"]


@IN_BROWSER
def test_only_explaining_asks_nobody(page):
    browser, server = page
    before = len(server.service.answerer.seen)
    browser.run("$('prompt').value = 'stay'; $('explain').click()")
    browser.wait("took", lambda text: text == "Nothing was sent.")
    assert browser.text("who") == "this device"
    assert browser.text("answer") == ""
    assert len(server.service.answerer.seen) == before


@IN_BROWSER
def test_a_refusal_is_shown_with_its_checks(page):
    browser, _ = page
    browser.run("$('prompt').value = 'refuse privacy'; $('ask').click()")
    browser.wait("answer", lambda text: "nobody may answer" in text)
    assert browser.text("who") == "nobody"
    assert browser.run("document.querySelectorAll('#checks tbody tr').length") == 1


@IN_BROWSER
def test_an_answer_can_be_stopped(page):
    browser, server = page
    browser.run("$('prompt').value = 'forever'; $('ask').click()")
    browser.wait("answer", lambda text: "on on" in text)
    assert browser.text("ask") == "Stop"
    browser.run("$('ask').click()")
    browser.wait("ask", lambda text: text == "Ask")
    assert server.wait_until(lambda: "forever" in server.service.answerer.stopped)


@IN_BROWSER
@pytest.mark.parametrize("width", [1280, 360])
def test_nothing_sticks_out(page, width):
    browser, _ = page
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    assert browser.run("document.documentElement.scrollWidth") <= width


@IN_BROWSER
def test_it_loads_nothing_from_elsewhere_and_complains_of_nothing(page):
    browser, server = page
    browser.run("1")
    assert {re.match(r"\w+:/*[^/,]*", url)[0] for url in browser.requested} <= {server.url, "data:"}
    # The refusal's 403 is told of by the browser itself.
    assert [e for e in browser.errors if "403" not in e and "400" not in e] == []


@IN_BROWSER
def test_an_endpoint_that_is_down_and_scores_that_drift(page):
    browser, server = page
    drift = SimpleNamespace(words="stale: calibrate again", stale=True)
    server.service.answerer.stands = Status(down=(("edge", "timed out; tried again in 12 s"),), drift=drift)
    browser.wait("drift", lambda text: text == "Scores of local answers: stale: calibrate again")
    assert "timed out; tried again in 12 s" in browser.text("endpoints")


@IN_BROWSER
def test_with_a_token_the_browsers_own_question_is_enough(tmp_path):
    from edgekit.serve.app import Settings

    token = "a-token-of-some-length"
    with site(ScriptedRouter(), Settings(token=token)) as server, chromium(tmp_path) as browser:
        browser.open(server.url, password=token)
        browser.wait("lead", lambda text: text.startswith("Ready"))


def test_its_files_allow_nothing_foreign_and_build_no_html(server):
    answer = httpx.get(server.url)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    folder = files("edgekit.serve")
    for name in ("page.html", "page.css", "page.js"):
        source = (folder / name).read_text(encoding="utf-8")
        assert not re.search(r"https?://|innerHTML|insertAdjacent|document\.write|eval\(|style=|onclick=", source)


def test_energy_is_shown_where_there_is_a_meter(router):
    from edgekit.types.routing import Request

    with site(router) as server:
        server.service.live.add(Request(), routed(joules=2.5))
        assert httpx.get(f"{server.url}/api/live").json()["joules"] == 2.5
