"""Check that a runner computes the same tokens one by one and at once, across every border of its config."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekit.bundle.reading import graph_at_level
from edgekit.errors import EdgekitError
from edgekit.run import default_settings, load_runner
from edgekit.types import Bundle, Check, ModelSpec, Runner
from edgekit.verify.text import REBUILD

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.run import OnnxRunner

    Logits = NDArray[np.float32]


@dataclass(frozen=True)
class _Continuation:
    """Tokens, and the logits [n, V] of the last n of them, fed in ``steps`` and as a ``whole``."""

    tokens: list[int]
    steps: Logits
    whole: Logits


_DECODED = 24

_STEP_TOLERANCE = 1e-3
"""Highest relative difference of prompt and step-by-step logits in floating point: SmolLM2 has 4e-6, a cache that is
off by one token gives 0.7 and more."""

_ROUNDING = {"tokens": 0.25, "prompts": 0.35}
"""Highest relative change of the logits by 8-bit activations. SmolLM2, on AVX2 and AVX512-VNNI: 0.05 to 0.13 for
tokens, 0.16 to 0.25 for prompts on their own graph. A wrong weight or scale gives 0.5 and more."""


def check_decode(bundle: Bundle, runner: OnnxRunner, most: int) -> tuple[Check, ...]:
    """Check cache and positions in floating point, and how much rounding activations to 8 bits changes the logits.

    Separately, since rounding would hide a third of an error: in floating point both ways agree to the last digits.
    Borders beyond ``most`` tokens are not crossed.
    """
    try:
        with closing(_open_in_float(bundle)) as exact:
            # Keys are made again where longrope switches: before that, steps are not what one long prompt gives.
            decode, told = check_steps(exact, bundle.manifest.spec.rope_border or 2 * _DECODED)
            if decode.status == "pass":
                decode = check_borders(exact, bundle.manifest.spec, most, decode)
        if told is None or not bundle.manifest.accuracy_level:
            return (decode,)
        return decode, _check_rounding(runner, told)
    except EdgekitError as error:
        return (Check("decode", "fail", error.message, error.hint),)


def check_steps(runner: Runner, most: int = 2 * _DECODED) -> tuple[Check, _Continuation | None]:
    """Compare a greedy continuation, token by token, with the same tokens fed at once."""
    try:
        told = _continue(runner, most)
    except EdgekitError as error:
        return Check("decode", "fail", error.message, error.hint), None
    if not (np.isfinite(told.steps).all() and np.isfinite(told.whole).all()):
        return Check("decode", "fail", "the logits hold NaN or infinity", REBUILD), None
    off = _spread(told.steps, told.whole)
    detail = (
        f"relative difference of logits {off:.1e} for {len(told.steps)} greedy tokens one by one and at once, in float"
    )
    if off > _STEP_TOLERANCE:
        return Check("decode", "fail", detail, REBUILD), None
    return Check("decode", "pass", detail), told


def check_borders(runner: Runner, spec: ModelSpec, most: int, passed: Check) -> Check:
    """Compare likewise across each length at which the config changes something, up to ``most`` tokens."""
    named = {window for window in spec.windows if window} | {runner.context_length}
    if spec.rope.kind != "default":
        named.add(spec.rope.original_context)
    named = {border for border in named if 1 < border <= runner.context_length}
    near = sorted(border for border in named if border <= most)
    for border in near:
        if (off := _cross(runner, border)) > _STEP_TOLERANCE:
            detail = f"relative difference of logits {off:.1e} across {border} tokens, one by one and at once, in float"
            return Check("decode", "fail", detail, REBUILD)
    detail = passed.detail
    if near:
        detail += f"; within {_STEP_TOLERANCE:.0e} across {', '.join(map(str, near))} tokens"
    if far := sorted(named - set(near)):
        detail += f"; not tested beyond {most} tokens: {', '.join(map(str, far))}"
    return replace(passed, detail=detail)


def _cross(runner: Runner, border: int) -> float:
    """The relative difference of logits at a border and beyond it between tokens one by one and at once."""
    ends = (border, min(border + _DECODED // 2, runner.context_length))
    tokens = np.random.default_rng(0).integers(runner.vocab_size, size=ends[1]).tolist()
    runner.reset()
    start = max(1, border - _DECODED // 2)
    rows = [runner.prefill(tokens[:start])] + [runner.step(token).copy() for token in tokens[start:]]
    whole = []
    for end in ends:
        runner.reset()
        whole.append(runner.prefill(tokens[:end]).copy())
    return _spread(np.stack([rows[end - start] for end in ends]), np.stack(whole))


def _check_rounding(runner: OnnxRunner, exact: _Continuation) -> Check:
    """Compare the shipped graphs with floating point, on the same tokens."""
    fed = len(exact.tokens) - len(exact.whole)
    moved = {}
    if runner.settings.prompt_graph == "own":
        moved["prompts"] = _spread(runner.logits(exact.tokens)[fed:], exact.whole)
    runner.reset()
    rows = [runner.step(token).copy() for token in exact.tokens]
    moved["tokens"] = _spread(np.stack(rows[fed:]), exact.whole)
    told = ", ".join(f"{name} {share:.1%} (limit {_ROUNDING[name]:.0%})" for name, share in moved.items())
    detail = f"relative change of the logits by 8-bit activations: {told}"
    if any(share > _ROUNDING[name] for name, share in moved.items()):
        return Check("rounding", "fail", detail, REBUILD)
    return Check("rounding", "pass", detail)


def _open_in_float(bundle: Bundle) -> OnnxRunner:
    """Open the decoder's graph with the same weights and unrounded activations."""
    m = bundle.manifest
    exact = replace(
        m,
        recipe=replace(m.recipe, accuracy_level=0),
        target=replace(m.target, accuracy_level=0),
        fallback=m.fallback and replace(m.fallback, accuracy_level=0),
        prefill=None,
    )
    # A graph that is already at level 0 is used as it is.
    graph = graph_at_level(bundle, 0) if m.accuracy_level else None
    return load_runner(Bundle(bundle.path, exact), settings=default_settings(exact), graph=graph)


def _continue(runner: Runner, most: int) -> _Continuation:
    """Feed random tokens, then the most likely ones."""
    random = np.random.default_rng(0)
    room = min(2 * _DECODED, most, runner.context_length)
    tokens = random.integers(runner.vocab_size, size=max(1, room - _DECODED)).tolist()
    fed = len(tokens)
    runner.reset()
    rows = [runner.prefill(tokens).copy()]
    while len(tokens) < room:
        tokens.append(int(rows[-1].argmax()))
        rows.append(runner.step(tokens[-1]).copy())
    return _Continuation(tokens, np.stack(rows), runner.logits(tokens)[fed - 1 :].copy())


def _spread(logits: Logits, exact: Logits) -> float:
    """The distance of logits [S, V], relative to their spread within a position."""
    return float(np.linalg.norm(logits - exact) / np.linalg.norm(exact - exact.mean(axis=-1, keepdims=True)))
