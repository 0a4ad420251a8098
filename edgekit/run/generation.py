"""Generate tokens one by one, up to an end token, a stop string or a limit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgekit.errors import RunError
from edgekit.run.sampling import choose, is_greedy
from edgekit.run.sampling import signals as measure_signals
from edgekit.run.speculative import SpeculativeDecoder, Verifier
from edgekit.types import Emitted

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from numpy.typing import NDArray

    from edgekit.run.text import TextStream, Tokenizer
    from edgekit.types import Runner, Sampling

Finish = Literal["eos", "stop", "length", "context", "cancelled"]
"""Why an answer ended: an end token, a stop string, max_new_tokens, a full context, or cancelled by the caller."""


def generate(
    runner: Runner,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    signals: bool = False,
    cached: int = 0,
    lookup: bool | None = None,
) -> Generation:
    """Continue a prompt.

    Args:
        runner: reset first, unless ``cached``.
        tokenizer: the same bundle's tokenizer.
        prompt: token ids.
        sampling: how tokens are chosen and when to stop.
        signals: fill in ``logprob``, ``logprob_margin``, ``prob_margin`` and ``entropy`` of every token.
        cached: number of the prompt's first tokens that are already in the runner, which must hold nothing else.
        lookup: draft from earlier text (prompt lookup), if sampling is greedy without a penalty and the runner is a
            ``speculative.Verifier``. None: only if answers do not depend on it; see speculative.py.

    Raises:
        RunError: at the first token, if the prompt is empty or leaves no room for one new token.
    """
    return Generation(runner, tokenizer, prompt, sampling, signals=signals, cached=cached, lookup=lookup)


class Generation(Iterator[Emitted]):
    """An answer in progress. Iterating generates the next token; ``close()`` cancels.

    Attributes:
        finish: why it ended, None until then.
        tokens: the tokens generated so far, including the end token.
        drafted: number of drafted tokens that were verified.
        accepted: number of drafted tokens that were right.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        signals: bool = False,
        cached: int = 0,
        lookup: bool | None = None,
    ) -> None:
        """Args: as in ``generate``."""
        self._runner = runner
        self._sampling = sampling
        self._said = Transcript(tokenizer, sampling, runner.context_length - len(prompt))
        self._drafts = lookup if is_greedy(sampling) and sampling.repetition_penalty == 1.0 else False
        self._lookahead: SpeculativeDecoder | None = None
        self._steps = self._generate(prompt, signals, cached)

    @property
    def finish(self) -> Finish | None:
        """See the class."""
        return self._said.finish

    @property
    def tokens(self) -> list[int]:
        """See the class."""
        return self._said.tokens

    @property
    def drafted(self) -> int:
        """See the class."""
        return self._lookahead.drafted if self._lookahead else 0

    @property
    def accepted(self) -> int:
        """See the class."""
        return self._lookahead.accepted if self._lookahead else 0

    def __next__(self) -> Emitted:
        """Generate the next token."""
        return next(self._steps)

    def close(self) -> None:
        """Cancel the answer."""
        self._steps.close()
        self._said.cancel()

    def _generate(self, prompt: Sequence[int], signals: bool, cached: int) -> Generator[Emitted]:
        runner, said = self._runner, self._said
        if len(prompt) >= runner.context_length:
            raise RunError(
                f"the prompt's {len(prompt)} tokens leave no room for an answer in the context of "
                f"{runner.context_length} tokens",
                hint="shorten the prompt or start a new conversation",
            )
        random = np.random.default_rng(self._sampling.seed)
        seen = np.zeros(runner.vocab_size, np.bool_)
        room = np.empty((2, runner.vocab_size), np.float32) if signals else None
        try:
            if not cached:
                runner.reset()
            logits = runner.prefill(prompt[cached:])
            seen[list(prompt)] = True
            if self._drafts is not False and isinstance(runner, Verifier) and (self._drafts or runner.pace.exact):
                self._lookahead = SpeculativeDecoder(runner, prompt, logits)
            while said.finish is None:
                token = choose(logits, seen, self._sampling, random)
                seen[token] = True
                measured = measure_signals(logits, token, room) if signals else ()
                yield Emitted(token, said.add(token), *measured)
                if said.finish is None:
                    logits = self._step(token)
        except (GeneratorExit, KeyboardInterrupt):
            said.cancel()
            raise
        finally:
            if self._lookahead:
                self._lookahead.settle()

    def _step(self, token: int) -> NDArray[np.float32]:
        if self._lookahead:
            return self._lookahead.step(token, self._said.most - len(self.tokens))
        return self._runner.step(token)


class Transcript:
    """The text of an answer's tokens, wherever they are chosen, and why it ends.

    Attributes:
        finish: why it ended, None until then.
        tokens: the tokens so far.
        most: the number of tokens after which it ends.
    """

    def __init__(self, tokenizer: Tokenizer, sampling: Sampling, room: int) -> None:
        """Args: room: tokens of the context that the prompt left."""
        self.finish: Finish | None = None
        self.tokens: list[int] = []
        self.most = sys.maxsize if sampling.max_new_tokens is None else sampling.max_new_tokens
        self._room = room
        self._ends = tokenizer.eos_ids
        self._stream: TextStream = tokenizer.stream()
        self._marked = bool(sampling.stop)
        self._gate = StopBuffer(sampling.stop)

    def add(self, token: int) -> str:
        """Add a token; return the text that can be shown now. Special tokens only count for stop strings."""
        self.tokens.append(token)
        before, mark = self._stream.mark(token) if self._marked else ("", "")
        text = self._gate.push(before) + self._gate.push(mark, shown=False)
        if token not in self._ends:
            text += self._gate.push(self._stream.push(token))
        self.finish = self._end(token)
        return text + self._gate.push(self._stream.finish()) + self._gate.finish() if self.finish else text

    def cancel(self) -> None:
        """End it, unless it has ended."""
        self.finish = self.finish or "cancelled"

    def _end(self, token: int) -> Finish | None:
        if token in self._ends:
            return "eos"
        if self._gate.hit:
            return "stop"
        if len(self.tokens) >= self.most:
            return "length"
        # The runner holds all tokens but this one, or more if it ran ahead.
        return "context" if len(self.tokens) > self._room else None


class StopBuffer:
    """Passes text up to the first stop string, and holds back text that may be the beginning of one.

    Attributes:
        hit: whether a stop string was completed; no text after that is passed.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.hit = False
        self._stops = tuple(stop for stop in stops if stop)
        self._kept = ""
        self._hidden: list[tuple[int, int]] = []

    def push(self, text: str, *, shown: bool = True) -> str:
        """Add text; return what can be shown. Hidden text (``shown=False``) can still be part of a stop string."""
        if self.hit or not text:
            return ""
        if not shown:
            self._hidden.append((len(self._kept), len(self._kept) + len(text)))
        text = self._kept + text
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.hit = True
            return self._release(text, min(found))
        return self._release(text, len(text) - max((_overlap(text, stop) for stop in self._stops), default=0))

    def finish(self) -> str:
        """Return the text held back, at the end of the text."""
        return "" if self.hit else self._release(self._kept, len(self._kept))

    def _release(self, text: str, end: int) -> str:
        """Return the shown parts of the text up to ``end``; hold back the rest."""
        parts, at = [], 0
        for start, stop in self._hidden:
            parts.append(text[at : min(start, end)])
            at = max(at, min(stop, end))
        parts.append(text[at:end])
        self._hidden = [(max(start - end, 0), stop - end) for start, stop in self._hidden if stop > end]
        self._kept = text[end:]
        return "".join(parts)


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of ``text`` that is a prefix of ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
