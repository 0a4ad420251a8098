"""Merge tokens declared outside tokenizer.json into it, with the ids that transformers' AutoTokenizer assigns.

A folder declares tokens in up to four files. They are combined as PreTrainedTokenizerBase._from_pretrained and
TokenizersBackend.__init__ do (transformers 4.57 and 5): the tokens of added_tokens_decoder, or else of
added_tokens.json, in id order; then special tokens that are only named. This works on JSON alone, no tokenizer is
loaded. ``oracle.try_tokenizer`` compares the ids with those of the ``tokenizers`` package.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgekit.errors import SourceError
from edgekit.source.fields import Fields, shown
from edgekit.strangers.tokenizer_file import MAX_ID, MAX_TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The named special tokens: SPECIAL_TOKENS_ATTRIBUTES of transformers."""

_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_GPT2 = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
_QWEN2 = {"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
_OF_CLASSES = {"Llama": _LLAMA, "CodeLlama": _LLAMA, "GPT2": _GPT2, "Qwen2": _QWEN2}
"""Default special tokens by tokenizer class: the defaults of transformers' constructors."""

_LISTS = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class TokenFiles:
    """The files that declare tokens outside tokenizer.json, checked by ``require_tokens``.

    ``settings`` is tokenizer_config.json, ``named`` special_tokens_map.json, ``added`` added_tokens.json; {} for a
    missing file.
    """

    settings: Mapping[str, Any]
    named: Mapping[str, Any]
    added: Mapping[str, Any]

    def combined(self) -> dict[str, Any]:
        """tokenizer_config.json as transformers completes it.

        special_tokens_map.json wins, unless the settings list the added tokens themselves.
        """
        settings = dict(self.settings)
        if "added_tokens_decoder" in settings:
            return settings
        for key, value in self.named.items():
            known = settings.get(key)
            if isinstance(value, list) and isinstance(known, list):
                value = [*known, *(token for token in value if token not in known)]  # noqa: PLW2901
            settings[key] = value
        return settings

    def with_implied(self, document: Mapping[str, Any]) -> TokenFiles:
        """Add the default special tokens of the tokenizer class for names that are not set.

        Only tokens that are in ``document``, a checked tokenizer.json, are added.
        """
        said = self.combined()
        name = str(said.get("tokenizer_class") or "").removesuffix("Fast").removesuffix("Tokenizer")
        unsaid = {key: text for key, text in _OF_CLASSES.get(name, {}).items() if key not in said}
        if not unsaid:
            return self
        known = {entry["content"] for entry in document.get("added_tokens") or []} | _vocabulary(document).keys()
        return replace(self, settings={**self.settings, **{k: text for k, text in unsaid.items() if text in known}})


def require_tokens(values: Mapping[str, Any], where: str) -> None:
    """Raise SourceError for entries of tokenizer_config.json or special_tokens_map.json that are not tokens."""
    fields = Fields(values, where)
    for key in NAMED:
        if values.get(key) is not None and _content(values[key]) is None:
            raise fields.error(key, values[key], "a token")
    for key in _LISTS:
        tokens = values.get(key)
        listed = list(tokens.values()) if isinstance(tokens, dict) else tokens
        if listed is not None and not (isinstance(listed, list) and all(_content(t) is not None for t in listed)):
            raise fields.error(key, tokens, "a list of tokens")
    decoder = values.get("added_tokens_decoder")
    if decoder is not None and not (
        isinstance(decoder, dict)
        and all(key.isascii() and key.isdigit() and int(key) < MAX_ID for key in decoder if len(key) < 10)
        and all(len(key) < 10 and isinstance(token, dict) and _content(token) for key, token in decoder.items())
    ):
        raise fields.error("added_tokens_decoder", decoder, "an object of tokens by their ids")


def require_added(added: Mapping[str, Any], where: str) -> None:
    """Raise SourceError for an added_tokens.json that does not map tokens to ids."""
    for token, i in added.items():
        if len(token) > MAX_TOKEN or not token or type(i) is not int or not 0 <= i < MAX_ID:
            raise SourceError(
                f"{where}: token {shown(token)} has the invalid id {shown(i)}", f"correct the id in {where}"
            )


def add_tokens(document: Mapping[str, Any], files: TokenFiles, rows: int, where: str) -> list[dict[str, Any]]:
    """The ``added_tokens`` of a tokenizer.json, completed with those that its folder declares.

    Args:
        document: a tokenizer.json, checked (tokenizer_file.check_tokenizer).
        files: the other token files of the folder.
        rows: rows of the embedding. A padding token without a row is skipped, since text never contains it; so is a
            special token that is only named.
        where: name of the tokenizer in messages.

    Raises:
        SourceError: a declared id belongs to another token, differs from the token's own, or leaves a gap.
    """
    entries = {entry["content"]: dict(entry) for entry in document.get("added_tokens") or []}
    model = _vocabulary(document)
    owners = {i: token for token, i in model.items()} | {entry["id"]: token for token, entry in entries.items()}
    following = max(len(model), max((entry["id"] for entry in entries.values()), default=-1) + 1)
    settings = files.combined()
    for token, said in _declared(files, settings, entries):
        text = token["content"]
        i = entries[text]["id"] if text in entries else model.get(text)
        if i is None and said is None:
            if following >= rows:
                continue
        elif i is None and said is not None:
            if said >= rows and text == _content(settings.get("pad_token")):
                continue
            if said in owners:
                raise _contradiction(where, text, said, f"which is {shown(owners[said])} in tokenizer.json")
            if said != following:
                raise _contradiction(where, text, said, f"but the next free id is {following}")
        elif said not in (None, i):
            raise _contradiction(where, text, said, f"but {i} in tokenizer.json")
        if i is None:
            i, following = following, following + 1
        owners[i] = text
        entries[text] = {"id": i, **token}
    return sorted(entries.values(), key=lambda entry: int(entry["id"]))


def _declared(
    files: TokenFiles, settings: Mapping[str, Any], known: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], int | None]]:
    """Yield the tokens to add with their declared ids, in the order in which transformers adds them."""
    special = {_content(token): token for token in _special(settings)}
    decoder = settings.get("added_tokens_decoder")
    if decoder is not None:
        given = [(int(key), _entry(token["content"], token)) for key, token in decoder.items()]
    else:
        flags = ({"special": text in special, "normalized": text not in special} for text in files.added)
        given = [(i, _entry(text, flag)) for (text, i), flag in zip(files.added.items(), flags, strict=True)]
        # tokenizer.json takes precedence over added_tokens.json for a token's flags; ids are still compared.
        given = [(i, _entry(t["content"], known.get(t["content"], t))) for i, t in given]
    listed = set(known)
    for i, token in sorted(given, key=lambda pair: pair[0]):
        listed.add(token["content"])
        before = known.get(token["content"])
        if token["content"] in special and (before is None or _entry(token["content"], before) != token):
            token["special"] = True
        yield token, i
    for text, token in special.items():
        if text and text not in listed:
            flags_of = token if isinstance(token, dict) else {"normalized": False}
            yield _entry(text, {**flags_of, "special": True}), None


def _special(settings: Mapping[str, Any]) -> Iterator[Any]:
    """Special tokens: by name, by this model's own names, and from lists."""
    yield from (settings[key] for key in NAMED if settings.get(key) is not None)
    for key, value in settings.items():
        if key.endswith("_token") and key not in NAMED and isinstance(value, str) and _content(value):
            yield value
    for key in reversed(_LISTS):
        value = settings.get(key)
        yield from value.values() if isinstance(value, dict) else value or ()


def _entry(text: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of ``added_tokens``, with AddedToken's defaults for missing flags."""
    special = bool(flags.get("special", False))
    defaults = {"normalized": not special}
    return {"content": text, **{key: bool(flags.get(key, defaults.get(key, False))) for key in _FLAGS}}


def _content(token: object) -> str | None:
    """A token's text; None if it is not a token."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and len(text) <= MAX_TOKEN else None


def _vocabulary(document: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = document["model"]["vocab"]
    return vocabulary if isinstance(vocabulary, dict) else {piece[0]: i for i, piece in enumerate(vocabulary)}


def _contradiction(where: str, text: str, said: int | None, what: str) -> SourceError:
    return SourceError(
        f"{where}: token {shown(text)} has id {said} in tokenizer_config.json or added_tokens.json, {what}",
        "download all tokenizer files again from one place; transformers would silently use another id",
    )
