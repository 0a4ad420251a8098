"""Checkpoints: Hugging Face folder, hub id, GGUF file or packaged model -> ModelSpec, lazy weights, side files."""

from edgekit.source.architectures import ARCHITECTURES
from edgekit.source.config_only import open_config_only
from edgekit.source.corpus import TOKENIZER_EDGE_CASES
from edgekit.source.model import open_model
from edgekit.source.oracle import source_readers, source_tokenizer, try_tokenizer
from edgekit.source.packaged import PACKAGED
from edgekit.source.provenance import fingerprint, require_unchanged, source_stamp, spec_changes
from edgekit.source.sidefiles import complete_export

__all__ = [
    "ARCHITECTURES",
    "PACKAGED",
    "TOKENIZER_EDGE_CASES",
    "complete_export",
    "fingerprint",
    "open_config_only",
    "open_model",
    "require_unchanged",
    "source_readers",
    "source_stamp",
    "source_tokenizer",
    "spec_changes",
    "try_tokenizer",
]
