"""A conversation with a bundle: history, chat template, and the cache kept between turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from edgekit.run.prefix_cache import HeldPrompt
from edgekit.run.runner import load_runner
from edgekit.run.text import Tokenizer
from edgekit.types import Sampling

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from edgekit.run.generation import Finish, Generation
    from edgekit.types import Bundle


class Chat:
    """A conversation with streaming answers. An interrupted answer stays in the history as far as it came.

    Attributes:
        sampling: settings for the next answer; may be replaced between turns.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        context: int | None = None,
        sampling: Sampling | None = None,
        system: str | None = None,
        lookup: bool | None = None,
        small_memory: bool = False,
    ) -> None:
        """Open the bundle.

        Args:
            bundle: the opened bundle.
            threads: as in load_runner.
            context: as in load_runner.
            sampling: greedy by default.
            system: the system prompt.
            lookup: as in generate.
            small_memory: as in load_runner.

        Raises:
            RunError: the bundle cannot be run here.
        """
        self.sampling = sampling or Sampling()
        self._tokenizer = Tokenizer.of(bundle)
        self._tokenizer.prepare_chat()
        self._runner = load_runner(bundle, threads=threads, context=context, small_memory=small_memory)
        self._system = system
        self._lookup = lookup
        self._held = HeldPrompt(self._runner, self._tokenizer)
        self._generation: Generation | None = None
        self._answer: Generator[str] | None = None
        self.reset()

    @property
    def history(self) -> tuple[dict[str, str], ...]:
        """The messages so far: mappings with ``role`` and ``content``."""
        return tuple(dict(message) for message in self._messages)

    @property
    def finish(self) -> Finish | None:
        """Why the last answer ended; None before and while it streams."""
        return self._generation.finish if self._generation else None

    def reset(self) -> None:
        """Start a new conversation with the same system prompt."""
        self._messages = [{"role": "system", "content": self._system}] if self._system is not None else []

    def ask(self, text: str) -> Iterator[str]:
        """Answer ``text``, piece by piece.

        Closing the iterator, or Ctrl-C, ends the answer. A question without any answer is forgotten.

        Raises:
            RunError: on the first piece, if there is no chat template or the conversation exceeds the context.
        """
        if self._answer is not None:
            self._answer.close()
        self._answer = self._reply(text)
        return self._answer

    def close(self) -> None:
        """Release the session."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reply(self, text: str) -> Generator[str]:
        history = self._messages
        question = [*history, {"role": "user", "content": text}]
        prompt = self._tokenizer.encode(self._tokenizer.render_chat(question))
        self._generation = self._held.generate(prompt, self.sampling, lookup=self._lookup)
        answer = ""
        for emitted in self._generation:
            answer += emitted.text
            # One assignment, so that an interrupted answer leaves its question and the answer so far.
            self._messages = [*question, {"role": "assistant", "content": answer}]
            if emitted.text:
                yield emitted.text
