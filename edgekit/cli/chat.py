"""``edgekit run``: one answer, or a conversation at the terminal."""

from __future__ import annotations

import sys
from time import perf_counter
from typing import TYPE_CHECKING

from edgekit.cli import console
from edgekit.cli.documents import Answer, Token
from edgekit.errors import ConfigError

if TYPE_CHECKING:
    from edgekit.run import Chat
    from edgekit.types import Bundle, Sampling

LONGEST = 10_000_000
"""Bytes of a prompt on stdin."""
WELCOME = "Ctrl-C stops an answer, Ctrl-D or /exit leaves; /reset forgets; /system TEXT sets the system message."


def answer(
    bundle: Bundle,
    prompt: str,
    sampling: Sampling,
    *,
    system: str | None = None,
    raw: bool = False,
    threads: int | None = None,
    context: int | None = None,
    signals: bool = False,
    streamed: bool = True,
    lookup: bool | None = None,
    small_memory: bool = False,
) -> Answer:
    """Answer one prompt, printing the text as it comes unless ``streamed`` is False.

    Raises:
        RunError: the prompt does not fit, or the bundle cannot run here.
    """
    from edgekit.run import Tokenizer, generate, load_runner

    tokenizer = Tokenizer.of(bundle)
    if not (raw or tokenizer.has_chat_template):
        console.note("this model has no chat template: it continues the prompt as it is")
        raw = True
    messages = [{"role": "system", "content": system}] if system is not None else []
    text = prompt if raw else tokenizer.render_chat([*messages, {"role": "user", "content": prompt}])
    ids = tokenizer.encode(text, special=raw)
    runner = load_runner(bundle, threads=threads, context=context, small_memory=small_memory)
    start = perf_counter()
    tokens, pieces = [], []
    generation = generate(runner, tokenizer, ids, sampling, signals=signals, lookup=lookup)
    try:
        for emitted in generation:
            pieces.append(emitted.text)
            tokens.append(Token.of(emitted, tokenizer.decode([emitted.token])))
            if streamed:
                console.stream(emitted.text)
    except KeyboardInterrupt:
        generation.close()
    finally:
        runner.close()
    if streamed:
        console.stream("\n")
    return Answer(
        text="".join(pieces),
        finish=generation.finish or "cancelled",
        prompt_tokens=len(ids),
        new_tokens=len(tokens),
        seconds=perf_counter() - start,
        drafted=generation.drafted,
        accepted=generation.accepted,
        tokens=tuple(tokens) if signals else (),
    )


def piped_prompt(*, raw: bool) -> str:
    """The whole of stdin as one prompt; unless ``raw``, without the line end that a shell puts behind it.

    Raises:
        ConfigError: there is nothing in it, too much of it, or something that is not text.
    """
    # Bytes: reading text would turn the line ends of other systems into this one's.
    data = sys.stdin.buffer.read(LONGEST + 1) if sys.stdin else b""
    if len(data) > LONGEST:
        raise ConfigError(f"stdin holds more than {LONGEST:,} bytes", "no model reads as much: give a part of it")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"stdin is not UTF-8: byte {error.start}", "convert it: iconv -t UTF-8") from error
    if not raw:
        text = text.removesuffix("\n").removesuffix("\r")
    if not text or not (raw or text.strip()):
        raise ConfigError("stdin holds no prompt", 'give one: edgekit run BUNDLE "prompt"')
    return text


def converse(
    bundle: Bundle,
    sampling: Sampling,
    *,
    system: str | None,
    threads: int | None,
    context: int | None,
    lookup: bool | None = None,
    small_memory: bool = False,
) -> None:
    """Chat until the person leaves. Ctrl-C ends an answer or clears a line, not the chat."""
    import readline  # noqa: F401  # gives input() history and editing

    from edgekit.run import Chat

    console.note(WELCOME)
    chat = Chat(
        bundle,
        threads=threads,
        context=context,
        sampling=sampling,
        system=system,
        lookup=lookup,
        small_memory=small_memory,
    )
    while True:
        try:
            word, _, rest = input("> ").strip().partition(" ")
            if word == "/exit":
                break
            if word == "/system":
                chat.close()
                chat = Chat(
                    bundle,
                    threads=threads,
                    context=context,
                    sampling=sampling,
                    system=rest or None,
                    lookup=lookup,
                    small_memory=small_memory,
                )
                console.note("a new conversation with this system message" if rest else "no system message")
            elif word:
                _take(chat, word, rest)
        except EOFError:
            console.stream("\n")
            break
        except KeyboardInterrupt:
            console.stream("\n")
    chat.close()


def _take(chat: Chat, word: str, rest: str) -> None:
    """Do what one line says; a line that is no command is a question."""
    if word == "/reset":
        chat.reset()
        console.note("forgotten")
    elif word.startswith("/"):
        console.note(WELCOME)
    else:
        _reply(chat, f"{word} {rest}".strip())


def _reply(chat: Chat, text: str) -> None:
    pieces = chat.ask(text)
    try:
        for piece in pieces:
            console.stream(piece)
    except KeyboardInterrupt:
        console.stream(" ...")
    console.stream("\n\n")
    if chat.finish == "context":
        console.note("the context is full: /reset starts a new conversation")
