"""Measure a bundle's quality on ARM, whose kernels differ from those on x86, and recommend kernels.

The decoder's graph runs under emulation over real text, once for each choice of kernels; quality is meaningful there,
time is not. Level 0 computes in floating point and so shows the loss from the weights; level 4 adds that of 8-bit
activations, which differs between ONNX Runtime's own kernels and KleidiAI's.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from edgekit import measure
from edgekit.bundle import open_bundle
from edgekit.bundle.reading import graph_at_level
from edgekit.errors import BundleError, EdgekitError
from edgekit.run import (
    NO_KLEIDIAI,
    PROMPT_MATMULS,
    DrivenGraph,
    Interpreter,
    Tokenizer,
    check_survey,
    decoder_matmuls,
    find_arithmetic,
    find_arm64,
    folding_entry,
    save_expanded,
    this_interpreter,
)
from edgekit.source import spec_changes
from edgekit.types import ArmQuality, Bundle, Check, Interval, Kernels, KernelScore, Progress, Verification, silent
from edgekit.verify.bundle import NO_REFERENCE, check_files, find_reference, judge, limits_of, open_source
from edgekit.verify.text import PASS_SOURCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from edgekit.measure import Reference, Text
    from edgekit.types import Quality
    from edgekit.verify.bundle import Limits

TOKENS = 128
WINDOW = 32

_SHARE = 0.1
"""Share of the KLD at level 0 that level 4 may add before it is reported as a loss."""


@dataclass(frozen=True)
class Rival:
    """Another bundle of the same source.

    ``block``: block size of its grid; 0 for a whole row, None without a grid. ``kld``: with the kernels chosen for it.
    ``excess``: its KLD minus the bundle's, by position, in nats. ``more_bits``: its bits per weight minus the bundle's.
    """

    name: str
    block: int | None
    kld: float
    excess: Interval
    more_bits: float


@dataclass(frozen=True)
class _Task:
    """What every bundle is scored on."""

    text: Text
    reference: Reference
    arm: Interpreter


@dataclass(frozen=True)
class _Scored:
    """The scores of a bundle, and the KLD of every position [windows, window - 1] with the chosen kernels."""

    arm: ArmQuality
    kld: NDArray[np.float64]


def verify_on_arm(
    bundle: Path | str,
    *,
    beside: Sequence[Path | str] = (),
    source: str | None = None,
    text: Path | str | None = None,
    tokens: int = TOKENS,
    window: int = WINDOW,
    max_kld: float | None = None,
    min_top1: float | None = None,
    keys: Sequence[bytes] = (),
    progress: Progress = silent,
) -> Verification:
    """Score a bundle's graphs on ARM, the decoder's with and without KleidiAI and at accuracy level 0, and recommend.

    Args:
        bundle: the bundle's folder.
        beside: other bundles of the same source, to compare block sizes and precisions with.
        source: as for verify_bundle, like all that follow.
        text: a UTF-8 file.
        tokens: tokens to score; a hundred take about a minute.
        window: tokens per window.
        max_kld: highest mean KL divergence that passes, with the better kernels.
        min_top1: lowest top-1 agreement that passes.
        keys: public keys, one of which must have signed the bundle.
        progress: called for every window.

    Raises:
        RunError: qemu or its system is not installed, or the graph does not run there.
        BundleError: a bundle of ``beside`` is damaged or of another source.
        MeasureError: the text cannot be read or is too short.
    """
    arm = find_arm64()
    path = Path(bundle)
    chosen = measure.read_text(Path(text)) if text else measure.embedded_text()
    opened, checks = check_files(path, progress, keys)
    if opened is None:
        return Verification(str(path), checks)
    others = [_open_rival(Path(other), opened, progress) for other in beside]
    checkpoint, found = open_source(opened, source, source is not None, progress)
    window = min(window, opened.manifest.context_length)
    windows = measure.cut_windows(chosen, Tokenizer.of(opened).encode, window, tokens)
    try:
        reference = find_reference(opened, checkpoint, chosen, windows, progress)
        missing = NO_REFERENCE
    except EdgekitError as error:
        reference, missing = None, f"no FP32 reference: {error.message}"
    if reference is None:
        return Verification(str(path), (*checks, found, Check("quality on arm64", "fail", missing, PASS_SOURCE)))
    task = _Task(chosen, reference, arm)
    own = _score(opened, task, progress)
    rivals = tuple(_rival(other, _score(other, task, progress), opened, own) for other in others)
    checks += (
        found,
        check_survey("arithmetic on arm64", arm),
        *_findings(own.arm),
        *_gates(own.arm, limits_of(opened, max_kld, min_top1)),
    )
    return Verification(str(path), (*checks, *advise(own.arm, _block(opened), rivals)), arm=own.arm)


def choices(level: int) -> tuple[Kernels, ...]:
    """The kernels to try for a graph of an accuracy level, first ONNX Runtime's own choice."""
    same = (Kernels("default kernels", level, ()), Kernels("without KleidiAI", level, NO_KLEIDIAI))
    return (*same, Kernels("accuracy level 0", 0, ())) if level else same


def choose(scores: Sequence[KernelScore]) -> Kernels:
    """Choose the first kernels, unless others at the same level are significantly closer to FP32."""
    first, *others = scores
    nearer = [s for s in others if s.kernels.accuracy_level == first.kernels.accuracy_level and s.excess.high < 0]
    return min(nearer, key=lambda s: s.excess.value).kernels if nearer else first.kernels


def advise(arm: ArmQuality, block: int | None, rivals: Sequence[Rival] = ()) -> tuple[Check, ...]:
    """Recommend kernels, an accuracy level and a block size from the scores.

    Args:
        arm: the bundle's scores.
        block: weights per block of its grid; 0 for a whole row, None without a grid.
        rivals: other bundles, scored on the same tokens.
    """
    chosen = arm.score_of(arm.chosen)
    exact = next((s for s in arm.scores if s.kernels.accuracy_level != chosen.kernels.accuracy_level), None)
    found = [Check("kernels", "info", _kernel_words(arm))]
    if exact:
        found.append(Check("accuracy level", "info", _level_words(chosen, exact)))
    if block is not None:
        hint = "" if rivals else "pass other bundles of the same source as `beside` to compare block sizes"
        found.append(Check("block", "info", _block_words(chosen, exact, block, rivals), hint))
    return tuple(found)


def _kernel_words(arm: ArmQuality) -> str:
    default, plain = arm.scores[:2]
    (key, value), *_ = NO_KLEIDIAI
    klds = f"KLD {_kld(plain)} without KleidiAI, {_kld(default)} with the default kernels"
    if arm.chosen == plain.kernels:
        return f"switch KleidiAI off: {klds}; once recorded, {key}={value} is set whenever the bundle is opened"
    if plain.excess == Interval(0.0, 0.0, 0.0):
        return "keep the default: results are the same with and without KleidiAI"
    if plain.excess.low > 0:
        return f"keep the default: {klds}"
    return f"keep the default: no significant difference over {default.quality.tokens} tokens; {klds}"


def _level_words(chosen: KernelScore, exact: KernelScore) -> str:
    level, loss = chosen.kernels.accuracy_level, _loss(chosen, exact)
    klds = f"KLD {_kld(chosen)} at level {level}, {_kld(exact)} at level 0"
    if loss > _SHARE * exact.quality.kld_mean.value:
        return f"level {level} loses {loss:.2g} nats: {klds}; to avoid that, set accuracy_level = 0 in the recipe"
    return f"keep level {level}: {klds}"


def _block_words(chosen: KernelScore, exact: KernelScore | None, block: int, rivals: Sequence[Rival]) -> str:
    blocks = _blocks(block)
    parts = f"KLD {_kld(chosen)}"
    if exact:
        lost = f"{max(0.0, _loss(chosen, exact)):.2g}"
        parts += f": {_kld(exact)} from the weights ({blocks}), {lost} from the activations"
    if not rivals:
        return parts
    told = "; ".join(f"{r.name} ({_blocks(r.block)}, {r.more_bits:+.2f} bits per weight) {r.kld:.3g}" for r in rivals)
    nearer = [r for r in rivals if r.excess.high < 0]
    if not nearer:
        return f"keep {blocks}: {parts}; none of the others is significantly better: {told}"
    best = min(nearer, key=lambda r: r.kld)
    return f"use {best.name}: {told}; this one: {parts}"


def _blocks(block: int | None) -> str:
    if block is None:
        return "no grid"
    return f"blocks of {block}" if block else "one block per row"


def _kld(score: KernelScore) -> str:
    return f"{score.quality.kld_mean.value:.3g}"


def _loss(chosen: KernelScore, exact: KernelScore) -> float:
    """Nats that the chosen kernels lose compared with level 0; negative if they gain."""
    return chosen.quality.kld_mean.value - exact.quality.kld_mean.value


def _block(bundle: Bundle) -> int | None:
    grid = bundle.manifest.recipe.linear
    return grid.block_size if grid else None


def _open_rival(path: Path, own: Bundle, progress: Progress) -> Bundle:
    bundle = open_bundle(path, progress=progress)
    ours, theirs = own.manifest.provenance.sha256, bundle.manifest.provenance.sha256
    if ours != theirs:
        raise BundleError(
            f"{path} was built from another source than {own.path}: sha256 {theirs[:12]}, not {ours[:12]}",
            "pass bundles of the same checkpoint as `beside`",
        )
    if changes := spec_changes(own.manifest.spec, bundle.manifest.spec):
        raise BundleError(
            f"{path} has the weights of {own.path}, but another configuration: {'; '.join(changes)}",
            "build one of the two again",
        )
    return bundle


def _rival(bundle: Bundle, scored: _Scored, opened: Bundle, own: _Scored) -> Rival:
    excess = measure.bootstrap(scored.kld - own.kld, _mean)
    more_bits = bundle.manifest.bits_per_weight - opened.manifest.bits_per_weight
    return Rival(bundle.path.name, _block(bundle), float(scored.kld.mean()), excess, more_bits)


def _score(bundle: Bundle, task: _Task, progress: Progress) -> _Scored:
    """Score a bundle here and on ARM with every choice of kernels, one process each."""
    tries = choices(bundle.manifest.accuracy_level)
    with _graph(bundle, this_interpreter(), tries[0]) as graph:
        here = _quality(bundle, graph, task, tries[0], f"on {graph.machine}", silent)
        ours = measure.make_reference(graph, task.reference.tokens)
    scores, klds = [], []
    for kernels in tries:
        with _graph(bundle, task.arm, kernels) as graph:
            klds.append(measure.compare(graph, task.reference).kld)
            scores.append(_compare(bundle, graph, task, kernels, ours, klds[0], progress))
    chosen = choose(scores)
    prompts = None
    if bundle.manifest.prefill:
        with _graph(bundle, this_interpreter(), chosen, prompts=True) as graph:
            ours = measure.make_reference(graph, task.reference.tokens)
        with _graph(bundle, task.arm, chosen, prompts=True) as graph:
            prompts = _compare(bundle, graph, task, chosen, ours, klds[0], progress)
    return _Scored(ArmQuality(task.arm.name, here, tuple(scores), chosen, prompts), klds[tries.index(chosen)])


def _compare(
    bundle: Bundle,
    graph: DrivenGraph,
    task: _Task,
    kernels: Kernels,
    ours: Reference,
    first: NDArray[np.float64],
    progress: Progress,
) -> KernelScore:
    """Compare a graph on ARM with FP32, with the same graph here, and with the KLD of the first choice."""
    quality = _quality(bundle, graph, task, kernels, f"on {task.arm.name}, {kernels.name}", progress)
    here = measure.compare(graph, ours)
    excess = measure.compare(graph, task.reference).kld - first
    return KernelScore(kernels, quality, *(measure.bootstrap(x, _mean) for x in (excess, here.kld, here.agree)))


def _mean(pool: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(pool.mean(axis=-1))


@contextmanager
def _graph(
    bundle: Bundle, interpreter: Interpreter, kernels: Kernels, *, prompts: bool = False
) -> Iterator[DrivenGraph]:
    """Open the decoder's graph, or the one for prompts, in its own process."""
    manifest = bundle.manifest
    entries = (folding_entry(kernels.accuracy_level), *kernels.entries)
    if interpreter == this_interpreter():
        matmuls = PROMPT_MATMULS if prompts else decoder_matmuls(manifest)
        entries += find_arithmetic(matmuls, entries).entries
    with TemporaryDirectory(prefix="edgekit-arm-") as folder:
        path, weights = bundle.graph, None
        if prompts and manifest.prefill:
            path, weights = bundle.path / manifest.prefill.graph, Path(folder) / "weights.npz"
            save_expanded(bundle, weights)
        elif kernels.accuracy_level != manifest.accuracy_level:
            path = Path(folder) / bundle.graph.name
            path.write_bytes(graph_at_level(bundle, kernels.accuracy_level))
        graph = DrivenGraph(interpreter, path, bundle.graph.parent, manifest.spec.vocab_size, entries, weights)
        try:
            yield graph
        finally:
            graph.close()


def _quality(
    bundle: Bundle, graph: DrivenGraph, task: _Task, kernels: Kernels, where: str, progress: Progress
) -> Quality:
    made = bundle.manifest.provenance

    def placed(task: str, done: int, total: int, unit: str = "B") -> None:
        progress(f"{task} {bundle.path.name} {where}", done, total, unit)

    return measure.score(
        graph,
        task.reference,
        text=task.text.name,
        text_sha256=task.text.sha256,
        reference_name=f"{made.id} in FP32, sha256 {made.sha256[:12]}",
        runtime=f"onnxruntime {graph.runtime} {where}",
        accuracy_level=kernels.accuracy_level,
        processor_class=graph.processor_class,
        progress=placed,
    )


def _findings(arm: ArmQuality) -> Iterator[Check]:
    """Report the scores, one check for each graph that ran."""
    yield Check("this machine", "info", f"{_numbers(arm.here)}; {arm.here.runtime}")
    rows = [(score.kernels.name, score) for score in arm.scores]
    for name, score in (*rows, ("prompts", arm.prompts)):
        if score:
            away = f"compared with this machine: KLD {score.away.value:.3g}, top-1 {score.same.value:.1%}"
            yield Check(f"arm64, {name}", "info", f"{_numbers(score.quality)}; {away}; {arm.processor}")


def _gates(arm: ArmQuality, limits: Limits) -> Iterator[Check]:
    """Compare the quality on ARM, with the chosen kernels, with the limits."""
    missed = judge(arm.here, limits).status == "fail"
    for name, score in (("quality", arm.score_of(arm.chosen)), ("prompts", arm.prompts)):
        if score:
            check = replace(judge(score.quality, limits), name=f"{name} on arm64")
            if missed and check.status == "fail":
                hint = "this machine misses the limit too: score more `tokens` with a longer `window`"
                check = replace(check, hint=f"{hint}, or {check.hint}")
            yield check


def _numbers(quality: Quality) -> str:
    kld, top1 = quality.kld_mean, quality.top1
    return f"KLD {kld.value:.3g} [{kld.low:.3g}, {kld.high:.3g}], top-1 {top1.value:.1%}"
