"""How many steps fit into the time, and how large they are: decided once, from a few trials, and kept with the run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

import torch
from accelerate.utils import broadcast_object_list

from edgekit.errors import LearnError
from edgekit.host.disk import write_whole
from edgekit.learn.loop import Plan, Run, relative

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from accelerate import Accelerator
    from torch import Tensor, nn

LOOKS = 16
"""How often a run is watched."""

MOVE = 0.05
"""Learning rate of the codes, in codes, of a run of one step; for n steps it is this over the square root of n. A run
then moves a code by at most half of ``MOVE x sqrt(n)``."""

SHARES = {"codes": 1.0, "zeros": 3.0, "scales": 0.1, "norms": 0.1}
"""Learning rates in units of the codes'. Scales and norms that move faster drift to the text at hand."""

FACTORS = (0.4, 1.0, 2.5)
"""Step sizes that are tried, in units of MOVE."""

TRIAL = 0.1
"""Share of the time for the trials."""

FASTEST = 4000
"""Tokens per second that no machine is expected to exceed: how much text is read."""

LEAST_TRIAL = 3
"""Steps below which a trial says nothing: the middle factor is taken."""


@dataclass(frozen=True)
class Effort:
    """How long and on what. ``minutes`` of training, trials and looks included; ``steps`` instead, if not None.

    ``batch`` counts windows a step, over all processes. ``divide_teacher`` among the processes, if one cannot hold it.
    ``small_memory``: one window at a time, whose layers are computed again in the backward pass; about a third slower.
    """

    text: tuple[str, ...] = ("packaged",)
    minutes: float = 30.0
    steps: int | None = None
    batch: int = 2
    seed: int = 0
    skip_bad: bool = False
    divide_teacher: bool = False
    small_memory: bool = False


def plan_steps(
    distance: nn.Module,
    groups: dict[str, list[nn.Parameter]],
    windows: Tensor,
    watch: Callable[[], tuple[float, ...]],
    accelerator: Accelerator,
    effort: Effort,
    path: Path,
) -> Plan:
    """The plan of a run: as a killed one had it (``path``), or from trials whose time counts."""
    accelerator.wait_for_everyone()
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        return _plan(effort, kept["steps"], kept["factor"])

    def trial(steps: int, factor: float) -> Run:
        return Run(distance, groups, _plan(effort, steps, factor), windows, accelerator=accelerator, watch=watch)

    start = [(p, p.detach().clone()) for group in groups.values() for p in group]
    steps, factor = (effort.steps, 1.0) if effort.steps is not None else _try(trial, watch, start, effort.minutes * 60)
    steps, factor = broadcast_object_list([steps, factor])
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_whole(path, json.dumps({"steps": steps, "factor": factor}).encode())
    return _plan(effort, steps, factor)


def _plan(effort: Effort, steps: int, factor: float) -> Plan:
    rate = MOVE * factor / steps**0.5
    rates = {name: rate * share for name, share in SHARES.items()}
    piece = 1 if effort.small_memory else 2
    return Plan(steps, rates, effort.batch, piece, watch_every=max(1, steps // LOOKS), seed=effort.seed)


def _try(
    trial: Callable[[int, float], Run],
    watch: Callable[[], tuple[float, ...]],
    start: list[tuple[nn.Parameter, Tensor]],
    seconds: float,
) -> tuple[int, float]:
    """Steps that fit into the time, and the factor whose short run was best on the watched texts."""
    began = monotonic()
    watch()  # the teacher's states are kept from here on
    look = _seconds(watch)
    run = trial(2, 0.0)
    run.take()
    # The first process decides: others may be faster, and all must take the same steps.
    look, step = broadcast_object_list([look, _seconds(run.take)])
    most = int((seconds * TRIAL / len(FACTORS) - 2 * look) / step)
    factor = 1.0
    if most >= LEAST_TRIAL:
        scores = []
        for candidate in FACTORS:
            outcome = trial(most, candidate).run()
            scores.append(relative(outcome.points[-1].watched, outcome.points[0].watched))
            _restore(start)
        factor = FACTORS[scores.index(min(scores))]
    _restore(start)
    left = seconds - (monotonic() - began) - (LOOKS + 1) * look
    if left < step:
        raise too_few_minutes(seconds / 60, step, look)
    return int(left / step), factor


def too_few_minutes(minutes: float, step: float, look: float) -> LearnError:
    """The error for a time in which no step fits; seconds of a step and of a look."""
    return LearnError(
        f"{minutes:g} minutes are too few: a step takes {step:.0f} s and the looks {LOOKS * look:.0f} s",
        "give the run more `minutes`",
    )


@torch.no_grad()
def _restore(start: list[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, value in start:
        parameter.copy_(value)


def _seconds(call: Callable[[], object]) -> float:
    began = monotonic()
    call()
    return monotonic() - began
