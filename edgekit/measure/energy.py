"""Measure the energy of some work with a meter of this machine, or one beside it. Without a meter there is none."""

from __future__ import annotations

import re
from contextlib import suppress
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from pkgutil import iter_modules
from time import sleep
from typing import TYPE_CHECKING

from edgekit.errors import MeasureError, did_you_mean
from edgekit.host.clock import boottime
from edgekit.measure import power
from edgekit.measure.trace import joules, period
from edgekit.types.measurement import Energy, PowerProbe
from edgekit.types.power import Joules

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from edgekit.measure.alignment import Alignment
    from edgekit.types.lab import Mark
    from edgekit.types.power import Trace

Span = tuple[float, float]
"""Begin and end in seconds."""

_PROMPT, _ANSWER, _SUSTAINED = re.compile(r"pp(\d+)"), re.compile(r"tg(\d+)@\d+"), re.compile(r"sustain@\d+")


def meter_files() -> tuple[ModuleType, ...]:
    """The modules of ``power/``, by name."""
    names = sorted(m.name for m in iter_modules(power.__path__))
    return tuple(import_module(f"{power.__name__}.{name}") for name in names)


def meters(root: Path = Path("/")) -> list[PowerProbe]:
    """Every meter of this machine, whether usable or not: start() raises if it is not.

    Args:
        root: the folder that contains ``sys``.
    """
    return [probe for file in meter_files() for probe in file.find(root)]


def open_meter(meter: str, root: Path = Path("/")) -> PowerProbe:
    """The meter called ``NAME`` or ``NAME:ADDRESS``; NAME is a file of ``power/``.

    Args:
        meter: ``rapl``, ``hwmon:ina3221/VDD_IN``, ``shelly:192.168.1.20``.
        root: the folder that contains ``sys``.

    Raises:
        MeasureError: there is no such meter, or several and no address.
    """
    name, _, address = meter.partition(":")
    files = {file.__name__.rpartition(".")[2]: file for file in meter_files()}
    if name not in files:
        raise MeasureError(
            f"no meter is called '{name}'", f"{did_you_mean(name, list(files))}known: {', '.join(files)}"
        )
    file = files[name]
    if hasattr(file, "connect") and (address or file.WHERE == "beside"):
        probe: PowerProbe = file.connect(address, root)
        return probe
    found: list[PowerProbe] = file.find(root)
    chosen = [probe for probe in found if address in ("", probe.address)]
    if len(chosen) == 1:
        return chosen[0]
    known = [f"{name}:{probe.address}" for probe in found]
    if not found:
        raise MeasureError(f"this machine has no meter '{name}'", "`edgekit power list` shows what it has")
    trouble = "there are several" if chosen else f"no meter '{meter}'"
    raise MeasureError(f"{name}: {trouble}", f"{did_you_mean(meter, known)}choose one: {', '.join(known)}")


def sits_beside(meter: str) -> bool:
    """Whether a meter called ``NAME[:ADDRESS]`` is an instrument beside a device, which another machine may read."""
    name = meter.partition(":")[0]
    return any(file.WHERE == "beside" for file in meter_files() if file.__name__.rpartition(".")[2] == name)


def choose_meter(root: Path = Path("/")) -> tuple[PowerProbe | None, str]:
    """The default meter, or None and the reason why there is none.

    It is the first that can be read and is known to include the processor (``WHOLE``).
    """
    told: list[str] = []
    for file in meter_files():
        for probe in file.find(root):
            if not file.WHOLE:
                told.append(f"{probe.name} covers {file.COVERS}: used only if selected by name")
                continue
            try:
                probe.start()
                probe.stop()
            except MeasureError as error:
                told.append(_reason(error))
            else:
                return probe, ""
    names = ", ".join(f.__name__.rpartition(".")[2] for f in meter_files() if f.WHERE == "device")
    return None, "; ".join(told) or f"this machine has no supported meter ({names})"


def meter_energy(
    probe: PowerProbe,
    work: Callable[[], int],
    *,
    prompt: Callable[[], int] | None = None,
    what: str = "the work",
    idle_seconds: float = 5.0,
    charge: float | None = None,
    answer: tuple[int, int] = (0, 0),
) -> Energy:
    """Measure the joules of ``work``, and idle power before and after it, in one recording.

    Args:
        probe: the meter.
        work: does the work and returns the number of answered tokens. It should last seconds, since meters refresh 1 to
            10 times per second.
        prompt: the same for tokens of prompts; it is done before.
        what: a description of the work, for the formula.
        idle_seconds: how long to sleep for each idle reading.
        charge: as in account().
        answer: as in account().

    Returns:
        Energy with the probe's kind, or kind "none" with the reason if the meter cannot be read or does not move.
    """
    spans: list[Span] = []
    tokens: list[int] = []

    def timed(call: Callable[[], int]) -> None:
        began = boottime()
        tokens.append(call())
        spans.append((began, boottime()))

    try:
        probe.start()
        try:
            timed(lambda: _rest(idle_seconds))
            timed(prompt or (lambda: 0))
            timed(work)
            timed(lambda: _rest(idle_seconds))
        except BaseException:
            with suppress(MeasureError):
                probe.stop()
            raise
        probe.stop()
        before, prompts, answers, after = spans
        return account(
            probe.trace(),
            answers=[answers],
            tokens=tokens[2],
            idle=(before, after),
            prompts=[prompts] if prompt else [],
            prompt_tokens=tokens[1],
            what=what,
            charge=charge,
            answer=answer,
        )
    except MeasureError as error:
        return Energy("none", meter=probe.name, reason=_reason(error), covers=probe.covers)


def account(
    trace: Trace,
    *,
    answers: Sequence[Span],
    tokens: int,
    idle: tuple[Span, Span],
    prompts: Sequence[Span] = (),
    prompt_tokens: int = 0,
    what: str = "the work",
    alignment: Alignment | None = None,
    charge: float | None = None,
    answer: tuple[int, int] = (0, 0),
) -> Energy:
    """The energy of work between marks.

    gross = the trace's integral over ``answers``; net = gross - mean(idle watts before, after) * seconds. Its error is
    gross's, that of the mean, and half the difference of the two idles: in between, idle power may have been either.

    Args:
        trace: of a meter that ran from before the first idle to after the second.
        answers: when tokens were answered, one by one.
        tokens: how many.
        idle: when nothing ran, before and after.
        prompts: when prompts were processed.
        prompt_tokens: how many tokens of prompts.
        what: a description of the work, for the formula.
        alignment: from the clock of all these times to the trace's, if it has another.
        charge: joules of a full charge by the battery's own account.
        answer: the tokens of prompt and answer of one answer; (0, 0) if unknown.

    Raises:
        MeasureError: the trace does not cover the work.
    """
    gross = _sum(trace, answers, alignment)
    seconds = sum(b - a for a, b in answers)
    if gross.value <= 0:
        return _none(trace, f"the meter did not move in {seconds:.1f} s of work")
    if gross.error >= gross.value:
        reason = f"{gross.value:.3g} J with an error of up to {gross.error:.3g} J: the meter is too slow or too coarse"
        return _none(trace, f"{reason} for {seconds:.1f} s of work")
    rests = [_sum(trace, [span], alignment) for span in idle]
    before, after = (rest.value / (b - a) for rest, (a, b) in zip(rests, idle, strict=True))
    doubt = sum(rest.error / (b - a) for rest, (a, b) in zip(rests, idle, strict=True)) / 2 + abs(after - before) / 2
    each = gross.value / tokens if tokens else None
    prompt = _sum(trace, prompts, alignment).value / prompt_tokens if prompts and prompt_tokens else None
    one = _one(answer, prompt, each)
    return Energy(
        kind="measured",
        meter=trace.meter,
        gross_joules=gross.value,
        net_joules=gross.value - (before + after) / 2 * seconds,
        idle_watts_before=before,
        idle_watts_after=after,
        seconds=seconds,
        tokens=tokens,
        formula=f"gross: the meter during {what}; net: gross - (idle before + idle after) / 2 * seconds",
        hertz=1 / period(trace),
        error_joules=gross.error,
        net_error_joules=gross.error + doubt * seconds,
        alignment_residual=alignment.residual if alignment else None,
        joules_per_prompt_token=prompt,
        joules_per_answer_token=each,
        tokens_per_joule=1 / each if each else None,
        answers_per_charge=charge / one if charge and one else None,
        covers=trace.covers,
    )


def account_marks(
    trace: Trace,
    marks: Sequence[Mark],
    *,
    alignment: Alignment | None = None,
    charge: float | None = None,
    sustained: int = 0,
) -> Energy:
    """The energy of a run by the marks that its driver left: ``pp512 begin``, ``tg128@0 end``, ``idle begin``.

    Args:
        trace: of a meter that ran all the time.
        marks: of one run.
        alignment: from the marks' clock to the trace's; None if both are the same.
        charge: joules of a full charge by the battery's own account.
        sustained: tokens decoded between the marks ``sustain@0 begin`` and ``sustain@0 end``.

    Returns:
        The energy of all ``tg`` or of ``sustain``, with that of ``pp``; kind "none" with the reason if marks are
        missing or the trace does not cover them.
    """
    spans: dict[str, list[Span]] = {}
    begun: dict[str, float] = {}
    for mark in marks:
        name, _, edge = mark.name.rpartition(" ")
        if edge == "begin":
            begun[name] = mark.at
        elif edge == "end" and name in begun:
            spans.setdefault(name, []).append((begun.pop(name), mark.at))
    prompts = [(int(m[1]), span) for name in spans if (m := _PROMPT.fullmatch(name)) for span in spans[name]]
    answers = [(int(m[1]), span) for name in spans if (m := _ANSWER.fullmatch(name)) for span in spans[name]]
    answers += [(sustained, span) for name in spans if _SUSTAINED.fullmatch(name) for span in spans[name]]
    work = [span for _, span in (*prompts, *answers)]
    idle = spans.get("idle", [])
    before = [span for span in idle if work and span[1] <= min(work)[0]]
    after = [span for span in idle if work and span[0] >= max(end for _, end in work)]
    if not (answers and before and after):
        return _none(trace, "the run's marks lack decoding, or idle times before and after the work")
    try:
        return account(
            trace,
            answers=[span for _, span in answers],
            tokens=sum(n for n, _ in answers),
            idle=(before[-1], after[0]),
            prompts=[span for _, span in prompts],
            prompt_tokens=sum(n for n, _ in prompts),
            what="all decoding",
            alignment=alignment,
            charge=charge,
            answer=(max((n for n, _ in prompts), default=0), max(n for n, _ in answers)),
        )
    except MeasureError as error:
        return _none(trace, _reason(error))


def _sum(trace: Trace, spans: Sequence[Span], alignment: Alignment | None) -> Joules:
    joined = _joined(spans)
    if alignment is None:
        found = [joules(trace, a, b) for a, b in joined]
    else:
        found = [
            joules(trace, alignment.to_meter(a), alignment.to_meter(b), shift=max(map(alignment.doubt, (a, b))))
            for a, b in joined
        ]
    return Joules(sum(j.value for j in found), sum(j.error for j in found))


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Spans that follow each other at once are one."""
    joined = list(spans[:1])
    for (_, end), (begin, last) in pairwise(spans):
        if begin - end < 1e-3 and end == joined[-1][1]:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((begin, last))
    return joined


def _one(answer: tuple[int, int], prompt: float | None, each: float | None) -> float | None:
    """Joules of one answer with its prompt."""
    prompt_tokens, tokens = answer
    if not tokens or each is None or (prompt_tokens and prompt is None):
        return None
    return prompt_tokens * (prompt or 0.0) + tokens * each


def _none(trace: Trace, reason: str) -> Energy:
    return Energy("none", meter=trace.meter, reason=reason, covers=trace.covers)


def _reason(error: MeasureError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message


def _rest(seconds: float) -> int:
    sleep(seconds)
    return 0
