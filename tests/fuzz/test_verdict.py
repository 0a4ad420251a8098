"""The verdicts themselves, and cases as files."""

import json

import pytest

from tests.fuzz.case import Case, Step, pack, unpack, write
from tests.fuzz.registry import corpus, formats
from tests.fuzz.verdict import decide_case

CASE = Case("a case", ("inspect", "bundle"))
TWO_LINES = "error: it is so\nhint: do this\n"


def decide(case=CASE, status=0, why="", stdout="", stderr="", changed=(), left=()):
    answer = {"status": status, "why": why, "seconds": 1.0, "peak": 0}
    return decide_case(case, answer, stdout, stderr, list(changed), list(left)).kind


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({}, "done"),
        ({"case": Case("a case", (), refused=True)}, "wrongly_accepted"),
        ({"status": 1 << 8, "stderr": TWO_LINES}, "refused"),
        ({"status": 1 << 8, "stderr": "error: it is so\n"}, "no_hint"),
        ({"status": 1 << 8, "stderr": TWO_LINES * 2}, "no_hint"),
        ({"status": 1 << 8, "stderr": TWO_LINES, "left": ["made"]}, "half_made"),
        ({"status": 3 << 8, "stderr": TWO_LINES, "left": ["made"]}, "refused"),
        ({"status": 2 << 8, "stderr": "Traceback (most recent call last):\nValueError: x"}, "traceback"),
        ({"stderr": "Traceback (most recent call last):\nValueError: in a thread"}, "traceback"),
        ({"status": 11}, "crash"),
        ({"status": 9, "why": "hang"}, "hang"),
        ({"status": 9, "why": "memory"}, "memory"),
        ({"changed": ["victim/note.txt"]}, "wrote_outside"),
        ({"case": Case("a case", ("inspect", "--json")), "stdout": "{} {}"}, "bad_json"),
    ],
)
def test_each_end_has_its_verdict(facts, kind):
    assert decide(**facts) == kind


def test_a_case_is_a_file_and_back(tmp_path):
    case = Case("a case", ("run",), ("bundle",), (write("a", b"\xff" * 9), Step("fifo", "b")), stdin="\udcff")
    assert Case.read(case.text()) == case
    assert unpack(pack("é")) == "é".encode()
    assert unpack(pack(b"\xff")) == b"\xff"


def test_steps_change_a_document_as_it_is_today(tmp_path):
    def seed(name):
        folder = tmp_path / "seeds"
        folder.mkdir()
        (folder / "x.json").write_text('{"a": {"b": [1, 2]}, "c": 3}')
        return folder

    steps = (Step("set", "s/x.json", "NaN", ("a", "b", 1)),)
    (tmp_path / "case").mkdir()
    Case("a case", (), ("s",), steps).arrange(tmp_path / "case", seed)
    text = (tmp_path / "case/s/x.json").read_text()
    assert json.loads(text, parse_constant=lambda word: word) == {"a": {"b": [1, "NaN"]}, "c": 3}


def test_every_format_is_found():
    assert {"arguments", "manifest", "policies", "tables", "questions", "checkpoints"} <= set(formats())


@pytest.mark.parametrize("path", corpus(), ids=lambda path: path.stem)
def test_the_corpus_can_be_read(path):
    assert Case.read(path.read_text(encoding="utf-8")).command
