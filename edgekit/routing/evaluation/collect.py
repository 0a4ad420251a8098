"""What the bundle, and others that are asked, make of questions with known answers: evidence for the router."""

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
"""How every line of a store begins."""

PREFIX_TOKENS = 16
"""Tokens after which an answer may be given up."""


@dataclass(frozen=True)
class Asked:
    """All of an example that its answer, and whether that is right, depend on; and its id."""

    id: str
    messages: tuple[Message, ...]
    prompt: str
    sampling: Sampling
    answers: tuple[str, ...]
    grading: Grading
    choices: tuple[str, ...]

    @classmethod
    def of(cls, example: Example) -> Self:
        """Without what a router adds to the request."""
        request = example.request
        return cls(
            example.id,
            request.messages,
            request.prompt,
            request.sampling,
            example.answers,
            example.grading,
            example.choices,
        )


@dataclass(frozen=True)
class Kept:
    """One line of the file that collecting goes on from. ``key`` is of everything that makes the answer what it is."""

    key: str
    answer: LocalAnswer


@dataclass(frozen=True)
class KeptCloud:
    """The same of an endpoint's answer."""

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

    Conversations go through the chat template; each prompt starts with an empty cache, so that times are those of a
    question that comes alone.

    Args:
        bundle: the opened bundle.
        examples: at least one.
        prefix_tokens: how many first tokens have signals of their own.
        threads: as in load_runner.
        store: a file that every answer is added to at once, and where answers are taken from that this bundle has
            given to the same example before, in this edgekit and runtime and on this processor. An interrupted run goes
            on where it was.
        progress: hears of every example.

    Returns:
        One answer for each example, in their order.

    Raises:
        RouteError: no examples, a conversation for a model without chat template, or ``store`` is another kind of file.
        RunError: the bundle does not run here, or a prompt does not fit its context.
    """
    if not examples:
        raise RouteError("no examples to answer", "give at least one")
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
    """Put every example to an endpoint, one after another, so that times are those of a question that comes alone.

    Args:
        ask: asks it; its errors end the collecting.
        examples: what to ask.
        whom: all that its answers depend on besides the example: address and model.
        store: a file that every answer is added to at once, and where answers are taken from that ``whom`` has given to
            the same example before: nothing is paid for twice.
        progress: hears of every example.

    Raises:
        RouteError: ``store`` is another kind of file.
    """
    known = _open_store(store, KeptCloud) if store else {}
    answers = []
    for done, example in enumerate(examples):
        progress("answers of the cloud", done, len(examples), "examples")
        key = sha256(f"{whom} {to_json(Asked.of(example))}".encode()).hexdigest()
        answer = known.get(key)
        if answer is None:
            answer = ask(example)
            _keep(store, KeptCloud(key, answer))
        answers.append(answer)
    progress("answers of the cloud", len(examples), len(examples), "examples")
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
    """Let another bundle say how likely it finds each answer; what it takes is added to the answer's seconds.

    Args:
        second: the other bundle, opened.
        examples: what was asked.
        answers: of the first bundle, in their order.
        threads: as in load_runner.
        store: as in collect_local; the same file will do.
        progress: hears of every example.

    Raises:
        RouteError: ``store`` is another kind of file.
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
    """The answers in a ``store`` of collect_local, the last one of each example.

    Raises:
        RouteError: there is no such file, or it is of another kind.
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
            'it can only continue texts: give a "prompt" with "raw": true',
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
    """Add a line to the store, if there is one."""
    if store:
        with writing(store, kind=RouteError):
            add_line(store, to_json(kept), mend=True)


def _open_store(path: Path, kind: type[K]) -> dict[str, Any]:
    """What the file holds, by key; it is made if it is not there.

    A last line without its end is left out: it is being written, or was cut off.
    """
    with writing(path, kind=RouteError):
        make_parent(path)
        content = read_lines(path)
    # What is no line yet is cut off when one is added: that may only be the beginning of one of ours.
    with open_plain(path, error=RouteError) as file:
        begins = file.read(len(_OURS)) or b""
    if not content and not _OURS.startswith(begins):
        raise RouteError(f"{path}: not a file of collected answers", "give the name of a new file")
    return _parse_store(path, content, kind)


def _parse_store(path: Path, content: bytes, kind: type[K]) -> dict[str, Any]:
    found = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            kept = from_json(kind, line.decode("utf-8"))
        except ValueError as error:
            hint = "it is not a file of collected answers, or of another edgekit: give a new one"
            raise RouteError(f"{path}:{number}: {error}", hint) from error
        found[kept.key] = kept.answer
    return found
