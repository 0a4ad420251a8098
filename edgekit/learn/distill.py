"""A smaller student of a teacher: cut it or take another model, heal it, judge it beside its start and its controls.

    shape -> pruned model -> healed by the teacher's predictions -> a plain folder, with scores on text it never saw

The pruned model and the run are kept in ``OUT.run`` until the folder stands: the same call goes on with a killed run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from math import prod
from shutil import rmtree
from typing import TYPE_CHECKING

import numpy as np

from edgekit import __version__, measure
from edgekit.errors import LearnError
from edgekit.graph import build_graph
from edgekit.learn.heal import OPSET, Lesson, Method, heal
from edgekit.learn.layers import Layers
from edgekit.learn.logit_cache import make_cache
from edgekit.learn.plan import FASTEST
from edgekit.learn.prune import Pruned, prune
from edgekit.learn.student import require_free, write_student
from edgekit.learn.vocabulary import require_same_vocabulary
from edgekit.learn.watched import windows_of_code
from edgekit.quantize import reference_logits
from edgekit.source import OutlineWeights, fingerprint, open_model
from edgekit.types import Progress, SideFile, silent
from edgekit.types.learning import StudentScore
from edgekit.types.tensor_names import EMBEDDING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edgekit.learn.loop import Outcome, Point
    from edgekit.learn.shapes import Shape
    from edgekit.learn.student import Stored
    from edgekit.types import Checkpoint, ModelSpec

PRUNING = 16
"""Windows that the model is observed on while it is cut."""

WATCHED = 3
"""Windows of each watched text; of the held-out text, what comes after them judges the result."""

JUDGED = 12
"""Windows of held-out text that are used at most."""

HELD_OUT = 0.1
"""Share of the text that is held out."""

WINDOW = 512

SPREAD = 0.02
"""Standard deviation of the first weights of a student that has none: transformers' default."""


@dataclass(frozen=True)
class Text:
    """Windows [n,S] of tokens: to train on, held out from training, and of another kind to watch for drift."""

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    other: NDArray[np.int64]


@dataclass(frozen=True)
class Distilled:
    """The folder, the run, and the scores: student, start, and what else was asked for."""

    path: Path
    outcome: Outcome
    kept: tuple[int, ...]
    scores: tuple[StudentScore, ...]


def distill(
    teacher: Checkpoint,
    wanted: Shape | Checkpoint,
    text: Text,
    method: Method,
    *,
    out: Path,
    stored: Stored = "float32",
    cache_bytes: int | None = None,
    control: bool = False,
    beside: Sequence[Checkpoint] = (),
    report: Callable[[Point], None] = lambda _: None,
    progress: Progress = silent,
) -> Distilled:
    """Make a student.

    Args:
        teacher: the model.
        wanted: the shape to cut it to, or a student of its own, with weights or with a configuration alone.
        text: what to prune, train, watch and judge on.
        method: loss, time and rate.
        out: the student's folder; must not exist.
        stored: type of the weights in it.
        cache_bytes: keep the teacher's likeliest tokens on disk instead of the teacher in memory.
        control: also train the start on the text alone, for as many steps.
        beside: models of the same vocabulary to score too, such as the next smaller one.
        report: told each point of the run.
        progress: called with what is done of each step.

    Raises:
        LearnError: another vocabulary, a student larger than its teacher, logits that are not finite, too little text.
    """
    require_free(out)
    for other in (*beside, *([wanted] if not hasattr(wanted, "ffn") else [])):
        require_same_vocabulary(teacher, other)
    whole = Layers(teacher.spec, teacher.weights)
    if len(text.held_out) < WATCHED + 2:
        raise LearnError(
            f"{len(text.held_out)} windows held out from training are too few to judge on", "give more text"
        )
    if not np.isfinite(_Predictor(whole).logits(text.held_out[0].tolist())).all():
        raise LearnError("the teacher's logits are not finite", "its weights are damaged; use another checkpoint")
    folder = out.with_name(f"{out.name}.run")
    frame, start, kept = _start(teacher, wanted, text, folder, progress)
    key = sha256(f"{__version__} {fingerprint(teacher).sha256} {wanted!r} {text.train.tobytes().hex()}".encode())
    cache = None
    if cache_bytes is not None:
        cache = make_cache(folder / "cache", whole, text.train, cache_bytes, key=key.hexdigest(), progress=progress)
    lesson = Lesson(whole) if cache is None else Lesson(cache=cache)
    watched = (text.held_out[:WATCHED], text.other)

    def run(taught: Lesson, how: Method, name: str) -> tuple[Layers, Outcome]:
        place = folder / name
        return heal(start, whole, taught, text.train, watched, how, folder=place, key=key.hexdigest(), report=report)

    healed, outcome = run(lesson, method, "healed")
    named = {"student": healed, "not healed": start}
    if control:
        named["text alone"] = run(Lesson(), replace(method, steps=outcome.points[-1].step), "control")[0]
    named |= {other.provenance.id: Layers(other.spec, other.weights) for other in beside}
    scores = _score(named, whole, text.held_out[WATCHED:], progress)
    made = Distilled(out, outcome, kept, scores)
    cards = (SideFile("README.md", _readme(made, teacher, healed.spec, method).encode()),)
    write_student(out, frame, healed.spec, healed.weights, kept, stored=stored, cards=cards, progress=progress)
    rmtree(folder)
    return made


def read_text(named: Sequence[str], teacher: Checkpoint, method: Method, *, skip_bad: bool = False) -> Text:
    """Text as ``read_corpus`` reads it, as much as the time could need.

    Raises:
        ConfigError: a source cannot be read, or has too little text.
    """
    from edgekit.corpus import read_corpus

    seconds = method.minutes * 60
    tokens = method.steps * method.batch * WINDOW if method.steps is not None else int(seconds * FASTEST)
    tokens = max(tokens, PRUNING * WINDOW)
    corpus = read_corpus(
        named, teacher, tokens=tokens, window=WINDOW, seed=method.seed, held_out=HELD_OUT, skip_bad=skip_bad
    )
    return Text(corpus.train, corpus.held_out[:JUDGED], windows_of_code(teacher, WINDOW, WATCHED))


# --- where the student starts -------------------------------------------------------------------


def _start(
    teacher: Checkpoint, wanted: Shape | Checkpoint, text: Text, folder: Path, progress: Progress
) -> tuple[Checkpoint, Layers, tuple[int, ...]]:
    """The checkpoint whose files the student has, its first weights, and the layers of the former that it keeps."""
    from edgekit.types import Checkpoint

    if isinstance(wanted, Checkpoint):
        _require_smaller(teacher, wanted)
        everything = tuple(range(wanted.spec.layers))
        if not isinstance(wanted.weights, OutlineWeights):
            return wanted, Layers(wanted.spec, wanted.weights), everything
        config = next(f for f in wanted.files if f.name == "config.json")
        frame = replace(teacher, files=(config, *(f for f in teacher.files if f.name != "config.json")))
        return frame, Layers(wanted.spec, _FirstWeights(wanted, teacher)), everything
    place, note = folder / "pruned", "kept-layers.json"
    if not place.exists():
        made: Pruned = prune(teacher, wanted, text.train[:PRUNING], text.held_out[:WATCHED], progress=progress)
        listed = SideFile(note, ",".join(map(str, made.depth.kept)).encode())
        write_student(place, teacher, made.spec, made.weights, made.depth.kept, cards=[listed], progress=progress)
    kept = tuple(int(i) for i in (place / note).read_text(encoding="utf-8").split(","))
    pruned = open_model(str(place))
    return teacher, Layers(pruned.spec, pruned.weights), kept


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


# --- what it gave -------------------------------------------------------------------------------


class _Predictor:
    """A model in NumPy, for ``measure``: its weights are read once for each window."""

    def __init__(self, model: Layers) -> None:
        self._model, self.vocab_size = model, model.spec.vocab_size
        self._graph = build_graph(model.spec, model.weights, opset=OPSET, name="model")

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits [S,V] of every position."""
        found: NDArray[np.float32] = reference_logits(self._graph, self._model.weights, tokens)
        return found


def _score(
    models: dict[str, Layers], teacher: Layers, windows: NDArray[np.int64], progress: Progress
) -> tuple[StudentScore, ...]:
    made = measure.make_reference(_Predictor(teacher), windows, progress=progress)
    scores = []
    for name, model in models.items():
        found = measure.compare(_Predictor(model), made, progress=progress)
        mean, rise = (
            (lambda pool: np.asarray(pool.mean(axis=-1))),
            (lambda pool: np.asarray(np.exp(pool.mean(axis=-1)))),
        )
        scores.append(
            StudentScore(
                name,
                measure.bootstrap(found.kld, mean),
                measure.bootstrap(found.agree, mean),
                measure.bootstrap(found.nll, rise),
                measure.bootstrap(found.reference_nll, rise),
            )
        )
    return tuple(scores)


def _readme(made: Distilled, teacher: Checkpoint, spec: ModelSpec, method: Method) -> str:
    """The folder's card: what the student is, how it was healed, and what it is beside its start and controls."""
    last, whole = made.outcome.points[-1], teacher.spec
    layers = f"{spec.layers} of {whole.layers} layers ({', '.join(map(str, made.kept))})"
    channels = f"{spec.intermediate_size} of {whole.intermediate_size} feed-forward channels"
    heads = f"{spec.kv_heads} of {whole.kv_heads} key-value heads"
    loss = method.loss
    how = f"{loss.divergence} KL, temperature {loss.temperature:g}, rate {method.rate:g}, seed {method.seed}"
    best = f"the best after {made.outcome.best_step}; {made.outcome.ending}"
    lines = [
        f"# {made.path.name}\n",
        f"A student of {teacher.provenance.id}, made by edgekit {__version__}: {layers}, {channels}, {heads}. The",
        "teacher's licence holds.\n",
        f"Healed on {last.tokens:,} tokens in {last.step} steps ({how}); {best}.\n",
        "| on text held out | KLD, nats a token (95 %) | top-1 | perplexity |",
        "|---|---|---|---|",
    ]
    for s in made.scores:
        kld = f"{s.kld.value:.4f} [{s.kld.low:.4f}, {s.kld.high:.4f}]"
        lines.append(f"| {s.model} | {kld} | {s.top1.value:.1%} | {s.perplexity.value:.2f} |")
    lines.append(f"\nThe teacher's perplexity there is {made.scores[0].teacher_perplexity.value:.2f}.")
    if not all(spec.rotary) and any(r == ((i + 1) % 4 == 0) for i, r in enumerate(spec.rotary)):
        lines += [
            "",
            "llama.cpp takes every fourth layer to be without rope, and would compute another model than this.",
        ]
    return "\n".join(lines) + "\n"
