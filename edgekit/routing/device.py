"""A loaded bundle shared by many callers, which answers one request at a time in the order of arrival."""

from __future__ import annotations

from collections import deque
from statistics import fmean
from threading import Condition
from time import monotonic
from typing import TYPE_CHECKING, Self

from edgekit.routing.decision.signals import SignalTrail
from edgekit.routing.prepare import encode_prompt
from edgekit.run import HeldPrompt, Tokenizer, load_runner
from edgekit.run.sampling import signals

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from threading import Event

    import numpy as np
    from numpy.typing import NDArray

    from edgekit.run import Finish, Generation
    from edgekit.types import Bundle, Emitted, Sampling
    from edgekit.types.calibration import Signals
    from edgekit.types.routing import Request

SHARED = 128
"""Least number of leading tokens shared with the previous prompt for its KV cache to be reused, as in a conversation.
Fewer save little, and decoded tokens round differently from prefilled ones, so an answer could depend on the previous
question."""

_AT_ONCE = 16
"""Tokens of an answer that are verified in one run."""

_LOOK = 0.05
"""Seconds between two checks whether a waiting caller has gone."""


class LocalModel:
    """A bundle, its tokenizer, and a queue in front of its runner."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        context: int | None = None,
        small_memory: bool = False,
    ) -> None:
        """Load the bundle. Args and errors: as ``load_runner``."""
        self.bundle = bundle
        self.tokenizer = Tokenizer.of(bundle)
        self.tokenizer.prepare_chat()
        self._runner = load_runner(bundle, threads=threads, context=context, small_memory=small_memory)
        self._held = HeldPrompt(self._runner, self.tokenizer, at_least=SHARED)
        self._turn = Condition()
        self._queue: deque[LocalRun] = deque()

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its answer together."""
        return self._runner.context_length

    @property
    def ahead(self) -> int:
        """Number of answers in progress or waiting."""
        return len(self._queue)

    def waiting(self) -> float:
        """Return the expected seconds until the model is free; answers of unknown duration count as 0."""
        with self._turn:
            return sum(run.left() for run in self._queue)

    def answer(self, request: Request, *, expected: float | None = None, stop: Event | None = None) -> LocalRun:
        """Answer a request; iterating over the result generates the tokens.

        Args:
            request: the messages, or the raw prompt.
            expected: expected duration in seconds, the time in the queue included; None if unknown.
            stop: ends the answer when it is set, from any thread.

        Raises:
            RunError: at the first token, if there is no chat template or the prompt does not fit.
        """
        # Those before it count their own time: what it waits for them would count twice for those behind it.
        own = None if expected is None else max(0.0, expected - self.waiting())
        return LocalRun(self, request, expected=own, stop=stop)

    def mean_logprob(self, request: Request, text: str) -> float:
        """Return the mean log-probability, in nats, of the tokens of another model's answer.

        Waits until no answer of its own is in progress.

        Raises:
            RunError: as ``answer``.
        """
        prompt = encode_prompt(self.tokenizer, request)
        answer = self.tokenizer.encode(text) or [next(iter(self.tokenizer.eos_ids))]
        with self._turn:
            self._turn.wait_for(lambda: not self._queue)
            self._held.forget()
            rows = self._predictions(prompt, answer[:-1])
            return fmean(signals(row, token)[0] for row, token in zip(rows, answer, strict=True))

    def _predictions(self, prompt: list[int], answer: list[int]) -> Iterator[NDArray[np.float32]]:
        """Yield logits [V] after the prompt and after each token of the answer."""
        self._runner.reset()
        yield self._runner.prefill(prompt)
        start = 0
        while start < len(answer):
            stop = start + min(_AT_ONCE, max(1, self._runner.room))
            yield from self._runner.verify(answer[start:stop])
            start = stop

    def close(self) -> None:
        """Release the runner after the current answer has ended."""
        with self._turn:
            self._turn.wait_for(lambda: not self._queue)
            self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _join(self, run: LocalRun) -> None:
        with self._turn:
            self._queue.append(run)

    def _wait(self, run: LocalRun) -> bool:
        """Wait for the run's turn. Returns False if its caller has gone."""
        with self._turn:
            while self._queue[0] is not run:
                if run.stopped:
                    return False
                self._turn.wait(_LOOK)
            return not run.stopped

    def _leave(self, run: LocalRun) -> None:
        with self._turn:
            self._queue.remove(run)
            self._turn.notify_all()

    def _generate(self, prompt: list[int], sampling: Sampling) -> Generation:
        return self._held.generate(prompt, sampling, signals=True)


class LocalRun:
    """A local answer in progress; it joins the queue at the first ``next``.

    Attributes:
        text: the text so far.
        tokens: the token ids so far, the end token included.
        prompt_tokens: number of tokens of the prompt, 0 until its turn.
        finish: why it ended, None before.
        waited: seconds waited for its turn.
        seconds_to_first: seconds from its turn to the first token, None before.
        seconds: seconds from its turn to the latest token.
    """

    def __init__(self, model: LocalModel, request: Request, *, expected: float | None, stop: Event | None) -> None:
        """Args: as LocalModel.answer."""
        self.text = ""
        self.tokens: list[int] = []
        self.prompt_tokens = 0
        self.finish: Finish | None = None
        self.waited = 0.0
        self.seconds_to_first: float | None = None
        self.seconds = 0.0
        self._model = model
        self._request = request
        self._expected = expected or 0.0
        self._stop = stop
        self._begun: float | None = None
        self._trail = SignalTrail()
        self._steps = self._run()

    @property
    def stopped(self) -> bool:
        """Whether the caller has stopped the answer."""
        return self._stop is not None and self._stop.is_set()

    @property
    def signals(self) -> Signals:
        """The signals of the tokens so far; there must be at least one."""
        return self._trail.read()

    def left(self) -> float:
        """Return the remaining seconds it is expected to take."""
        return self._expected if self._begun is None else max(0.0, self._expected - (monotonic() - self._begun))

    def __iter__(self) -> Iterator[Emitted]:
        return self

    def __next__(self) -> Emitted:
        """Generate the next token."""
        return next(self._steps)

    def close(self) -> None:
        """End the answer."""
        self._steps.close()
        self.finish = self.finish or "cancelled"

    def _run(self) -> Generator[Emitted]:
        # Tokenize before the turn, so that the queue does not wait for it.
        prompt = list(self._request.fed) or encode_prompt(self._model.tokenizer, self._request)
        joined = monotonic()
        self._model._join(self)
        try:
            if not self._model._wait(self):
                self.finish = "cancelled"
                return
            self._begun = monotonic()
            self.waited = self._begun - joined
            self.prompt_tokens = len(prompt)
            generation = self._model._generate(prompt, self._request.sampling)
            try:
                yield from self._follow(generation, self._begun)
            finally:
                generation.close()
                self.finish = generation.finish
        finally:
            self._model._leave(self)

    def _follow(self, generation: Generation, begun: float) -> Generator[Emitted]:
        self.tokens = generation.tokens
        for emitted in generation:
            self.seconds = monotonic() - begun
            if self.seconds_to_first is None:
                self.seconds_to_first = self.seconds
            self.text += emitted.text
            self._trail.push(emitted)
            self.finish = generation.finish
            yield emitted
            if self.stopped:
                return
