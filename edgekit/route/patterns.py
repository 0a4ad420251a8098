"""Regular expressions of a privacy rule: what they look at, and which of them could take forever.

Python's ``re`` tries every way to match, so a repetition inside a repetition takes time that doubles with each
character. Such patterns are refused when a policy is read; what is left takes at worst a power of the text's length, so
each looks at ``WINDOW`` characters at a time.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekit.routing import Request

WINDOW, STEP = 4000, 3000
"""Characters looked at in one go, and from one window's start to the next's: a match of up to ``WINDOW - STEP``
characters is found wherever it stands, a longer one may be missed."""

LONGEST = 1_000_000
"""Characters that a rule looks through. Of a longer text nobody knows what is in it, so the rule holds."""

FEW = 20
"""A group with alternatives may be repeated this often: 2**20 ways take a second at worst."""

ENDLESS = 3
"""Repetitions without end in one pattern: time grows by a power of the window with each. An e-mail address takes 3."""

_QUANTIFIER = re.compile(r"[*+?]|\{(\d*)(,?)(\d*)\}")


def matches(pattern: str, text: str) -> bool:
    """Whether a rule applies to a text; it does where that cannot be told: no such pattern, too long a text."""
    compiled = _compile(pattern)
    if compiled is None or len(text) > LONGEST:
        return True
    if len(text) <= WINDOW:
        return compiled.search(text) is not None
    starts = range(0, len(text) - (WINDOW - STEP), STEP)
    return any(compiled.search(text, start, start + WINDOW) for start in starts)


def find_fault(pattern: str) -> str:
    """What is wrong with a rule's pattern, in words; "" where nothing is."""
    try:
        compiled = re.compile(pattern, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as error:
        return f"is not a regular expression: {error}"
    if compiled.search(""):
        return "matches every text"
    return find_risk(pattern)


def find_risk(pattern: str) -> str:
    """Why a valid pattern may take forever on some text, in words; "" where it does not.

    Nested quantifiers are told by their form alone, so some harmless pattern is refused too.
    """
    # For every open group: does it hold an endless repetition, does it hold a choice of any kind.
    groups: list[list[bool]] = [[False, False]]
    at, last, endless = 0, [False, False], 0
    while at < len(pattern):
        quantifier = _QUANTIFIER.match(pattern, at)
        if quantifier:
            most = _most(quantifier)
            if most is None or most > 1:
                if last[0]:
                    return "repeats what repeats itself without end"
                if last[1] and (most is None or most > FEW):
                    return f"repeats alternatives more than {FEW} times"
            endless += most is None
            if endless > ENDLESS:
                return f"has more than {ENDLESS} repetitions without end"
            groups[-1][0] |= most is None
            groups[-1][1] |= bool(quantifier[2]) or quantifier[0] in "*+?"
            at, last = quantifier.end(), [False, False]
            if at < len(pattern) and pattern[at] in "?+":
                at += 1  # lazy or possessive
            continue
        at, last = _step(pattern, at, groups)
    return ""


def sent_text(request: Request) -> str:
    """Every text of a request that an endpoint would see; images and other data that no rule can read left out."""
    parts = [request.text, *request.sampling.stop]
    for document in (request.schema, request.passthrough):
        if document:
            try:
                parts += _strings(json.loads(document))
            except (ValueError, RecursionError):
                parts.append(document)
    return "\n".join(parts)


def _step(pattern: str, at: int, groups: list[list[bool]]) -> tuple[int, list[bool]]:
    """Go past one element; return where the next begins, and what a quantifier there would repeat."""
    match pattern[at]:
        case "\\":
            at += 2
        case "[":
            at = _end_of_class(pattern, at)
        case "(":
            groups.append([False, False])
            # (?: (?P<name> (?i: (?= and the like: the question mark is no quantifier.
            opening = re.compile(r"\((\?(P?<\w+>|P=\w+|<?[=!]|#[^)]*|[>:]|[a-zA-Z-]*:?|))?").match(pattern, at)
            at = opening.end() if opening else at + 1
        case ")" if len(groups) > 1:
            inner = groups.pop()
            groups[-1] = [groups[-1][0] or inner[0], groups[-1][1] or inner[1]]
            return at + 1, inner
        case "|":
            groups[-1][1] = True
            at += 1
        case _:
            at += 1
    return at, [False, False]


def _end_of_class(pattern: str, at: int) -> int:
    """Behind the ``]`` that closes the class that opens at ``at``; a ``]`` in first place is one of its characters."""
    at += 2 if pattern[at + 1 : at + 2] == "^" else 1
    first = at
    while at < len(pattern) and (pattern[at] != "]" or at == first):
        at += 2 if pattern[at] == "\\" else 1
    return at + 1


def _most(quantifier: re.Match[str]) -> int | None:
    """How often it repeats at most, None for without end. ``{`` that is no quantifier counts as once."""
    if quantifier[0] in "*+":
        return None
    if quantifier[0] == "?" or not (quantifier[1] or quantifier[3]):
        return 1
    if not quantifier[2]:
        return int(quantifier[1])
    return int(quantifier[3]) if quantifier[3] else None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if not value.startswith("data:"):
            yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


@lru_cache(maxsize=256)
def _compile(pattern: str) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError):
        return None
