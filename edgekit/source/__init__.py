"""Checkpoints: Hugging Face folder, hub id, GGUF file or packaged model -> ModelSpec, lazy weights, side files."""

from edgekit.source.architectures import ARCHITECTURES, FAMILIES
from edgekit.source.config_only import OutlineWeights, open_config_only
from edgekit.source.corpus import TOKENIZER_EDGE_CASES
from edgekit.source.cut_weights import CutWeights, keep_layers
from edgekit.source.layout import stored_tensors, tensor_shapes
from edgekit.source.model import open_model
from edgekit.source.oracle import source_readers, source_tokenizer, try_tokenizer
from edgekit.source.packaged import PACKAGED
from edgekit.source.provenance import fingerprint, require_unchanged, source_stamp, spec_changes
from edgekit.source.sidefiles import complete_export, original_files

__all__ = [
    "ARCHITECTURES",
    "FAMILIES",
    "PACKAGED",
    "TOKENIZER_EDGE_CASES",
    "CutWeights",
    "OutlineWeights",
    "complete_export",
    "fingerprint",
    "keep_layers",
    "open_config_only",
    "open_model",
    "original_files",
    "require_unchanged",
    "source_readers",
    "source_stamp",
    "source_tokenizer",
    "spec_changes",
    "stored_tensors",
    "tensor_shapes",
    "try_tokenizer",
]
