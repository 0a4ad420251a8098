"""Every input that ever failed, and some new ones by a fixed seed: nothing fails. `make fuzz` tries more, for hours."""

from collections import Counter

import pytest

from tests.fuzz.case import Case
from tests.fuzz.registry import corpus, draw
from tests.fuzz.verdict import Judge

CASES = 200
SEED = 20_260_101


@pytest.fixture(scope="module")
def judge():
    with Judge() as judge:
        yield judge


@pytest.mark.parametrize("path", corpus(), ids=lambda path: path.stem)
def test_what_failed_once_does_not_fail_again(path, judge):
    case = Case.read(path.read_text(encoding="utf-8"))
    verdict = judge.judge(case)
    assert not verdict.failed, f"{case.name}: {verdict.mark}: {verdict.about}\n{verdict.stderr[-2000:]}"


def test_new_cases_are_done_or_refused_with_a_hint(judge):
    failed = {}
    kinds = Counter()
    for case in draw(CASES, SEED, judge.seed):
        verdict = judge.judge(case)
        kinds[verdict.kind] += 1
        if verdict.failed:
            failed[case.name] = f"{verdict.mark}: {verdict.about[:200]}"
    assert not failed, failed
    assert kinds["done"] > CASES // 20
    assert kinds["refused"] > CASES // 5
