"""A smaller student of a teacher: cut it or take another model, heal it, judge it beside its start and its controls.

    shape -> pruned model -> healed by the teacher's predictions -> trained on a grid, if wanted -> a plain folder

The pruned model and the run are kept in ``OUT.run`` until the folder stands: the same call goes on with a killed run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from math import prod
from shutil import rmtree
from typing import TYPE_CHECKING

import numpy as np

from edgekit import __version__
from edgekit.corpus import read_corpus
from edgekit.errors import LearnError
from edgekit.learn.card import card_files, run_card
from edgekit.learn.heal import Lesson, Method, heal
from edgekit.learn.layers import Layers
from edgekit.learn.logit_cache import make_cache
from edgekit.learn.loop import kept_to_resume, open_run
from edgekit.learn.memory import estimate_memory, require_memory
from edgekit.learn.on_grid import WINDOW
from edgekit.learn.plan import FASTEST
from edgekit.learn.processes import accelerate
from edgekit.learn.prune import Pruned, prune
from edgekit.learn.shapes import Shape
from edgekit.learn.student import require_free, write_student
from edgekit.learn.student_on_grid import OnGrid, Recovery, put_on_grid, require_grid
from edgekit.learn.student_scores import Predictor, score
from edgekit.learn.vocabulary import require_same_vocabulary
from edgekit.learn.watched import HELD_OUT, WATCHED, windows_of_code
from edgekit.source import OutlineWeights, fingerprint, open_model
from edgekit.types import Checkpoint, Progress, SideFile, silent
from edgekit.types.tensor_names import EMBEDDING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edgekit.corpus import Sample
    from edgekit.learn.logit_cache import LogitCache
    from edgekit.learn.loop import Outcome, Point
    from edgekit.learn.student import Stored
    from edgekit.types import ModelSpec
    from edgekit.types.data import DataCard
    from edgekit.types.learning import RunCard

PRUNING = 16
"""Windows that the model is observed on while it is cut."""

JUDGED = 12
"""Windows of held-out text that are used at most."""

SPREAD = 0.02
"""Standard deviation of the first weights of a student that has none: transformers' default."""


@dataclass(frozen=True)
class Text:
    """Windows [n,S] of tokens: to train on, held out from training, and of another kind to watch for drift.

    ``card`` says what the first two were read from.
    """

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    other: NDArray[np.int64]
    card: DataCard


@dataclass(frozen=True)
class Distilled:
    """The folder, the teacher's layers in it (none of a student of its own), and the card with all scores."""

    path: Path
    kept: tuple[int, ...]
    spec: ModelSpec
    card: RunCard


def distill(
    teacher: Checkpoint,
    wanted: Shape | Checkpoint,
    text: Text,
    method: Method,
    *,
    out: Path,
    stored: Stored = "float32",
    cache_bytes: int | None = None,
    recovery: Recovery | None = None,
    control: bool = False,
    beside: Sequence[Checkpoint] = (),
    report: Callable[[Point], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
    progress: Progress = silent,
) -> Distilled | None:
    """Make a student.

    Args:
        teacher: the model.
        wanted: the shape to cut it to, or a student of its own, with weights or with a configuration alone.
        text: what to prune, train, watch and judge on.
        method: loss, time and rate.
        out: the student's folder; must not exist.
        stored: type of the weights in it.
        cache_bytes: keep the teacher's likeliest tokens on disk instead of the teacher in memory.
        recovery: train the healed student on the grids of a recipe; the folder then has the codes for ``build``.
        control: also train the start on the text alone, for as many steps.
        beside: models of the same vocabulary to score too, such as the next smaller one.
        report: told each point of the run.
        note: told what the user should know before the run.
        progress: called with what is done of each step.

    Returns:
        The student; None in all processes of several but the first.

    Raises:
        LearnError: another vocabulary, a student larger than its teacher, logits that are not finite, too little text,
            too little memory, or a folder of another run.
    """
    accelerator = accelerate()
    if not accelerator.is_main_process:
        progress, report, note = silent, lambda _: None, lambda _: None
    job = _Job(teacher, wanted, text, method, out, recovery, report, progress)
    job.require_possible(beside)
    note(job.require_memory(cached=cache_bytes is not None))
    with kept_to_resume(job.folder, mine=accelerator.is_main_process):
        with accelerator.main_process_first():
            open_run(job.folder, job.key)
            cache = job.cache(cache_bytes)
            frame, start, kept = job.start()
        lesson = Lesson(job.whole) if cache is None else Lesson(cache=cache)
        note("healing the student")
        healed, outcome = job.heal(start, lesson, method, "healed")
    named, on_grid = {"student": healed, "not healed": start}, None
    if recovery:
        note(f"training the student on the grids of recipe '{recovery.recipe.name}'")
        on_grid = job.onto_grid(replace(frame, spec=healed.spec, weights=healed.weights), recovery, lesson)
        named = {"student": on_grid.trained, "not trained on its grid": on_grid.calibrated, "not quantized": healed}
        named["not healed"] = start
    if control:
        note("training on the text alone, for comparison")
        named["text alone"] = job.heal(start, Lesson(), replace(method, steps=outcome.points[-1].step), "control")[0]
    named |= {other.provenance.id: Layers(other.spec, other.weights) for other in beside}
    made = None
    if accelerator.is_main_process:
        scores = score(named, job.whole, text.held_out[WATCHED:], progress)
        origin = fingerprint(teacher)
        card = run_card(origin, text.card, method, outcome, scores, on_grid.card if on_grid else None)
        final, shown = named["student"], kept if isinstance(wanted, Shape) else ()
        cards = card_files(out.name, card, teacher.spec, final.spec, shown)
        copies = [on_grid.file] if on_grid else []
        write_student(
            out, frame, final.spec, final.weights, kept, stored=stored, cards=cards, copies=copies, progress=progress
        )
        rmtree(job.folder)
        made = Distilled(out, shown, final.spec, card)
    accelerator.wait_for_everyone()
    return made


def read_text(
    named: Sequence[str],
    teacher: Checkpoint,
    method: Method,
    *,
    skip_bad: bool = False,
    offline: bool = False,
    sample: Sample | None = None,
    progress: Progress = silent,
) -> Text:
    """Text as ``read_corpus`` reads it, as much as the time could need.

    Args:
        named: the sources.
        teacher: its tokenizer cuts the text.
        method: how long is trained.
        skip_bad: leave out lines that hold no document.
        offline: take data sets of the hub from the cache.
        sample: writes the text ``self``.
        progress: called while files are read.

    Raises:
        ConfigError: a source cannot be read, or has too little text.
    """
    steps = method.minutes * 60 * FASTEST / (method.batch * WINDOW) if method.steps is None else method.steps
    tokens = max(int(steps) * method.batch, PRUNING, int(JUDGED / HELD_OUT)) * WINDOW
    corpus = read_corpus(
        named,
        teacher,
        tokens=tokens,
        window=WINDOW,
        seed=method.seed,
        held_out=HELD_OUT,
        skip_bad=skip_bad,
        offline=offline,
        sample=sample,
        progress=progress,
    )
    return Text(corpus.train, corpus.held_out[:JUDGED], windows_of_code(teacher, WINDOW, WATCHED), corpus.card)


# --- the parts of a run -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """What a run follows from."""

    teacher: Checkpoint
    wanted: Shape | Checkpoint
    text: Text
    method: Method
    out: Path
    recovery: Recovery | None
    report: Callable[[Point], None]
    progress: Progress

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.out.with_name(f"{self.out.name}.run")

    @property
    def whole(self) -> Layers:
        """The teacher."""
        return Layers(self.teacher.spec, self.teacher.weights)

    @cached_property
    def key(self) -> str:
        """What the start and the teacher's predictions follow from."""
        student = repr(self.wanted)
        if isinstance(self.wanted, Checkpoint):
            student = f"{self.wanted.spec} {fingerprint(self.wanted).sha256}"
        told = (__version__, fingerprint(self.teacher).sha256, student, sha256(self.text.train.tobytes()).hexdigest())
        return sha256(" ".join(told).encode()).hexdigest()

    def require_possible(self, beside: Sequence[Checkpoint]) -> None:
        """Refuse what cannot become a student, before anything is begun."""
        require_free(self.out)
        if self.recovery:
            require_grid(self.recovery.recipe)
        own = [self.wanted] if isinstance(self.wanted, Checkpoint) else []
        for other in (*own, *beside):
            require_same_vocabulary(self.teacher, other)
        for student in own:
            _require_smaller(self.teacher, student)
        if len(self.text.held_out) < WATCHED + 2:
            raise LearnError(
                f"{len(self.text.held_out)} windows of text are held out from training, too few to judge on",
                f"give more text: {WATCHED + 2} windows of {self.text.train.shape[1]} tokens at least, and ten times "
                "as much to train on",
            )
        if not np.isfinite(Predictor(self.whole).logits(self.text.held_out[0].tolist())).all():
            raise LearnError("the teacher's logits are not finite", "its weights are damaged; use another checkpoint")

    def require_memory(self, *, cached: bool) -> str:
        """What the run takes, in words; refuses more than there is."""
        spec = self.wanted.spec(self.teacher.spec) if isinstance(self.wanted, Shape) else self.wanted.spec
        train = self.text.train
        needed = estimate_memory(
            spec, self.teacher.spec, train.size, train.shape[1], beside=not cached, grid=self.recovery is not None
        )
        return require_memory(needed, "give a smaller student, or `cache_mb` so that the teacher stays on disk")

    def cache(self, most: int | None) -> LogitCache | None:
        """The teacher's likeliest tokens."""
        if most is None:
            return None
        return make_cache(
            self.folder / "cache", self.whole, self.text.train, most, key=self.key, progress=self.progress
        )

    def start(self) -> tuple[Checkpoint, Layers, tuple[int, ...]]:
        """The checkpoint whose files the student has, its first weights, and the layers of the former that it keeps."""
        teacher, wanted = self.teacher, self.wanted
        if isinstance(wanted, Checkpoint):
            everything = tuple(range(wanted.spec.layers))
            if not isinstance(wanted.weights, OutlineWeights):
                return wanted, Layers(wanted.spec, wanted.weights), everything
            config = next(f for f in wanted.files if f.name == "config.json")
            frame = replace(teacher, files=(config, *(f for f in teacher.files if f.name != "config.json")))
            return frame, Layers(wanted.spec, _FirstWeights(wanted, teacher)), everything
        place, note = self.folder / "pruned", "kept-layers.json"
        if not place.exists():
            train, held_out = self.text.train[:PRUNING], self.text.held_out[:WATCHED]
            made: Pruned = prune(
                teacher, wanted, train, held_out, folder=self.folder / "refitted", progress=self.progress
            )
            listed = SideFile(note, ",".join(map(str, made.depth.kept)).encode())
            write_student(
                place, teacher, made.spec, made.weights, made.depth.kept, cards=[listed], progress=self.progress
            )
            rmtree(self.folder / "refitted", ignore_errors=True)
        kept = tuple(int(i) for i in (place / note).read_text(encoding="utf-8").split(","))
        pruned = open_model(str(place))
        return teacher, Layers(pruned.spec, pruned.weights), kept

    def heal(self, start: Layers, lesson: Lesson, method: Method, name: str) -> tuple[Layers, Outcome]:
        """Train a student; the run is kept as ``name``."""
        place, watched = self.folder / name, (self.text.held_out[:WATCHED], self.text.other)
        return heal(
            start, self.whole, lesson, self.text.train, watched, method, folder=place, key=self.key, report=self.report
        )

    def onto_grid(self, student: Checkpoint, recovery: Recovery, lesson: Lesson) -> OnGrid:
        """The healed student on its grids."""
        return put_on_grid(
            student,
            self.whole,
            lesson,
            self.text.train,
            (self.text.held_out[:WATCHED], self.text.other),
            recovery,
            folder=self.folder / "on-grid",
            key=f"{self.key} {self.method}",
            report=self.report,
            progress=self.progress,
        )


def _require_smaller(teacher: Checkpoint, student: Checkpoint) -> None:
    ours, theirs = (sum(prod(c.weights.shape(n)) for n in c.weights.names()) for c in (teacher, student))
    if theirs > ours:
        raise LearnError(
            f"{student.provenance.id} has {theirs:,} parameters, more than its teacher's {ours:,}",
            "exchange the two, or give a smaller `student`",
        )


class _FirstWeights:
    """Weights of a student that has only a configuration: normal, drawn by name; the teacher's table if it fits."""

    def __init__(self, student: Checkpoint, teacher: Checkpoint) -> None:
        self._outline, self._teacher = student.weights, teacher.weights
        self._same = student.weights.shape(EMBEDDING) == teacher.weights.shape(EMBEDDING)
        self.names, self.shape, self.stored = student.weights.names, student.weights.shape, student.weights.stored

    def nbytes(self, name: str) -> int:
        """Bytes as float32."""
        return 4 * prod(self.shape(name))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop)."""
        if name == EMBEDDING and self._same:
            return self._teacher.read(name, start, stop)
        shape = self.shape(name)
        if name.endswith("bias"):
            return np.zeros(shape, np.float32)[start:stop]
        if len(shape) == 1:
            return np.ones(shape, np.float32)[start:stop]
        random = np.random.default_rng(int.from_bytes(sha256(name.encode()).digest()[:8], "little"))
        return (random.standard_normal(shape, np.float32) * np.float32(SPREAD))[start:stop]
