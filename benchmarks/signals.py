"""Measure how well each signal of a local answer, by itself, separates right answers from wrong ones.

    python benchmarks/signals.py BUNDLE STORE DATA.jsonl [DATA.jsonl ...] [--threads N]

Answers are cached in STORE, so an interrupted run can resume. AUROC is the probability that a right answer has a better
signal than a wrong one, 0.5 for a coin toss; for whole answers, and for the first 16 tokens of longer answers.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from statistics import mean, median

from sklearn.metrics import roc_auc_score

from edgekit import open_bundle
from edgekit.routing.evaluation.collect import collect_local
from edgekit.routing.evaluation.examples import read_examples
from edgekit.types.calibration import Signals

DOUBTS = ("tokens", "mean_entropy", "first_entropy")
"""Signals that grow with doubt; the others grow with certainty."""


def report(task: str, done: int, total: int, unit: str = "B") -> None:
    if done % 50 == 0 or done == total:
        print(f"{task}: {done} of {total} {unit}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    examples = [example for path in options.data for example in read_examples(path)]
    bundle = open_bundle(options.bundle)
    answers = collect_local(bundle, examples, threads=options.threads, store=options.store, progress=report)
    right = [answer.right for answer in answers]
    print(f"{len(answers)} answers, {sum(right)} right ({mean(right):.1%})")
    print(
        f"median {median(a.seconds for a in answers):.3f} s, {median(a.prompt_tokens for a in answers):.0f} tokens of"
    )
    print(f"prompt, {median(a.signals.tokens for a in answers):.0f} of answer")
    compare("whole answer", [(a.signals, a.right) for a in answers])
    compare("first tokens", [(a.prefix, a.right) for a in answers if a.prefix is not None])


def compare(title: str, rows: list[tuple[Signals, bool]]) -> None:
    right = [was for _, was in rows]
    print(f"{title}: {len(rows)} answers, {sum(right)} right")
    if len(set(right)) < 2:
        return
    for field in fields(Signals):
        if any(not isinstance(getattr(signals, field.name), int | float) for signals, _ in rows):
            continue
        sign = -1 if field.name in DOUBTS else 1
        values = [sign * getattr(signals, field.name) for signals, _ in rows]
        print(f"  {field.name:<14} {roc_auc_score(right, values):.3f}")


if __name__ == "__main__":
    main()
