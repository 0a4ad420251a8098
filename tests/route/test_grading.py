"""Right and wrong, by each of the five gradings."""

from decimal import Decimal
from typing import get_args

import pytest

from edgekit.routing.decision.grading import find_number, is_right
from edgekit.types.routing import Grading

CASES = {
    "exact": [
        ("Paris", ["Paris"], True),
        (" paris.\n", ["Paris"], True),
        ("“Paris!”", ["Paris"], True),
        ("New   York\ncity", ["new york City"], True),
        ("It is Paris", ["Paris"], False),
        ("Paris, France", ["Paris"], False),
        ("Paris France", ["Paris, France"], False),
        ("Rome", ["Paris", "Rome"], True),
        ("ﬁne", ["fine"], True),
        ("don’t", ["don't"], True),
        ("STRASSE", ["straße"], True),
        ("", ["Paris"], False),
        ("...", ["Paris"], False),
        ("C++", ["C"], False),
    ],
    "prefix": [
        (" signs. I go on", ["signs"], True),
        ("Signs", ["signs"], True),
        ("signs", ["sign"], False),
        ("sign s", ["signs"], False),
        ("the signs", ["signs"], False),
        ("New York is large", ["new york"], True),
        ("New", ["new york"], False),
        ("don't go", ["don't"], True),
        ("don't go", ["don"], False),
        ("“Harlin,” he said", ["harlin"], True),
        ("", ["signs"], False),
        ("anything", ["..."], False),
    ],
    "contains": [
        ("I think it is Paris, France.", ["paris"], True),
        ("It is in New\nYork today", ["new york"], True),
        ("comparison", ["paris"], False),
        ("new and york", ["new york"], False),
        ("Rome", ["Paris", "rome"], True),
        ("anything", ["!"], False),
    ],
    "number": [
        ("18 - 3 = 15 and so 42", ["42"], True),
        ("#### 42", ["42"], True),
        ("It is 41.\n#### 42\nThere were 7 of them", ["42"], True),
        ("#### 41\n#### 42", ["42"], True),
        ("We get 42 ####", ["42"], True),
        ("1,234 dollars", ["1234"], True),
        ("$1,234,567.50.", ["1234567.5"], True),
        ("exactly 42.00", ["42"], True),
        ("42.5", ["42"], False),
        ("about -3", ["3"], False),
        ("it fell by −3", ["-3"], True),
        ("10-3", ["3"], True),
        ("**42**", ["42"], True),
        (r"\boxed{42}", ["42"], True),
        ("50%", ["50"], True),
        ("forty-two", ["42"], False),
        ("", ["42"], False),
        ("7", ["42", "7"], True),
        ("x = 1/2", ["2"], True),
    ],
    "choice": [
        (" positive\n", ["positive"], True),
        ("Positive, not negative", ["positive"], True),
        ("negative, not positive", ["positive"], False),
        ("it is not positively bad: negative", ["negative"], True),
        ("positively", ["positive"], False),
        ("neutral", ["positive"], False),
        ("", ["positive"], False),
    ],
}


def test_every_grading_has_cases():
    assert set(CASES) == set(get_args(Grading))
    assert all({right for *_, right in cases} == {True, False} for cases in CASES.values())


@pytest.mark.parametrize(
    ("grading", "text", "answers", "right"), [(grading, *case) for grading, cases in CASES.items() for case in cases]
)
def test_right_and_wrong(grading, text, answers, right):
    choices = ["positive", "negative"] if grading == "choice" else []
    assert is_right(text, answers, grading, choices) is right


def test_of_two_choices_at_one_place_the_longer_was_chosen():
    assert is_right("not good at all", ["not good"], "choice", ["good", "not", "not good"])
    assert not is_right("not good at all", ["not"], "choice", ["good", "not", "not good"])


def test_one_of_several_answers_is_a_choice_by_itself():
    assert is_right("yes", ["yes", "yeah"], "choice", ["no"])
    assert not is_right("no, yes", ["yes", "yeah"], "choice", ["no"])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12,34", 34),
        ("1,2,3", 3),
        ("v2.5", None),
        ("a1", None),
        (".5", Decimal("0.5")),
        ("3.", 3),
        ("-$5", -5),
        ("####", None),
    ],
)
def test_what_is_a_number(text, number):
    assert find_number(text) == number


def test_a_long_answer_is_graded_in_time():
    """No pattern may go back and forth over a text that a model repeated itself in."""
    for text in ("1," * 50_000, "1" * 100_000, "$" * 100_000, "'" * 100_000 + "a'" * 50_000, "-" * 100_000):
        for grading in get_args(Grading):
            assert not is_right(text, ["42"], grading, ["42", "43"])
