"""What an answer is expected to take: on this device from the bundle's own measurement, elsewhere as the user says."""

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
    """Seconds and joules of an answer here, by the series of ``edgekit bench``.

    To the first token: ``waiting``, and the prompt at the speed of ``pp``: seconds a token, linear between the lengths
    measured, as at the nearest one outside; never less than one step. Each further token takes what one takes at the
    depth of the middle of the answer, from ``tg``: each series stands for the middle of the tokens it decoded; linear
    between them, before the first as at the first, and beyond the deepest along the slope of the last two where it
    rises, as attention reads every token before.

    Joules: the gross power of the measured decoding over all seconds but the waiting. No meter read the prompt's power
    apart: it counts as decoding's.

    Args:
        measurement: of this bundle on this kind of machine, None where there is none.
        prompt_tokens: None where they could not be counted.
        new_tokens: of the answer, None where nobody says, and then only the first one's time is known.
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
    """Seconds as the user expects them of an endpoint, and its price. Its joules nobody knows.

    Args:
        tier: the endpoint.
        prompt_tokens: as it counts them; None where that is not known, and then the cost is not either.
        new_tokens: of the answer, None where nobody says, and then its time is not known.
        most_new: of the answer, what its price is for where nobody says; None where nothing bounds it.
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
    """(tokens, seconds a token) of the prompts, and (depth, seconds a token) of decoding, in order; no place twice."""
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
    """Linear between points; outside as at the nearest, or, ``rising``, along the last slope if that rises."""
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
