"""Answers that turn in circles, and ordinary ones that only look alike."""

from __future__ import annotations

from random import Random

import pytest

from edgekit.routing.decision.loops import LONGEST, REPEATS, SPAN, Loop, LoopWatch


def watched(items: list[str] | list[int]) -> Loop | None:
    """The loop that an answer ends in."""
    watch = LoopWatch()
    for item in items:
        watch.push(item)
    return watch.loop


@pytest.mark.parametrize("period", [1, 2, 3, 7, 16, 17, 64, LONGEST])
def test_a_period_over_and_over_is_told_as_soon_as_it_fills_the_end(period: int) -> None:
    random = Random(period)
    start = [random.randrange(50_000) for _ in range(200)]
    cycle = [10**6 + i for i in range(period)]
    watch = LoopWatch()
    assert not any(watch.push(token) for token in start)
    needed = max(SPAN, REPEATS * period)
    told = [watch.push(token) for token in cycle * (needed // period + 2)]
    assert told.index(True) + 1 == needed
    assert all(told[needed - 1 :])
    assert watch.loop is not None
    assert watch.loop.period == period
    assert f"repeat the same {period:,}" in watch.loop.words


def test_what_goes_on_otherwise_was_no_loop() -> None:
    watch = LoopWatch()
    for _ in range(SPAN):
        watch.push("ha")
    assert watch.loop == Loop(1, SPAN)
    assert not watch.push("!")
    assert watch.loop is None


def test_longer_periods_are_not_looked_for() -> None:
    assert watched(list(range(LONGEST + 1)) * 6) is None


NUMBERED = "\n".join(f"{i}. Item number {i} of the list" for i in range(1, 60))
TABLE = "| name | size | price |\n|------|------|------|\n" + "\n".join(
    f"| part {i} | {i % 7} mm | {3 * i} USD |" for i in range(60)
)
CODE = "\n".join(
    f"def test_{name}(client):\n    response = client.get('/{name}')\n    assert response.status_code == 200\n"
    for name in ("users", "items", "orders", "carts", "prices", "stores", "teams", "roles", "logs", "keys")
)
MATRIX = "\n".join(" ".join("1" if i == j else "0" for j in range(8)) for i in range(8))
POEM = (
    "Row, row, row your boat,\nGently down the stream.\nMerrily, merrily, merrily, merrily,\nLife is but a dream.\n" * 3
)
JSON = "[" + ", ".join(f'{{"id": {i}, "name": "n{i}", "tags": []}}' for i in range(40)) + "]"


@pytest.mark.parametrize("text", [NUMBERED, TABLE, CODE, MATRIX, POEM, JSON])
def test_lists_tables_and_code_are_no_loops(text: str) -> None:
    watch, characters = LoopWatch(), LoopWatch()
    assert not any(watch.push(word) for word in text.split())
    # Four characters are about a token.
    assert not any(characters.push(text[i : i + 4]) for i in range(0, len(text), 4))


def test_a_sentence_said_again_and_again_is_one() -> None:
    assert watched(("I am sorry, I do not know. " * 20).split()) == Loop(7, 140)
