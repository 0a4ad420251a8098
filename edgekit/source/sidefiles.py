"""The files that travel with the weights: config, generation config, tokenizer and chat template."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from edgekit.cell import LARGE_MEMORY, Cell
from edgekit.errors import SourceError
from edgekit.source.fields import Fields, shown
from edgekit.strangers import parse_text
from edgekit.tokenizer_file import TokenizerForm, check_tokenizer
from edgekit.types import ModelSpec, SideFile

if TYPE_CHECKING:
    from edgekit.source.folder import Folder

_NO_TOKENIZER_HINT = "copy tokenizer.json and tokenizer_config.json from the model's page into the folder"
_OLD = ("tokenizer.model", "vocab.json")
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

MAX_TEMPLATE = 1 << 20
"""Letters of a chat template; the longest published has 20,000."""

CONVERSION_SECONDS = 120.0
"""Processor time of making tokenizer.json from an older kind of tokenizer; 256,000 tokens take a tenth of it."""


def collect_files(
    folder: Folder, config: dict[str, Any], spec: ModelSpec, *, data_only: bool = False
) -> tuple[tuple[SideFile, ...], ModelSpec]:
    """The side files of a Hugging Face folder, and the spec completed with what they tell.

    Files are copied as they are, but for a config that misstates the embedding. What is missing is made:
    generation_config.json from the config, tokenizer.json from an older kind of tokenizer,
    tokenizer_config.json from special_tokens_map.json.

    Args:
        folder: the checkpoint's.
        config: its config.json.
        spec: what that says.
        data_only: make no tokenizer.json of an older kind, which takes a program: there is none then.

    Raises:
        SourceError: when there is no tokenizer, or it has more tokens than the embedding has rows, or a file is not
            what it must be.
    """
    settings, given = _settings(folder)
    template = _template(folder, settings)
    if template is not None and not isinstance(settings.get("chat_template"), (str, list)):
        settings = {**settings, "chat_template": template}
    found = {"vocab_size": spec.vocab_size, "tie_word_embeddings": spec.tied}
    wrong = {key: value for key, value in found.items() if config.get(key) not in (None, value)}
    has_generation = folder.has("generation_config.json")
    tokenizer = _tokenizer(folder, data_only=data_only)
    if tokenizer is not None:
        where = str(folder.path / "tokenizer.json")
        spec = check_vocabulary(check_tokenizer(tokenizer, where, error=SourceError), settings, spec, where)
    require_ids(spec, str(folder.path))
    files = [
        as_json("config.json", config | wrong) if wrong else SideFile("config.json", folder.read("config.json")),
        SideFile("generation_config.json", folder.read("generation_config.json"))
        if has_generation
        else generation_config(spec),
        SideFile("tokenizer_config.json", folder.read("tokenizer_config.json"))
        if settings is given
        else as_json("tokenizer_config.json", settings),
    ]
    if tokenizer is not None:
        files.insert(2, SideFile("tokenizer.json", tokenizer))
    if template is not None:
        files.append(SideFile("chat_template.jinja", template.encode()))
    if folder.has("special_tokens_map.json"):
        files.append(SideFile("special_tokens_map.json", folder.read("special_tokens_map.json")))
    return tuple(files), spec


def as_json(name: str, value: object) -> SideFile:
    """A side file that holds ``value`` as JSON, the same bytes every time."""
    return SideFile(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def generation_config(spec: ModelSpec) -> SideFile:
    """generation_config.json with the spec's token ids."""
    stops = spec.eos_token_ids
    ids = {
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": stops[0] if len(stops) == 1 else list(stops) or None,
        "pad_token_id": spec.pad_token_id,
    }
    return as_json("generation_config.json", {key: value for key, value in ids.items() if value is not None})


def check_vocabulary(form: TokenizerForm, settings: dict[str, Any], spec: ModelSpec, where: str) -> ModelSpec:
    """Check that every token has a row in the embedding; find the end token when no config names it.

    An embedding with more rows than tokens is padded, which is normal.
    """
    if form.tokens > spec.vocab_size:
        raise SourceError(
            f"{where} has {form.tokens} tokens, and the embedding has {spec.vocab_size} rows",
            "the tokenizer belongs to another model, or the embedding was not resized for added tokens",
        )
    if spec.eos_token_ids:
        return spec
    eos = settings.get("eos_token")
    found = form.added.get(str(eos.get("content") if isinstance(eos, dict) else eos))
    return spec if found is None else replace(spec, eos_token_ids=(found,))


def require_ids(spec: ModelSpec, where: str) -> None:
    """Raise SourceError unless every special token's id is a row of the embedding."""
    named = {"bos_token_id": (spec.bos_token_id,), "eos_token_id": spec.eos_token_ids}
    for key, ids in (named | {"pad_token_id": (spec.pad_token_id,)}).items():
        for i in ids:
            if i is not None and i >= spec.vocab_size:
                raise SourceError(
                    f"{where}: '{key}' is {i}, and the embedding has {spec.vocab_size} rows",
                    f"correct '{key}' in config.json and generation_config.json; null where there is none",
                )


def _settings(folder: Folder) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """tokenizer_config.json, made from special_tokens_map.json where there is none; and as it is in the folder."""
    name, other = "tokenizer_config.json", "special_tokens_map.json"
    named = folder.optional_json(other)
    _require_tokens(named, str(folder.path / other))
    if not folder.has(name):
        return {"tokenizer_class": "PreTrainedTokenizerFast", **named}, None
    settings = folder.read_json(name)
    _require_tokens(settings, str(folder.path / name))
    return settings, settings


def _require_tokens(settings: dict[str, Any], where: str) -> None:
    """Raise SourceError for entries that no runtime takes for tokens."""
    fields = Fields(settings, where)
    for key in _NAMED:
        token = settings.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        if token is not None and (not isinstance(text, str) or len(text) > 4096):
            raise fields.error(key, token, "a token")
    decoder = settings.get("added_tokens_decoder")
    if decoder is not None and not (
        isinstance(decoder, dict)
        and all(key.isascii() and key.isdigit() and len(key) < 8 for key in decoder)
        and all(isinstance(token, dict) and isinstance(token.get("content"), str) for token in decoder.values())
    ):
        raise fields.error("added_tokens_decoder", decoder, "an object of tokens by their ids")
    length = settings.get("model_max_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, (int, float)) or not length > 0):
        raise fields.error("model_max_length", length, "a positive number")
    fields.text("tokenizer_class", 100)


def _tokenizer(folder: Folder, *, data_only: bool) -> bytes | None:
    if folder.has("tokenizer.json"):
        return folder.read("tokenizer.json")
    old = next((name for name in _OLD if folder.has(name)), None)
    if old is None:
        raise SourceError(f"{folder.path} has no tokenizer (tokenizer.json or tokenizer.model)", _NO_TOKENIZER_HINT)
    if data_only:
        return None
    what = f"{folder.path / old} cannot be converted to tokenizer.json"
    # Most often for a package that is not installed.
    return open_tokenizer(folder, what, "install the converters with: pip install 'edgekit[sentencepiece]'").encode()


def open_tokenizer(folder: Folder, what: str, hint: str) -> str:
    """Open a folder's tokenizer with transformers: no network, no code from the folder. Its tokenizer.json.

    Raises:
        SourceError: something in the folder is not a plain file of it, or transformers refuses: ``what`` and ``hint``.
    """
    for name in folder.names():
        if not (folder.path / name).is_dir():
            folder.open(name).close()
    request = {"do": "open_folder", "folder": str(folder.path)}
    opened = transformers_cell().ask(request, seconds=CONVERSION_SECONDS, what=what, error=SourceError, hint=hint)
    return str(opened["text"])


@cache
def transformers_cell() -> Cell:
    """The one cell that loads transformers, which takes seconds: it stays for the next folder."""
    return Cell(memory=LARGE_MEMORY)


def _template(folder: Folder, settings: dict[str, Any]) -> str | None:
    """The chat template: chat_template.jinja, then chat_template.json, then tokenizer_config.json."""
    if folder.has("chat_template.jinja"):
        return parse_text(
            folder.read("chat_template.jinja"), str(folder.path / "chat_template.jinja"), error=SourceError
        )
    name = "chat_template.json" if folder.has("chat_template.json") else "tokenizer_config.json"
    value = (
        folder.read_json(name).get("chat_template") if name == "chat_template.json" else settings.get("chat_template")
    )
    fields = Fields({"chat_template": value}, str(folder.path / name))
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if _is_named(entry)}
        if len(named) != len(value):
            raise fields.error("chat_template", value, "a template, or a list of templates with different names")
        value = named.get("default") or next(iter(named.values()), None)
    if value is not None and (not isinstance(value, str) or len(value) > MAX_TEMPLATE):
        raise fields.error("chat_template", shown(value), f"a template of at most {MAX_TEMPLATE:,} letters")
    return value


def _is_named(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)
