"""Privacy rules' expressions: which are refused, what they find, and that none takes long."""

from __future__ import annotations

from time import monotonic

import pytest

from edgekit.routing.decision.patterns import NO_FORM, compile_schema_pattern, find_fault, matches


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"(?:\d[ -]?){13,16}", "4111 1111 1111 1111"),
        (r"\w@[\w-]+\.\w", "jörg@münchen.de"),
        (r"\b(patient|diagnosis)\b", "the Patient, who"),
        (r"(?P<x>a*)b+", "b"),
        (r"[]+]+\(", "]("),
        (r"[^]a]x", "bx"),
        (r"(?i:ab)?c+", "C"),
        (r"(?#a+)b", "b"),
        (r"x{,2}y", "y"),
        (r"[A-Z]{2}\d{2}(?:\s?\d{4}){3,5}", "DE12 3456 7890 1234"),
        (r"(a+)+$", "aaaa"),
        (r"\Asecret\Z", "secret"),
        (r"^secret$", "one\nsecret\ntwo"),
        (r"\u0073ecret", "secret"),
        (r"[\d\s]{3}x", "1\u00a02x"),
        (r"\bürgen\b", "wer, ürgen?"),
        (r"\bсекрет\b", "это секрет."),
        (r"\b(?:секрет|тайна)\b", "тайна"),
        (r"секрет\b\s+\bмой", "секрет мой"),
        (r"秘密", "这是秘密的"),
        (r"[\w.]+@x", "ß.ü@x"),
        (r"\b\w+ plan\b", "Über plan"),
        (r"[\b]x", "\bx"),
        (r"\d{4}", "\u0661\u0662\u0663\u0664"),
    ],
)
def test_what_python_finds_is_found(pattern: str, text: str) -> None:
    assert find_fault(pattern) == ""
    assert matches(pattern, [text])
    assert matches(pattern, ["nothing", text])


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"\bcat\b", "concatenate"),
        (r"\bкот\b", "который"),
        (r"\bкот\b", "скот"),
        (r"\d{5}", "1234"),
        (r"^secret$", "one secret two"),
        (r"(a+)+$", "aaab"),
        (r"[^\w]x", "üx"),
    ],
)
def test_what_is_not_there_is_not_found(pattern: str, text: str) -> None:
    assert not matches(pattern, [text])


@pytest.mark.parametrize(
    "pattern",
    [
        r"a(?=b)",
        r"(?<!a)b",
        r"(a)\1",
        r"a++b",
        r"(?>a)b",
        r"(?x) a b",
        r"x{2000}",
        r"((((x{9}){9}){9}){9}){9}",
        "(",
        "a*",
        "^",
        "[z-a]",
    ],
)
def test_what_has_no_form_is_refused(pattern: str) -> None:
    assert find_fault(pattern)
    assert "RE2" in NO_FORM


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"(a+)+$", r"(a*)*b", r"(?:a+){2,}b", r"((x?a+)b?)+c", r"(a|aa)+$", r"(\w+\s?)*$", r"(a?){30}b", r"(a+)+?b"),
        *(r"([a-z]+)*\d", r"(?:a{2,3}){50}b", r"a*b*c*d*e", r"(?P<n>x+)+y", r"((a?){15}){15}b", r"(.*)*(.*)*(.*)*x"),
        *(r"\w@[\w-]+\.\w", r"[\w.+-]+@[\w-]+\.[\w.-]+", r"(?:\d[ -]?){13,16}x", r"(x{100}|y.{200})*z"),
    ],
)
def test_no_expression_takes_long(pattern: str) -> None:
    began = monotonic()
    for letters in ("a", "a@", "1 ", "a.-+", "y"):
        text = letters * (400_000 // len(letters)) + "!"
        assert matches(pattern, [text]) in (True, False)
        assert compile_schema_pattern(pattern).search(text.encode()) in (True, False)
    assert monotonic() - began < 20


def test_what_cannot_be_told_counts_as_a_match() -> None:
    assert matches("(", [""])
    assert matches("(", [])


def test_a_schemas_expressions_are_those_of_its_standard() -> None:
    assert compile_schema_pattern(r"^\d+$").search(b"12")
    assert not compile_schema_pattern(r"^\d+$").search("١٢".encode())
    assert compile_schema_pattern(r"\u00fc").search("ü".encode())
    assert not compile_schema_pattern("a").search(b"A")
    with pytest.raises(ValueError, match="perl operator"):
        compile_schema_pattern("(?=a)")
