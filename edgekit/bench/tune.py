"""Find by measurement which settings run a bundle fastest on this class of machine.

One change at a time is measured against the current settings, with both models open, in rounds that run both. Only the
ratio within a round counts, so machine drift affects both alike. A change is kept if a sign test finds it faster on
some workload and slower on none; among several values, the one with the best medians. Finally the result is measured
against the defaults, which stay unless it wins again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import comb, prod
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgekit import measure
from edgekit.errors import MeasureError
from edgekit.run import choose_settings, core_cpus, default_settings, load_runner, machine_class, runtime_class
from edgekit.types import Bundle, Progress, Series, Settings, Trial, Tuning, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from edgekit.run import OnnxRunner

    _Change = Callable[[Settings], Settings]
    _Stage = tuple[tuple["_Workload", ...], tuple[tuple[str, _Change], ...]]
    """Workloads, and the named changes to measure on them."""

ROUNDS = 8
"""Rounds of a trial; with eight, one may go the other way."""

ENOUGH = 5
"""Rounds after which a lost trial may end: five of five can still prove `slower`."""

ERROR = 0.05
"""Probability that a change without effect passes the sign test."""

MARGIN = 0.02
"""Smallest gain that is worth a setting."""

BUSY = 0.2
"""Share of time spent waiting for a core above which the machine counts as busy and results as unreliable. On two
cores, the trials' own threads wait up to a ninth of the time, and over a third next to another busy process."""

TOKENS = 32
CHUNKS = (64, 256, 512)
THRESHOLDS = (1, 2, 4, 8, 16)
SHORT = 8
"""Number of short prompts in one sample."""

Verdict = Literal["faster", "slower", "no difference"]


@dataclass(frozen=True)
class _Workload:
    """Tokens run after ``depth`` others: as one ``prompt``, by ``decode``, or as SHORT short prompts."""

    name: str
    kind: Literal["prompt", "decode", "short prompt"]
    tokens: int
    depth: int


@dataclass(frozen=True)
class _Bench:
    """What all trials of a tuning share."""

    bundle: Bundle
    prompt: _Workload
    decode: _Workload
    rounds: int
    progress: Progress
    waited: list[float]
    """The share of a trial that was spent waiting for a core."""

    @property
    def phases(self) -> tuple[_Workload, ...]:
        """The workloads of both phases, prompt and decoding."""
        return self.prompt, self.decode

    def short_prompts(self, one: int, other: int) -> tuple[_Workload, ...]:
        """Short prompts after a long one: the shortest and the longest that two thresholds run on different graphs.

        Both are needed: kernels work on tiles of rows, so four tokens may be cheaper than three.
        """
        depth = self.prompt.tokens
        lengths = sorted({min(one, other) + 1, max(one, other)})
        return tuple(_Workload(f"pp{n}@{depth}", "short prompt", n, depth) for n in lengths)

    def trial(self, change: str, base: Settings, other: Settings, workloads: Sequence[_Workload]) -> Trial:
        """Measure ``other`` against ``base``."""
        ratios = _compare(self, change, base, other, workloads)
        series = tuple(Series(name, "x", tuple(samples)) for name, samples in ratios.items())
        return Trial(change, series, wins(series))


def tune_bundle(
    bundle: Bundle,
    *,
    prompt: int = 512,
    threads: int | None = None,
    rounds: int = ROUNDS,
    progress: Progress = silent,
) -> Tuning:
    """Find the fastest settings. ``bundle.record`` writes them; check ``is_quiet`` first.

    Two models are in memory at once.

    Args:
        bundle: the opened bundle.
        prompt: tokens of the prompt, and the depth of decoding; capped by the context.
        threads: threads of every trial; by default several numbers are tried.
        rounds: most rounds of a trial; with fewer than five, no change can win.
        progress: called for every round.

    Raises:
        RunError: the bundle does not load.
        MeasureError: ``rounds`` or ``prompt`` is not positive, or the context is too small for any workload.
    """
    if rounds < 1 or prompt < 1:
        raise MeasureError(f"rounds={rounds} and prompt={prompt} must be at least 1", "raise the smaller one")
    context = bundle.manifest.context_length
    prompt = min(prompt, context - TOKENS)
    if prompt < 2 * THRESHOLDS[-1]:
        raise MeasureError(
            f"context of {context} tokens is too short to tune: need {2 * THRESHOLDS[-1] + TOKENS}",
            "drop `tune` to run with the default settings",
        )
    bench = _Bench(
        bundle,
        _Workload(f"pp{prompt}", "prompt", prompt, 0),
        _Workload(f"tg{TOKENS}@{prompt}", "decode", TOKENS, prompt),
        rounds,
        progress,
        [],
    )
    default = choose_settings(bundle.manifest, settings=default_settings(bundle.manifest), threads=threads)
    stages, left_out = _stages(bench, default, threads is not None)
    best, trials = _search(bench, default, stages)
    if best != default:
        found, usual = best.decode_graph_max_tokens, default.decode_graph_max_tokens
        short = bench.short_prompts(found, usual) if found != usual else ()
        last = bench.trial("all changes against the defaults", default, best, (*bench.phases, *short))
        trials.append(last)
        best = best if last.won else default
    return Tuning(
        machine=machine_class(),
        runtime=runtime_class(),
        settings=best,
        kept=best == default,
        trials=tuple(trials),
        left_out=left_out,
        waited=max(bench.waited, default=None),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _search(bench: _Bench, best: Settings, stages: Sequence[_Stage]) -> tuple[Settings, list[Trial]]:
    """Keep the best change of each stage, then tune the threshold between the graphs."""
    trials: list[Trial] = []
    for workloads, changes in stages:
        won: list[tuple[float, Settings]] = []
        for name, change in changes:
            other = change(best)
            trial = bench.trial(name, best, other, workloads)
            trials.append(trial)
            if trial.won:
                won.append((_gain(trial.ratios), other))
        if won:
            best = max(won, key=lambda pair: pair[0])[1]
    if best.prompt_graph == "own":
        best, more = _tune_threshold(bench, best)
        trials += more
    return best, trials


def verdict(ratios: Sequence[float]) -> Verdict:
    """Judge speed ratios by a one-sided sign test at ERROR and a median at least MARGIN away from 1."""
    n = len(ratios)
    needed = _needed(n)
    middle = median(ratios)
    if middle >= 1 + MARGIN and sum(r > 1 for r in ratios) >= needed:
        return "faster"
    if middle <= 1 / (1 + MARGIN) and sum(r < 1 for r in ratios) >= needed:
        return "slower"
    return "no difference"


def is_quiet(tuning: Tuning) -> bool:
    """Whether the machine was otherwise idle, so that the tuning is valid for its class."""
    return tuning.waited is None or tuning.waited <= BUSY


def wins(ratios: Sequence[Series]) -> bool:
    """Whether a change is kept: faster on some workload, slower on none."""
    said = [verdict(series.samples) for series in ratios]
    return "faster" in said and "slower" not in said


def _stages(bench: _Bench, default: Settings, threads_given: bool) -> tuple[tuple[_Stage, ...], tuple[str, ...]]:
    """The changes to try, in order, and why the others are skipped."""
    stages: list[_Stage] = []
    left_out = []
    most = default.threads
    fewer = [2**i for i in range(most.bit_length()) if 2**i < most]
    if threads_given or not fewer:
        left_out.append(f"threads: fixed at {most}" if threads_given else "threads: one core")
    else:
        stages.append((bench.phases, tuple((f"threads {n}", _threads(n)) for n in fewer)))
    stages.append((bench.phases, (("spinning off", lambda s: replace(s, spinning=False)),)))
    cores = len(core_cpus())
    if 1 < most <= cores:
        stages.append((bench.phases, (("pinned to cores", lambda s: replace(s, pinned=True)),)))
    elif most == 1:
        left_out.append("affinity: the only thread is the caller's")
    else:
        left_out.append(f"affinity: {most} threads, but {cores or 'an unknown number of'} cores to pin them to")
    if bench.bundle.manifest.prefill is None:
        left_out.append("prompt graph: the bundle has a single graph")
    else:
        stages.append(((bench.prompt,), (("prompts on the decoder's graph", _on_decoder),)))
    left_out.append(f"execution provider: fixed by the target, {bench.bundle.manifest.cpu_target.provider}")
    sizes = [size for size in CHUNKS if size // 2 < bench.prompt.tokens]
    stages.append(((bench.prompt,), tuple((f"prefill chunk {size}", _chunk(size)) for size in sizes)))
    return tuple(stages), tuple(left_out)


def _threads(count: int) -> _Change:
    return lambda settings: replace(settings, threads=count)


def _chunk(size: int) -> _Change:
    return lambda settings: replace(settings, prefill_chunk=size)


def _on_decoder(settings: Settings) -> Settings:
    return replace(settings, prompt_graph="decoder")


def _tune_threshold(bench: _Bench, best: Settings) -> tuple[Settings, list[Trial]]:
    """Raise the longest prompt for the decoder's graph while that is faster; otherwise try to lower it."""
    trials: list[Trial] = []
    began = best.decode_graph_max_tokens
    if began not in THRESHOLDS:
        return best, trials
    at = THRESHOLDS.index(began)
    for steps in (THRESHOLDS[at + 1 :], THRESHOLDS[:at][::-1]):
        for length in steps:
            other = replace(best, decode_graph_max_tokens=length)
            workloads = bench.short_prompts(length, best.decode_graph_max_tokens)
            trial = bench.trial(f"decoder's graph up to {length}", best, other, workloads)
            trials.append(trial)
            if not trial.won:
                break
            best = other
        if best.decode_graph_max_tokens != began:
            break
    return best, trials


def _compare(
    bench: _Bench, change: str, base: Settings, other: Settings, workloads: Sequence[_Workload]
) -> dict[str, list[float]]:
    """Speed ratios, other over base, by workload: one per round; the two take turns at going first."""
    random = np.random.default_rng(0)
    ratios: dict[str, list[float]] = {w.name: [] for w in workloads}
    depth = max(w.depth for w in workloads)
    runners: list[OnnxRunner] = []
    try:
        runners.append(load_runner(bench.bundle, settings=base))
        runners.append(load_runner(bench.bundle, settings=other))
        began = measure.core_seconds()
        for i in range(-1, bench.rounds):
            bench.progress(f"trying {change}", i + 1, bench.rounds, "rounds")
            tokens = random.integers(runners[0].vocab_size, size=max(bench.prompt.tokens, depth))
            seconds: dict[int, list[float]] = {}
            for side in (0, 1) if i % 2 else (1, 0):
                seconds[side] = _measure(runners[side], tokens, workloads)
            if i < 0:
                continue  # the first round warms both
            for workload, before, after in zip(workloads, seconds[0], seconds[1], strict=True):
                ratios[workload.name].append(before / after)
            if i + 1 >= ENOUGH and not any(_open(samples, bench.rounds) for samples in ratios.values()):
                break
        ended = measure.core_seconds()  # before the threads end, and their counters with them
        if began and ended:
            ran, waited = ended[0] - began[0], ended[1] - began[1]
            bench.waited.append(waited / max(ran + waited, 1e-9))
    finally:
        for runner in runners:
            runner.close()
    return ratios


def _measure(runner: OnnxRunner, tokens: NDArray[np.int64], workloads: Sequence[_Workload]) -> list[float]:
    """Seconds of each workload, after some untimed tokens: the other model's threads may still be spinning."""
    runner.reset()
    runner.prefill(tokens[: THRESHOLDS[-1]].tolist())
    seconds = []
    for w in workloads:
        if w.kind == "prompt" or runner.length < w.depth:
            runner.reset()
            started = perf_counter()
            runner.prefill(tokens[: w.tokens if w.kind == "prompt" else w.depth].tolist())
            taken = perf_counter() - started
        if w.kind != "prompt":
            runner.rewind(w.depth)
        if w.kind == "decode":
            taken = sum(measure.decode(runner, tokens[: w.tokens]))
        elif w.kind == "short prompt":
            taken = 0.0
            for start in range(SHORT):
                runner.rewind(w.depth)
                part = tokens[start : start + w.tokens].tolist()
                started = perf_counter()
                runner.prefill(part)
                taken += perf_counter() - started
        seconds.append(taken)
    return seconds


def _open(ratios: Sequence[float], rounds: int) -> bool:
    """Whether this workload can still come out faster."""
    return sum(r > 1 for r in ratios) + rounds - len(ratios) >= _needed(rounds)


def _needed(n: int) -> int:
    """The least k such that k or more heads in n fair coin tosses have a probability of at most ERROR."""
    tails = (sum(comb(n, i) for i in range(k, n + 1)) / 2**n for k in range(n + 1))
    return next((k for k, chance in enumerate(tails) if chance <= ERROR), n + 1)


def _gain(ratios: Sequence[Series]) -> float:
    """The geometric mean of the medians."""
    return prod(median(series.samples) for series in ratios) ** (1 / len(ratios))
