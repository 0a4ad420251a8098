"""Text to tokens and back with the bundle's own tokenizer, and its chat template."""

from __future__ import annotations

import json
import re
from datetime import datetime
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.ext
import tokenizers
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgekit.errors import BundleError, RunError
from edgekit.run.reach import find_reach

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from jinja2.parser import Parser

    from edgekit.types import Bundle

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LONG = 2000
"""Characters of a text during whose cutting into tokens others may want to go on: two milliseconds."""

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Tokenizer:
    """tokenizer.json, the chat template and the end-of-text tokens of a bundle."""

    def __init__(
        self,
        codec: tokenizers.Tokenizer,
        *,
        template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
        eos_ids: Iterable[int] = (),
    ) -> None:
        """Args: the tokenizer, its chat template, the named special tokens a template may use, the end tokens."""
        self.eos_ids = frozenset(eos_ids)
        self._codec = codec
        self._template = template
        self._special_tokens = dict(special_tokens or {})
        added = codec.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self._byte_ids = frozenset(i for text, i in codec.get_vocab().items() if BYTE_TOKEN.fullmatch(text))

    @classmethod
    def of(cls, bundle: Bundle) -> Tokenizer:
        """The tokenizer of a bundle. Raises BundleError where a file of it is missing or not valid."""
        path = bundle.path / "tokenizer.json"
        try:
            codec = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{path}: {error}", hint="rebuild the bundle with `edgekit build`") from error
        config = _read_json(bundle.path / "tokenizer_config.json")
        stops = _read_json(bundle.path / "generation_config.json").get("eos_token_id")
        eos = set(bundle.manifest.spec.eos_token_ids)
        eos.update([stops] if isinstance(stops, int) else stops or [])
        named = {name: _token_text(config[name]) for name in SPECIAL_TOKENS if config.get(name)}
        return cls(codec, template=chat_template(bundle), special_tokens=named, eos_ids=eos)

    @property
    def has_chat_template(self) -> bool:
        """Whether the model was made for conversations."""
        return self._template is not None

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text; ``special`` adds what the tokenizer puts around it, such as a first token."""
        if len(text) > LONG:
            # Only batches let other threads go on meanwhile: a megabyte takes seconds.
            return list(self._codec.encode_batch_fast([text], add_special_tokens=special)[0].ids)
        return list(self._codec.encode(text, add_special_tokens=special).ids)

    @cached_property
    def reach(self) -> int | None:
        """Most bytes of text that one token stands for; None where that cannot be told."""
        return find_reach(self._codec)

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Text of token ids; ``special`` writes special tokens out instead of leaving them out."""
        return str(self._codec.decode(list(ids), skip_special_tokens=not special))

    def stream(self) -> TextStream:
        """A new incremental decoder."""
        return TextStream(self._codec, skipped=self._special_ids, byte_tokens=self._byte_ids)

    def render_chat(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the text the model expects, rendered as transformers' apply_chat_template does.

        Args:
            messages: mappings with ``role`` and ``content``.
            add_generation_prompt: end with the opening of the model's answer.

        Raises:
            RunError: there is no chat template, or it refuses the messages.
        """
        if self._template is None:
            raise RunError(
                "the model has no chat template: it was not made for conversations",
                hint="give a prompt to continue instead",
            )
        try:
            return _compile(self._template).render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )  # fmt: skip
        except jinja2.TemplateError as error:
            raise RunError(f"the chat template refuses these messages: {error}") from error


class TextStream:
    """Token ids in, text out as soon as no later token can change it.

    What it gave, joined, equals the decoding of all tokens at once with the special ones left out. Only the
    tokens since the text before last are decoded again, so a token costs the same however long the text is.
    Two token windows are compared because the text of a token depends on whether it is the first.
    """

    def __init__(self, codec: tokenizers.Tokenizer, *, skipped: frozenset[int], byte_tokens: frozenset[int]) -> None:
        self._codec = codec
        self._skipped = skipped
        self._byte_tokens = byte_tokens
        self._before: list[int] = []
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """Add a token; return the text that became final, possibly "" while a character is incomplete."""
        if token in self._skipped:
            return ""
        self._pending.append(token)
        # A run of byte tokens is one unit: if it ends as invalid UTF-8, each of its bytes becomes U+FFFD.
        return "" if token in self._byte_tokens else self._take(final=False)

    def finish(self) -> str:
        """The rest of the text. Incomplete characters become U+FFFD, as in the full decoding."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        known = self._codec.decode(self._before, skip_special_tokens=False)
        text = self._codec.decode(self._before + self._pending, skip_special_tokens=False)
        fresh = str(text[len(known) :])
        if not final and (not fresh or fresh.endswith("\ufffd")):
            return ""
        self._before, self._pending = self._pending, []
        return fresh


class _Generation(jinja2.ext.Extension):
    """``{% generation %}``: marks the model's part of a conversation for training; renders its body."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it a plain class attribute)

    def parse(self, parser: Parser) -> nodes.Node:
        """Turn the block into a scope of its own."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


@lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    """A template made ready once: that takes longer than rendering it."""
    return _environment().from_string(template)


def _environment() -> ImmutableSandboxedEnvironment:
    """The sandbox of transformers.utils.chat_template_utils: a template is code from wherever the model is from."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: {error}", hint="rebuild the bundle with `edgekit build`") from error
    return content if isinstance(content, dict) else {}


def _token_text(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def chat_template(bundle: Bundle) -> str | None:
    """A bundle's: chat_template.jinja, else tokenizer_config.json's, one text or a list of named ones.

    Raises:
        BundleError: tokenizer_config.json is missing or not valid.
    """
    path = bundle.path / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = _read_json(bundle.path / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        template = next((t["template"] for t in template if t["name"] == "default"), None)
    return template
