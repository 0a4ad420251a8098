"""Read questions with known answers, and a cloud's answers to them: two kinds of JSON lines.

A line of examples, UTF-8::

    {"prompt": "What is 6 times 7?", "answer": "42", "grading": "number"}

========== ========================================================================================================
id         text or a whole number; default: the line number
prompt     a question, sent to the model as one turn of a conversation
messages   or a whole conversation: a list of {"role": "system" | "user" | "assistant", "content": text}
raw        true: ``prompt`` is a text to continue, without a chat template
answer     the right answer, or a list of right answers
grading    how answers are compared: exact (default), prefix, contains, number, choice; see decision/grading.py
choices    for ``choice``: the list of possible answers, the right one included
max_tokens most tokens of the answer; default: 256
stop       a text, or a list of texts, that end the answer
========== ========================================================================================================

A line of a cloud's answers, one per example: ``id`` and ``answer`` (or ``text``); optionally ``right`` (by default the
answer is graded here), ``prompt_tokens``, ``new_tokens``, ``seconds``, ``cost``. null is the same as a missing key.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from edgekit.errors import RouteError, did_you_mean
from edgekit.routing.decision.grading import find_number, is_right
from edgekit.strangers import read_plain
from edgekit.types import Sampling
from edgekit.types.routing import CloudAnswer, Example, Grading, Message, Request

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLE_KEYS = ("id", "prompt", "messages", "raw", "answer", "grading", "choices", "max_tokens", "stop")
ANSWER_KEYS = ("id", "answer", "text", "right", "prompt_tokens", "new_tokens", "seconds", "cost")
GRADINGS: tuple[Grading, ...] = get_args(Grading)
ROLES = ("system", "user", "assistant")

LARGEST = 200_000_000
"""Bytes of a file."""
MOST = 10**9
"""Largest number in a file: tokens, seconds, money."""

_EXAMPLE = 'a line looks like {"prompt": "What is 6 times 7?", "answer": "42", "grading": "number"}'
_ANSWER = 'a line looks like {"id": "17", "answer": "42", "seconds": 0.8}'


def read_examples(path: Path | str) -> tuple[Example, ...]:
    """Read a file of examples, in the format described at the top of this module.

    Raises:
        RouteError: the file does not exist or is empty, or a line is invalid; names file, line and key.
    """
    examples: dict[str, Example] = {}
    places: dict[str, str] = {}
    for line in _lines(Path(path), EXAMPLE_KEYS, _EXAMPLE):
        example = _example(line)
        if example.id in examples:
            raise line.error(
                f"the id '{example.id}' is already used by {places[example.id]}", "give every line its own id"
            )
        examples[example.id] = example
        places[example.id] = line.place
    return tuple(examples.values())


def read_answers(path: Path | str, examples: tuple[Example, ...]) -> tuple[CloudAnswer, ...]:
    """Read a cloud's answers to ``examples``; returns them in the order of the examples.

    Raises:
        RouteError: as read_examples; or an answer has no example, or an example no answer.
    """
    known = {example.id: example for example in examples}
    answers: dict[str, CloudAnswer] = {}
    for line in _lines(Path(path), ANSWER_KEYS, _ANSWER):
        name = line.id()
        if name is None:
            raise line.error("'id' is missing", _ANSWER)
        if name not in known:
            raise line.error(f"there is no example '{name}' in the data", did_you_mean(name, list(known)).strip())
        if name in answers:
            raise line.error(f"a second answer to '{name}'", "keep one of the two")
        answers[name] = _answer(line, known[name])
    missing = [name for name in known if name not in answers]
    if missing:
        some = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise RouteError(
            f"{path}: no answer to {len(missing)} of {len(known)} examples: {some}",
            "add one line for each id of the data",
        )
    return tuple(answers[name] for name in known)


@dataclass(frozen=True)
class Line:
    """One line of a file: a JSON object with known keys only."""

    place: str
    number: int
    values: dict[str, Any]
    sample: str

    def error(self, problem: str, hint: str = "") -> RouteError:
        """Make a RouteError that names file and line; the default hint shows an example line."""
        return RouteError(f"{self.place}: {problem}", hint or self.sample)

    def get(self, key: str, kind: type, expected: str) -> Any:
        """Return the value of ``key``, exactly of type ``kind``; None if it is missing."""
        value = self.values.get(key)
        if value is not None and type(value) is not kind:
            raise self.error(f"'{key}' must be {expected}, not {_shown(value)}")
        return value

    def id(self) -> str | None:
        """Return the id as text."""
        value = self.values.get("id")
        if value is not None and (type(value) not in (str, int) or value == ""):
            raise self.error(f"'id' must be text or a whole number, not {_shown(value)}")
        return None if value is None else str(value)

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a text or a list of texts, none of them empty; () if the key is missing."""
        value = self.values.get(key)
        texts = value if type(value) is list else [] if value is None else [value]
        for text in texts:
            if type(text) is not str or not text:
                raise self.error(f"'{key}' must be a non-empty text or a list of these, not {_shown(text)}")
        return tuple(texts)

    def whole(self, key: str, least: int) -> int | None:
        """Return a whole number."""
        value: int | None = self.get(key, int, "a whole number")
        if value is not None and not least <= value <= MOST:
            limit = f"at least {least}" if value < least else f"at most {MOST:,}"
            raise self.error(f"'{key}' must be {limit}, not {_shown(value)}")
        return value

    def amount(self, key: str) -> float | None:
        """Return a non-negative number."""
        value = self.values.get(key)
        if value is None:
            return None
        if type(value) not in (int, float) or not 0 <= value <= MOST:  # false for NaN too
            raise self.error(f"'{key}' must be a number from 0 to {MOST:,}, not {_shown(value)}")
        return float(value)


def _lines(path: Path, keys: tuple[str, ...], sample: str) -> Iterator[Line]:
    """Yield the lines that are not blank; at least one."""
    content = read_plain(path, LARGEST, error=RouteError)
    found = False
    for number, data in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if data.strip():
            found = True
            yield _parse(f"{path}:{number}", number, data, keys, sample)
    if not found:
        raise RouteError(f"{path}: the file is empty", sample)


def _parse(place: str, number: int, data: bytes, keys: tuple[str, ...], sample: str) -> Line:
    try:
        values = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
        json.dumps(values, ensure_ascii=False).encode("utf-8")  # an escape may be half a surrogate pair
    except UnicodeError as error:
        raise RouteError(f"{place}: not UTF-8: {error}", "save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise RouteError(f"{place}: not JSON: {str(error)[:200]}", f"write one object per line; {sample}") from error
    if type(values) is not dict:
        raise RouteError(f"{place}: must be an object, not {_shown(values)}", sample)
    for key in values:
        if key not in keys:
            raise RouteError(
                f"{place}: unknown key '{key[:60]}'", f"{did_you_mean(key, keys)}known keys: {', '.join(keys)}"
            )
    return Line(place, number, values, sample)


def _example(line: Line) -> Example:
    grading: Grading = line.get("grading", str, f"one of {', '.join(GRADINGS)}") or "exact"
    if grading not in GRADINGS:
        raise line.error(
            f"unknown grading '{grading}'", f"{did_you_mean(grading, GRADINGS)}known: {', '.join(GRADINGS)}"
        )
    answers, choices = line.texts("answer"), line.texts("choices")
    if not answers:
        raise line.error("'answer' is missing", _EXAMPLE)
    _check_answers(line, answers, choices, grading)
    # Greedy, so that an answer is the same each time.
    sampling = Sampling(temperature=0.0, seed=0, max_new_tokens=line.whole("max_tokens", 1), stop=line.texts("stop"))
    prompt, raw = line.get("prompt", str, "text"), line.get("raw", bool, "true or false")
    messages = _messages(line)
    if (prompt is None) == (messages is None):
        problem = "neither 'prompt' nor 'messages'" if prompt is None else "'prompt' and 'messages' in one line"
        raise line.error(problem, "give one of them")
    if raw and messages is not None:
        raise line.error("'raw' is only for 'prompt': 'messages' always use the chat template", "remove 'raw'")
    if prompt == "":
        raise line.error("'prompt' is empty", _EXAMPLE)
    if messages is None and not raw:
        messages = (Message("user", prompt),)
    request = Request(messages=messages or (), prompt="" if messages else prompt, sampling=sampling)
    return Example(line.id() or str(line.number), request, answers, grading, choices)


def _check_answers(line: Line, answers: tuple[str, ...], choices: tuple[str, ...], grading: Grading) -> None:
    """Refuse answers that no text could match."""
    if (grading == "choice") != bool(choices):
        problem = "the grading 'choice' needs 'choices'" if not choices else f"'choices' are unused by '{grading}'"
        raise line.error(problem, '"grading": "choice", "choices": ["positive", "negative"]')
    for answer in answers:
        if not answer.strip():
            raise line.error("the answer is blank", _EXAMPLE)
        if grading == "number" and find_number(answer) is None:
            raise line.error(f"the answer {_shown(answer)} holds no number", "choose another grading")
        if not is_right(answer, answers, grading):
            raise line.error(f"the answer {_shown(answer)} holds no word", "use the grading 'exact'")
        if choices and not any(is_right(choice, [answer], "exact") for choice in choices):
            raise line.error(f"the answer {_shown(answer)} is not among the choices {', '.join(choices)}")


def _messages(line: Line) -> tuple[Message, ...] | None:
    turns = line.get("messages", list, "a list")
    if turns is None:
        return None
    if not turns:
        raise line.error("'messages' is empty", _EXAMPLE)
    for turn in turns:
        if type(turn) is not dict or set(turn) != {"role", "content"} or type(turn["content"]) is not str:
            raise line.error(f"a message must be {{'role': ..., 'content': text}}, not {_shown(turn)}")
        if turn["role"] not in ROLES:
            raise line.error(f"unknown role {_shown(turn['role'])}", f"known: {', '.join(ROLES)}")
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


def _answer(line: Line, example: Example) -> CloudAnswer:
    if (line.values.get("answer") is None) == (line.values.get("text") is None):
        raise line.error("exactly one of 'answer' and 'text' must be given", _ANSWER)
    key = "text" if line.values.get("answer") is None else "answer"
    text: str = line.get(key, str, "text")
    right: bool | None = line.get("right", bool, "true or false")
    return CloudAnswer(
        id=example.id,
        text=text,
        right=is_right(text, example.answers, example.grading, example.choices) if right is None else right,
        prompt_tokens=line.whole("prompt_tokens", 0),
        new_tokens=line.whole("new_tokens", 0),
        seconds=line.amount("seconds"),
        cost=line.amount("cost"),
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key in an object")
    return found


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
