"""A bundle held open for many callers: one answer at a time, in the order of asking."""

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
"""Tokens that two prompts must share for the second to profit from the first: a conversation that goes on. Fewer save
little, and what was decoded rounds differently from what was read, so the same question could be answered differently
after another one."""

_AT_ONCE = 16
"""Tokens of an answer that are looked at in one run."""

_LOOK = 0.05
"""Seconds between two looks at whether a caller that waits has gone."""


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
        """Open the bundle. Args and errors as of ``load_runner``."""
        self.bundle = bundle
        self.tokenizer = Tokenizer.of(bundle)
        self.tokenizer.prepare_chat()
        self._runner = load_runner(bundle, threads=threads, context=context, small_memory=small_memory)
        self._held = HeldPrompt(self._runner, self.tokenizer, at_least=SHARED)
        self._turn = Condition()
        self._queue: deque[LocalRun] = deque()

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its answer."""
        return self._runner.context_length

    @property
    def ahead(self) -> int:
        """Answers under way or waiting."""
        return len(self._queue)

    def waiting(self) -> float:
        """Seconds until the model is free, by what each answer ahead is expected to take; 0 for those nobody knows."""
        with self._turn:
            return sum(run.left() for run in self._queue)

    def answer(self, request: Request, *, expected: float | None = None, stop: Event | None = None) -> LocalRun:
        """Answer a request; the tokens come as it is iterated over.

        Args:
            request: its messages, or its prompt as it is.
            expected: seconds until it is thought to end, those in line included.
            stop: set by anyone, at any time, to end it.

        Raises:
            RunError: at the first token: no chat template, or a prompt that does not fit.
        """
        # Those before it count their own time: what it waits for them would count twice for those behind it.
        own = None if expected is None else max(0.0, expected - self.waiting())
        return LocalRun(self, request, expected=own, stop=stop)

    def mean_logprob(self, request: Request, text: str) -> float:
        """What this model thinks of another's answer: mean log-probability of its tokens, in nats.

        One caller after another, and none while it answers itself.

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
        """Logits [V] behind the prompt and behind each token of the answer, of which only these need the head."""
        self._runner.reset()
        yield self._runner.prefill(prompt)
        start = 0
        while start < len(answer):
            stop = start + min(_AT_ONCE, max(1, self._runner.room))
            yield from self._runner.verify(answer[start:stop])
            start = stop

    def close(self) -> None:
        """Release the runner, once the answer under way has ended."""
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
        """Wait for one's turn; False where the caller went first."""
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
    """A local answer under way; its place in the queue is taken with the first token asked for.

    Attributes:
        text: so far.
        tokens: ids so far, the end token included.
        prompt_tokens: of the prompt, 0 until it was its turn.
        finish: why it ended, None until then.
        waited: seconds for its turn.
        seconds_to_first: seconds of the model's own time until the first token, None before.
        seconds: of the model's own time so far.
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
        """Whether the caller wants no more."""
        return self._stop is not None and self._stop.is_set()

    @property
    def signals(self) -> Signals:
        """Of the tokens so far. There must be one."""
        return self._trail.read()

    def left(self) -> float:
        """Seconds it is still expected to take."""
        return self._expected if self._begun is None else max(0.0, self._expected - (monotonic() - self._begun))

    def __iter__(self) -> Iterator[Emitted]:
        return self

    def __next__(self) -> Emitted:
        """Make the next token."""
        return next(self._steps)

    def close(self) -> None:
        """End it here."""
        self._steps.close()
        self.finish = self.finish or "cancelled"

    def _run(self) -> Generator[Emitted]:
        # Before the turn: nobody waits for another's text to be cut into tokens.
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
