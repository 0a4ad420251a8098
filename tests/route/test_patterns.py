"""Privacy rules' patterns: which are refused, and what is looked at."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.route.patterns import LONGEST, STEP, WINDOW, find_fault, find_risk, matches, sent_text
from edgekit.types import Sampling
from tests.route.cases import REQUEST


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?:\d[ -]?){13,16}",
        r"\w@[\w-]+\.\w",
        r"\b(patient|diagnosis)\b",
        r"(?P<x>a*)b+",
        r"[]+]+(",
        r"\(+\)+",
        r"(?i:ab)?c+",
        r"x{y+}",
        r"(?=a+)b+",
        r"(?#a+)b",
        r"[A-Z]{2}\d{2}(?:\s?\d{4}){3,5}",
        r"(abc)+d",
        r"(a+)?b",
    ],
)
def test_ordinary_patterns_pass(pattern: str) -> None:
    assert find_risk(pattern) == ""


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"(a+)+$", r"(a*)*b", r"(?:a+){2,}b", r"((x?a+)b?)+c", r"(a|aa)+$", r"(\w+\s?)*$", r"(a?){30}b", r"(a+)+?b"),
        *(r"([a-z]+)*\d", r"(?:a{2,3}){50}b", r"a*b*c*d*e", r"(?P<n>x+)+y"),
    ],
)
def test_patterns_that_may_take_forever_are_refused(pattern: str) -> None:
    assert find_fault(pattern)


def test_a_match_is_found_wherever_it_stands() -> None:
    for at in (0, 1, STEP - 3, STEP, WINDOW - 3, WINDOW, WINDOW + 1, 3 * STEP - 2, 5 * WINDOW):
        text = "." * at + "secret" + "." * (6 * WINDOW - at)
        assert matches("SECRET", text), at
        assert not matches("SECRET", text.replace("secret", "public")), at
    for length in (WINDOW, WINDOW + 1, WINDOW + STEP, 4 * WINDOW + 7):
        assert matches("x$", "." * (length - 1) + "x"), length
    wide = "a" + "b" * (WINDOW - STEP - 2) + "c"
    for at in range(0, 2 * WINDOW, 37):
        assert matches("ab+c", "." * at + wide + "." * WINDOW), at


def test_what_cannot_be_looked_through_counts_as_a_match() -> None:
    assert matches("secret", "." * (LONGEST + 1))
    assert matches("(", "")
    assert not matches("secret", "." * LONGEST)


def test_everything_that_would_be_sent_is_looked_at() -> None:
    sent = sent_text(
        replace(
            REQUEST,
            sampling=Sampling(stop=("the end",)),
            schema='{"title": "a \\u0041ddress"}',
            passthrough='{"tools": [{"name": "look_up"}], "image": "data:image/png;base64,AAAA", "n": [1, null]}',
        )
    )
    for word in ("capital", "the end", "a Address", "look_up", "tools"):
        assert word in sent
    assert "AAAA" not in sent
    assert "{broken" in sent_text(replace(REQUEST, passthrough="{broken"))
