"""Sources by name: files, patterns, folders, data sets of the hub, ``packaged``, and ``self``."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.corpus.documents import Documents, JsonLines, TextFile, Texts
from edgekit.corpus.packaged import LICENCE, PACKAGED, packaged_texts
from edgekit.corpus.tables import HubRows, ParquetFile
from edgekit.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from edgekit.types import Progress

SELF = "self"
"""The name of text that is sampled from the model."""

Sample = Callable[[int, int], Sequence[str]]
"""Texts sampled from the model, of about so many tokens in all, by a seed."""

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
"""Files that are taken from a folder."""

_NO_TEXT = {".json", ".csv", ".tsv", ".gz", ".zst", ".zip", ".bz2", ".xz", ".arrow", ".pdf", ".docx"}
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.%:\[\]-]+)?")
_KINDS = f"give text, .jsonl or .parquet files, a folder, hub:owner/name, '{PACKAGED}' or '{SELF}'"


@dataclass(frozen=True)
class Source:
    """Documents with one line in the card, and their weight in the mixture."""

    name: str
    weight: float
    parts: tuple[Documents, ...]
    licence: str = ""


@dataclass(frozen=True)
class Opening:
    """How sources are opened. ``tokens`` is how many all of them should have."""

    tokens: int
    seed: int
    skip_bad: bool
    offline: bool
    sample: Sample | None
    progress: Progress


def open_sources(named: Sequence[str], how: Opening) -> list[Source]:
    """Open every source of a mixture.

    Args:
        named: names, each with ``=weight`` or without, which is a weight of 1.
        how: what else is known.

    Raises:
        ConfigError: no such file or data set, a bad line, or a weight that is no number, negative, or zero for all.
    """
    weighted = [_parse(name.strip()) for name in named if name.strip()]
    if not sum(weight for _, weight in weighted):
        raise ConfigError("no source of text has a weight above 0", f"{_KINDS}, each with =WEIGHT or without")
    total = sum(weight for _, weight in weighted)
    return [source for name, weight in weighted if weight for source in _open(name, weight, weight / total, how)]


def _parse(name: str) -> tuple[str, float]:
    place, equals, weight = name.rpartition("=")
    if not equals or Path(name).exists():
        return name, 1.0
    try:
        number = float(weight)
    except ValueError:
        number = -1.0
    if not (isfinite(number) and number >= 0):
        raise ConfigError(
            f"'{name}': the weight '{weight}' is not a number of 0 or more", "a weight looks like mine.jsonl=3"
        )
    return place, number


def _open(name: str, weight: float, share: float, how: Opening) -> list[Source]:
    if name == PACKAGED:
        texts = list(packaged_texts())
        return [Source(n, weight / len(texts), (Texts(n, documents),), LICENCE) for n, documents in texts]
    if name == SELF:
        if how.sample is None:
            raise ConfigError(f"'{SELF}': text cannot be sampled from the model here", f"give '{PACKAGED}' or files")
        return [Source(SELF, weight, (Texts(SELF, how.sample(round(how.tokens * share), how.seed)),))]
    if name.startswith("hub:"):
        if not _HUB.fullmatch(name[4:]):
            raise ConfigError(f"'{name}' is not a data set of the hub", "give hub:owner/name or hub:owner/name:split")
        rows = HubRows(name[4:], offline=how.offline, skip_bad=how.skip_bad)
        return [Source(name, weight, (rows,), rows.licence)]
    files = tuple(_open_file(path, how) for path in _find(name))
    return [Source(Path(name).name or name, weight, files)]


def _find(name: str) -> list[Path]:
    """The files that a path, a folder or a pattern names, sorted."""
    path = Path(name)
    if path.is_dir():
        inside = (p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts))
        found = sorted(p for p in inside if p.suffix in SUFFIXES and p.is_file())
        if not found:
            raise ConfigError(f"{name} has no {', '.join(SUFFIXES)} files", _KINDS)
        return found
    if path.exists() or not glob.has_magic(name):
        if not path.exists():
            near = [PACKAGED, SELF, *(str(p) for p in path.parent.glob("*"))] if path.parent.is_dir() else [PACKAGED]
            raise ConfigError(f"{name}: no such file", did_you_mean(name, near[:1000]) + _KINDS)
        return [path]
    found = sorted(p for p in map(Path, glob.glob(name, recursive=True)) if p.is_file())  # noqa: PTH207
    if not found:
        raise ConfigError(f"no file matches '{name}'", _KINDS)
    return found


def _open_file(path: Path, how: Opening) -> Documents:
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return JsonLines(path, how.progress, skip_bad=how.skip_bad)
    if suffix == ".parquet":
        return ParquetFile(path, how.progress, skip_bad=how.skip_bad)
    if suffix in _NO_TEXT:
        raise ConfigError(f"{path}: '{suffix}' files are not read", 'convert it to .jsonl, lines like {"text": "..."}')
    return TextFile(path, how.progress)
