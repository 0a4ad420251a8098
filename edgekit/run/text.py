"""The bundle's tokenizer, which encodes and decodes text, and its chat template."""

from __future__ import annotations

import re
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any

import tokenizers

from edgekit.errors import BundleError, RunError
from edgekit.run.reach import find_reach
from edgekit.strangers import parse_json, parse_text, read_plain
from edgekit.strangers.cell import Cell
from edgekit.strangers.tokenizer_file import MAX_BYTES, check_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from edgekit.types import Bundle, Checkpoint

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LONG = 2000
"""Characters from which encoding releases the interpreter lock for other threads; shorter texts take under 2 ms."""

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")

RENDER_SECONDS = 2.0
"""Maximum CPU time of a chat template for one conversation; typical ones take a thousandth."""

ENCODE_SECONDS = 10.0
"""Maximum CPU time of a tokenizer in a cell for one text."""

MAX_CONFIG = 16 << 20
MAX_TEMPLATE = 1 << 20
"""Maximum bytes of a tokenizer's settings, and of a chat template."""

_REBUILD = "rebuild the bundle with `edgekit build`"
_OTHER_MESSAGES = "change the messages, or use another model: the template is part of the model"


class Tokenizer:
    """The tokenizer, chat template and end tokens of a bundle.

    Chat templates run in a cell (see cell.py), and so does encoding if tokenizer.json has regular expressions whose
    running time is not bounded.
    """

    def __init__(
        self,
        codec: tokenizers.Tokenizer,
        *,
        template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
        eos_ids: Iterable[int] = (),
        encoder: Cell | None = None,
    ) -> None:
        """Args: the tokenizer, its chat template, the named special tokens a template may use, the end tokens.

        ``encoder`` is a cell with the same tokenizer, if texts must not be encoded in this process.
        """
        self.eos_ids = frozenset(eos_ids)
        self._codec = codec
        self._template = template
        self._special_tokens = dict(special_tokens or {})
        self._encoder = encoder
        self._renderer = Cell()
        added = codec.get_added_tokens_decoder()
        self._special = {i: token.content for i, token in added.items() if token.special}
        self._byte_ids = frozenset(i for text, i in codec.get_vocab().items() if BYTE_TOKEN.fullmatch(text))

    @classmethod
    def of(cls, bundle: Bundle) -> Tokenizer:
        """The tokenizer of a bundle. Raises BundleError if one of its files is missing or invalid."""
        path = bundle.path / "tokenizer.json"
        data = read_plain(path, MAX_BYTES, error=BundleError, within=(bundle.path,))
        codec, encoder = _open_codec(data, str(path))
        config = _read_json(bundle.path, "tokenizer_config.json")
        eos = {*bundle.manifest.spec.eos_token_ids, *_read_stops(bundle.path)}
        return cls(
            codec,
            template=chat_template(bundle),
            special_tokens=_named_tokens(config, str(bundle.path / "tokenizer_config.json")),
            eos_ids=eos,
            encoder=encoder,
        )

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> Tokenizer:
        """The tokenizer that the bundles of a checkpoint have. Raises BundleError if one of its files is invalid."""
        whose = f"{checkpoint.provenance.id}: "
        codec, encoder = _open_codec(checkpoint.file("tokenizer.json") or b"", whose + "tokenizer.json")
        where, template = whose + "tokenizer_config.json", checkpoint.file("chat_template.jinja")
        config = parse_json(checkpoint.file("tokenizer_config.json") or b"{}", where, error=BundleError)
        return cls(
            codec,
            template=template.decode() if template else _configured_template(config, where),
            special_tokens=_named_tokens(config, where),
            eos_ids=checkpoint.spec.eos_token_ids,
            encoder=encoder,
        )

    def special_id(self, text: str) -> int | None:
        """The id of a special token, None if the tokenizer has no such token."""
        return next((i for i, content in self._special.items() if content == text), None)

    def prepare_chat(self) -> None:
        """Start the template's cell in the background, so that the first conversation need not wait for it."""
        if self._template is not None:
            self._renderer.start()

    def apart(self) -> Tokenizer:
        """A copy with a separate cell for templates, so that a long rendering does not block users of this one."""
        other = copy(self)
        other._renderer = Cell()
        return other

    @property
    def has_chat_template(self) -> bool:
        """Whether the model was made for conversations."""
        return self._template is not None

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text; ``special`` adds the tokenizer's own tokens, such as BOS.

        Raises:
            RunError: the tokenizer cannot encode the text, or takes too long.
        """
        what, hint = "the model's tokenizer rejects this text", "change the text, or use another model"
        if self._encoder is not None:
            request = {"do": "encode", "text": text, "special": special}
            answer = self._encoder.ask(request, seconds=ENCODE_SECONDS, what=what, error=RunError, hint=hint)
            return list(answer["ids"])
        try:
            if len(text) > LONG:
                # Only batches release the interpreter lock: a megabyte takes seconds.
                return list(self._codec.encode_batch_fast([text], add_special_tokens=special)[0].ids)
            return list(self._codec.encode(text, add_special_tokens=special).ids)
        except BaseException as error:
            raise _translate(error, what, hint) from error

    @cached_property
    def reach(self) -> int | None:
        """The maximum bytes of text per token; None if unknown."""
        return find_reach(self._codec)

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Text of token ids; ``special`` includes special tokens."""
        return str(self._codec.decode(list(ids), skip_special_tokens=not special))

    def stream(self) -> TextStream:
        """A new incremental decoder."""
        return TextStream(self._codec, special=self._special, byte_tokens=self._byte_ids)

    def render_chat(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation as the model's prompt, like transformers' apply_chat_template.

        Args:
            messages: mappings with ``role`` and ``content``.
            add_generation_prompt: end with the opening of the model's answer.

        Raises:
            RunError: there is no chat template, or it rejects the messages, takes too long or writes too much.
        """
        if self._template is None:
            raise RunError(
                "the model has no chat template, so it cannot hold conversations",
                hint="pass a prompt to continue instead",
            )
        answer = self._renderer.ask(
            {
                "do": "render",
                "template": self._template,
                "values": {
                    **self._special_tokens,
                    "messages": [dict(message) for message in messages],
                    "tools": None,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                },
                "letters": MAX_TEMPLATE + 4 * sum(len(str(value)) for m in messages for value in m.values()),
            },
            seconds=RENDER_SECONDS,
            what="the chat template rejects these messages",
            error=RunError,
            hint=_OTHER_MESSAGES,
        )
        return str(answer["text"])


class TextStream:
    """Decodes tokens incrementally: returns text as soon as no later token can change it.

    The concatenated output equals decoding all tokens at once without the special ones. Only tokens since the text
    before last are decoded again, so the cost per token does not depend on the length. Two windows of tokens are
    compared because the text of a token depends on whether it comes first.
    """

    def __init__(self, codec: tokenizers.Tokenizer, *, special: Mapping[int, str], byte_tokens: frozenset[int]) -> None:
        self._codec = codec
        self._special = special
        self._byte_tokens = byte_tokens
        self._before: list[int] = []
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """Add a token; return the text that is now final, possibly "" while a character is incomplete."""
        if token in self._special:
            return ""
        self._pending.append(token)
        # A run of byte tokens is one unit: if it is invalid UTF-8, each of its bytes becomes U+FFFD.
        return "" if token in self._byte_tokens else self._take(final=False)

    def mark(self, token: int) -> tuple[str, str]:
        """Before adding a token, return the text before it, and the token's own text if it is special.

        The text before a special token is final even if it ends in byte tokens, unless a character is incomplete.
        """
        mark = self._special.get(token, "")
        return (self._take(final=False), mark) if mark and self._pending else ("", mark)

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


def chat_template(bundle: Bundle) -> str | None:
    """A bundle's chat template, from chat_template.jinja or tokenizer_config.json (a text or a list of named ones).

    Raises:
        BundleError: a file is missing or invalid.
    """
    folder = bundle.path
    path = folder / "chat_template.jinja"
    if path.exists():
        data = read_plain(path, MAX_TEMPLATE, error=BundleError, within=(folder,))
        return parse_text(data, str(path), error=BundleError)
    return _configured_template(_read_json(folder, "tokenizer_config.json"), str(folder / "tokenizer_config.json"))


def _configured_template(config: Mapping[str, Any], where: str) -> str | None:
    """The template in tokenizer_config.json, which may be one or a list of named ones."""
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    if template is not None and (not isinstance(template, str) or len(template) > MAX_TEMPLATE):
        raise BundleError(f"{where}: 'chat_template' is not a template", _REBUILD)
    return template


def _open_codec(data: bytes, where: str) -> tuple[tokenizers.Tokenizer, Cell | None]:
    """A tokenizer, and a cell for encoding if the running time of its regular expressions is not bounded."""
    plain = check_tokenizer(data, where, error=BundleError).plain
    text = data.decode("utf-8")
    encoder = None if plain else Cell({"do": "open_tokenizer", "text": text})
    if encoder is not None:
        encoder.open(what=f"{where} cannot be opened", error=BundleError, hint=_REBUILD)
    try:
        codec = tokenizers.Tokenizer.from_str(text)
    except BaseException as error:
        raise BundleError(_translate(error, f"{where} cannot be opened", "").message, _REBUILD) from error
    # Never truncate or pad, whatever the file says, as in transformers and llama.cpp.
    codec.no_truncation()
    codec.no_padding()
    return codec, encoder


def _translate(error: BaseException, what: str, hint: str) -> RunError:
    """Turn an error of tokenizers, whose panics are not Exceptions, into a RunError; re-raise interrupts."""
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError)):
        raise error
    return RunError(f"{what}: {' '.join(str(error).split())[:200]}", hint)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    data = read_plain(folder / name, MAX_CONFIG, error=BundleError, within=(folder,))
    return parse_json(data, str(folder / name), error=BundleError)


def _read_stops(folder: Path) -> list[int]:
    """The end tokens of generation_config.json."""
    stops = _read_json(folder, "generation_config.json").get("eos_token_id")
    ids = stops if isinstance(stops, list) else [] if stops is None else [stops]
    if not all(type(i) is int for i in ids):
        raise BundleError(f"{folder / 'generation_config.json'}: 'eos_token_id' is not a token id", _REBUILD)
    return ids


def _own_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens that only this model has a name for, which transformers gives to a template too."""
    extra = config.get("extra_special_tokens")
    named = {name: token for name, token in config.items() if name.endswith("_token")}
    named |= extra if isinstance(extra, dict) else {}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in named.items()}
    return {name: text for name, text in texts.items() if name.isidentifier() and isinstance(text, str)}


def _named_tokens(config: Mapping[str, Any], where: str) -> dict[str, str]:
    """The special tokens that a template may use, by name."""
    known = {name: _token_text(where, name, config[name]) for name in SPECIAL_TOKENS if config.get(name)}
    return _own_names(config) | known


def _token_text(where: str, name: str, token: object) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise BundleError(f"{where}: '{name}' is not a token", _REBUILD)
    return text
