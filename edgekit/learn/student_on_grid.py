"""A healed student on the grids of a recipe: calibrated, then trained there by its teacher's predictions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from edgekit.build.learned import FILE, Learned
from edgekit.build.pipeline import bytes_beside, draw
from edgekit.errors import LearnError
from edgekit.learn.card import grid_card
from edgekit.learn.heal import teach
from edgekit.learn.layers import Layers
from edgekit.learn.loop import Point, Run, open_run
from edgekit.learn.losses import Loss
from edgekit.learn.objective import Watch
from edgekit.learn.on_grid import Drawn, calibrate, decoder, export, on_device, parameter_groups, student_weights
from edgekit.learn.plan import Effort, plan_steps
from edgekit.learn.processes import accelerate
from edgekit.quantize import fit_budget
from edgekit.record import to_json
from edgekit.source import CutWeights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgekit.learn.heal import Lesson
    from edgekit.types import Checkpoint, Progress, Recipe, Target
    from edgekit.types.learning import GridTraining


@dataclass(frozen=True)
class Recovery:
    """On which grids a student is trained in the end, and how long; of ``effort`` its text is not used."""

    recipe: Recipe
    target: Target
    effort: Effort


@dataclass(frozen=True)
class OnGrid:
    """A student as its codes say, and as they said before they were trained; the ``file`` is what a build takes."""

    trained: Layers
    calibrated: Layers
    file: Path
    card: GridTraining


def put_on_grid(
    student: Checkpoint,
    judge: Layers,
    lesson: Lesson,
    windows: NDArray[np.int64],
    watched: Sequence[NDArray[np.int64]],
    recovery: Recovery,
    *,
    folder: Path,
    key: str,
    report: Callable[[Point], None],
    progress: Progress,
) -> OnGrid:
    """Quantize a healed student and train it on its grids. Weights are smoothed before as the recipe says.

    Args:
        student: healed.
        judge: the teacher, whose divergence on ``watched`` decides which point is best.
        lesson: what is learnt from.
        windows: text [n,S] to calibrate and train on.
        watched: texts [m,S] that are not trained on.
        recovery: recipe, target and time.
        folder: where the run is kept.
        key: what the run follows from besides ``recovery``.
        report: told each point.
        progress: told the weights rounded.

    Raises:
        LearnError: the recipe has no grid, or the folder holds another run.
    """
    accelerator, effort = accelerate(), recovery.effort
    with accelerator.main_process_first():
        # As JSON: the order of a set's words differs between processes.
        open_run(folder, f"{key} {to_json(recovery.recipe)} {to_json(recovery.target)} {effort}")
        drawn = _draw(student, recovery, windows, progress)
        start = calibrate(drawn, windows, folder / "calibrated", progress)
    torch.manual_seed(effort.seed)
    modules, text = student_weights(start, drawn.weights), torch.from_numpy(windows)
    pupil = decoder(drawn, modules).to(accelerator.device)
    distance, teacher = teach(pupil, judge, lesson, text, Loss(), accelerator.device)
    watch, groups = Watch(pupil, teacher, watched), parameter_groups(modules)
    plan = plan_steps(distance, groups, text, watch, accelerator, effort, folder / "plan.json")
    run = Run(distance, groups, plan, text, accelerator=accelerator, watch=watch, folder=folder, report=report)
    outcome = run.run()
    if accelerator.is_main_process:
        # The weights in the student's folder are smoothed already: a build of it must not smooth them again.
        export(modules, start, replace(drawn.recipe, smooth=0.0), folder / FILE)
    accelerator.wait_for_everyone()
    trained, calibrated = (_read(student, drawn, codes) for codes in (Learned(folder / FILE, drawn.weights), start))
    return OnGrid(trained, calibrated, folder / FILE, grid_card(drawn.recipe.name, plan, outcome))


def require_grid(recipe: Recipe) -> None:
    """Raise LearnError unless a recipe has a grid that a student's own weights can lie on."""
    if recipe.linear is None or recipe.rotate:
        reason = "rotates the weights" if recipe.rotate else "has no grid"
        raise LearnError(f"recipe '{recipe.name}' {reason}: no student can be trained on it", "use int4, small or tiny")


def _draw(student: Checkpoint, recovery: Recovery, windows: NDArray[np.int64], progress: Progress) -> Drawn:
    recipe = recovery.recipe
    graph, weights = draw(student, recipe, recovery.target.opset)
    policy = fit_budget(graph, weights, recipe, bytes_beside(student, recipe), text=windows[:16], progress=progress)
    return Drawn(graph, weights, policy, recipe, recovery.target)


def _read(student: Checkpoint, drawn: Drawn, codes: Learned) -> Layers:
    """The student with the weights that its codes say."""
    weights = CutWeights(drawn.weights, range(student.spec.layers))
    weights.changed = {name: on_device(codes, name) for name in drawn.weights.names()}
    return Layers(student.spec, weights)
