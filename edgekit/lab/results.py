"""What a lab's runs say together: results with their spread, sustained curves, changes since the night before."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from math import exp, log
from pathlib import Path
from statistics import fmean, pvariance
from typing import TYPE_CHECKING, Literal

from edgekit import words
from edgekit.errors import LabError, did_you_mean
from edgekit.lab.steady import curve_of, find_level, spread_of
from edgekit.lab.store import lab_of, nights_in, read_folder, read_plan
from edgekit.types.fleet import Change, DeviceHealth, Fleet, Result
from edgekit.types.interval import Interval
from edgekit.types.measurement import Series

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from edgekit.types.lab import LabRun

MOST_SPREAD = 0.1
_BROKEN = ("failed", "refused")
Key = tuple[str, str, str]


def summarize(runs: Iterable[LabRun], most_spread: float = MOST_SPREAD, lab: str = "") -> Fleet:
    """Put runs together.

    Args:
        runs: of any nights, in any order.
        most_spread: (largest - smallest) / median of the runs' decode speeds above which they are no result.
        lab: which lab's; by default that of the last night.
    """
    by_night: dict[str, dict[Key, list[LabRun]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        by_night[run.lab][run.device, run.bundle, run.workload].append(run)
    nights = sorted(by_night, key=lambda night: night.rpartition("@")[2])
    lab = lab or lab_of(nights[-1])
    nights = [night for night in nights if lab_of(night) == lab]
    last = by_night[nights[-1]]
    results = tuple(_result(nights[-1], key, last[key], most_spread) for key in sorted(last))
    return Fleet(lab, tuple(nights), results, tuple(_changes(nights, by_night)), _devices(last, results))


def load_fleet(results: str, lab: str = "", most_spread: float | None = None) -> Fleet:
    """Put together what a folder or a database holds.

    Args:
        results: a folder that a lab wrote, or an SQLAlchemy URL.
        lab: which lab's; by default that of the last night.
        most_spread: as in summarize; by default the limit in the last night's plan.

    Raises:
        LabError: there is nothing, or it cannot be read.
    """
    from edgekit.lab.database import Database

    if "://" in results:
        database = Database(results)
        try:
            runs = list(database.runs())
        finally:
            database.close()
    else:
        runs = list(read_folder(Path(results)))
        nights = [night for night in nights_in(Path(results)) if not lab or lab_of(night) == lab]
        planned = read_plan(Path(results) / nights[-1]) if nights else None
        most_spread = planned.most_spread if planned and most_spread is None else most_spread
    names = sorted({lab_of(run.lab) for run in runs})
    if not runs or (lab and lab not in names):
        asked = f" of a lab '{lab}'" if lab else ""
        hint = f"{did_you_mean(lab, names)}run a lab first, or pass one of: {', '.join(names) or 'none is there'}"
        raise LabError(f"{results.rpartition('@')[2]} holds no results{asked}", hint)
    return summarize(runs, MOST_SPREAD if most_spread is None else most_spread, lab)


def decode_speed(run: LabRun) -> float | None:
    """A run's tok/s: of a sustained run where it levels off, else of decoding at the smallest depth."""
    if run.rates:
        level = find_level(run.rates)
        seconds = sum(rate.seconds for rate in run.rates)
        return level.tok_s if level else sum(rate.tokens for rate in run.rates) / seconds if seconds else None
    found = _shallowest(run)
    return found.mean if found else None


def _shallowest(run: LabRun) -> Series | None:
    """The series of decoding at the smallest depth, of the fewest tokens."""
    series = run.measurement.series if run.measurement else ()
    found = [((int(m[2]), int(m[1])), s) for s in series if (m := re.fullmatch(r"tg(\d+)@(\d+)", s.name))]
    return min(found, key=lambda pair: pair[0])[1] if found else None


def _longest(run: LabRun, start: str) -> float | None:
    """The mean of the series ``pp`` or ``ttft`` of the longest prompt."""
    series = run.measurement.series if run.measurement else ()
    found = [(int(m[1]), s.mean) for s in series if (m := re.fullmatch(rf"{start}(\d+)", s.name))]
    return max(found)[1] if found else None


def joules_per_token(run: LabRun) -> float | None:
    """Net joules of a decoded token, None if they were not measured."""
    energy = run.energy
    if energy.kind != "measured" or energy.net_joules is None or not energy.tokens:
        return None
    return energy.net_joules / energy.tokens


def _result(night: str, key: Key, runs: Sequence[LabRun], most_spread: float) -> Result:
    good = [run for run in runs if run.status == "done"]
    decode = _gather("decode", "tok/s", [decode_speed(run) for run in good])
    spread = spread_of(decode.samples) if decode else None
    status: Literal["result", "noisy", "none"] = "result"
    reason = ""
    if not good:
        status, reason = "none", next((r.reason for r in reversed(runs) if r.reason), "no run counts")
    elif spread is not None and spread > most_spread:
        status = "noisy"
        reason = f"runs spread by {words.percent(spread)}, limit {words.percent(most_spread)}"
    return Result(
        *(night, *key, status, reason),
        decode=decode,
        prompt=_gather("prompt", "tok/s", [_longest(run, "pp") for run in good]),
        first=_gather("first", "s", [_longest(run, "ttft") for run in good]),
        joules=_gather("joules", "J", [joules_per_token(run) for run in good]),
        meter=next((run.energy.meter for run in good if run.energy.meter), ""),
        spread=spread,
        ended=tuple(sorted(Counter(run.status for run in runs).items())),
        curve=next((curve_of(r.rates, r.samples, r.power, r.marks) for r in good if r.rates), None),
    )


def _gather(name: str, unit: str, values: Iterable[float | None]) -> Series | None:
    known = tuple(value for value in values if value is not None)
    return Series(name, unit, known) if known else None


# --- what changed -----------------------------------------------------------------------------


def _changes(nights: Sequence[str], by_night: Mapping[str, Mapping[Key, Sequence[LabRun]]]) -> Iterable[Change]:
    """Compare each result of the last night with the last night before it that has one."""
    after = nights[-1]
    for key in sorted(by_night[after]):
        now = _logs(by_night[after][key])
        before = next((night for night in reversed(nights[:-1]) if _logs(by_night[night].get(key, ()))), "")
        if now and before:
            was = _logs(by_night[before][key])
            ratio = compare(was, now)
            yield Change(*key, before, after, "decode", ratio, _verdict(ratio))


def _logs(runs: Sequence[LabRun]) -> list[float]:
    """Logarithms of the decode speeds of the runs that count."""
    speeds = [decode_speed(run) for run in runs if run.status == "done"]
    return [log(speed) for speed in speeds if speed]


def compare(before: Sequence[float], after: Sequence[float]) -> Interval | None:
    """The ratio of two speeds with a 95 % interval, from the logarithms of runs of each.

    Welch's t interval on the difference of the means of the logarithms (B. L. Welch, Biometrika 34, 1947): runs, not
    tokens, are what repeats. None with fewer than two runs on a side.
    """
    if min(len(before), len(after)) < 2:
        return None
    change = fmean(after) - fmean(before)
    if not pvariance(after) + pvariance(before):
        return Interval(exp(change), exp(change), exp(change))
    from scipy.stats import ttest_ind

    found = ttest_ind(after, before, equal_var=False).confidence_interval(0.95)
    return Interval(exp(change), exp(found.low), exp(found.high))


def _verdict(ratio: Interval | None) -> Literal["faster", "slower", "noise", "unknown"]:
    if ratio is None:
        return "unknown"
    return "faster" if ratio.low > 1 else "slower" if ratio.high < 1 else "noise"


# --- devices ----------------------------------------------------------------------------------


def _devices(last: Mapping[Key, Sequence[LabRun]], results: Sequence[Result]) -> tuple[DeviceHealth, ...]:
    runs_of: dict[str, list[LabRun]] = defaultdict(list)
    for (device, _, _), runs in last.items():
        runs_of[device] += runs
    return tuple(_health(device, runs_of[device], results) for device in sorted(runs_of))


def _health(device: str, runs: Sequence[LabRun], results: Sequence[Result]) -> DeviceHealth:
    good = sum(run.status == "done" for run in runs)
    noisy = [r for r in results if r.device == device and r.status == "noisy"]
    bad = sum(run.status in _BROKEN for run in runs)
    state: Literal["well", "shaky", "broken"] = (
        "broken" if not good or bad > len(runs) / 2 else "shaky" if good < len(runs) or noisy else "well"
    )
    told = [f"{run.status}: {run.reason}" for run in runs if run.status != "done"]
    told += [f"noisy: {r.bundle} {r.workload}: {r.reason}" for r in noisy]
    reasons = [f"{count} times {text}" if count > 1 else text for text, count in Counter(told).most_common(4)]
    facts = max(runs, key=lambda run: run.ended if run.facts.model or run.facts.identity else "").facts
    temperatures = [s.hottest for run in runs for s in run.samples if s.hottest is not None]
    meter = next((run.energy.meter for run in runs if run.energy.kind == "measured"), "")
    return DeviceHealth(
        *(device, facts.model or facts.processor, facts.system, facts.address, good, len(runs), state),
        reasons=tuple(reasons),
        hottest=max(temperatures, default=None),
        meter=meter,
    )
