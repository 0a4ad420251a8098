"""Reuse the cache of the previous prompt for the common prefix of the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.run.generation import Generation, generate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.run.runner import OnnxRunner
    from edgekit.run.text import Tokenizer
    from edgekit.types import Sampling


class HeldPrompt:
    """A runner that answers successive prompts and keeps its cache between them.

    Decoded tokens and prompt tokens are rounded differently (see speculative.py), so reuse can change an answer.
    ``at_least`` is the number of common first tokens from which the cache is reused.
    """

    def __init__(self, runner: OnnxRunner, tokenizer: Tokenizer, *, at_least: int = 1) -> None:
        self._runner = runner
        self._tokenizer = tokenizer
        self._at_least = at_least
        self._prompt: list[int] = []
        self._generation: Generation | None = None

    @property
    def tokens(self) -> list[int]:
        """The tokens in the runner's cache."""
        generated = self._generation.tokens if self._generation else []
        return (self._prompt + generated)[: self._runner.length]

    def generate(
        self, prompt: Sequence[int], sampling: Sampling, *, signals: bool = False, lookup: bool | None = None
    ) -> Generation:
        """Continue a prompt, as ``generate`` does. The previous answer must have ended or been closed."""
        prompt = list(prompt)
        shared = _common(self.tokens, prompt[:-1])
        cached = shared if shared >= self._at_least else 0
        self._runner.rewind(cached)
        self._prompt = prompt
        self._generation = generate(
            self._runner, self._tokenizer, prompt, sampling, signals=signals, cached=cached, lookup=lookup
        )
        return self._generation

    def forget(self) -> None:
        """Discard the cached tokens, after the runner was used for something else."""
        self._prompt, self._generation = [], None


def _common(a: list[int], b: list[int]) -> int:
    """The length of the common prefix of two lists."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
