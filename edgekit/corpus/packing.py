"""Documents to windows of tokens.

Documents are cut into sections of a few windows. Sections are visited in an order that is spread over the source's
length however early it ends; each first gives one window, and what is left of it only when all sections have given
theirs. Documents and remainders that are shorter than a window are packed, one after another.

As in the model's own training, a document begins with the tokens that its tokenizer puts there (Llama's BOS; most have
none), and one that is packed ends with the end-of-text token. Conversations are what the chat template writes.
"""

from __future__ import annotations

from hashlib import sha256
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from edgekit.corpus.documents import SKIP_HINT
from edgekit.errors import ConfigError, EdgekitError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from edgekit.corpus.documents import Documents
    from edgekit.corpus.overlap import Overlap
    from edgekit.corpus.sources import Source
    from edgekit.run import Tokenizer
    from edgekit.types import Checkpoint

ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
"""What documents end with in training; a chat model's own end token ends an answer. The first one known is used."""

FEW = 20
"""Documents below which a share of sections is held out instead of a share of documents."""

_SECTION = (5, 20)
"""Least and most bytes of a section for each token of a window; English has 4 to 5 a token."""
_LEAST = 2000
"""Bytes of a section for any window: in shorter ones, runs of words that overlap evaluation text would be cut."""
_SECTIONS = 64
"""Sections of a source, if they are long enough."""
_GOLDEN = 0.6180339887498949
_BATCH = (64, 4096)
"""Sections read at once, at first and at most; in the order of the file, so that a file is not read back and forth."""


class Encoder:
    """The tokens of sections."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        from edgekit.run import Tokenizer

        self.tokenizer: Tokenizer = Tokenizer.of_checkpoint(checkpoint)
        ends = (self.tokenizer.special_id(text) for text in ENDS)
        self.end = next((i for i in (*ends, *checkpoint.spec.eos_token_ids[:1]) if i is not None), None)
        around = self.tokenizer.encode("", special=True)
        self.begin = [i for i in around if i not in {self.end, *checkpoint.spec.eos_token_ids}]

    def render(self, found: object, place: str) -> str:
        """A section's text; a conversation's through the chat template, which must take it."""
        if isinstance(found, str):
            return found
        if not self.tokenizer.has_chat_template:
            raise ConfigError(
                f"{place}: the model has no chat template for 'messages'", "give lines with 'text', or a chat model"
            )
        try:
            return self.tokenizer.render_chat(found, add_generation_prompt=False)  # type: ignore[arg-type]
        except EdgekitError as error:
            raise Refused(f"{place}: {error.message}", SKIP_HINT) from error


class Refused(ConfigError):
    """A conversation that the chat template rejects."""


class Sections:
    """The sections of a source, those held out and those to train on, and what became of them.

    Attributes:
        documents: those that tokens came from.
        overlapping: sections left out because of ``overlap``.
        refused: conversations left out.
    """

    def __init__(self, source: Source, encoder: Encoder, window: int, seed: int, held_out: float) -> None:
        self.source, self._encoder, self._window = source, encoder, window
        self.documents, self.overlapping, self.refused, self.sha = set[int](), 0, 0, sha256()
        sizes = np.concatenate([np.asarray(part.sizes, np.int64) for part in source.parts])
        least, most = (max(_LEAST, window * each) for each in _SECTION)
        size = min(most, max(least, int(sizes.sum()) // _SECTIONS))
        self._counts = np.maximum(sizes // size, 1)
        self._ends = np.cumsum(self._counts)
        self._first = np.cumsum([0, *(len(part.sizes) for part in source.parts)])
        self.held, self.train = self._split(len(sizes), seed, held_out)

    def windows(
        self, order: NDArray[np.int64], overlap: Overlap, texts: set[bytes], *, skip: bool
    ) -> Iterator[list[int]]:
        """Windows of tokens from the sections in ``order``, as described above.

        Args:
            order: indices of sections.
            overlap: evaluation text; sections that share a run of words with it are left out.
            texts: hashes of texts to leave out.
            skip: leave out conversations that the chat template refuses.
        """
        pool: list[int] = []
        for first in (True, False):
            for ids in self._encoded(order, overlap, texts, skip=skip, first=first):
                cuts = [ids[i : i + self._window] for i in range(0, len(ids), self._window)]
                short = cuts.pop() if cuts and len(cuts[-1]) < self._window else []
                yield from cuts[:1] if first else cuts[1:]
                if first != bool(cuts):
                    pool += self._closed(short)
                while len(pool) >= self._window:
                    yield pool[: self._window]
                    del pool[: self._window]

    def _closed(self, ids: list[int]) -> list[int]:
        return [*ids, self._encoder.end] if ids and self._encoder.end is not None else ids

    def _encoded(
        self, order: NDArray[np.int64], overlap: Overlap, texts: set[bytes], *, skip: bool, first: bool
    ) -> Iterator[list[int]]:
        """The tokens of every section; counts in the first pass."""
        for section, found in self._read(order):
            document, index = self._place(section)
            try:
                text = self._encoder.render(found, self._name(document))
            except Refused:
                if not skip:
                    raise
                self.refused += first
                continue
            if _digest(found) in texts or overlap.holds(text):
                self.overlapping += first
                continue
            begin = self._encoder.begin if isinstance(found, str) and index == 0 else []
            ids = begin + self._encoder.tokenizer.encode(text)
            if first and ids:
                self.documents.add(document)
                self.sha.update(text.encode())
            yield ids

    def texts(self, order: NDArray[np.int64]) -> set[bytes]:
        """Hashes of the contents of sections."""
        return {_digest(found) for _, found in self._read(order)}

    def _read(self, order: NDArray[np.int64]) -> Iterator[tuple[int, object]]:
        """Sections with their content, in order; files are read forwards, a batch at a time."""
        start, count = 0, _BATCH[0]
        while start < len(order):
            batch = [int(i) for i in order[start : start + count]]
            found = {section: self._content(section) for section in sorted(batch)}
            yield from ((section, found[section]) for section in batch)
            start, count = start + count, min(2 * count, _BATCH[1])

    def _content(self, section: int) -> object:
        document, index = self._place(section)
        part, inside = self._part(document)
        return part.part(inside, index, int(self._counts[document]))

    def _place(self, section: int) -> tuple[int, int]:
        document = int(np.searchsorted(self._ends, section, side="right"))
        return document, section - int(self._ends[document] - self._counts[document])

    def _part(self, document: int) -> tuple[Documents, int]:
        which = int(np.searchsorted(self._first, document, side="right")) - 1
        return self.source.parts[which], document - int(self._first[which])

    def _name(self, document: int) -> str:
        part, inside = self._part(document)
        return part.place(inside)

    def _split(self, documents: int, seed: int, held_out: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices of the sections held out and of the others, both in the order of reading."""
        sections = int(self._ends[-1]) if documents else 0
        order = spread(sections, seed)
        if not held_out:
            return order[:0], order
        if documents < FEW:
            count = ceil(held_out * sections) if sections > 1 else 0
            return order[:count], order[count:]
        chosen = np.zeros(documents, bool)
        chosen[spread(documents, seed)[: ceil(held_out * documents)]] = True
        held = chosen[np.searchsorted(self._ends, order, side="right")]
        return order[held], order[~held]


def _digest(found: object) -> bytes:
    return sha256(repr(found).encode()).digest()


def spread(count: int, seed: int) -> NDArray[np.int64]:
    """A permutation of ``count`` indices whose beginnings are all spread evenly.

    The ranks of the multiples of the golden ratio on a circle, which they divide into at most three lengths
    (Steinhaus' three-gap theorem); the seed chooses where it starts.
    """
    places = (np.random.default_rng(seed).random() + np.arange(count) * _GOLDEN) % 1
    ranks = np.empty(count, np.int64)
    ranks[np.argsort(places, kind="stable")] = np.arange(count)
    return ranks


def draw(streams: Sequence[Iterator[list[int]]], weights: Sequence[float], count: int) -> list[list[list[int]]]:
    """At most ``count`` windows of all streams together, in proportion to the weights while streams last.

    When one ends, the others take its place.
    """
    taken: list[list[list[int]]] = [[] for _ in streams]
    alive = set(range(len(streams)))
    while alive and sum(map(len, taken)) < count:
        chosen = min(alive, key=lambda i: ((len(taken[i]) + 1) / weights[i], i))
        window = next(streams[chosen], None)
        if window is None:
            alive.remove(chosen)
        else:
            taken[chosen].append(window)
    return taken
