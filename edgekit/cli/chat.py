"""``edgekit run``: one answer, or a conversation at the terminal."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from edgekit.cli import console
from edgekit.cli.documents import Answer, Token
from edgekit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekit.lab.remote import Answering
    from edgekit.run import Chat, Generation, Tokenizer
    from edgekit.types import Bundle, Sampling

LONGEST = 10_000_000
"""Bytes of a prompt on stdin."""
WELCOME = "Ctrl-C stops an answer; /reset starts over; /system TEXT sets the system message; /exit or Ctrl-D quits."


@dataclass(frozen=True)
class Session:
    """A bundle and how to run it; the fields are the options of ``edgekit run``."""

    bundle: Bundle
    sampling: Sampling
    system: str | None
    threads: int | None
    context: int | None
    lookup: bool | None
    small_memory: bool
    on: str | None = None

    def answer(self, prompt: str, *, raw: bool, signals: bool, streamed: bool) -> Answer:
        """Answer one prompt, printing the text as it comes if ``streamed``.

        Raises:
            RunError: the prompt does not fit, or the bundle cannot run here.
        """
        from edgekit.run import Tokenizer

        tokenizer = Tokenizer.of(self.bundle)
        if not (raw or tokenizer.has_chat_template):
            console.note("this model has no chat template: it continues the prompt as it is")
            raw = True
        messages = [{"role": "system", "content": self.system}] if self.system is not None else []
        text = prompt if raw else tokenizer.render_chat([*messages, {"role": "user", "content": prompt}])
        ids = tokenizer.encode(text, special=raw)
        tokens, pieces = [], []
        with self._generating(tokenizer, ids, signals=signals) as generation:
            start = perf_counter()
            try:
                for emitted in generation:
                    pieces.append(emitted.text)
                    tokens.append(Token.of(emitted, tokenizer.decode([emitted.token])))
                    if streamed:
                        console.stream(emitted.text)
            except KeyboardInterrupt:
                generation.close()
            seconds = perf_counter() - start
        if streamed:
            console.stream("\n")
        return Answer(
            text="".join(pieces),
            finish=generation.finish or "cancelled",
            prompt_tokens=len(ids),
            new_tokens=len(tokens),
            seconds=seconds,
            drafted=generation.drafted,
            accepted=generation.accepted,
            tokens=tuple(tokens) if signals else (),
        )

    @contextmanager
    def _generating(self, tokenizer: Tokenizer, ids: list[int], *, signals: bool) -> Iterator[Generation | Answering]:
        """Load the model, here or on the device, and begin an answer."""
        if self.on is None:
            from edgekit.run import generate, load_runner

            with closing(
                load_runner(self.bundle, threads=self.threads, context=self.context, small_memory=self.small_memory)
            ) as runner:
                yield generate(runner, tokenizer, ids, self.sampling, signals=signals, lookup=self.lookup)
            return
        from edgekit.cli.progress import Bars
        from edgekit.lab.remote import answering_on

        with ExitStack() as held:
            with Bars() as progress:
                answer = held.enter_context(
                    answering_on(
                        self.on,
                        self.bundle,
                        tokenizer,
                        ids,
                        self.sampling,
                        threads=self.threads,
                        small_memory=self.small_memory,
                        progress=progress,
                    )
                )
            yield answer

    def converse(self) -> None:
        """Chat until the user quits. Ctrl-C ends an answer or clears a line, not the chat."""
        import readline  # noqa: F401  # gives input() history and editing

        console.note(WELCOME)
        chat = self._chat(self.system)
        while True:
            try:
                word, _, rest = input("> ").strip().partition(" ")
                if word == "/exit":
                    break
                if word == "/system":
                    chat.close()
                    chat = self._chat(rest or None)
                    console.note("new conversation with this system message" if rest else "no system message")
                elif word:
                    _take(chat, word, rest)
            except EOFError:
                console.stream("\n")
                break
            except KeyboardInterrupt:
                console.stream("\n")
        chat.close()

    def _chat(self, system: str | None) -> Chat:
        from edgekit.run import Chat

        return Chat(
            self.bundle,
            threads=self.threads,
            context=self.context,
            sampling=self.sampling,
            system=system,
            lookup=self.lookup,
            small_memory=self.small_memory,
        )


def require_possible(
    device: str | None, prompt: str | None, *, context: int | None, lookup: bool | None, signals: bool
) -> None:
    """Raise ConfigError for what cannot be done on another device."""
    if device is None:
        return
    if prompt is None and sys.stdin and sys.stdin.isatty():
        raise ConfigError(
            "--on answers one prompt, and there is none", 'pass one: edgekit run BUNDLE --on ... "prompt"'
        )
    given = {"--context": context is not None, "--lookup": lookup is not None, "--signals": signals}
    if name := next((name for name, is_given in given.items() if is_given), ""):
        raise ConfigError(f"{name} does not apply to --on", f"drop {name}, or run it on this machine")


def piped_prompt(*, raw: bool) -> str:
    """All of stdin as one prompt; without the final newline that a shell adds, unless ``raw``.

    Raises:
        ConfigError: stdin is empty, too long, or not UTF-8.
    """
    # Bytes: reading text would translate line endings.
    data = sys.stdin.buffer.read(LONGEST + 1) if sys.stdin else b""
    if len(data) > LONGEST:
        raise ConfigError(f"stdin holds more than {LONGEST:,} bytes", "pass a shorter prompt")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"stdin is not UTF-8: byte {error.start}", "convert it: iconv -t UTF-8") from error
    if not raw:
        text = text.removesuffix("\n").removesuffix("\r")
    if not text or not (raw or text.strip()):
        raise ConfigError("stdin holds no prompt", 'pass one: edgekit run BUNDLE "prompt"')
    return text


def _take(chat: Chat, word: str, rest: str) -> None:
    """Run one line of input: a command, or else a question."""
    if word == "/reset":
        chat.reset()
        console.note("new conversation")
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
