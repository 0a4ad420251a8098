"""Expected time, energy and cost of an answer: on this device from the bundle's measurement, else from the policy."""

from __future__ import annotations

from bisect import bisect_right
from math import isfinite
from typing import TYPE_CHECKING

from edgekit.types.routing import Expected

if TYPE_CHECKING:
    from edgekit.types import Measurement
    from edgekit.types.routing import Tier


def expect_local(
    measurement: Measurement | None, prompt_tokens: int | None, new_tokens: int | None, waiting: float = 0.0
) -> Expected:
    """Estimate the seconds and joules of an answer on this device from the series of ``edgekit bench``.

    Time to the first token: ``waiting`` plus the prompt at the speed of ``pp``, in seconds per token, linear between
    the measured lengths and constant outside; at least one decoding step. Each further token takes the time of a step
    at the middle of the answer, from ``tg``: each series counts as measured at the middle of the tokens it decoded;
    linear between series, constant before the first, and beyond the deepest along the slope of the last two if it
    rises, as attention reads every earlier token.

    Joules: the gross power of the measured decoding times all seconds except the waiting. The prompt's power is not
    measured separately and counts as decoding's.

    Args:
        measurement: a measurement of this bundle on this kind of machine, None if there is none.
        prompt_tokens: tokens of the prompt, None if they could not be counted.
        new_tokens: tokens of the answer, None if unlimited; then only the time to the first token is known.
        waiting: seconds until the model is free.
    """
    prompts, steps = _rates(measurement) if measurement else ([], [])
    if measurement is None or prompt_tokens is None or not prompts or not steps:
        return Expected(cost=0.0)
    step = _at(steps, prompt_tokens, rising=True)
    prompt = max(prompt_tokens * _at(prompts, prompt_tokens, rising=False), step)
    if new_tokens is None:
        return Expected(seconds_to_first=waiting + prompt, cost=0.0)
    rest = max(new_tokens - 1, 0) * _at(steps, prompt_tokens + new_tokens / 2, rising=True)
    energy = measurement.energy
    metered = energy.kind != "none" and energy.gross_joules and energy.seconds
    watts = (energy.gross_joules or 0) / (energy.seconds or 1) if metered else None
    return Expected(
        seconds_to_first=waiting + prompt,
        seconds=waiting + prompt + rest,
        joules=None if watts is None else watts * (prompt + rest),
        cost=0.0,
        energy="none" if watts is None else energy.kind,
    )


def expect_tier(tier: Tier, prompt_tokens: int | None, new_tokens: int | None, most_new: int | None = None) -> Expected:
    """Return the seconds that the policy expects of an endpoint, and its price. Its joules are unknown.

    Args:
        tier: the endpoint.
        prompt_tokens: tokens of the prompt for this endpoint; None, and an unknown cost, if they are not known.
        new_tokens: tokens of the answer; None, and an unknown time, if unlimited.
        most_new: tokens of the answer to charge if ``new_tokens`` is None; None if nothing bounds them.
    """
    first, speed = tier.seconds_to_first, tier.tokens_per_second
    seconds = None
    if first is not None and speed and new_tokens is not None:
        seconds = first + max(new_tokens - 1, 0) / speed
    charged = most_new if new_tokens is None else new_tokens
    cost = None
    if tier.price is not None and prompt_tokens is not None:
        free = not tier.price.output_per_million
        cost = tier.price.cost(prompt_tokens, charged or 0) if free or charged is not None else None
    return Expected(first, seconds, None, cost)


def _rates(measurement: Measurement) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Return sorted (tokens, seconds per token) of the prompts and (depth, seconds per token) of decoding."""
    prompts: dict[float, float] = {}
    steps: dict[float, float] = {}
    for series in measurement.series:
        kind, _, depth = series.name[2:].partition("@")
        if series.unit != "tok/s" or not series.samples or not kind.isdecimal():
            continue
        speed = series.mean
        if not isfinite(speed) or speed <= 0:
            continue
        if series.name.startswith("pp") and not depth:
            prompts[float(kind)] = 1 / speed
        elif series.name.startswith("tg") and depth.isdecimal():
            steps.setdefault(int(depth) + int(kind) / 2, 1 / speed)
    return sorted(prompts.items()), sorted(steps.items())


def _at(points: list[tuple[float, float]], place: float, *, rising: bool) -> float:
    """Interpolate linearly; constant outside, or with ``rising`` along the last slope beyond the end if that rises."""
    at = bisect_right(points, (place, float("inf")))
    if at == 0:
        return points[0][1]
    if at == len(points):
        if not rising or at == 1:
            return points[-1][1]
        at -= 1
        (x0, y0), (x1, y1) = points[at - 1 : at + 1]
        return y1 + max((y1 - y0) / (x1 - x0), 0.0) * (place - x1)
    (x0, y0), (x1, y1) = points[at - 1 : at + 1]
    return y0 + (y1 - y0) * (place - x0) / (x1 - x0)
