"""Data files: what a line may say, and what is said about one that is not as it should be."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.errors import RouteError
from edgekit.routing.evaluation.examples import read_answers, read_examples
from edgekit.types import Sampling
from edgekit.types.routing import CloudAnswer, Example, Message, Request

GOOD = {"prompt": "What is 6 times 7?", "answer": "42"}


@pytest.fixture
def write(tmp_path):
    def write(*lines, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
        return path

    return write


GREEDY = Sampling(temperature=0.0, seed=0)


@pytest.fixture
def examples(write):
    return read_examples(write(GOOD | {"id": "a", "grading": "number"}, GOOD | {"id": "b", "answer": ["x", "y"]}))


def test_the_shortest_line(write):
    request = Request(messages=(Message("user", "What is 6 times 7?"),), sampling=GREEDY)
    assert read_examples(write(GOOD)) == (Example("1", request, ("42",), "exact"),)


def test_everything_that_a_line_may_say(write):
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Good or bad?"}]
    choice = {"grading": "choice", "choices": ["good", "bad", "ugly"]}
    raw = {"prompt": "Roses are", "raw": True, "grading": "prefix", "max_tokens": 3, "stop": "\n"}
    none = {"id": None, "choices": None, "raw": False}
    path = write(
        {"id": 7, "messages": turns, "answer": ["good", "bad"], **choice},
        {"id": "raw", "answer": "red", **raw},
        {"prompt": "?", "answer": "1,000", "grading": "number", "stop": [" ", "##"], **none},
    )
    messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)
    roses = Request(prompt="Roses are", sampling=replace(GREEDY, max_new_tokens=3, stop=("\n",)))
    many = Request(messages=(Message("user", "?"),), sampling=replace(GREEDY, stop=(" ", "##")))
    assert read_examples(path) == (
        Example("7", Request(messages=messages, sampling=GREEDY), ("good", "bad"), "choice", ("good", "bad", "ugly")),
        Example("raw", roses, ("red",), "prefix"),
        Example("3", many, ("1,000",), "number"),
    )


def test_blank_lines_line_ends_and_marks_of_other_systems(tmp_path):
    path = tmp_path / "data.jsonl"
    line = json.dumps(GOOD).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line)
    assert [example.id for example in read_examples(path)] == ["1", "4"]


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("{'prompt': 1}", "not JSON", "one object per line"),
        ('{"prompt": "a", "prompt": "b", "answer": "c"}', "not JSON: duplicate key", "one object"),
        ("[" * 100_000, "not JSON", "one object"),
        ("[1]", r"must be an object, not \[1\]", "a line looks like"),
        ('{"prompt": "\\ud800", "answer": "x"}', "not UTF-8", "save the file as UTF-8"),
        (GOOD | {"anwser": "42"}, "unknown key 'anwser'", "did you mean 'answer'"),
        ({"prompt": "?"}, "'answer' is missing", "a line looks like"),
        (GOOD | {"answer": None}, "'answer' is missing", "a line looks like"),
        (GOOD | {"answer": []}, "'answer' is missing", "a line looks like"),
        (GOOD | {"answer": ""}, "'answer' must be a non-empty text", ""),
        (GOOD | {"answer": ["42", ""]}, "'answer' must be a non-empty text", ""),
        (GOOD | {"answer": " \n"}, "the answer is blank", ""),
        (GOOD | {"answer": 42}, "'answer' must be a non-empty text.*not 42", ""),
        (GOOD | {"answer": "many", "grading": "number"}, 'the answer "many" holds no number', "another grading"),
        (GOOD | {"answer": "?!", "grading": "contains"}, "holds no word", "exact"),
        (GOOD | {"grading": "numbr"}, "unknown grading 'numbr'", "did you mean 'number'"),
        (GOOD | {"grading": 3}, "'grading' must be one of exact, prefix, contains, number, choice, not 3", ""),
        (GOOD | {"grading": "choice"}, "needs 'choices'", '"choices"'),
        (GOOD | {"choices": ["42"]}, "'choices' are unused by 'exact'", '"grading": "choice"'),
        (GOOD | {"grading": "choice", "choices": ["4", "2"]}, 'the answer "42" is not among the choices 4, 2', ""),
        ({"answer": "42"}, "neither 'prompt' nor 'messages'", "give one"),
        (GOOD | {"messages": [{"role": "user", "content": "?"}]}, "'prompt' and 'messages' in one line", "give one"),
        (GOOD | {"prompt": ""}, "'prompt' is empty", "a line looks like"),
        (GOOD | {"prompt": ["?"]}, "'prompt' must be text", ""),
        (GOOD | {"raw": "yes"}, "'raw' must be true or false", ""),
        ({"messages": [], "answer": "42"}, "'messages' is empty", ""),
        ({"messages": [{"role": "user"}], "answer": "42"}, "a message must be", ""),
        ({"messages": [{"role": "user", "content": ["?"]}], "answer": "42"}, "a message must be", ""),
        ({"messages": [{"role": "robot", "content": "?"}], "answer": "42"}, 'unknown role "robot"', "system, user"),
        ({"messages": [{"role": ["user"], "content": "?"}], "answer": "42"}, "unknown role", "system, user"),
        (
            {"messages": [{"role": "user", "content": "?"}], "raw": True, "answer": "42"},
            "'raw' is only for 'prompt'",
            "",
        ),
        (GOOD | {"max_tokens": 0}, "'max_tokens' must be at least 1", ""),
        (GOOD | {"max_tokens": True}, "'max_tokens' must be a whole number, not true", ""),
        (GOOD | {"stop": [""]}, "'stop' must be a non-empty text", ""),
        (GOOD | {"id": ""}, "'id' must be text or a whole number", ""),
        (GOOD | {"id": 1.5}, "'id' must be text or a whole number, not 1.5", ""),
        (GOOD | {"id": "1"}, "the id '1' is already used by .*data.jsonl:1", "its own id"),
    ],
)
def test_a_line_that_is_not_as_it_should_be(write, line, message, hint):
    path = write(GOOD, line)
    with pytest.raises(RouteError, match=message) as caught:
        read_examples(path)
    assert f"{path}:2: " in caught.value.message
    assert len(caught.value.message) < len(str(path)) * 2 + 400
    assert hint in caught.value.hint


def test_files_that_are_none(tmp_path, write):
    for path, message in ((tmp_path / "none.jsonl", "not found"), (tmp_path, "is a folder")):
        with pytest.raises(RouteError, match=message):
            read_examples(path)
    for empty in (write(), write("", "  ")):
        with pytest.raises(RouteError, match="the file is empty"):
            read_examples(empty)
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + '{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(RouteError, match=r"latin.jsonl:2: not UTF-8"):
        read_examples(path)


def test_answers_come_in_the_order_of_the_examples(write, examples):
    path = write(
        {"id": "b", "text": "y", "right": False, "prompt_tokens": 5, "new_tokens": 0, "seconds": 2, "cost": 0.001},
        {"id": "a", "answer": "It is 42.", "cost": None},
        name="answers.jsonl",
    )
    assert read_answers(path, examples) == (
        CloudAnswer("a", "It is 42.", True, None, None, None, None),
        CloudAnswer("b", "y", False, 5, 0, 2.0, 0.001),
    )


def test_answers_without_a_verdict_are_graded(write, examples):
    path = write({"id": "a", "answer": "43"}, {"id": "b", "answer": " Y."}, name="answers.jsonl")
    assert [answer.right for answer in read_answers(path, examples)] == [False, True]


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ({"answer": "42"}, "'id' is missing", "a line looks like"),
        ({"id": "c", "answer": "42"}, "there is no example 'c'", ""),
        ({"id": "a", "answer": "42"}, "a second answer to 'a'", "keep one"),
        ({"id": "b"}, "one of 'answer' and 'text'", "a line looks like"),
        ({"id": "b", "answer": "x", "text": "x"}, "one of 'answer' and 'text'", ""),
        ({"id": "b", "answer": ["x"]}, "'answer' must be text", ""),
        ({"id": "b", "answer": "x", "right": 1}, "'right' must be true or false, not 1", ""),
        ({"id": "b", "answer": "x", "cost": -1}, "'cost' must be a number from 0 to 1,000,000,000, not -1", ""),
        ('{"id": "b", "answer": "x", "seconds": NaN}', "'seconds' must be a number from 0", ""),
        ({"id": "b", "answer": "x", "seconds": "1 s"}, "'seconds' must be a number", ""),
        ({"id": "b", "answer": "x", "new_tokens": -1}, "'new_tokens' must be at least 0", ""),
        ({"id": "b", "answer": "x", "token": 1}, "unknown key 'token'", "did you mean 'new_tokens'"),
    ],
)
def test_an_answer_that_is_not_as_it_should_be(write, examples, line, message, hint):
    path = write({"id": "a", "answer": "42"}, line, name="answers.jsonl")
    with pytest.raises(RouteError, match=message) as caught:
        read_answers(path, examples)
    assert f"{path}:2: " in caught.value.message
    assert hint in caught.value.hint


def test_an_example_without_an_answer_is_named(write, examples):
    path = write({"id": "b", "answer": "x"}, name="answers.jsonl")
    with pytest.raises(RouteError, match=r"no answer to 1 of 2 examples: a$"):
        read_answers(path, examples)


def test_the_examples_of_the_repository_fit_together():
    folder = Path(__file__).parents[1] / "examples" / "routing"
    dev, test = (read_examples(folder / f"capitals-{part}.jsonl") for part in ("dev", "test"))
    assert not {e.id for e in dev} & {e.id for e in test}
    assert all(answer.right for answer in read_answers(folder / "capitals-answers.jsonl", test))


@pytest.mark.parametrize("number", ["1" + "0" * 400, "1e400", "NaN", "-1"])
def test_no_number_is_too_strange(tmp_path, examples, number):
    path = tmp_path / "answers.jsonl"
    path.write_text(f'{{"id": "{examples[0].id}", "answer": "a", "cost": {number}}}\n')
    with pytest.raises(RouteError) as caught:
        read_answers(path, examples)
    assert caught.value.hint


@pytest.mark.timeout(60)
def test_a_pipe_is_no_file_of_examples(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RouteError, match="named pipe"):
        read_examples(tmp_path / "pipe")
