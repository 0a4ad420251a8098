"""The files that travel with the weights: config, generation config, tokenizer and chat template."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgekit.errors import SourceError
from edgekit.source.fields import read_json
from edgekit.types import ModelSpec, SideFile

if TYPE_CHECKING:
    from pathlib import Path

_NO_TOKENIZER_HINT = "copy tokenizer.json and tokenizer_config.json from the model's page into the folder"


def collect_files(folder: Path, config: dict[str, Any], spec: ModelSpec) -> tuple[tuple[SideFile, ...], ModelSpec]:
    """The side files of a Hugging Face folder, and the spec completed with what they tell.

    Files are copied as they are, but for a config that misstates the embedding. What is missing is made:
    generation_config.json from the config, tokenizer.json from an older kind of tokenizer,
    tokenizer_config.json from special_tokens_map.json.

    Raises:
        SourceError: when there is no tokenizer, or it has more tokens than the embedding has rows.
    """
    tokenizer = _tokenizer(folder)
    settings_file, template_file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    map_file = folder / "special_tokens_map.json"
    settings = read_json(settings_file) if settings_file.is_file() else None
    given = settings
    if settings is None:
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
        settings |= read_json(map_file) if map_file.is_file() else {}
    template = _template(folder, settings)
    if template is not None and not isinstance(settings.get("chat_template"), (str, list)):
        settings = {**settings, "chat_template": template}
    spec = check_vocabulary(tokenizer, settings, spec, str(folder / "tokenizer.json"))
    found = {"vocab_size": spec.vocab_size, "tie_word_embeddings": spec.tied}
    wrong = {key: value for key, value in found.items() if config.get(key) not in (None, value)}
    generation = folder / "generation_config.json"
    files = [
        as_json("config.json", config | wrong)
        if wrong
        else SideFile("config.json", (folder / "config.json").read_bytes()),
        SideFile("generation_config.json", generation.read_bytes())
        if generation.is_file()
        else generation_config(spec),
        SideFile("tokenizer.json", tokenizer),
        SideFile("tokenizer_config.json", settings_file.read_bytes())
        if settings is given
        else as_json("tokenizer_config.json", settings),
    ]
    if template is not None:
        data = template_file.read_bytes() if template_file.is_file() else template.encode()
        files.append(SideFile("chat_template.jinja", data))
    if map_file.is_file():
        files.append(SideFile("special_tokens_map.json", map_file.read_bytes()))
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


def check_vocabulary(tokenizer: bytes, settings: dict[str, Any], spec: ModelSpec, where: str) -> ModelSpec:
    """Check that every token has a row in the embedding; find the end token when no config names it.

    An embedding with more rows than tokens is padded, which is normal.
    """
    try:
        content = json.loads(tokenizer)
        vocabulary = content["model"]["vocab"]
        added = {str(entry["content"]): int(entry["id"]) for entry in content.get("added_tokens") or ()}
        last = max(vocabulary.values(), default=-1) if isinstance(vocabulary, dict) else len(vocabulary) - 1
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SourceError(f"{where} is not a tokenizer: {error!r}", "download the file again") from error
    tokens = max(last, *added.values(), -1) + 1
    if tokens > spec.vocab_size:
        raise SourceError(
            f"{where} has {tokens} tokens, and the embedding has {spec.vocab_size} rows",
            "the tokenizer belongs to another model, or the embedding was not resized for added tokens",
        )
    if spec.eos_token_ids:
        return spec
    eos = settings.get("eos_token")
    text = eos.get("content") if isinstance(eos, dict) else eos
    found = added.get(str(text))
    return spec if found is None else replace(spec, eos_token_ids=(found,))


def _tokenizer(folder: Path) -> bytes:
    file = folder / "tokenizer.json"
    if file.is_file():
        return file.read_bytes()
    old = next((name for name in ("tokenizer.model", "vocab.json") if (folder / name).is_file()), None)
    if old is None:
        raise SourceError(f"{folder} has no tokenizer (tokenizer.json or tokenizer.model)", _NO_TOKENIZER_HINT)
    try:
        return str(load_tokenizer(folder).backend_tokenizer.to_str()).encode()
    except Exception as error:
        # transformers raises a dozen kinds here, most often for a package that is not installed.
        reason = str(error).strip().partition("\n")[0]
        raise SourceError(
            f"{folder / old} cannot be converted to tokenizer.json: {reason}",
            "install the converters with: pip install 'edgekit[sentencepiece]'",
        ) from error


def load_tokenizer(folder: Path) -> Any:
    """A folder's tokenizer as transformers loads it: no network, no code from the folder, no advice on stderr."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    finally:
        logging.disable(before)


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The chat template: chat_template.jinja, then chat_template.json, then tokenizer_config.json."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").is_file():
        value = read_json(folder / "chat_template.json").get("chat_template")
    else:
        value = settings.get("chat_template")
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default") or next(iter(named.values()), None)
    return value if isinstance(value, str) else None
