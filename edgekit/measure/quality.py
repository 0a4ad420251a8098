"""Compare a model with its FP32 source: KL divergence, top-1 agreement and perplexity ratio, with intervals.

Protocol: windows of tokens, without added ones, are each fed to an empty cache; every position but a window's last is
scored, against the next token. The reference, the output of the source's FP32 graph on the same windows, is kept on
disk: for each position the ``k`` likeliest tokens with their log-probabilities, the log-probability of all others
together, and that of the next token. 4096 tokens at k = 256 take 8 MB; all logits of a 49k vocabulary take 800 MB.

KL(p || q) is summed over the reference's k tokens and one bucket for the rest. Merging outcomes can only lower a
divergence (data processing inequality), so it never exceeds the full one; at k = 256 the bucket holds little.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, fields
from hashlib import sha256
from importlib.metadata import version
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit import __version__
from edgekit.errors import MeasureError
from edgekit.host.disk import make_parent, write_whole
from edgekit.numerics.softmax import log_softmax
from edgekit.record import to_json
from edgekit.types import Interval, Predictor, Progress, Quality, silent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from edgekit.types import Manifest

    Floats = NDArray[np.float64]

FORMAT = 1
TOP_K = 256
RESAMPLES = 1000
_ROWS = 64
"""Positions computed at once in float64: 64 rows of a 128k vocabulary are 64 MB."""
_POOL = 1 << 22
"""Values of resampled windows held at once (32 MB)."""


@dataclass(frozen=True)
class Reference:
    """The source's own predictions over windows of tokens. N = windows * (window - 1) scored positions.

    Attributes:
        tokens: [windows, window] int64.
        ids: [N, k] int32, the likeliest tokens in descending order.
        logprobs: [N, k] float32, their log-probabilities.
        rest: [N] float32, log of the probability of all others (-inf if there are none).
        target: [N] float32, the log-probability of the next token.
        vocab_size: size of the source's vocabulary.
    """

    tokens: NDArray[np.int64]
    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    rest: NDArray[np.float32]
    target: NDArray[np.float32]
    vocab_size: int

    @property
    def top_k(self) -> int:
        """The number of tokens kept per position."""
        return int(self.ids.shape[1])


@dataclass(frozen=True)
class Scores:
    """Values per scored position, [windows, window - 1]: KLD in nats, agreement 0 or 1, -log p of the text."""

    kld: Floats
    agree: Floats
    nll: Floats
    reference_nll: Floats


def source_key(manifest: Manifest) -> str:
    """Everything that determines the logits of a bundle's source: weights, configuration, exporter and versions."""
    readers = f"{__version__} {version('onnxruntime')}"
    return f"{readers} {manifest.exporter} {manifest.provenance.sha256} {to_json(manifest.spec)}"


def reference_key(source: str, text_sha256: str, tokens: NDArray[np.int64], top_k: int = TOP_K) -> str:
    """The name of a reference in the cache: a hash of the format and its inputs (``source`` is a source_key)."""
    told = f"{FORMAT} {source} {text_sha256} {tokens.shape} {top_k} "
    return sha256(told.encode() + tokens.tobytes()).hexdigest()[:32]


def make_reference(
    runner: Predictor, tokens: NDArray[np.int64], *, top_k: int = TOP_K, progress: Progress = silent
) -> Reference:
    """Run the FP32 source over the windows, one at a time.

    Args:
        runner: the source in FP32.
        tokens: [windows, window].
        top_k: tokens to keep per position, at most the vocabulary.
        progress: called for every window.
    """
    k = min(top_k, runner.vocab_size)
    kept: list[tuple[NDArray[np.int64], Floats, Floats, Floats]] = []

    def keep(logprobs: Floats, following: NDArray[np.int64]) -> None:
        ids = np.argpartition(logprobs, -k, axis=1)[:, -k:]
        ids = np.take_along_axis(ids, np.argsort(-np.take_along_axis(logprobs, ids, 1), axis=1, kind="stable"), 1)
        top = np.take_along_axis(logprobs, ids, 1)
        kept.append((ids, top, _log_rest(logprobs, ids), _pick(logprobs, following)))

    _walk(runner, tokens, keep, "FP32 reference", progress)
    ids, *floats = (np.concatenate(part) for part in zip(*kept, strict=True))
    logprobs, rest, target = (a.astype(np.float32) for a in floats)
    return Reference(tokens, ids.astype(np.int32), logprobs, rest, target, runner.vocab_size)


def save_reference(reference: Reference, path: Path) -> None:
    """Write a reference atomically."""
    content = BytesIO()
    arrays: dict[str, Any] = {f.name: np.asarray(getattr(reference, f.name)) for f in fields(Reference)}
    np.savez(content, **arrays)
    make_parent(path)
    write_whole(path, content.getvalue())


def load_reference(path: Path) -> Reference | None:
    """Read a reference; None if it is missing or damaged and has to be made again."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {f.name: file[f.name] for f in fields(Reference)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return Reference(**{**arrays, "vocab_size": int(arrays["vocab_size"])})


def compare(runner: Predictor, reference: Reference, *, progress: Progress = silent) -> Scores:
    """Run a model over the reference's windows, one at a time, and compare each position.

    Raises:
        MeasureError: the model's vocabulary differs from the source's, or its logits contain NaN or infinity.
    """
    if runner.vocab_size != reference.vocab_size:
        raise MeasureError(
            f"the bundle has {runner.vocab_size} logits, but its source has {reference.vocab_size}",
            "pass the source that the bundle was built from with `source`",
        )
    windows, window = reference.tokens.shape
    kld, agree, nll = [], [], []
    at = 0

    def put(logprobs: Floats, following: NDArray[np.int64]) -> None:
        nonlocal at
        rows = slice(at, at + len(logprobs))
        at += len(logprobs)
        ids = reference.ids[rows].astype(np.int64)
        kld.append(_divergence(logprobs, ids, reference.logprobs[rows], reference.rest[rows]))
        agree.append(logprobs.argmax(axis=1) == ids[:, 0])
        nll.append(-_pick(logprobs, following))

    _walk(runner, reference.tokens, put, "scoring", progress)
    shape = (windows, window - 1)
    return Scores(
        kld=np.concatenate(kld).reshape(shape),
        agree=np.concatenate(agree).astype(np.float64).reshape(shape),
        nll=np.concatenate(nll).reshape(shape),
        reference_nll=-reference.target.astype(np.float64).reshape(shape),
    )


def score(
    runner: Predictor,
    reference: Reference,
    *,
    text: str,
    text_sha256: str,
    reference_name: str,
    runtime: str,
    accuracy_level: int,
    processor_class: str,
    seed: int = 0,
    progress: Progress = silent,
) -> Quality:
    """Compare a model with its reference: ``compare`` and ``summarize``, whose arguments these are.

    Raises:
        MeasureError: as in ``compare``.
    """
    return summarize(
        compare(runner, reference, progress=progress),
        reference,
        text=text,
        text_sha256=text_sha256,
        reference_name=reference_name,
        runtime=runtime,
        accuracy_level=accuracy_level,
        processor_class=processor_class,
        seed=seed,
    )


def summarize(
    scores: Scores,
    reference: Reference,
    *,
    text: str,
    text_sha256: str,
    reference_name: str,
    runtime: str,
    accuracy_level: int,
    processor_class: str,
    seed: int = 0,
) -> Quality:
    """The quality that scores amount to, with a 95 % interval for each number; a perplexity may be infinite.

    Args:
        scores: of the shipped model.
        reference: its source's reference.
        text: the text's name.
        text_sha256: its hash.
        reference_name: description of the source.
        runtime: name and version of the runtime that ran the model.
        accuracy_level: the shipped graph's.
        processor_class: class of the processor that ran it; see machine.CLASSES.
        seed: seed of the resampling.
    """

    def bound(statistic: Callable[[Floats], Floats], values: Floats) -> Interval:
        return bootstrap(values, statistic, seed=seed)

    def percentile(p: float) -> Callable[[Floats], Floats]:
        return lambda pool: np.asarray(np.percentile(pool, p, axis=-1))

    return Quality(
        kld_mean=bound(_mean, scores.kld),
        kld_p99=bound(percentile(99), scores.kld),
        kld_p999=bound(percentile(99.9), scores.kld),
        top1=bound(_mean, scores.agree),
        ppl_ratio=bound(_perplexity, scores.nll - scores.reference_nll),
        ppl=float(_perplexity(scores.nll.ravel())),
        reference_ppl=float(_perplexity(scores.reference_nll.ravel())),
        reference=reference_name,
        text=text,
        text_sha256=text_sha256,
        window=reference.tokens.shape[1],
        tokens=scores.kld.size,
        top_k=reference.top_k,
        runtime=runtime,
        accuracy_level=accuracy_level,
        processor_class=processor_class,
    )


def bootstrap(
    values: Floats, statistic: Callable[[Floats], Floats], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """A statistic with its 95 % percentile-bootstrap interval over windows.

    Positions in a window are not independent, so whole windows are drawn with replacement. With few windows (8) the
    true coverage is a few points below 95 %.

    Args:
        values: [windows, positions].
        statistic: [n, pooled positions] -> [n].
        resamples: number of draws.
        seed: seed of the draws.

    Raises:
        MeasureError: fewer than two windows.
    """
    windows, positions = values.shape
    if windows < 2:
        raise MeasureError("one window is not enough for a confidence interval", "score at least two windows")
    draws = np.random.default_rng(seed).integers(windows, size=(resamples, windows))
    at_once = max(1, _POOL // values.size)
    found = np.concatenate(
        [statistic(values[part].reshape(len(part), -1)) for part in np.array_split(draws, -(-resamples // at_once))]
    )
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(float(statistic(values.reshape(1, windows * positions))[0]), float(low), float(high))


def _mean(pool: Floats) -> Floats:
    return np.asarray(pool.mean(axis=-1))


def _perplexity(pool: Floats) -> Floats:
    """exp(mean); infinite if the mean exceeds the range of float64's exponential, 709 nats per token."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(_mean(pool)))


def _walk(
    runner: Predictor,
    tokens: NDArray[np.int64],
    visit: Callable[[Floats, NDArray[np.int64]], None],
    task: str,
    progress: Progress,
) -> None:
    """Call ``visit(log-probabilities [n, V], following tokens [n])`` over all windows in order, some rows at a time."""
    for i, window in enumerate(tokens):
        progress(task, i, len(tokens), "windows")
        logits = runner.logits(window.tolist())
        if not np.isfinite(logits).all():
            raise MeasureError(f"{task}: logits of window {i} contain NaN or infinity", "rebuild with more bits")
        for start in range(0, len(window) - 1, _ROWS):
            stop = min(start + _ROWS, len(window) - 1)
            visit(log_softmax(logits[start:stop].astype(np.float64)), window[start + 1 : stop + 1])
    progress(task, len(tokens), len(tokens), "windows")


def _pick(logprobs: Floats, ids: NDArray[np.int64]) -> Floats:
    """The value at ``ids`` in each row [n]."""
    return logprobs[np.arange(len(ids)), ids]


def _log_rest(logprobs: Floats, ids: NDArray[np.int64]) -> Floats:
    """Log of the total probability outside ``ids`` [n, k], summed over the others instead of subtracted from 1."""
    others = logprobs.copy()
    np.put_along_axis(others, ids, -np.inf, axis=1)
    peak = others.max(axis=1, keepdims=True)
    peak[np.isneginf(peak)] = 0.0
    with np.errstate(divide="ignore"):  # nothing is outside when k is the whole vocabulary
        return np.asarray(np.log(np.exp(others - peak).sum(axis=1)) + peak[:, 0])


def _divergence(
    logprobs: Floats, ids: NDArray[np.int64], reference: NDArray[np.float32], rest: NDArray[np.float32]
) -> Floats:
    """KL(reference || model) [n] in nats over ``ids`` and the bucket of the rest."""
    p = np.concatenate([reference, rest[:, None]], axis=1).astype(np.float64)
    q = np.concatenate([np.take_along_axis(logprobs, ids, 1), _log_rest(logprobs, ids)[:, None]], axis=1)
    mass = np.exp(p)
    terms = mass * np.subtract(p, q, out=np.zeros_like(p), where=mass > 0)
    # The stored float32 logarithms are off by up to 1e-7, which can make a divergence of zero slightly negative.
    return np.asarray(np.maximum(terms.sum(axis=1), 0.0))
