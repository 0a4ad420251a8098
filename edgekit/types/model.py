"""A checkpoint's model: spec, weights and side files. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from edgekit import ranges

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RopeKind = Literal["default", "linear", "llama3", "yarn", "longrope"]


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding. Names follow transformers' ``rope_parameters``.

    ``dim`` counts the rotated dimensions of a head; it is less than head_dim for partial rotary.
    ``original_context`` is the context the rope was trained for, before scaling.
    """

    theta: ranges.NotNegative
    dim: ranges.RotaryDim
    kind: RopeKind = "default"
    factor: ranges.NotNegative = 1.0
    original_context: ranges.Count = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def switches(self, context: int) -> bool:
        """Whether sequences of ``context`` tokens need longrope's second list of factors."""
        return self.kind == "longrope" and context > self.original_context


@dataclass(frozen=True)
class ModelSpec:
    """The configuration of a LLaMA-family decoder: everything the graph needs besides the weights.

    ``windows[i]`` is layer i's sliding window in tokens, or None for full attention. ``rotary[i]`` is whether layer i
    rotates its queries and keys (not all do in SmolLM3). ``vocab_size`` counts the embedding's rows, including padding.
    """

    architecture: str
    hidden_size: ranges.Hidden
    intermediate_size: ranges.Intermediate
    layers: ranges.Layers
    heads: ranges.Heads
    kv_heads: ranges.Heads
    head_dim: ranges.HeadSize
    vocab_size: ranges.Vocabulary
    context_length: ranges.Context
    norm_eps: ranges.Epsilon
    rope: Rope
    tied: bool
    windows: tuple[ranges.Window | None, ...]
    rotary: tuple[bool, ...]
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    bos_token_id: ranges.Token | None = None
    eos_token_ids: tuple[ranges.Token, ...] = ()
    pad_token_id: ranges.Token | None = None

    @property
    def rope_border(self) -> int | None:
        """Tokens of the longest sequence with longrope's short factors, None where no sequence has others."""
        return self.rope.original_context if self.rope.switches(self.context_length) else None


class Weights(Protocol):
    """Named tensors that are read on demand and not kept.

    Names are Hugging Face's for LLaMA, whatever names the checkpoint uses:
    ``model.embed_tokens.weight``, ``model.layers.{i}.self_attn.{q,k,v,o}_proj.{weight,bias}``,
    ``model.layers.{i}.self_attn.{q,k}_norm.weight``, ``model.layers.{i}.mlp.{gate,up,down}_proj.{weight,bias}``,
    ``model.layers.{i}.{input,post_attention}_layernorm.weight``, ``model.norm.weight`` and, unless
    tied, ``lm_head.weight``. Linear weights are [outputs, inputs].
    """

    def names(self) -> tuple[str, ...]:
        """All tensor names, in model order."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it. Raises SourceError for an unknown name."""

    def stored(self, name: str) -> str:
        """The type in the checkpoint: ``F32``, ``BF16``, ``Q4_1`` ..."""

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor in the checkpoint."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) of the first axis as a new float32 array.

        Raises SourceError if the file is truncated or a value is NaN or infinite.
        """


@dataclass(frozen=True)
class SideFile:
    """A file of the checkpoint that ships in the bundle: tokenizer.json, config.json ..."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Provenance:
    """The origin of a checkpoint. ``sha256`` covers the weight files; bundles do not contain ``location``."""

    id: str
    kind: Literal["folder", "hub", "gguf", "packaged", "optimum"]
    sha256: ranges.Digest
    revision: str = ""
    location: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint: the spec, lazy weights and side files.

    ``files`` has config.json, generation_config.json, tokenizer.json, tokenizer_config.json and, if the model has one,
    chat_template.jinja; any may be missing if only the configuration was opened (see source/config_only.py).
    ``left_aside``: tensors that the model does not use, which transformers ignores too.
    """

    spec: ModelSpec
    weights: Weights
    files: tuple[SideFile, ...]
    provenance: Provenance
    left_aside: tuple[str, ...] = ()

    def file(self, name: str) -> bytes | None:
        """The content of a side file, or None."""
        return next((f.data for f in self.files if f.name == name), None)
