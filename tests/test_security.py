"""SECURITY.md says what holds; each line of its table names a test that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINES = [line for line in (ROOT / "SECURITY.md").read_text().splitlines() if "`tests/" in line and line.startswith("|")]
TESTS = re.compile(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`")


def test_every_kind_of_stranger_has_its_lines() -> None:
    first = {word.strip() for line in LINES for word in line.split("|")[1].split(",")}
    assert {"bundle", "checkpoint", "request", "endpoint", "page in a browser", "other user"} <= first


@pytest.mark.parametrize("line", LINES, ids=[line.split("|")[2].strip() for line in LINES])
def test_what_a_line_promises_is_tested(line: str) -> None:
    found = TESTS.findall(line.split("|")[-2])
    assert found
    for path, name in found:
        text = (ROOT / path).read_text()
        assert re.search(rf"^(?:async )?def {name or 'test_'}", text, re.MULTILINE), f"{path} has no {name}"


def test_nothing_is_trusted_by_a_switch() -> None:
    for file in (ROOT / "edgekit").rglob("*.py"):
        text = file.read_text()
        assert "--trust" not in text, file
        assert "trust_remote_code=True" not in text, file
