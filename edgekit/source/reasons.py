"""Errors for tensors that do not make a language model, recognized by their names and types.

Tensors that transformers safely ignores are ignored here too: buffers, scalars, training heads, layers beyond those in
the config. Anything that would change the model is refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edgekit.errors import SourceError
from edgekit.source.fields import shown
from edgekit.source.tensors import INTEGERS
from edgekit.types.tensor_names import HEAD

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from edgekit.source.tensors import Extent
    from edgekit.types import ModelSpec

_BUFFER = re.compile(r"(.*\.)?(rotary_emb\..*|rotary_pos_emb\..*|position_ids|masked_bias|num_batches_tracked)")
"""Tables that can be computed from the config; older checkpoints store them."""

_LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\..*")
_TRAINING_HEAD = re.compile(
    r"(?:model\.)?(v_head|value_head|critic_head|reward_head|score|classifier|mtp(_\w+)?|medusa_head)\..*"
)
_ADAPTER = re.compile(
    r".*(\.lora_|lora_[AB]\b|\.base_layer\.|\.modules_to_save\.|\.ia3_|\.hada_|\.lokr_|\.oft_|\.vera_|prompt_encoder\.).*"
)
_QUANTIZED = re.compile(
    r".*\.(qweight|qzeros|scales|g_idx|q_weight|q_scale|W_q|codebooks|weight_scale|weight_scale_inv|weight_packed"
    r"|weight_zero_point|input_scale|SCB|weight\.(absmax|quant_map|nested_absmax|quant_state\..*))"
)
_LOW_FLOATS = ("F8_", "F6_", "F4")
_CLASSIFIER = re.compile(
    r"(score|classifier|classification_head|qa_outputs|reward_head|regression_head)\.(.*\.)?weight"
)
_CLASSIFIES = re.compile(r".*(ForSequenceClassification|ForTokenClassification|ForQuestionAnswering|RewardModel)")
_OTHER_MODALITY = re.compile(
    r"(.*\.)?(vision_tower|vision_model|visual|vision_encoder|vision_embed_tokens|image_newline|multi_modal_projector"
    r"|mm_projector|audio_tower|audio_encoder|speech_encoder)(\..*)?"
)
_ORIGINAL = ("tok_embeddings.weight", "layers.0.attention.wq.weight")

_PREFIXES = {
    "_orig_mod.": "added by torch.compile",
    "module.": "added by DataParallel",
    "_fsdp_wrapped_module.": "added by FSDP",
    "base_model.model.": "added by peft",
    "model.language_model.": "used in multimodal models",
    "language_model.": "used in multimodal models",
}
_UNWRAP = "save the model itself, not its wrapper, with save_pretrained; or remove the prefix from the tensor names"


def is_buffer(name: str) -> bool:
    """Whether a tensor is a table that can be computed from the config, so the stored one is not needed."""
    return _BUFFER.fullmatch(name) is not None


def refuse_other_kinds(found: Mapping[str, Extent], architectures: object, where: str) -> None:
    """Raise SourceError for weights of anything but a plain language model.

    Args:
        found: tensors by name.
        architectures: the entry of config.json: the class that was saved.
        where: the folder, for the message.
    """
    _refuse_adapter(found, where)
    _refuse_quantized(found, where)
    if other := _first(found, _OTHER_MODALITY):
        raise SourceError(
            f"{where} is a multimodal model: it holds {shown(other)} besides a language model",
            "use a checkpoint of the language model alone",
        )
    if any(name in found for name in _ORIGINAL):
        raise SourceError(
            f"{where}: the tensors are named as in the model's original release ({shown(_ORIGINAL[0])})",
            "use the checkpoint in transformers format (model.safetensors, or shards with an index)",
        )
    saved = architectures[0] if isinstance(architectures, list) and architectures else architectures
    head = _first(found, _CLASSIFIER)
    named = isinstance(saved, str) and _CLASSIFIES.fullmatch(saved)
    if HEAD not in found and (head or named):
        what = f"it holds {shown(head)}" if head else f"its class is {shown(saved)}"
        raise SourceError(
            f"{where} is a classifier or reward model, not a text generator: {what}, and no {HEAD}",
            "use the language model that it was trained from",
        )


def adapter_error(where: str, sign: str, *, beside: bool = False) -> SourceError:
    """The error for an adapter instead of a model, or ``beside`` one; ``sign`` is the file or tensor that shows it."""
    merge = "merge it into its base model with peft's merge_and_unload, and save that to a new folder"
    if beside:
        return SourceError(
            f"{where} holds a model and an unmerged adapter ({shown(sign)})",
            f"{merge}; or move the adapter's files away to build the model without it",
        )
    return SourceError(f"{where} is an unmerged adapter, not a model: it has {shown(sign)}", merge)


def _refuse_adapter(found: Mapping[str, Extent], where: str) -> None:
    if adapted := _first(found, _ADAPTER):
        raise adapter_error(where, adapted)


def _refuse_quantized(found: Mapping[str, Extent], where: str) -> None:
    name = _first(found, _QUANTIZED)
    name = name or next((n for n, e in found.items() if e.stored.startswith(_LOW_FLOATS)), None)
    if name is not None:
        raise SourceError(
            f"{where} is already quantized: tensor {shown(name)}, stored as {found[name].stored}",
            "use the original F32, F16 or BF16 checkpoint; quantizing twice loses quality",
        )


def _first(names: Iterable[str], pattern: re.Pattern[str]) -> str | None:
    return next((name for name in names if pattern.fullmatch(name)), None)


def is_leftover(name: str, extent: Extent, spec: ModelSpec) -> bool:
    """Whether a tensor that the model does not use may be ignored, as transformers does."""
    layer = _LAYER.fullmatch(name)
    return (
        is_buffer(name)
        or not extent.shape
        or 0 in extent.shape
        or extent.stored in INTEGERS
        or (layer is not None and int(layer[1]) >= spec.layers)
        or _TRAINING_HEAD.fullmatch(name) is not None
    )


def explain_missing(name: str, found: Collection[str], spec: ModelSpec, where: str) -> SourceError:
    """The error for a missing tensor. ``where`` is the config that requires it."""
    if prefixed := _find_prefixed(name, found):
        stored, prefix = prefixed
        known = f": {_PREFIXES[prefix]}" if prefix in _PREFIXES else ""
        return SourceError(
            f"the tensor names have the prefix {shown(prefix)}{known}; found {shown(stored)}, expected '{name}'",
            _UNWRAP,
        )
    if name == HEAD:
        return SourceError(
            f"the checkpoint has no output head '{HEAD}', and {where} does not tie it to the embedding",
            "it is a base model without a head, or a file is missing; use the checkpoint of the causal language model",
        )
    layer = _LAYER.fullmatch(name)
    stored_layers = {int(match[1]) for n in found if (match := _LAYER.fullmatch(n))}
    if layer and stored_layers and int(layer[1]) > max(stored_layers):
        return SourceError(
            f"the checkpoint has no tensor '{name}': it holds {max(stored_layers) + 1} layers, but {where} has "
            f"{spec.layers}",
            "a shard is missing, or the config belongs to another model",
        )
    return SourceError(
        f"the checkpoint has no tensor '{name}', which {where} requires",
        "a shard is missing, or the config belongs to another model",
    )


def refuse_unexpected(name: str, extent: Extent, canonical: Collection[str], spec: ModelSpec, where: str) -> None:
    """Raise SourceError for a tensor that the config does not include and that would change the model."""
    if is_leftover(name, extent, spec):
        return
    twin = next((known for known in canonical if name.endswith("." + known)), None)
    if twin:
        raise SourceError(
            f"{extent.file} holds two models: '{twin}', and {shown(name)} with the prefix "
            f"{shown(name.removesuffix(twin))}",
            "save only the model that you want",
        )
    raise SourceError(
        f"{extent.file}: unexpected tensor {shown(name)} for a {spec.architecture} model with this config",
        f"check that {where} belongs to these weights; for a variant of the architecture try `exporter=optimum`",
    )


def _find_prefixed(name: str, found: Collection[str]) -> tuple[str, str] | None:
    """Find a stored tensor that is ``name`` with a prefix; return it and the prefix."""
    for known in (name, name.removeprefix("model.")):
        for stored in found:
            if stored.endswith("." + known):
                return stored, stored.removesuffix(known)
    return None
