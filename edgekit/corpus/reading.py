"""Named sources of text -> windows of tokens to train on, windows held out, and a card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit import measure
from edgekit.corpus.overlap import Overlap
from edgekit.corpus.packaged import scored_text
from edgekit.corpus.packing import Encoder, Sections, draw
from edgekit.corpus.sources import Opening, Sample, open_sources
from edgekit.errors import ConfigError
from edgekit.types import silent
from edgekit.types.data import DataCard, DataSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgekit.types import Checkpoint, Progress


@dataclass(frozen=True)
class Corpus:
    """``train`` [n, window] and ``held_out`` [m, window], int64 token ids, shuffled; ``card`` says what they are."""

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    card: DataCard


def read_corpus(
    named: Sequence[str],
    checkpoint: Checkpoint,
    *,
    tokens: int,
    window: int = 512,
    seed: int = 0,
    held_out: float = 0.0,
    skip_bad: bool = False,
    offline: bool = False,
    sample: Sample | None = None,
    apart_from: Sequence[str | Path] = (),
    progress: Progress = silent,
) -> Corpus:
    """Read a mixture of sources until there are enough tokens. The same arguments and files give the same windows.

    Memory holds the windows and, of each file, the places of its documents.

    Args:
        named: text files, .jsonl files (lines with ``text`` or ``messages``), .parquet files, patterns (``**`` too),
            folders, ``hub:owner/name[/configuration][:split]``, ``packaged`` or ``self``; each may end with
            ``=weight``, its share of the tokens.
        checkpoint: its tokenizer cuts the text, its chat template renders conversations.
        tokens: how many to train on, rounded up to windows; fewer if the sources have no more.
        window: tokens of a window.
        seed: chooses which documents are read, which are held out, and the order of windows.
        held_out: share of documents (of sections, if a source has fewer than 20 documents) that are never trained on.
            At most this share of ``tokens`` is read of them, at least one window.
        skip_bad: leave out lines that hold no document and conversations that the chat template refuses.
        offline: take data sets of the hub from the cache.
        sample: writes ``self``; without it that is refused.
        apart_from: text files that the model is evaluated on. Documents or sections that share 13 words in a row with
            them, or with what ``verify`` scores on, are left out.
        progress: called while files are read.

    Raises:
        ConfigError: a source cannot be read, holds a bad line, or has less text than one window.
    """
    if tokens < 1 or window < 2 or not 0 <= held_out < 1:
        raise ConfigError(
            f"tokens={tokens}, window={window} and held_out={held_out} are out of range",
            "pass `tokens` from 1, `window` from 2 and `held_out` from 0 to below 1",
        )
    how = Opening(round(tokens * (1 + held_out)) + 2 * window, seed, skip_bad, offline, sample, progress)
    sources = open_sources(named, how)
    encoder = Encoder(checkpoint)
    overlap = Overlap([scored_text(), *(measure.read_text(Path(path)).content for path in apart_from)])
    sections = [Sections(source, encoder, window, seed, held_out) for source in sources]
    weights = [source.weight for source in sources]
    kept = [s.windows(s.held, overlap, set(), skip=skip_bad) for s in sections]
    aside = draw(kept, weights, -(-round(tokens * held_out) // window) if held_out else 0)
    same = set[bytes]().union(*(s.texts(s.held) for s in sections))
    streams = [s.windows(s.train, overlap, same, skip=skip_bad) for s in sections]
    train = draw(streams, weights, -(-tokens // window))
    for one, found in zip(sections, train, strict=True):
        if not found:
            raise _too_little(one, window)
    if held_out and not any(aside):
        raise ConfigError(
            f"the {held_out:.0%} of the text that is held out has no window of {window} tokens", "give more text"
        )
    counts = [(len(a) + len(b)) * window for a, b in zip(train, aside, strict=True)]
    card = DataCard(
        tuple(_told(one, count, sum(counts)) for one, count in zip(sections, counts, strict=True)),
        sum(map(len, train)) * window,
        sum(map(len, aside)) * window,
        window,
        seed,
    )
    return Corpus(_stack(train, window, seed), _stack(aside, window, seed), card)


def _stack(found: list[list[list[int]]], window: int, seed: int) -> NDArray[np.int64]:
    rows = np.array([ids for source in found for ids in source], np.int64).reshape(-1, window)
    return rows[np.random.default_rng(seed).permutation(len(rows))]


def _told(sections: Sections, tokens: int, total: int) -> DataSource:
    source = sections.source
    return DataSource(
        name=source.name,
        sha256=sections.sha.hexdigest(),
        documents=len(sections.documents),
        tokens=tokens,
        share=tokens / total,
        licence=source.licence,
        overlapping=sections.overlapping,
        bad_lines=sum(part.bad_lines for part in source.parts) + sections.refused,
    )


def _too_little(sections: Sections, window: int) -> ConfigError:
    name, left_out = sections.source.name, _told(sections, 0, 1).left_out
    if left_out:
        return ConfigError(f"{name}: no window of {window} tokens is left without {left_out}", "give other text")
    return ConfigError(f"{name}: its text is shorter than a window of {window} tokens", "give more text")
