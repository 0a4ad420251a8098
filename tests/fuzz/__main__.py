"""``python -m tests.fuzz --minutes 60``: new cases until the time is up; what fails is kept in the corpus."""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from queue import Empty, Queue
from time import monotonic
from typing import TYPE_CHECKING

from tests.fuzz.registry import CORPUS, draw, formats
from tests.fuzz.verdict import Judge, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fuzz.case import Case

_BATCH = 200


def main() -> int:
    """Fuzz; exit code 1 where anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None, help="of the first batch; by default another every time")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=int, default=1, help="cases of one failure to keep")
    parser.add_argument("formats", nargs="*", choices=[*formats(), []])
    chosen = parser.parse_args()
    end = monotonic() + 60 * chosen.minutes
    number = random.randrange(1 << 32) if chosen.seed is None else chosen.seed
    seen: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    with Judge() as first:
        while monotonic() < end:
            batch = draw(_BATCH, number, first.seed, tuple(chosen.formats))
            for case, verdict in judge_all(batch, chosen.jobs, end):
                kinds[verdict.kind] += 1
                if verdict.failed:
                    seen[verdict.mark] += 1
                    if seen[verdict.mark] <= chosen.keep:
                        print(f"{verdict.mark}\n  {case.name}\n  {verdict.about[:200]}", flush=True)  # noqa: T201
                        keep(case, verdict)
            print(f"seed {number}: {dict(kinds)}", flush=True)  # noqa: T201
            number += 1
    return 1 if seen else 0


def judge_all(cases: list[Case], jobs: int, end: float = float("inf")) -> Iterator[tuple[Case, Verdict]]:
    """Judge cases on several servers, each as it is done; what is not begun at ``end`` is left out."""
    left: Queue[Case] = Queue()
    done: Queue[tuple[Case, Verdict] | None] = Queue()
    for case in cases:
        left.put(case)

    def work() -> None:
        try:
            with Judge() as judge, suppress(Empty):
                while monotonic() < end:
                    case = left.get_nowait()
                    done.put((case, judge.judge(case)))
        finally:
            done.put(None)

    with ThreadPoolExecutor(jobs) as pool:
        workers = [pool.submit(work) for _ in range(jobs)]
        for _ in range(jobs):
            while (found := done.get()) is not None:
                yield found
        for worker in workers:
            worker.result()


def keep(case: Case, verdict: Verdict) -> None:
    """Write a case that failed into the corpus."""
    format_name = case.name.partition(":")[0].replace(" ", "-")
    text = case.text()
    path = CORPUS / f"{format_name}-{verdict.kind}-{sha256(text.encode()).hexdigest()[:8]}.json"
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
