"""GGUF files -> Checkpoint: lazily dequantized weights, and the side files a Hugging Face folder would have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.errors import SourceError
from edgekit.source.architectures import FAMILIES, parse_config
from edgekit.source.gguf_config import canonical_tensors, find_model, make_config
from edgekit.source.gguf_ends import stop_tokens
from edgekit.source.gguf_file import read_gguf
from edgekit.source.gguf_tokenizer import make_settings, make_tokenizer, tokens_of
from edgekit.source.layout import match_tensors, split_fused
from edgekit.source.sidefiles import as_json, check_vocabulary, generation_config, require_ids
from edgekit.strangers.tokenizer_file import check_tokenizer
from edgekit.types import Checkpoint, Provenance, SideFile

if TYPE_CHECKING:
    from pathlib import Path


def open_gguf(path: Path, provenance: Provenance, *, data_only: bool = False) -> Checkpoint:
    """Open a GGUF file. Only its header is read. ``data_only`` as in open_model.

    Raises:
        SourceError: a damaged file, or an unknown architecture, type, rope or tokenizer.
    """
    gguf = read_gguf(path)
    model = find_model(gguf)
    config = make_config(gguf, model)
    spec = parse_config(config, str(path), {"eos_token_id": stop_tokens(gguf, tokens_of(gguf))})
    found = canonical_tensors(gguf, model, config)
    if FAMILIES[spec.architecture].fused:
        found = split_fused(spec, found)
    spec, weights = match_tensors(spec, found, (path,), str(path))
    settings = make_settings(gguf, spec.context_length)
    files = [as_json("config.json", config), as_json("tokenizer_config.json", settings)]
    if not data_only:
        tokenizer = make_tokenizer(gguf).encode()
        spec = check_vocabulary(check_tokenizer(tokenizer, str(path), error=SourceError), settings, spec, str(path))
        files.append(SideFile("tokenizer.json", tokenizer))
    require_ids(spec, str(path))
    files.append(generation_config(spec))
    if template := settings.get("chat_template"):
        files.append(SideFile("chat_template.jinja", template.encode()))
    return Checkpoint(spec, weights, tuple(files), provenance, weights.left_aside)
