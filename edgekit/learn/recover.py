"""Recover what quantization lost: train the weights on the very grids that ship, to give the model's own predictions.

    calibrated codes -> a step size -> training, watched on two texts -> the best codes -> a bundle, if it is better

The teacher is the model in FP32. Codes, scales, zero points and norms are trained; the table and the head stay as they
are unless they have fewer than 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from edgekit import __version__
from edgekit.build.learned import CARD, FILE
from edgekit.build.pipeline import build_bundle, bytes_beside, choose_recipe, draw, sampler_of
from edgekit.bundle import require_free
from edgekit.config.recipe import load_target
from edgekit.corpus import read_corpus
from edgekit.errors import LearnError
from edgekit.host.disk import write_whole
from edgekit.host.processor import processor_class
from edgekit.learn.gains import TorchPredictor, judged_on, measure_gains, require_gain
from edgekit.learn.graph import Decoder, float_weights
from edgekit.learn.loop import Outcome, Plan, Point, Run, kept_to_resume, open_run
from edgekit.learn.losses import Loss
from edgekit.learn.memory import estimate_memory, require_memory
from edgekit.learn.objective import Distance, Teacher, Watch
from edgekit.learn.on_grid import (
    CALIBRATION,
    WINDOW,
    Drawn,
    calibrate,
    decoder,
    export,
    parameter_groups,
    student_weights,
)
from edgekit.learn.plan import FASTEST, Effort, plan_steps
from edgekit.learn.processes import accelerate
from edgekit.learn.watched import CODE, HELD_OUT, WATCHED, windows_of_code
from edgekit.quantize import fit_budget
from edgekit.record import to_json
from edgekit.source import fingerprint, open_model
from edgekit.types import silent
from edgekit.types.learning import CurvePoint, Gain, RunCard

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import onnx_ir as ir
    from accelerate import Accelerator
    from numpy.typing import NDArray
    from torch import nn

    from edgekit.build.learned import Learned
    from edgekit.corpus import Corpus
    from edgekit.types import (
        Bundle,
        Checkpoint,
        GridPolicy,
        Precision,
        Progress,
        Provenance,
        Recipe,
        Target,
        Weights,
    )


@dataclass(frozen=True)
class Recovered:
    """A finished run: the bundle, and its card."""

    bundle: Bundle
    card: RunCard


@dataclass(frozen=True)
class Wish:
    """What to recover, for which target and how: as in ``build_bundle``."""

    model: str
    target: str = "cpu"
    precision: Precision | None = None
    recipe: str | None = None
    size_mb: float | None = None
    bits: float | None = None
    revision: str | None = None
    offline: bool = False


def recover(
    wish: Wish,
    effort: Effort,
    *,
    out: Path,
    force: bool = False,
    progress: Progress = silent,
    report: Callable[[Point], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
) -> Recovered | None:
    """Train a model's weights on the grids of a target, and build the bundle from them.

    The run is kept in ``OUT.run`` until the bundle stands: the same call goes on with a run that was killed.

    Args:
        wish: the model and its target.
        effort: text, time and seed.
        out: the bundle's folder; must not exist, unless it is a bundle and ``force`` is set.
        force: replace an existing bundle.
        progress: told what is done of each step.
        report: told each point of the run.
        note: told what the user should know.

    Returns:
        The bundle; None in all processes but the first.

    Raises:
        LearnError: the text is too short, the model's predictions are not finite, or the folder holds another run.
        GateFailed: the trained weights are not better than the calibrated ones by more than the interval.
        EdgekitError: a step failed. Nothing is left at ``out``.
    """
    require_free(out, force)
    folder = out.with_name(f"{out.name}.run")
    accelerator = accelerate()
    if not accelerator.is_main_process:
        progress, report, note = silent, lambda _: None, lambda _: None
    material = _prepare(wish, effort, progress, note)
    made = None
    with kept_to_resume(folder, mine=accelerator.is_main_process):
        with accelerator.main_process_first():
            open_run(folder, _key(material, effort))
            start = calibrate(material.drawn, material.corpus.train, folder / "calibrated", progress)
        outcome, plan, student = _train(material, start, effort, folder, accelerator, report)
        if accelerator.is_main_process:
            export(student, start, material.recipe, folder / FILE)
            gains = _gains(material, folder, progress)
            card = _card(material, effort, plan, outcome, gains)
            write_whole(folder / CARD, to_json(card, indent=1).encode())
            require_gain(gains)
            bundle = _build(wish, folder, out, force=force, progress=progress)
            rmtree(folder)
            made = Recovered(bundle, card)
    accelerator.wait_for_everyone()
    return made


# --- what a run is made of ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Material:
    """The model as drawn with its recipe, its grids, and the text: what everything else follows from."""

    wish: Wish
    checkpoint: Checkpoint
    origin: Provenance
    recipe: Recipe
    target: Target
    graph: ir.Model
    weights: Weights
    policy: GridPolicy
    corpus: Corpus
    other: NDArray[np.int64]

    @property
    def drawn(self) -> Drawn:
        """The model with its grids."""
        return Drawn(self.graph, self.weights, self.policy, self.recipe, self.target)


def _prepare(wish: Wish, effort: Effort, progress: Progress, note: Callable[[str], None]) -> _Material:
    target = load_target(wish.target)
    recipe = choose_recipe(wish.precision, wish.recipe, wish.size_mb, wish.bits, target, None)
    if recipe.linear is None:
        raise LearnError(f"recipe '{recipe.name}' has no grid: nothing is lost", "use a recipe of int4 or int8")
    checkpoint = open_model(wish.model, revision=wish.revision, offline=wish.offline, progress=progress)
    origin = fingerprint(checkpoint, progress)
    if origin.kind in ("gguf", "packaged"):
        note("the model's own file is quantized: what its makers lost cannot be recovered, only what a grid adds")
    cpu = load_target(target.fallback) if target.fallback else target
    graph, weights = draw(checkpoint, recipe, target.opset)
    corpus = read_corpus(
        effort.text,
        checkpoint,
        tokens=_tokens(effort),
        window=WINDOW,
        seed=effort.seed,
        held_out=HELD_OUT,
        skip_bad=effort.skip_bad,
        offline=wish.offline,
        sample=sampler_of(wish.model, revision=wish.revision, offline=wish.offline, progress=progress),
        progress=progress,
    )
    text, beside = corpus.train[: CALIBRATION // WINDOW], bytes_beside(checkpoint, recipe)
    policy = fit_budget(graph, weights, recipe, beside, text=text, progress=progress)
    other = windows_of_code(checkpoint, WINDOW, WATCHED)
    spec = checkpoint.spec
    needed = estimate_memory(spec, spec, corpus.train.size, WINDOW, beside=True, grid=True)
    note(require_memory(needed, "use a machine with more memory; `edgekit build --calibrate` needs far less"))
    return _Material(wish, checkpoint, origin, recipe, cpu, graph, weights, policy, corpus, other)


def _tokens(effort: Effort) -> int:
    """Tokens to read: what fits into the time at FASTEST, so that nothing is seen twice if there is text enough."""
    steps = effort.steps if effort.steps is not None else int(effort.minutes * 60 * FASTEST / (effort.batch * WINDOW))
    return max(CALIBRATION, steps * effort.batch * WINDOW)


# --- training -----------------------------------------------------------------------------------


def _train(
    material: _Material,
    start: Learned,
    effort: Effort,
    folder: Path,
    accelerator: Accelerator,
    report: Callable[[Point], None],
) -> tuple[Outcome, Plan, dict[str, nn.Module]]:
    torch.manual_seed(effort.seed)
    modules = student_weights(start, material.weights)
    student = decoder(material.drawn, modules).to(accelerator.device)
    student.recompute = effort.small_memory
    exact = Decoder(material.graph, float_weights(material.weights, trained=False)).to(accelerator.device)
    teacher, windows = Teacher(exact, divide=effort.divide_teacher), torch.from_numpy(material.corpus.train)
    watch = Watch(student, teacher, [material.corpus.held_out[:WATCHED], material.other])
    groups = parameter_groups(modules)
    distance = Distance(student, teacher, windows, Loss())
    steps = plan_steps(distance, groups, windows, watch, accelerator, effort, folder / "plan.json")
    run = Run(distance, groups, steps, windows, accelerator=accelerator, watch=watch, folder=folder, report=report)
    return run.run(), steps, modules


def _key(material: _Material, effort: Effort) -> str:
    """What the steps of a run follow from, besides the machine."""
    told = (
        __version__,
        str(torch.__version__),
        material.origin.sha256,
        to_json(material.recipe),
        to_json(material.target),
        sha256(material.corpus.train.tobytes()).hexdigest(),
        to_json(effort),
    )
    return sha256(" ".join(told).encode()).hexdigest()


# --- what it gave -------------------------------------------------------------------------------


def _build(wish: Wish, folder: Path, out: Path, *, force: bool, progress: Progress) -> Bundle:
    return build_bundle(
        wish.model,
        out=out,
        target=wish.target,
        precision=wish.precision,
        recipe=wish.recipe,
        size_mb=wish.size_mb,
        bits=wish.bits,
        revision=wish.revision,
        offline=wish.offline,
        learned=folder,
        force=force,
        progress=progress,
    )


def _gains(material: _Material, folder: Path, progress: Progress) -> tuple[Gain, ...]:
    """Calibrated and trained codes side by side, both as bundles for the target's CPU in ONNX Runtime."""
    with TemporaryDirectory(prefix="edgekit-", dir=folder) as place:
        before, after = (
            build_bundle(
                material.wish.model, out=Path(place) / kind, target=material.target, recipe=material.recipe,
                learned=at, offline=True, progress=progress,
            )
            for kind, at in (("before", folder / "calibrated"), ("after", folder))
        )  # fmt: skip
        weights = float_weights(material.weights, trained=False)
        teacher = TorchPredictor(Decoder(material.graph, weights))
        texts = judged_on(material.checkpoint, material.corpus.held_out[WATCHED:], WINDOW)
        return measure_gains(before, after, teacher, texts, reference=_named(material), progress=progress)


def _named(material: _Material) -> str:
    return f"{material.origin.id} in FP32, sha256 {material.origin.sha256[:12]}"


def _card(material: _Material, effort: Effort, plan: Plan, outcome: Outcome, gains: tuple[Gain, ...]) -> RunCard:
    return RunCard(
        kind="recover",
        teacher=material.origin.id,
        teacher_sha256=material.origin.sha256,
        data=material.corpus.card,
        loss="KL(model in FP32 || weights on the grid), end to end",
        rates=tuple(plan.rates.items()),
        seed=effort.seed,
        steps=outcome.points[-1].step,
        best_step=outcome.best_step,
        tokens=outcome.points[-1].tokens,
        minutes=outcome.seconds / 60,
        tokens_per_second=outcome.points[-1].tokens / max(outcome.seconds, 1e-9),
        processor_class=processor_class(),
        ending=outcome.ending,
        watched=("text held out from training", CODE),
        curve=tuple(CurvePoint(p.step, p.loss, p.watched) for p in outcome.points),
        gains=gains,
        edgekit=__version__,
        torch=str(torch.__version__),
    )
