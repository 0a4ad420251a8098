"""Collect answers of the bundle, and of endpoints, to questions with known answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self, TypeVar

from edgekit.errors import RouteError
from edgekit.host.disk import add_line, make_parent, read_lines, writing
from edgekit.record import from_json, to_json
from edgekit.routing.binding import Binding
from edgekit.routing.decision.grading import is_right
from edgekit.routing.decision.signals import SignalTrail
from edgekit.routing.device import LocalModel
from edgekit.routing.prepare import encode_prompt
from edgekit.run import Tokenizer, generate, load_runner
from edgekit.strangers import open_plain
from edgekit.types import Sampling, silent
from edgekit.types.routing import CloudAnswer, Example, Grading, LocalAnswer, Message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from edgekit.types import Bundle, Progress, Runner

_OURS = b'{"key":"'
"""Start of every line of a store."""

PREFIX_TOKENS = 16
"""Tokens after which an answer may be given up."""


@dataclass(frozen=True)
class Asked:
    """The id of an example, and everything on which its answer and its grade depend."""

    id: str
    messages: tuple[Message, ...]
    prompt: str
    sampling: Sampling
    answers: tuple[str, ...]
    grading: Grading
    choices: tuple[str, ...]

    @classmethod
    def of(cls, example: Example) -> Self:
        """Take an example without what a router adds to its request."""
        request = example.request
        graded = example.answers, example.grading, example.choices
        return cls(example.id, request.messages, request.prompt, request.sampling, *graded)


@dataclass(frozen=True)
class Kept:
    """One line of a store. ``key`` is a hash of everything on which the answer depends."""

    key: str
    answer: LocalAnswer


@dataclass(frozen=True)
class KeptCloud:
    """One line of a store of an endpoint's answers."""

    key: str
    answer: CloudAnswer


K = TypeVar("K", Kept, KeptCloud)


def collect_local(
    bundle: Bundle,
    examples: Sequence[Example],
    *,
    prefix_tokens: int = PREFIX_TOKENS,
    threads: int | None = None,
    store: Path | None = None,
    progress: Progress = silent,
) -> tuple[LocalAnswer, ...]:
    """Answer every example greedily, as the bundle would be used, and record signals and times.

    Conversations go through the chat template. Each prompt starts with an empty cache, so times are those of a single
    question.

    Args:
        bundle: the opened bundle.
        examples: at least one example.
        prefix_tokens: number of first tokens that get signals of their own.
        threads: as in load_runner.
        store: a file to which every answer is appended at once. Answers of this bundle to the same example, with the
            same edgekit, runtime and processor, are reused, so an interrupted run resumes.
        progress: called for every example.

    Returns:
        One answer per example, in their order.

    Raises:
        RouteError: there are no examples, the model has no chat template for a conversation, or ``store`` is not a file
            of collected answers.
        RunError: the bundle does not run here, or a prompt does not fit its context.
    """
    if not examples:
        raise RouteError("no examples to answer", "pass at least one example")
    tokenizer = Tokenizer.of(bundle)
    prompts = [_encode(example, tokenizer) for example in examples]
    runner = load_runner(bundle, threads=threads)
    try:
        binding = f"{to_json(Binding.of(bundle))} {runner.info.provider} {runner.info.runtime} {prefix_tokens}"
        keys = [sha256(f"{binding} {to_json(Asked.of(example))}".encode()).hexdigest() for example in examples]
        known = _open_store(store, Kept) if store else {}
        answers = []
        for done, (example, key, prompt) in enumerate(zip(examples, keys, prompts, strict=True)):
            progress("answers", done, len(examples), "examples")
            answer = known.get(key)
            if answer is None:
                answer = _ask(runner, tokenizer, example, prompt, prefix_tokens)
                _keep(store, Kept(key, answer))
            answers.append(answer)
        progress("answers", len(examples), len(examples), "examples")
    finally:
        runner.close()
    return tuple(answers)


def collect_cloud(
    ask: Callable[[Example], CloudAnswer],
    examples: Sequence[Example],
    *,
    whom: str = "",
    store: Path | None = None,
    progress: Progress = silent,
) -> tuple[CloudAnswer, ...]:
    """Ask an endpoint every example, one at a time, so that times are those of a single question.

    Args:
        ask: asks one example; its errors end the run.
        examples: the examples to ask.
        whom: everything on which the answers depend besides the example: URL and model.
        store: a file to which every answer is appended at once. Answers of ``whom`` to the same example are reused, so
            none is paid for twice.
        progress: called for every example.

    Raises:
        RouteError: ``store`` is not a file of collected answers.
    """
    known = _open_store(store, KeptCloud) if store else {}
    answers = []
    for done, example in enumerate(examples):
        progress("cloud answers", done, len(examples), "examples")
        key = sha256(f"{whom} {to_json(Asked.of(example))}".encode()).hexdigest()
        answer = known.get(key)
        if answer is None:
            answer = ask(example)
            _keep(store, KeptCloud(key, answer))
        answers.append(answer)
    progress("cloud answers", len(examples), len(examples), "examples")
    return tuple(answers)


def add_second(
    second: Bundle,
    examples: Sequence[Example],
    answers: Sequence[LocalAnswer],
    *,
    threads: int | None = None,
    store: Path | None = None,
    progress: Progress = silent,
) -> tuple[LocalAnswer, ...]:
    """Add another bundle's log-probability of each answer to its signals, and the time for that to its seconds.

    Args:
        second: the other bundle, opened.
        examples: the examples that were answered.
        answers: the first bundle's answers, in the order of the examples.
        threads: as in load_runner.
        store: as in collect_local; it may be the same file.
        progress: called for every example.

    Raises:
        RouteError: ``store`` is not a file of collected answers.
        RunError: the bundle does not run here, or an example does not fit its context.
    """
    known = _open_store(store, Kept) if store else {}
    who = to_json(Binding.of(second))
    found = []
    with LocalModel(second, threads=threads) as model:
        for done, (example, answer) in enumerate(zip(examples, answers, strict=True)):
            progress("second opinions", done, len(examples), "examples")
            binding = f"{who} second {to_json(replace(answer, seconds=0.0))} {to_json(Asked.of(example))}"
            key = sha256(binding.encode()).hexdigest()
            judged = known.get(key)
            if judged is None:
                began = perf_counter()
                logprob = model.mean_logprob(example.request, answer.text)
                judged = replace(
                    answer,
                    signals=replace(answer.signals, second_logprob=logprob),
                    seconds=answer.seconds + perf_counter() - began,
                )
                _keep(store, Kept(key, judged))
            found.append(judged)
    progress("second opinions", len(examples), len(examples), "examples")
    return tuple(found)


def read_collected(path: Path) -> tuple[LocalAnswer, ...]:
    """Read the answers in a ``store`` of collect_local, the latest one of each example.

    Raises:
        RouteError: the file does not exist, or is not a file of collected answers.
    """
    if not path.is_file():
        raise RouteError(f"{path}: no such file", "collect_local(..., store=path) writes it")
    content = path.read_bytes()
    answers = _parse_store(path, content[: content.rfind(b"\n") + 1], Kept)
    return tuple({answer.id: answer for answer in answers.values()}.values())


def _encode(example: Example, tokenizer: Tokenizer) -> list[int]:
    if example.request.messages and not tokenizer.has_chat_template:
        raise RouteError(
            f"example '{example.id}' is a conversation, and the model has no chat template",
            'give a "prompt" with "raw": true, a text to continue',
        )
    return encode_prompt(tokenizer, example.request)


def _ask(runner: Runner, tokenizer: Tokenizer, example: Example, prompt: list[int], prefix_tokens: int) -> LocalAnswer:
    trail, pieces, prefix = SignalTrail(), [], None
    times: list[float] = []
    started = perf_counter()
    generation = generate(runner, tokenizer, prompt, example.request.sampling, signals=True)
    for emitted in generation:
        times.append(perf_counter() - started)
        if len(trail) == prefix_tokens:
            prefix = trail.read()
        trail.push(emitted)
        pieces.append(emitted.text)
    text = "".join(pieces)
    return LocalAnswer(
        id=example.id,
        text=text,
        finish=generation.finish or "cancelled",
        right=is_right(text, example.answers, example.grading, example.choices),
        signals=trail.read(),
        prefix=prefix,
        prompt_tokens=len(prompt),
        seconds_to_first=times[0],
        seconds=times[-1],
        prefix_seconds=None if prefix is None else times[prefix_tokens - 1],
    )


def _keep(store: Path | None, kept: Kept | KeptCloud) -> None:
    """Append a line to the store, if there is one."""
    if store:
        with writing(store, kind=RouteError):
            add_line(store, to_json(kept), mend=True)


def _open_store(path: Path, kind: type[K]) -> dict[str, Any]:
    """Read a store by key, and create it if it does not exist.

    A last line without its line break is skipped: it is still being written, or was cut off.
    """
    with writing(path, kind=RouteError):
        make_parent(path)
        content = read_lines(path)
    # Appending removes an incomplete last line, so it must be the start of one of ours.
    with open_plain(path, error=RouteError) as file:
        begins = file.read(len(_OURS)) or b""
    if not content and not _OURS.startswith(begins):
        raise RouteError(f"{path}: not a file of collected answers", "pass a new file as `store`")
    return _parse_store(path, content, kind)


def _parse_store(path: Path, content: bytes, kind: type[K]) -> dict[str, Any]:
    found = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            kept = from_json(kind, line.decode("utf-8"))
        except ValueError as error:
            hint = "the file does not hold collected answers, or those of another edgekit: pass a new file as `store`"
            raise RouteError(f"{path}:{number}: {error}", hint) from error
        found[kept.key] = kept.answer
    return found
