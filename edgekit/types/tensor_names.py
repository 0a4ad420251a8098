"""Hugging Face's names of LLaMA tensors used in several packages. Standard library only."""

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
LAST_NORM = "model.norm.weight"
