"""Hash a checkpoint's weight files, and notice when they change."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from edgekit.errors import SourceError
from edgekit.source.fields import shown
from edgekit.source.packaged import PACKAGED
from edgekit.source.tensors import FileWeights
from edgekit.strangers import open_plain, reading
from edgekit.types import Progress, silent

if TYPE_CHECKING:
    from os import stat_result
    from pathlib import Path

    from edgekit.types import Checkpoint, ModelSpec, Provenance, Rope

_CHUNK = 1 << 20
"""Bytes hashed at a time, small enough to stay in the processor's cache."""


def fingerprint(checkpoint: Checkpoint, progress: Progress = silent) -> Provenance:
    """Return the checkpoint's provenance with ``sha256`` filled in. Reads all weight files once.

    The hash is the sha256 of a single file, or the sha256 over the sorted lines ``name sha256`` of several. hashlib
    releases the GIL, so a build may call this in a thread.

    Raises:
        SourceError: a file cannot be read, or a packaged model's file has changed in the cache.
    """
    provenance, weights = checkpoint.provenance, checkpoint.weights
    if provenance.sha256 or not isinstance(weights, FileWeights):
        return provenance
    total = sum(_look(path).st_size for path in weights.files)
    done = 0
    lines = []
    for path in sorted(weights.files):
        sha256 = _hash(path, done, total, progress)
        done += _look(path).st_size
        lines.append(f"{path.name} {sha256}\n")
    sha256 = lines[0].split()[-1] if len(lines) == 1 else hashlib.sha256("".join(lines).encode()).hexdigest()
    if provenance.kind == "packaged" and sha256 != PACKAGED[provenance.id].sha256:
        raise SourceError(
            f"{weights.files[0]} has changed since it was downloaded", "delete the file to download it again"
        )
    return replace(provenance, sha256=sha256)


def spec_changes(then: ModelSpec, now: ModelSpec) -> tuple[str, ...]:
    """Differences between two specs of the same weights that change logits, as ``field: then, now``.

    Names, special tokens and the context length change no logits.
    """
    aside = ("architecture", "context_length", "bos_token_id", "eos_token_ids", "pad_token_id")
    then, now = (replace(spec, rope=_own_rope(spec.rope)) for spec in (then, now))
    pairs = ((f.name, getattr(then, f.name), getattr(now, f.name)) for f in fields(then) if f.name not in aside)
    return tuple(f"{name}: {shown(str(was))}, now {shown(str(is_))}" for name, was, is_ in pairs if was != is_)


def _own_rope(rope: Rope) -> Rope:
    """The rope without its original context for kinds whose frequencies do not depend on it."""
    return replace(rope, original_context=0) if rope.kind in ("default", "linear") else rope


def source_stamp(checkpoint: Checkpoint) -> str:
    """Paths, sizes and times of the weight files, which change whenever a file does; "" without files.

    ctime is included because, unlike mtime, no program can set it.
    """
    weights = checkpoint.weights
    if not isinstance(weights, FileWeights) or checkpoint.provenance.kind == "optimum":
        return ""
    lines = [repr(checkpoint.spec)]
    for path in sorted(weights.files):
        stat = _look(path)
        lines.append(
            f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_dev} {stat.st_ino}"
        )
    return "\n".join(lines)


def require_unchanged(checkpoint: Checkpoint, stamp: str) -> None:
    """Raise SourceError unless the checkpoint's stamp is still ``stamp``, so everything read is consistent."""
    if source_stamp(checkpoint) != stamp:
        raise SourceError(
            f"{checkpoint.provenance.location}: a file of the weights changed while it was read",
            "wait until nothing writes to it, then run `edgekit build` again",
        )


def _look(path: Path) -> stat_result:
    with reading(path, error=SourceError):
        return path.stat()


def _hash(path: Path, before: int, total: int, progress: Progress) -> str:
    digest = hashlib.sha256()
    with open_plain(path, error=SourceError) as file, reading(path, error=SourceError):
        buffer = memoryview(bytearray(_CHUNK))
        done = 0
        while n := file.readinto(buffer):
            digest.update(buffer[:n])
            done += n
            progress("hash", before + done, total)
    return digest.hexdigest()
