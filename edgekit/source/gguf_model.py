"""GGUF files -> Checkpoint: lazily dequantized weights, and the side files a Hugging Face folder would have."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgekit.source.architectures import FAMILIES, parse_config
from edgekit.source.gguf_config import canonical_tensors, find_model, make_config, stop_tokens
from edgekit.source.gguf_file import read_gguf
from edgekit.source.gguf_tokenizer import make_settings, make_tokenizer
from edgekit.source.layout import match_tensors, split_fused
from edgekit.source.sidefiles import as_json, check_vocabulary, generation_config
from edgekit.types import Checkpoint, Provenance, SideFile

if TYPE_CHECKING:
    from pathlib import Path


def open_gguf(path: Path, provenance: Provenance) -> Checkpoint:
    """Open a GGUF file. Only its header is read.

    Raises:
        SourceError: for a damaged file, or an architecture, type, rope or tokenizer that is not known.
    """
    gguf = read_gguf(path)
    model = find_model(gguf)
    config = make_config(gguf, model)
    spec = parse_config(config, str(path), {"eos_token_id": stop_tokens(gguf)})
    found = canonical_tensors(gguf, model, config)
    if FAMILIES[spec.architecture].fused:
        found = split_fused(spec, found)
    spec, weights = match_tensors(spec, found, (path,), str(path))
    tokenizer, settings = make_tokenizer(gguf).encode(), make_settings(gguf, spec.context_length)
    spec = check_vocabulary(tokenizer, settings, spec, str(path))
    files = [
        as_json("config.json", config),
        generation_config(spec),
        SideFile("tokenizer.json", tokenizer),
        as_json("tokenizer_config.json", settings),
    ]
    if template := settings.get("chat_template"):
        files.append(SideFile("chat_template.jinja", template.encode()))
    return Checkpoint(replace(spec), weights, tuple(files), provenance)
