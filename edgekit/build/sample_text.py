"""Text that a model writes itself, to calibrate it on what it says when no other text is at hand.

A temporary bundle without data is sampled at temperature 1, SEQUENCES at a time. Half of them begin with the model's
first token, as documents do. If the model has a chat template, the others begin where a user's message would: the model
writes the message, and then its answer (the method of Magpie, arXiv 2406.08464).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from edgekit.run import Tokenizer, decode_batch
from edgekit.types import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from edgekit.types import Bundle

SEQUENCES, LENGTH = 16, 512
"""Sequences that are sampled side by side, and tokens of each."""

PLACE = "\ufffc"
"""What stands for the user's message while the template is cut at it."""


def sampler(build: Callable[[Path], Bundle], progress: Progress = silent) -> Callable[[int, int], list[str]]:
    """The function ``sample(tokens, seed)``: at least so many tokens of text, as documents; the same for one seed.

    Args:
        build: writes the bundle that is sampled, for the CPU, to a folder that is removed afterwards.
        progress: called with the tokens sampled.

    Raises:
        RunError: the bundle cannot be run here.
    """
    return partial(_sample, build, progress)


def _sample(build: Callable[[Path], Bundle], progress: Progress, tokens: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    documents: list[str] = []
    rounds = -(-tokens // (SEQUENCES * LENGTH))
    with TemporaryDirectory(prefix="edgekit-") as folder:
        bundle = build(Path(folder) / "bundle")
        tokenizer = Tokenizer.of(bundle)
        length = min(LENGTH, bundle.manifest.context_length)
        for done in range(rounds):
            told = partial(progress, "sampling text", unit="tokens")
            writers = _writers(bundle, tokenizer)
            ids = np.array([next(w) for w in writers])
            for step, logits in enumerate(decode_batch(bundle, ids, length)):
                told((done * length + step) * SEQUENCES, rounds * length * SEQUENCES)
                drawn = _draw(logits, random)
                ids[:] = [w.push(int(token)) for w, token in zip(writers, drawn, strict=True)]
            documents += [text for w in writers if (text := w.text(tokenizer).strip())]
    return documents


@dataclass
class _Writer:
    """One sequence. ``openings`` are tokens that are given, one after the other, wherever the model has ended."""

    openings: Iterator[Sequence[int]]
    ends: frozenset[int]
    given: list[int] = field(default_factory=list)
    parts: list[list[int]] = field(default_factory=list)

    def __next__(self) -> int:
        """The next token that is given."""
        if not self.given:
            self.given = list(next(self.openings))
            self.parts.append([])
        return self.given.pop(0)

    def push(self, drawn: int) -> int:
        """The next token: what is still to be given, or what was drawn."""
        if self.given or drawn in self.ends:
            return next(self)
        self.parts[-1].append(drawn)
        return drawn

    def text(self, tokenizer: Tokenizer) -> str:
        """All that was drawn."""
        return "\n\n".join(tokenizer.decode(part) for part in self.parts if part)


def _writers(bundle: Bundle, tokenizer: Tokenizer) -> list[_Writer]:
    spec = bundle.manifest.spec
    first = [token for token in (spec.bos_token_id, *sorted(tokenizer.eos_ids)) if token is not None][:1] or [0]
    kinds: list[list[Sequence[int]]] = [[first], _turns(tokenizer) or [first]]
    return [_Writer(cycle(kinds[i % 2]), tokenizer.eos_ids) for i in range(SEQUENCES)]


def _turns(tokenizer: Tokenizer) -> list[Sequence[int]]:
    """What the template has before a user's message, and between it and the answer; nothing without a template."""
    if not tokenizer.has_chat_template:
        return []
    before, _, after = tokenizer.render_chat([{"role": "user", "content": PLACE}]).partition(PLACE)
    parts = [tokenizer.encode(before), tokenizer.encode(after)]
    return list(parts) if all(parts) else []


def _draw(logits: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.intp]:
    """A token of each row [n, V] with its softmax's probability (the Gumbel maximum)."""
    noise = random.gumbel(size=logits.shape).astype(np.float32)
    drawn: NDArray[np.intp] = np.argmax(logits + noise, axis=-1)
    return drawn
