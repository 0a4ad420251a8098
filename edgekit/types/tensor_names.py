"""Names of a LLaMA's tensors, Hugging Face's, that more than one room asks for. Standard library only."""

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
LAST_NORM = "model.norm.weight"
