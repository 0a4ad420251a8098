"""Measure the time to load a model, process a prompt, and generate the first and further tokens (pp, tg, TTFT, TPOT).

Calls block, and no thread or process polls meanwhile. Prompts are new random tokens in every repetition (the same in
every run, by a seed), so that prompt caches cannot help. Each repetition runs all workloads, so that slow drift of the
machine affects all of them equally.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from edgekit.errors import MeasureError
from edgekit.types import Progress, Runner, Series, silent
from edgekit.types.measurement import unmarked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from edgekit.types.measurement import Marking

R = TypeVar("R", bound=Runner)

_Samples = defaultdict[tuple[str, str], list[float]]
"""(name, unit) of a series -> its samples."""


@dataclass(frozen=True)
class Latency:
    """The series, and a description of the workload, including what was skipped and why."""

    series: tuple[Series, ...]
    workload: str


@dataclass(frozen=True)
class Plan:
    """The workloads that fit the context."""

    prompts: tuple[int, ...]
    decodes: tuple[tuple[int, int], ...]
    """(depth, tokens), by depth."""
    words: str


def measure_load(factory: Callable[[], R], repetitions: int = 3) -> tuple[R, Series]:
    """Make a runner ``repetitions`` times, closing all but the last.

    Returns:
        The last runner and the series "load" in seconds. From the second repetition on, the file is in the page cache.
    """
    seconds: list[float] = []
    while True:
        started = perf_counter()
        runner = factory()
        seconds.append(perf_counter() - started)
        if len(seconds) >= repetitions:
            return runner, Series("load", "s", tuple(seconds))
        runner.close()


def measure_latency(
    runner: Runner,
    *,
    pp: Sequence[int] = (512,),
    tg: Sequence[int] = (128,),
    depth: Sequence[int] = (0, 512, 2048),
    repetitions: int = 5,
    warmup: int = 1,
    seed: int = 0,
    mark: Marking = unmarked,
    progress: Progress = silent,
) -> Latency:
    """Measure prompts of ``pp`` tokens, and ``tg`` single tokens at each ``depth`` of context.

    Series, by name:
        pp512: prompt tokens per second, one sample per repetition.
        ttft512: seconds to the first token after a prompt of 512, including the choice of the likeliest token.
        tg128@0: decoded tokens per second, one sample per repetition: 128 / the sum of their seconds. The tokens fed
            are random, so sampling is not included.
        tpot@0: seconds of each decoded token at that depth, for all ``tg`` and repetitions.

    Args:
        runner: the model.
        pp: lengths of prompts.
        tg: numbers of decoded tokens.
        depth: tokens in the cache before decoding.
        repetitions: measured rounds.
        warmup: unmeasured rounds over every prompt and the first depth.
        seed: seed of the random tokens.
        mark: called with ``pp512 begin`` and ``pp512 end`` around each timed prompt, and so for ``tg128@0``.
        progress: called after every workload.

    Raises:
        MeasureError: no workload fits the model's context, or a number is not positive.
    """
    if repetitions < 1 or warmup < 0 or min((*pp, *tg), default=1) < 1 or min(depth, default=0) < 0:
        raise MeasureError(
            f"repetitions={repetitions}, pp={pp} and tg={tg} must be 1 or more, warmup={warmup} and depth={depth} 0 or "
            "more",
            "pass larger numbers",
        )
    plan = plan_workloads(runner.context_length, pp, tg, depth)
    random = np.random.default_rng(seed)
    warm = Plan(plan.prompts, plan.decodes[:1], "")
    samples, forgotten = _Samples(list), _Samples(list)
    rounds = [(warm, forgotten, unmarked)] * warmup + [(plan, samples, mark)] * repetitions
    total = sum(len(p.prompts) + len(p.decodes) for p, _, _ in rounds)
    done = count(1)
    progress("measuring", 0, total, "workloads")
    for workloads, kept, marking in rounds:
        _round(runner, workloads, random, kept, marking, lambda: progress("measuring", next(done), total, "workloads"))
    runner.reset()
    series = tuple(Series(name, unit, tuple(values)) for (name, unit), values in samples.items())
    return Latency(series, plan.words)


def decode(runner: Runner, tokens: NDArray[np.int64]) -> list[float]:
    """Feed tokens one by one and return the seconds of each."""
    seconds = []
    for token in tokens.tolist():
        started = perf_counter()
        runner.step(token)
        seconds.append(perf_counter() - started)
    return seconds


def _round(
    runner: Runner,
    plan: Plan,
    random: np.random.Generator,
    samples: _Samples,
    mark: Marking,
    done: Callable[[], None],
) -> None:
    for n in plan.prompts:
        tokens = random.integers(runner.vocab_size, size=n).tolist()
        runner.reset()
        mark(f"pp{n} begin")
        started = perf_counter()
        logits = runner.prefill(tokens)
        prompt = perf_counter()
        int(np.argmax(logits))
        chosen = perf_counter()
        mark(f"pp{n} end")
        samples[f"pp{n}", "tok/s"].append(n / (prompt - started))
        samples[f"ttft{n}", "s"].append(chosen - started)
        done()
    runner.reset()
    for at, n in plan.decodes:
        # To go deeper, only the missing tokens are fed.
        if runner.length > at:
            runner.reset()
        if runner.length < at:
            runner.prefill(random.integers(runner.vocab_size, size=at - runner.length).tolist())
        mark(f"tg{n}@{at} begin")
        seconds = decode(runner, random.integers(runner.vocab_size, size=n))
        mark(f"tg{n}@{at} end")
        samples[f"tg{n}@{at}", "tok/s"].append(n / sum(seconds))
        samples[f"tpot@{at}", "s"] += seconds
        done()


def plan_workloads(context: int, pp: Sequence[int], tg: Sequence[int], depth: Sequence[int]) -> Plan:
    """The workloads of ``measure_latency`` that fit a context. Raises MeasureError if none does."""
    decodes = sorted({(d, n) for d in depth for n in tg})
    fit = tuple((d, n) for d, n in decodes if d + n <= context)
    prompts = tuple(n for n in sorted(set(pp)) if n <= context)
    if not fit and not prompts:
        raise MeasureError(
            f"no workload fits the context of {context} tokens: smallest prompt {min(pp, default=0)}, "
            f"smallest decode {min((d + n for d, n in decodes), default=0)}",
            f"use prompts of at most {context} tokens, and decode to at most {context}",
        )
    words = [f"pp{n}" for n in prompts] + [f"tg{n}@{d}" for d, n in fit]
    missing = [f"pp{n}" for n in sorted(set(pp)) if n > context] + [f"tg{n}@{d}" for d, n in decodes if d + n > context]
    left_out = f"; left out: {', '.join(missing)} (the context holds {context} tokens)" if missing else ""
    return Plan(prompts, fit, ", ".join(words) + left_out)
