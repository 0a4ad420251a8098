"""Files of questions with known answers, of a cloud's answers, and of answers that were kept."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from edgekit.record import to_json
from edgekit.routing.evaluation.collect import Kept
from edgekit.types.calibration import Signals
from edgekit.types.routing import LocalAnswer
from tests.fuzz.case import Case
from tests.fuzz.values import json_lines

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_ANSWER = LocalAnswer(
    "0", "1", "eos", True, Signals(1, -0.5, -0.5, -0.5, -0.5, -0.5, 0.2, 1.0, 1.0, -0.5, 0.2), None, 4, 0.1, 0.5, None
)
_EVERY_KEY = [
    {"id": "a", "prompt": "What is 6 times 7?", "answer": "42", "grading": "number", "max_tokens": 2},
    {"id": 2, "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello"}],
     "answer": ["hi", "hello"], "grading": "contains", "stop": ["\n"], "max_tokens": 2},
    {"prompt": "Yes or no?", "raw": True, "answer": "yes", "grading": "choice", "choices": ["yes", "no"], "stop": "."},
]  # fmt: skip
_EVERY_ANSWER = [
    {"id": "0", "answer": "1", "right": True, "prompt_tokens": 4, "new_tokens": 1, "seconds": 0.5, "cost": 0.001},
    {"id": "1", "text": "2", "seconds": 1},
]
_CALIBRATE = ("route", "calibrate", "bundle", "--no-record")
_BENCH = ("route", "bench", "bundle", "--data", "questions/questions.jsonl", "--cloud")


def cases(seed: Callable[[str], Path]) -> st.SearchStrategy[Case]:
    """Every key of every kind of line."""
    rows = [json.loads(line) for line in (seed("questions") / "answers.jsonl").read_text().splitlines()]
    kept = [json.loads(to_json(Kept("0" * 64, _ANSWER)))]

    def case(command: tuple[str, ...], name: str, may: bool, change: tuple) -> Case:
        how, steps, impossible = change
        return Case(f"{name}: {how}", command, ("bundle", "questions"), steps, refused=impossible and not may)

    def of(command: tuple[str, ...], name: str, lines: list, *, may: bool = False) -> st.SearchStrategy[Case]:
        return st.builds(case, st.just(command), st.just(name), st.just(may), json_lines("mine.jsonl", lines))

    store = (*_CALIBRATE, "--data", "questions/questions.jsonl", "--store", "mine.jsonl")
    return st.one_of(
        of((*_CALIBRATE, "--data", "mine.jsonl"), "questions", _EVERY_KEY),
        of((*_BENCH, "mine.jsonl"), "answers", [*_EVERY_ANSWER, *rows[2:]]),
        # A store that is missing is begun; what else is no file of answers cannot be added to.
        of(store, "kept", kept, may=True).map(_writes),
    )


def _writes(case: Case) -> Case:
    return replace(case, writes=("mine.jsonl",))
