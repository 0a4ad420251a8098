"""Parse the rotary position embedding of config.json to a Rope, as written by transformers 4 or 5.

transformers 4 writes ``rope_theta`` and ``rope_scaling`` (with ``type`` or ``rope_type``), transformers 5
``rope_parameters``. Defaults are those of transformers' modeling_rope_utils.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.errors import SourceError
from edgekit.ranges import CONTEXT
from edgekit.source.fields import Fields, shown
from edgekit.types import Rope, RopeKind

if TYPE_CHECKING:
    from collections.abc import Mapping

KINDS: dict[str, RopeKind] = {
    "default": "default",
    "linear": "linear",
    "llama3": "llama3",
    "yarn": "yarn",
    "longrope": "longrope",
}

MAX_TABLES = 2**29
"""Most bytes of the cos and sin tables that a runtime makes at load; enough for 1M tokens of dim 128."""


def parse_rope(config: Fields, head_dim: int, *, partial: bool, aliases: Mapping[str, RopeKind]) -> tuple[Rope, int]:
    """Return the Rope of a config and the context length in tokens.

    Args:
        config: config.json.
        head_dim: dimensions of a head.
        partial: whether the architecture may rotate only part of a head.
        aliases: further names of rope kinds in this architecture.

    Raises:
        SourceError: an unknown kind, dynamic NTK, or contradictory numbers.
    """
    entries = _parameters(config)
    rope = Fields(entries, f"{config.where} (rope)", {"rope_theta": config.get("rope_theta")})
    kind = _kind(rope, aliases)
    dim = _rotated(config, rope, head_dim, partial=partial)
    positions = config.integer("max_position_embeddings")
    key = "original_max_position_embeddings"
    original = config.integer(key) if config.get(key) else rope.integer(key) if rope.get(key) else positions
    factor = 1.0
    if kind != "default":
        # As in transformers 5, the default factor is the ratio of the contexts.
        factor = rope.number("factor", positions / original if kind in ("yarn", "longrope") else None)
    context = _reach(rope, kind, factor, positions, original)
    tables = 4 * dim * (context + (original if kind == "longrope" else 0))
    if tables > MAX_TABLES:
        raise SourceError(
            f"{config.where}: 'max_position_embeddings' and the rope scaling give a context of {context:,} tokens, "
            f"whose rope tables take {tables:,} bytes (at most {MAX_TABLES:,})",
            "lower max_position_embeddings or the scaling factor to the context that you need",
        )
    if kind == "default":
        return Rope(theta=rope.number("rope_theta"), dim=dim, original_context=positions), context
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    if kind == "longrope":
        short, long = (_factors(rope, key, dim) for key in ("short_factor", "long_factor"))
    scaled = Rope(
        theta=rope.number("rope_theta"),
        dim=dim,
        kind=kind,
        factor=factor,
        original_context=original if kind != "linear" else positions,
        low_freq_factor=rope.number("low_freq_factor") if kind == "llama3" else 1.0,
        high_freq_factor=rope.number("high_freq_factor") if kind == "llama3" else 4.0,
        beta_fast=_optional(rope, "beta_fast", 32.0),
        beta_slow=_optional(rope, "beta_slow", 1.0),
        truncate=rope.flag("truncate", default=True),
        attention_factor=None if rope.get("attention_factor") is None else rope.number("attention_factor"),
        mscale=_optional(rope, "mscale", 0.0),
        mscale_all_dim=_optional(rope, "mscale_all_dim", 0.0),
        short_factor=short,
        long_factor=long,
    )
    return scaled, context


def _reach(rope: Fields, kind: RopeKind, factor: float, positions: int, original: int) -> int:
    """The context length in tokens, as in vLLM (config/model.py, _get_and_verify_max_len).

    Linear and yarn scaling multiply the trained context by ``factor``; with llama3 and longrope,
    max_position_embeddings already is the scaled context.
    """
    if kind not in ("linear", "yarn") or rope.get("factor") is None:
        return positions
    reach = int((original if kind == "yarn" else positions) * factor)
    if not CONTEXT.least <= reach <= CONTEXT.most:
        raise rope.error("factor", factor, f"one that gives a context of {CONTEXT.least} to {CONTEXT.most:,} tokens")
    return reach


def _optional(rope: Fields, key: str, default: float) -> float:
    """A positive number, or the default if it is absent, null or 0, as in transformers."""
    return rope.number(key) if rope.get(key) else default


def _parameters(config: Fields) -> dict[str, Any]:
    entries = config.get("rope_scaling") or config.get("rope_parameters") or {}
    newer = config.get("rope_parameters")
    if not isinstance(entries, dict):
        raise config.error("rope_parameters", entries, "an object")
    if isinstance(newer, dict) and newer and newer is not entries:
        _refuse_contradiction(config, entries, newer)
    if any(isinstance(value, dict) for value in entries.values()):
        raise SourceError(
            f"{config.where}: rope_parameters differ by layer type ({shown(', '.join(entries))}), which the native "
            "builder does not support",
            "try `exporter=optimum`",
        )
    return dict(entries)


def _refuse_contradiction(config: Fields, older: Mapping[str, Any], newer: Mapping[str, Any]) -> None:
    """Raise where a config has both dialects and they differ: transformers takes the older one without a word."""
    told = {"rope_theta": config.get("rope_theta"), **older, "rope_type": _named(older), "type": _named(older)}
    said = {**newer, "rope_type": _named(newer), "type": _named(newer)}
    key = next((key for key, value in said.items() if key in told and told[key] != value), None)
    if key is not None:
        raise SourceError(
            f"{config.where}: '{key}' is {shown(told[key])} with rope_scaling, and {shown(said[key])} in "
            "rope_parameters",
            "remove the one of rope_scaling and rope_parameters that is not of this model",
        )


def _named(entries: Mapping[str, Any]) -> object:
    return entries.get("rope_type") or entries.get("type") or "default"


def _kind(rope: Fields, aliases: Mapping[str, RopeKind]) -> RopeKind:
    name = _named(rope.values)
    if name == "dynamic":
        raise SourceError(
            f"{rope.where}: rope type 'dynamic' (NTK) is not supported: its frequencies change with the sequence "
            "length, so cached keys would no longer match",
            "remove rope_scaling to run within the original context, or use a checkpoint with yarn or linear scaling",
        )
    kind = aliases.get(str(name)) or KINDS.get(str(name))
    if kind is None:
        raise SourceError(f"{rope.where}: unknown rope type {shown(name)}", f"known types: {', '.join(KINDS)}")
    return kind


def _rotated(config: Fields, rope: Fields, head_dim: int, *, partial: bool) -> int:
    key = "partial_rotary_factor"
    fraction = rope.number(key) if rope.get(key) else config.number(key, 1.0)
    dim = int(min(head_dim * fraction, 2.0 * head_dim))
    if dim != head_dim and not partial:
        name = config.get("model_type")
        raise SourceError(
            f"{config.where}: 'partial_rotary_factor' is {fraction}, but {shown(name)} rotates whole heads",
            "remove the key if it is a leftover; otherwise try `exporter=optimum`",
        )
    if dim <= 0 or dim % 2 or dim > head_dim:
        raise SourceError(
            f"{config.where}: the rotated dimensions of a head must be an even number up to {head_dim}, not {dim}",
            "correct head_dim or partial_rotary_factor",
        )
    return dim


def _factors(rope: Fields, key: str, dim: int) -> tuple[float, ...]:
    factors = rope.numbers(key)
    if len(factors) != dim // 2:
        raise SourceError(
            f"{rope.where}: '{key}' has {len(factors)} entries, but {dim} rotated dimensions need {dim // 2}",
            f"correct '{key}', head_dim or partial_rotary_factor",
        )
    return factors
