"""The teacher's likeliest tokens on disk: for teachers that do not fit beside their student, or a run that is repeated.

For each position the k largest log probabilities (float16), their ids (int32), and the log probability of all others
together (float16): 6 k + 2 bytes. The teacher runs a layer at a time, its weights are read once for every few windows.
A cache that was begun is gone on with.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import LearnError
from edgekit.host.disk import make_private, say_full, write_whole, writing
from edgekit.numerics.softmax import log_softmax
from edgekit.types import Progress, silent

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgekit.learn.layers import Layers

STATE = "cache.json"
"""What the cache is of, and the windows in it."""

MOST, LEAST = 64, 8
"""Tokens kept of each position; all others are one token more to the loss. Fewer than 8 are no distribution."""

TOGETHER = 8
"""Windows whose hidden states are in memory at once."""

PIECE = 128
"""Positions whose logits are in memory at once."""

_SPARE = 64 << 20
"""Bytes of disk that stay free."""


@dataclass(frozen=True)
class LogitCache:
    """Memory-mapped: ``ids`` [n,S,k] int32, ``logprobs`` [n,S,k] and ``rest`` [n,S] float16."""

    ids: np.memmap[Any, np.dtype[np.int32]]
    logprobs: np.memmap[Any, np.dtype[np.float16]]
    rest: np.memmap[Any, np.dtype[np.float16]]


def kept_tokens(windows: NDArray[np.int64], budget: int) -> int:
    """Tokens that are kept of each position under a budget in bytes.

    Raises:
        LearnError: it is too small.
    """
    k = min(MOST, int((budget / windows.size - 2) / 6))
    if k < LEAST:
        least = _nbytes(windows, LEAST) / 1e6
        raise LearnError(
            f"a cache of {budget / 1e6:g} MB holds fewer than {LEAST} tokens of each of {windows.size:,} positions",
            f"give `cache_mb={least + 0.05:.1f}` or more, or less text",
        )
    return k


def make_cache(
    folder: Path,
    teacher: Layers,
    windows: NDArray[np.int64],
    budget: int,
    *,
    key: str = "",
    progress: Progress = silent,
) -> LogitCache:
    """Run the teacher over text and keep its likeliest tokens; goes on with a cache that was begun.

    Args:
        folder: of the cache; it is made.
        teacher: the model.
        windows: tokens [n,S].
        budget: bytes that the cache may take.
        key: what the teacher is: a cache of another one, or of other text, is made anew.
        progress: called with the windows done.

    Raises:
        LearnError: the budget or the disk is too small, or the teacher's logits are not finite.
    """
    k = kept_tokens(windows, budget)
    told = sha256(f"{key} {k} {sha256(windows.tobytes()).hexdigest()}".encode()).hexdigest()
    needed = _nbytes(windows, k)
    with writing(folder, needed, LearnError):
        folder.mkdir(parents=True, exist_ok=True)
        done = _begun(folder, told)
        if done < 0:
            free = shutil.disk_usage(folder).free
            if free < needed + _SPARE:
                raise say_full(folder, needed + _SPARE, free, LearnError)
            (folder / STATE).unlink(missing_ok=True)
        cache = _open(folder, (*windows.shape, k), anew=done < 0)
        for at in range(max(done, 0), len(windows), TOGETHER):
            progress("reading the teacher", at, len(windows), "windows")
            _fill(cache, teacher, windows[at : at + TOGETHER], at)
            for array in (cache.ids, cache.logprobs, cache.rest):
                array.flush()
            state = {"key": told, "done": min(at + TOGETHER, len(windows))}
            write_whole(folder / STATE, json.dumps(state).encode())
    progress("reading the teacher", len(windows), len(windows), "windows")
    return cache


def _fill(cache: LogitCache, teacher: Layers, windows: NDArray[np.int64], at: int) -> None:
    x = teacher.embed(windows)
    for layer in range(teacher.spec.layers):
        x = teacher.run(layer, x)
    hidden, k = teacher.normed(x), cache.ids.shape[2]
    for i, states in enumerate(hidden, start=at):
        for start in range(0, len(states), PIECE):
            place = slice(start, start + PIECE)
            chances = log_softmax(teacher.logits(states[place]))
            if not np.isfinite(chances).all():
                raise LearnError(
                    f"the teacher's logits are not finite in window {i}",
                    "its weights are damaged, or overflow on this text; use another checkpoint",
                )
            ids = np.sort(np.argpartition(chances, -k, axis=-1)[:, -k:], axis=-1)
            top = np.take_along_axis(chances, ids, axis=-1)
            cache.ids[i, place], cache.logprobs[i, place] = ids, top
            rest = 1 - np.exp(top.astype(np.float64)).sum(axis=-1)
            cache.rest[i, place] = np.log(np.maximum(rest, 1e-7))


def _nbytes(windows: NDArray[np.int64], k: int) -> int:
    return windows.size * (6 * k + 2)


def _begun(folder: Path, key: str) -> int:
    """Windows that are in a cache with this key, -1 for none."""
    try:
        state = json.loads((folder / STATE).read_bytes())
    except (FileNotFoundError, ValueError):
        return -1
    return int(state["done"]) if state.get("key") == key else -1


def _open(folder: Path, shape: tuple[int, int, int], *, anew: bool) -> LogitCache:
    arrays = []
    for name, kind, size in (
        ("ids", np.int32, shape),
        ("logprobs", np.float16, shape),
        ("rest", np.float16, shape[:2]),
    ):
        path = folder / name
        if anew:
            make_private(path)
        arrays.append(np.memmap(path, kind, "w+" if anew else "r+", shape=size))
    return LogitCache(*arrays)
