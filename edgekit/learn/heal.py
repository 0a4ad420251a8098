"""Heal a student: train its layers to give the teacher's next tokens. Table and head stay as they are.

The teacher stands beside the student, or its likeliest tokens are on disk, or there is none and the text is all (the
control).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from edgekit.graph import build_graph
from edgekit.host.disk import write_whole
from edgekit.learn.graph import Decoder, FloatWeight, float_weights
from edgekit.learn.loop import Outcome, Plan, Point, Run, open_run
from edgekit.learn.losses import Loss, cross_entropy, divergence_of_top
from edgekit.learn.objective import Distance, Teacher, Watch
from edgekit.learn.plan import LOOKS, too_few_minutes
from edgekit.learn.processes import accelerate
from edgekit.source import CutWeights
from edgekit.types.tensor_names import EMBEDDING, HEAD

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from accelerate import Accelerator
    from numpy.typing import NDArray

    from edgekit.learn.layers import Layers
    from edgekit.learn.logit_cache import LogitCache

RATE = 3e-4
"""Adam's rate for matrices and vectors."""

OPSET = 21


@dataclass(frozen=True)
class Method:
    """How a student is healed. ``steps`` counts instead of ``minutes`` if it is not None.

    ``small_memory``: layers are computed again in the backward pass, which is slower.
    """

    loss: Loss = field(default_factory=Loss)
    minutes: float = 30.0
    steps: int | None = None
    batch: int = 2
    rate: float = RATE
    seed: int = 0
    small_memory: bool = False


@dataclass(frozen=True)
class Lesson:
    """What the student learns from on its windows: a ``teacher`` beside it, or its ``cache``; neither is text alone."""

    teacher: Layers | None = None
    cache: LogitCache | None = None


def heal(
    student: Layers,
    judge: Layers,
    lesson: Lesson,
    windows: NDArray[np.int64],
    watched: Sequence[NDArray[np.int64]],
    method: Method,
    *,
    folder: Path | None,
    key: str = "",
    report: Callable[[Point], None] = lambda _: None,
) -> tuple[Layers, Outcome]:
    """Train a student and return its best point.

    Args:
        student: where it starts.
        judge: the teacher, whose divergence on ``watched`` decides which point is best.
        lesson: what is learnt from.
        windows: text [n,S] to train on.
        watched: texts [m,S] that are not trained on.
        method: loss, time and rate.
        folder: where the run is kept, to go on with it; None keeps nothing.
        key: what the run follows from besides the method.
        report: told each point.

    Raises:
        LearnError: the windows are too few, or the folder holds another run.
    """
    accelerator = accelerate()
    if folder is not None:
        with accelerator.main_process_first():
            open_run(folder, f"{key} {method}")
    torch.manual_seed(method.seed)
    modules = _modules(student)
    decoder = _decoder(student, modules).to(accelerator.device)
    text = torch.from_numpy(windows)
    distance, teacher = teach(decoder, judge, lesson, text, method.loss, accelerator.device)
    decoder.recompute = method.small_memory
    groups = _groups(modules)
    watch = Watch(decoder, teacher, watched)

    def run(steps: int, keep: Path | None) -> Run:
        rates = dict.fromkeys(groups, method.rate if steps else 0.0)
        plan = Plan(
            max(steps, 1), rates, batch=method.batch, piece=1, watch_every=max(1, steps // LOOKS), seed=method.seed
        )
        return Run(distance, groups, plan, text, accelerator=accelerator, watch=watch, folder=keep, report=report)

    outcome = run(_steps(run, watch, method, folder, accelerator), folder).run()
    healed = CutWeights(student.weights, range(student.spec.layers))
    healed.changed = {name: module.value.detach().cpu().numpy() for name, module in modules.items()}
    return type(student)(student.spec, healed), outcome


def teach(
    student: Decoder, judge: Layers, lesson: Lesson, windows: Tensor, loss: Loss, device: torch.device
) -> tuple[nn.Module, Any]:
    """What a run lowers for a student, and the teacher that it is watched by.

    Args:
        student: the decoder that is trained.
        judge: the teacher.
        lesson: what is learnt from.
        windows: text [n,S] to train on.
        loss: the divergence.
        device: where the student is.
    """
    if lesson.cache is not None:
        return _FromCache(student, lesson.cache, windows, loss), _Streamed(judge)
    if lesson.teacher is not None:
        beside = _decoder(lesson.teacher, float_weights(lesson.teacher.weights, trained=False))
        teacher = Teacher(beside.to(device))
        return Distance(student, teacher, windows, loss), teacher
    return _FromText(student, windows), _Streamed(judge)


def _modules(student: Layers) -> dict[str, FloatWeight]:
    weights = student.weights
    return {
        name: FloatWeight(torch.from_numpy(weights.read(name)), trained=name not in (EMBEDDING, HEAD))
        for name in weights.names()
    }


def _groups(modules: dict[str, FloatWeight]) -> dict[str, list[nn.Parameter]]:
    trained = [m.value for m in modules.values() if m.value.requires_grad]
    return {"matrices": [p for p in trained if p.ndim == 2], "vectors": [p for p in trained if p.ndim == 1]}


def _decoder(model: Layers, modules: Any) -> Decoder:
    return Decoder(build_graph(model.spec, model.weights, opset=OPSET, name="model"), modules)


def _steps(
    run: Callable[[int, Path | None], Run],
    watch: Callable[[], object],
    method: Method,
    folder: Path | None,
    accelerator: Accelerator,
) -> int:
    """Steps that fit into the time: measured once by a step of no size, and kept with the run."""
    path = folder / "steps" if folder is not None else None
    accelerator.wait_for_everyone()
    if path is not None and path.exists():
        return int(path.read_text(encoding="utf-8"))
    steps = method.steps if method.steps is not None else _fitting(run, watch, method.minutes)
    # The first process decides: others may be faster, and all must take the same steps.
    (steps,) = broadcast_object_list([steps])
    accelerator.wait_for_everyone()
    if path is not None and accelerator.is_main_process:
        write_whole(path, str(steps).encode())
    return int(steps)


def _fitting(run: Callable[[int, Path | None], Run], watch: Callable[[], object], minutes: float) -> int:
    watch()  # the teacher's states are kept from here on
    began = monotonic()
    watch()
    look = monotonic() - began
    run(0, None).take()
    step = monotonic() - began - look
    steps = int((minutes * 60 - (LOOKS + 1) * look) / step)
    if steps < 1:
        raise too_few_minutes(minutes, step, look)
    return steps


class _FromCache(nn.Module):
    """Called with numbers of windows, the mean loss to the likeliest tokens that the teacher had for them."""

    def __init__(self, student: Decoder, cache: LogitCache, windows: Tensor, loss: Loss) -> None:
        super().__init__()
        self.student = student
        self._beside = (cache, windows, loss)

    def forward(self, numbers: Tensor) -> Tensor:
        """Mean loss over the tokens of the windows ``numbers`` [b]."""
        cache, windows, loss = self._beside
        device = next(self.student.parameters()).device
        hidden = self.student(windows[numbers].to(device)).float()
        at = numbers.cpu().numpy()
        ids, logprobs, rest = (torch.from_numpy(a[at]).to(device) for a in (cache.ids, cache.logprobs, cache.rest))
        return divergence_of_top(hidden, self.student.head().float(), ids.long(), logprobs.float(), rest.float(), loss)


class _FromText(nn.Module):
    """Called with numbers of windows, the mean cross-entropy of their tokens."""

    def __init__(self, student: Decoder, windows: Tensor) -> None:
        super().__init__()
        self.student = student
        self._beside = (windows,)

    def forward(self, numbers: Tensor) -> Tensor:
        """Mean over the tokens of the windows ``numbers`` [b]."""
        tokens = self._beside[0][numbers].to(next(self.student.parameters()).device)
        return cross_entropy(self.student(tokens).float(), self.student.head().float(), tokens)


class _Streamed:
    """A teacher that is read from disk a layer at a time; what it gives for a window is kept."""

    def __init__(self, model: Layers) -> None:
        self._model = model
        self._known: dict[bytes, Tensor] = {}
        name = EMBEDDING if model.spec.tied else HEAD
        self._head = torch.from_numpy(model.weights.read(name))

    def states(self, windows: Tensor) -> Tensor:
        """Inputs of the head [B,S,H] for tokens [B,S]."""
        return torch.cat([self._one(window) for window in windows])

    def head(self) -> Tensor:
        """The head [V,H]."""
        return self._head

    def _one(self, window: Tensor) -> Tensor:
        key = window.cpu().numpy().tobytes()
        if key not in self._known:
            x = self._model.embed(window.cpu().numpy()[None])
            for layer in range(self._model.spec.layers):
                x = self._model.run(layer, x)
            self._known[key] = torch.from_numpy(self._model.normed(x))
        self._head = self._head.to(window.device)
        return self._known[key].to(window.device)
