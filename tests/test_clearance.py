"""Nothing leaves that the vetoes have not read; and what they read is what is sent."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.strangers import privacy
from edgekit.errors import CloudError
from edgekit.routing.clearance import clear
from edgekit.routing.endpoints import Endpoint
from edgekit.routing.endpoints.body import make_body
from edgekit.types import Sampling
from edgekit.types.outgoing import OURS, compose
from edgekit.types.reading import LONGEST, plain, read
from edgekit.types.routing import Message, Policy, Privacy, PrivacyRule, Request, Tier

ROOT = Path(__file__).parents[1]
TIER = Tier("far", "third-party", "http://127.0.0.1:9/v1", "big")


@pytest.fixture(scope="module")
def opened():
    with privacy.opened() as both:
        yield both


CASES = list(privacy.cases())


@pytest.mark.parametrize("disguise", privacy.DISGUISES)
def test_nothing_leaves_against_a_veto_in_any_field(opened, disguise):
    chosen = [case for case in CASES if f", {disguise}, " in case.name]
    assert len(chosen) > 60
    assert [case.name for case in chosen if privacy.leaks(case, privacy.ask(*opened, case))] == []


def test_numbers_are_text_too(opened):
    numbers = [case for case in CASES if case.name.count(",") == 1]
    assert len(numbers) > 5
    assert [case.name for case in numbers if privacy.leaks(case, privacy.ask(*opened, case))] == []


def test_the_same_fields_leave_where_nothing_stands_against_it(opened):
    harmless = [case for case in privacy.cases({"harmless": privacy.HARMLESS}) if "as it is" in case.name]
    assert len(harmless) > 40
    arrived = {case.name: privacy.ask(*opened, case) for case in harmless}
    assert [name for name, bodies in arrived.items() if bodies == []] == []
    assert sum(bodies is None for bodies in arrived.values()) < 5, "the server's limits come first, of few"


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n    return x[1:] + 'a_b_c'  # 100% sure & done; see https://example.com/?a=1&b=2",
        "2019\n2020\n2021\n2022\n2023",
        "Die Würde des Menschen ist unantastbar. Sie zu achten ist Verpflichtung aller staatlichen Gewalt.",
        "Это обычный русский текст, в котором нет ничего тайного.",
        "これは普通の文章です。何も秘密はありません。",
        "sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".replace("0", "a").replace("8", "b"),
        "A. B. C. D. and x y z w are letters; \\frac{a}{b} and C:\\users\\new are not escapes",
        "x" * 50_000,
        "| a | b | c |\n|---|---|---|\n| 1 | 2 | 3 |\n",
    ],
)
def test_harmless_texts_pass(opened, text):
    case = privacy.Case("harmless", "a user's message", text, {"messages": [{"role": "user", "content": text}]})
    arrived = privacy.ask(*opened, case)
    assert [body["messages"][0]["content"] for body in arrived] == [text]


# --- one place ----------------------------------------------------------------------------------


def calls(name: str) -> list[tuple[str, ast.Call]]:
    """Every call of something of that name in the package, with the file that it stands in."""
    return [
        (path.relative_to(ROOT / "edgekit").as_posix(), node)
        for path in sorted((ROOT / "edgekit").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == name
    ]


def test_the_package_asks_endpoints_what_was_cleared_and_nothing_else():
    assert [place for place, _ in calls("Cleared")] == ["routing/clearance.py"]
    asked = [
        (place, ast.unparse(call.args[0])) for place, call in calls("ask") if ast.unparse(call.func) == "endpoint.ask"
    ]
    assert [place for place, _ in asked] == ["routing/evaluation/bench.py", "routing/router.py"]
    assert all(argument.startswith("clear(") for _, argument in asked)
    assert [place for place, _ in calls("make_body")] == ["routing/endpoints/endpoint.py"] * 2


def test_an_endpoint_takes_nothing_that_is_not_read():
    far = Endpoint(TIER, environment={})
    for raw in (Request((Message("user", "Hello"),)).outgoing, {"messages": []}, "Hello"):
        with pytest.raises(AttributeError):
            far.ask(raw)
    with pytest.raises(CloudError, match=r"must not get the request: a\.md is private"):
        far.ask(Request((Message("user", "Hello"),), private="a.md is private"))
    far.close()


@pytest.mark.parametrize(
    ("request_", "policy"),
    [
        (Request((Message("user", "Hello"),), private="a.md is private"), Policy("p")),
        (Request((Message("user", "Hello"),), override="local-only"), Policy("p")),
        (Request((Message("user", "Hello"),)), Policy("p", privacy=Privacy("private"))),
        (
            Request((Message("user", "my secret"),)),
            Policy("p", (TIER,), Privacy(rules=(PrivacyRule("s", "secret", "private"),))),
        ),
    ],
)
def test_an_endpoint_beyond_the_ceiling_refuses(request_, policy):
    far = Endpoint(TIER, environment={})
    with pytest.raises(CloudError, match="must not get the request") as failed:
        far.ask(clear(request_, policy))
    far.close()
    assert failed.value.hint


EVERYTHING = Request(
    (Message("user", "said"),),
    sampling=Sampling(temperature=0.71, top_p=0.92, seed=1234567, stop=("stopped",), max_new_tokens=7654321),
    passthrough=json.dumps(
        {
            "tools": [{"function": {"name": "tooled", "parameters": {"keyed": [{"nested": 98765}]}}}],
            "response_format": {"json_schema": {"name": "formed"}},
            "anything": {"else": "there"},
            "model": "another",
        }
    ),
)


def leaves(value: object):
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    else:
        yield value


@pytest.mark.parametrize(
    "refused", [frozenset(), frozenset({"max_tokens"}), frozenset({"temperature", "seed", "stream_options"})]
)
def test_a_body_holds_nothing_that_was_not_read(refused):
    outgoing = EVERYTHING.outgoing
    body = make_body(outgoing, replace(TIER, max_output=None), refused)
    lines = outgoing.reading.lines[0].split("\n")
    own = {"temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "include_usage", *OURS}
    for text in leaves(body):
        if text in own or isinstance(text, bool | float) or text == TIER.model:
            continue
        assert str(text) in lines, text


def test_a_seed_that_was_drawn_is_no_affair_of_an_endpoints():
    drawn = replace(EVERYTHING, sampling=replace(EVERYTHING.sampling, seed=None))
    assert "seed" not in make_body(drawn.outgoing, TIER, frozenset())
    assert "1234567" not in drawn.outgoing.reading.lines[0]


@pytest.mark.parametrize("passed", ["[1]", "{", "[" * 100_000, '{"a": ' * 3000 + "1" + "}" * 3000])
def test_what_cannot_be_sent_is_read_all_the_same(passed):
    outgoing = compose(Request(prompt="secret", passthrough=passed))
    assert not outgoing.reading.whole or any("secret" in line for line in outgoing.reading.lines)


def test_what_is_too_long_to_be_read_stays():
    rule = Privacy(rules=(PrivacyRule("r", "no such word", "device"),))
    for length, ceiling in ((LONGEST // 2, "third-party"), (LONGEST + 1, "device")):
        assert clear(Request(prompt="a " * (length // 2 + 1)), Policy("p", (TIER,), rule)).ceiling == ceiling


@pytest.mark.parametrize(
    "text",
    [
        "a-\n" * 300_000,
        "1\n" * 400_000,
        "a\n" * 400_000,
        "\n" * 900_000,
        "a " * 400_000,
        "&#" * 400_000,
        "%4" * 400_000,
        "QUJD" * 200_000,
        "QUJDREVG\n" * 100_000,
        "\\u00" * 200_000,
        "data:" * 180_000,
        "data:,x " * 100_000,
        "[" * 900_000,
        "\u200b" * 900_000,
        "e\u0301" * 400_000,
        "a_" * 400_000,
        "{" * 900_000,
        '"' * 900_000,
    ],
)
def test_reading_takes_as_long_as_the_text(text):
    from time import monotonic

    began = monotonic()
    read([{"messages": [{"role": "user", "content": text}]}])
    assert monotonic() - began < 30


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("Zu\u0308rich", "Zurich"),
        ("ѕесret", "secret"),
        ("s\u200becret", "secret"),
        ("se-\ncret", "secret"),
        ("1\n2", "1\n2"),
        ("ﬁ ⅷ", "fi viii"),
    ],
)
def test_plain(text, seen):
    assert plain(text).casefold() == seen.casefold()
