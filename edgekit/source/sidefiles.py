"""The files that ship with the weights: config, generation config, tokenizer and chat template."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import SourceError
from edgekit.source.added_tokens import TokenFiles, add_tokens, require_added, require_tokens
from edgekit.source.chat_templates import MORE, listed_templates, read_templates
from edgekit.source.fields import Fields
from edgekit.source.folder import LIMITS, Folder
from edgekit.source.sentencepiece_model import convert_pieces, read_pieces
from edgekit.strangers import parse_json, parse_text
from edgekit.strangers.cell import LARGE_MEMORY, Cell
from edgekit.strangers.tokenizer_file import TokenizerForm, check_tokenizer
from edgekit.types import Checkpoint, ModelSpec, SideFile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_NO_TOKENIZER_HINT = "copy tokenizer.json and tokenizer_config.json from the model's page into the folder"
_OLD = ("tokenizer.model", "vocab.json")

ORIGINALS = (
    "generation_config.json",
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
)
"""Files besides the configuration and the weights that belong to a model in the format of transformers."""

GENERIC = "PreTrainedTokenizerFast"
"""The class that reads tokenizer.json as is in transformers 4 and 5 (there also called TokenizersBackend)."""
_GENERIC = (None, GENERIC, "PreTrainedTokenizer", "TokenizersBackend")

CONVERSION_SECONDS = 120.0
"""Processor time allowed for converting an older tokenizer; 256,000 tokens take a tenth of it."""


def collect_files(
    folder: Folder, config: dict[str, Any], spec: ModelSpec, *, data_only: bool = False
) -> tuple[tuple[SideFile, ...], ModelSpec]:
    """Return the side files of a Hugging Face folder, and the spec completed from them.

    Files are copied unchanged, except a config that misstates the embedding, and tokens, end tokens and templates,
    which transformers reads from several files but other runtimes from one. Missing files are made:
    generation_config.json from the config, tokenizer.json from an older tokenizer format.

    Args:
        folder: the checkpoint folder.
        config: its config.json.
        spec: the spec parsed from ``config``.
        data_only: do not convert an older tokenizer format, which runs transformers; leave out tokenizer.json instead.

    Raises:
        SourceError: there is no tokenizer, it has more tokens than the embedding has rows, a file is invalid, or two
            files contradict each other.
    """
    tokens = read_token_files(folder)
    templates = read_templates(folder, tokens.settings)
    found = {"vocab_size": spec.vocab_size, "tie_word_embeddings": spec.tied}
    wrong = {key: value for key, value in found.items() if config.get(key) not in (None, value)}
    generation = folder.optional_json("generation_config.json")
    tokenizer, document = _tokenizer(folder, tokens, data_only=data_only), None
    if tokenizer is not None:
        said = any(values.get("eos_token_id") is not None for values in (config, generation))
        where = str(folder.path / "tokenizer.json")
        tokenizer, document, spec = complete_tokenizer(tokenizer, tokens, spec, where, said=said)
    require_ids(spec, str(folder.path))
    settings = folder.read("tokenizer_config.json") if folder.has("tokenizer_config.json") else b""
    files = [
        as_json("config.json", config | wrong) if wrong else SideFile("config.json", folder.read("config.json")),
        complete_generation(
            folder.read("generation_config.json") if folder.has("generation_config.json") else None, generation, spec
        ),
        *([] if tokenizer is None else [SideFile("tokenizer.json", tokenizer)]),
        _settings_file(settings, tokens, templates, document or {}),
        *_template_files(templates),
    ]
    if folder.has("special_tokens_map.json"):
        files.append(SideFile("special_tokens_map.json", folder.read("special_tokens_map.json")))
    return tuple(files), spec


def original_files(checkpoint: Checkpoint) -> tuple[SideFile, ...]:
    """The side files as they stand in the checkpoint's own folder, for programs that read what edgekit does not.

    Without a folder, those that edgekit made of the file.

    Raises:
        SourceError: a file is too large or not a plain file.
    """
    place = Path(checkpoint.provenance.location)
    if checkpoint.provenance.kind not in ("folder", "hub") or not place.is_dir():
        return checkpoint.files
    folder = Folder(place)
    names = [name for name in ORIGINALS if folder.has(name)]
    names += [f"{MORE}/{name}" for name in folder.names_in(MORE) if name.endswith(".jinja")]
    config = next(f for f in checkpoint.files if f.name == "config.json")
    return (config, *(SideFile(n, folder.read(n, limit="" if n in LIMITS else "tokenizer.json")) for n in names))


def read_token_files(folder: Folder) -> TokenFiles:
    """Read the files that declare tokens outside tokenizer.json. Raises SourceError for an invalid token or id."""
    values = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        values[name] = folder.optional_json(name)
        require_tokens(values[name], str(folder.path / name))
    settings = values["tokenizer_config.json"]
    fields = Fields(settings, str(folder.path / "tokenizer_config.json"))
    length = settings.get("model_max_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, (int, float)) or not length > 0):
        raise fields.error("model_max_length", length, "a positive number")
    fields.text("tokenizer_class", 100)
    added = folder.optional_json("added_tokens.json")
    require_added(added, str(folder.path / "added_tokens.json"))
    return TokenFiles(settings, values["special_tokens_map.json"], added)


def complete_tokenizer(
    data: bytes, files: TokenFiles, spec: ModelSpec, where: str, *, said: bool
) -> tuple[bytes, Mapping[str, Any], ModelSpec]:
    """Complete a tokenizer.json with the tokens of other files. Returns it as bytes and as JSON, and the new spec.

    Truncation and padding are removed: training scripts leave their own settings, with which runtimes other than
    transformers would cut every prompt.

    Args:
        data: content of the file.
        files: the other files that declare tokens.
        spec: the model's spec.
        where: name of the file in messages.
        said: whether config.json or generation_config.json names an end token; if not, the spec's is only a default.

    Raises:
        SourceError: it is not a tokenizer, has more tokens than the embedding has rows, or contradicts ``files``.
    """
    form = check_tokenizer(data, where, error=SourceError)
    document = form.document
    files = files.with_implied(document)
    changes: dict[str, Any] = {key: None for key in ("truncation", "padding") if document.get(key) is not None}
    added = add_tokens(document, files, spec.vocab_size, where)
    if added != document.get("added_tokens", []):
        changes["added_tokens"] = added
    if (prefix := _class_prefix_space(document, files.settings)) is not None:
        changes["pre_tokenizer"] = {**document["pre_tokenizer"], "add_prefix_space": prefix}
    if changes:
        data = json.dumps({**document, **changes}, ensure_ascii=False).encode()
        form = check_tokenizer(data, where, error=SourceError)
    return data, form.document, check_vocabulary(form, files.combined(), spec, where, said=said)


def _class_prefix_space(document: Mapping[str, Any], settings: Mapping[str, Any]) -> bool | None:
    """The class's ``add_prefix_space`` if a byte-level tokenizer.json has a different one; otherwise None."""
    if settings.get("tokenizer_class") in _GENERIC or _prefix_space(document) is None:
        return None
    wanted = bool(settings.get("add_prefix_space", False))
    return None if wanted == _prefix_space(document) else wanted


def _prefix_space(document: Mapping[str, Any]) -> bool | None:
    """``add_prefix_space`` of a byte-level pre-tokenizer; None for others."""
    cutter = document.get("pre_tokenizer") or {}
    return bool(cutter.get("add_prefix_space", True)) if cutter.get("type") == "ByteLevel" else None


def _settings_file(
    data: bytes, tokens: TokenFiles, templates: Mapping[str, str], document: Mapping[str, Any]
) -> SideFile:
    """tokenizer_config.json completed from the other files, because other runtimes read only this one.

    It names the generic class: with another, transformers 5 uses only the vocabulary and rebuilds the rest. With the
    generic class, transformers 4 overrides ``add_prefix_space`` of tokenizer.json, with false if it is not set here.
    """
    complete = tokens.with_implied(document) if document else tokens
    settings = complete.combined() | {"tokenizer_class": GENERIC}
    if (prefix := _prefix_space(document)) is not None and prefix != settings.get("add_prefix_space", False):
        settings["add_prefix_space"] = prefix
    if "default" in templates:
        settings["chat_template"] = templates["default"]
    if settings == tokens.settings:
        return SideFile("tokenizer_config.json", data)
    return as_json("tokenizer_config.json", settings)


def _template_files(templates: Mapping[str, str]) -> list[SideFile]:
    names = {name: "chat_template.jinja" if name == "default" else f"{MORE}/{name}.jinja" for name in templates}
    return [SideFile(names[name], text.encode()) for name, text in templates.items()]


def complete_export(checkpoint: Checkpoint) -> Checkpoint:
    """Combine the tokens, end tokens and templates of an exported checkpoint as ``collect_files`` does.

    Raises:
        SourceError: as collect_files.
    """
    where, place = checkpoint.provenance.id, Path(checkpoint.provenance.location)
    files = {file.name: file.data for file in checkpoint.files}
    config, generation, settings = (
        parse_json(files[name], f"{where}: {name}", error=SourceError)
        for name in ("config.json", "generation_config.json", "tokenizer_config.json")
    )
    folder = Folder(place) if place.is_dir() else None
    tokens = replace(read_token_files(folder), settings=settings) if folder else TokenFiles(settings, {}, {})
    ends = [i for values in (generation, config) for i in Fields(values, where).tokens("eos_token_id")]
    spec = replace(checkpoint.spec, eos_token_ids=tuple(dict.fromkeys(ends)))
    tokenizer, document, spec = complete_tokenizer(files["tokenizer.json"], tokens, spec, where, said=bool(ends))
    require_ids(spec, where)
    templates = read_templates(folder, settings) if folder else listed_templates(settings.get("chat_template"), where)
    if not folder and "chat_template.jinja" in files:
        templates["default"] = parse_text(files["chat_template.jinja"], where, error=SourceError)
    made = (
        complete_generation(files["generation_config.json"], generation, spec),
        SideFile("tokenizer.json", tokenizer),
        _settings_file(files["tokenizer_config.json"], tokens, templates, document),
        *_template_files(templates),
    )
    files |= {file.name: file.data for file in made}
    return replace(checkpoint, spec=spec, files=tuple(SideFile(name, data) for name, data in files.items()))


def complete_generation(data: bytes | None, values: Mapping[str, Any], spec: ModelSpec) -> SideFile:
    """generation_config.json with all of the spec's end tokens; made from the spec if there is none.

    Args:
        data: content of the file; None if there is none.
        values: the same, parsed.
        spec: the model's spec.
    """
    if data is None:
        return generation_config(spec)
    if set(Fields(values, "").tokens("eos_token_id")) == set(spec.eos_token_ids):
        return SideFile("generation_config.json", data)
    return as_json("generation_config.json", {**values, "eos_token_id": _one_or_list(spec.eos_token_ids)})


def as_json(name: str, value: object) -> SideFile:
    """A side file with ``value`` as JSON, byte for byte reproducible."""
    return SideFile(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def generation_config(spec: ModelSpec) -> SideFile:
    """generation_config.json with the spec's token ids."""
    ids = {
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": _one_or_list(spec.eos_token_ids),
        "pad_token_id": spec.pad_token_id,
    }
    return as_json("generation_config.json", {key: value for key, value in ids.items() if value is not None})


def _one_or_list(ids: Sequence[int]) -> int | list[int] | None:
    return ids[0] if len(ids) == 1 else list(ids) or None


def check_vocabulary(
    form: TokenizerForm, settings: Mapping[str, Any], spec: ModelSpec, where: str, *, said: bool = True
) -> ModelSpec:
    """Check that every token has an embedding row; return the spec with the tokenizer's end token added.

    More rows than tokens is normal padding. ``said`` as in complete_tokenizer.
    """
    if form.tokens > spec.vocab_size:
        raise SourceError(
            f"{where} has {form.tokens} tokens, but the embedding has only {spec.vocab_size} rows",
            "the tokenizer belongs to another model, or the embedding was not resized for added tokens",
        )
    eos = settings.get("eos_token")
    found = form.added.get(str(eos.get("content") if isinstance(eos, dict) else eos))
    if found is None:
        return spec
    return replace(spec, eos_token_ids=tuple(dict.fromkeys((*(spec.eos_token_ids if said else ()), found))))


def require_ids(spec: ModelSpec, where: str) -> None:
    """Raise SourceError unless every special token's id is a row of the embedding."""
    named = {"bos_token_id": (spec.bos_token_id,), "eos_token_id": spec.eos_token_ids}
    for key, ids in (named | {"pad_token_id": (spec.pad_token_id,)}).items():
        for i in ids:
            if i is not None and i >= spec.vocab_size:
                raise SourceError(
                    f"{where}: '{key}' is {i}, but the embedding has only {spec.vocab_size} rows",
                    f"correct '{key}' in config.json and generation_config.json; null means no such token",
                )


def _tokenizer(folder: Folder, tokens: TokenFiles, *, data_only: bool) -> bytes | None:
    if folder.has("tokenizer.json"):
        return folder.read("tokenizer.json")
    old = next((name for name in _OLD if folder.has(name)), None)
    if old is None:
        raise SourceError(f"{folder.path} has no tokenizer (tokenizer.json or tokenizer.model)", _NO_TOKENIZER_HINT)
    if data_only:
        return None
    where = str(folder.path / old)
    pieces = read_pieces(folder.read(old), where) if old == "tokenizer.model" else None
    if pieces is not None:
        return convert_pieces(pieces, tokens.combined(), where).encode()
    # The usual cause is a missing package.
    hint = "install the converters with: pip install 'edgekit[sentencepiece]'"
    return open_tokenizer(folder, f"{where} cannot be converted to tokenizer.json", hint)["text"].encode()


def open_tokenizer(folder: Folder, what: str, hint: str, *, generic: bool = False) -> dict[str, str]:
    """Open a folder's tokenizer with transformers, without network or code from the folder.

    Args:
        folder: the folder.
        what: start of error messages.
        hint: hint of errors.
        generic: use tokenizer.json as is, whatever class the folder names.

    Returns:
        ``text``, its tokenizer.json, and ``name``, the reader.

    Raises:
        SourceError: the folder holds something other than its own plain files, or transformers fails.
    """
    for name in folder.names():
        if not (folder.path / name).is_dir():
            folder.open(name).close()
    request = {"do": "open_folder", "folder": str(folder.path), "generic": generic}
    return transformers_cell().ask(request, seconds=CONVERSION_SECONDS, what=what, error=SourceError, hint=hint)


@cache
def transformers_cell() -> Cell:
    """The shared cell with transformers, kept because importing it takes seconds."""
    return Cell(memory=LARGE_MEMORY)
