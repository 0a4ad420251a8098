"""What is found, in which order, and how much of it."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

import pytest

from edgekit.routing.documents import Document, Index, read_documents


@pytest.fixture
def index(folder):
    return Index(read_documents(folder()).documents)


def paths(found) -> list[str]:
    return [p.path for p in found]


@pytest.mark.parametrize(
    ("question", "path"),
    [
        ("When do I plant tomatoes?", "garden.md"),
        ("How much is the ticket to Rome?", "travel/rome.txt"),
        ("ZÜRICH coffee", "travel/Zürich.md"),
        ("zu\u0308rich", "travel/Zürich.md"),
        ("Which allergy do I have?", "health.md"),
        ("the number of the safe", "private/diary.md"),
    ],
)
def test_the_document_that_shares_the_words_comes_first(index, question, path):
    assert paths(index.search(question))[0] == path


def test_scores_fall_and_what_is_private_is_marked(index):
    found = index.search("salary Rome ticket penicillin Milan", 10)
    assert paths(found)[0] == "travel/rome.txt"
    assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)
    assert found[-1].score > 0
    assert {p.path: p.private for p in found} == {
        "travel/rome.txt": False,
        "health.md": True,
        "money/salary.txt": False,
    }


@pytest.mark.parametrize("question", ["", "the of and", "xylophone quux", "?!", "a b"])
def test_no_shared_word_finds_nothing(index, question):
    assert index.search(question) == ()


def test_no_more_than_asked_for(index):
    question = "the doctor, the notary, Rome, tomatoes, salary"
    assert len(index.search(question, 10)) == 5
    assert len(index.search(question, 2)) == 2
    assert index.search(question, 0) == ()


def test_passages_fit_the_tokens(index):
    def count(text: str) -> int:
        return len(text.split())

    every = index.search("doctor notary Rome tomatoes salary", 10)
    sizes = [count(p.text) for p in every]
    exactly = index.search("doctor notary Rome tomatoes salary", 10, sum(sizes), count=count)
    assert exactly == every
    fewer = index.search("doctor notary Rome tomatoes salary", 10, sum(sizes) - 1, count=count)
    assert 0 < sum(count(p.text) for p in fewer) < sum(sizes)
    assert index.search("Rome", 10, 1) == ()
    assert index.search("Rome", 10, 0) == ()


def test_ties_come_in_the_order_of_the_documents():
    index = Index([Document(f"{n}.md", "apple pie", "") for n in "cab"])
    assert paths(index.search("apple")) == ["c.md", "a.md", "b.md"]


def test_documents_without_words_are_no_trouble():
    index = Index([Document("a.md", "the of and ?!", ""), Document("b.md", "...", "")])
    assert index.search("the answer") == ()
    assert Index([]).search("anything") == ()


def test_the_passage_of_a_long_document_is_found():
    filler = "\n\n".join(f"Paragraph {i} speaks of ordinary things and says little of note." for i in range(200))
    text = f"{filler}\n\nThe password of the lighthouse is heliotrope.\n\n{filler}"
    found = Index([Document("long.md", text, "")]).search("lighthouse password", 1)
    assert "heliotrope" in found[0].text
    assert len(found[0].text.split()) <= 200


def test_private_documents_are_recognised_when_they_come_back(index):
    quoted = "Well: the doctor found an allergy to penicillin, in the spring."
    assert index.private_text.found_in([quoted]) == "the document health.md is private"
    assert index.private_text.found_in(["The train to Rome leaves Milan at nine. A ticket costs forty euros."]) == ""


def test_it_is_quiet(capfd, caplog):
    caplog.set_level(logging.DEBUG)
    Index([Document("a.md", "apple pie with cream", "")]).search("apple")
    assert capfd.readouterr() == ("", "")
    assert not [r for r in caplog.records if r.name == "bm25s"]


def test_many_threads_search_at_once(index):
    expected = index.search("Rome ticket", 3)
    got = []
    threads = [threading.Thread(target=lambda: got.append(index.search("Rome ticket", 3))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert got == [expected] * 16


def test_importing_the_room_loads_nothing_heavy():
    code = "import edgekit.routing.documents, sys; print({'bm25s', 'numpy', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
