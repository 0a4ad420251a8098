"""2,000 damaged inputs, the same every time, by all formats of tests/fuzz: what became of each."""

from __future__ import annotations

import argparse
from collections import Counter
from time import perf_counter

from tests.fuzz.__main__ import judge_all
from tests.fuzz.registry import draw
from tests.fuzz.verdict import FAILURES, Judge

CASES = 2000
SEED = 14


def main(count: int = CASES, jobs: int = 2) -> bool:
    """Print one line a kind of failure, and the first case of each cause. Whether there is none."""
    began = perf_counter()
    with Judge() as judge:
        cases = draw(count, SEED, judge.seed)
    judged = list(judge_all(cases, jobs))
    kinds = Counter(verdict.kind for _, verdict in judged)
    print(f"{len(judged):,} damaged inputs in {perf_counter() - began:,.0f} s: {kinds['done']:,} done, "
          f"{kinds['refused']:,} refused with a hint")  # fmt: skip
    for kind in FAILURES:
        print(f"  {kind:18} {kinds[kind]:5,}")
    shown: set[str] = set()
    for case, verdict in judged:
        if verdict.failed and verdict.mark not in shown:
            shown.add(verdict.mark)
            print(f"  {verdict.mark}\n    {case.name}: {verdict.about[:160]}")
    return not shown


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--jobs", type=int, default=2)
    chosen = parser.parse_args()
    main(chosen.cases, chosen.jobs)
