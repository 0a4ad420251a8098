"""Why a checkpoint's tensors are not those of a language model: what they are, told by their names and types.

What transformers leaves aside without harm is left aside here: buffers, scalars, heads of training, layers beyond
those that the config counts. What would change the model is refused for what it is.
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
"""Tables that follow from the config; older checkpoints hold them."""

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
    "_orig_mod.": "torch.compile put it there",
    "module.": "DataParallel put it there",
    "_fsdp_wrapped_module.": "FSDP put it there",
    "base_model.model.": "peft put it there",
    "model.language_model.": "a multimodal model's language model has it",
    "language_model.": "a multimodal model's language model has it",
}
_UNWRAP = "save the model itself, not its wrapper, with save_pretrained; or take the prefix off the tensors' names"


def is_buffer(name: str) -> bool:
    """Whether a tensor is a table that follows from the config, so that nothing depends on what is stored."""
    return _BUFFER.fullmatch(name) is not None


def refuse_other_kinds(found: Mapping[str, Extent], architectures: object, where: str) -> None:
    """Raise SourceError for weights that are not a plain language model's.

    Args:
        found: tensors by name.
        architectures: config.json's entry: the class that was saved.
        where: the folder, for the message.
    """
    _refuse_adapter(found, where)
    _refuse_quantized(found, where)
    if other := _first(found, _OTHER_MODALITY):
        raise SourceError(
            f"{where} is a multimodal model: it holds {shown(other)} beside a language model",
            "use a checkpoint of the language model alone",
        )
    if any(name in found for name in _ORIGINAL):
        raise SourceError(
            f"{where}: the tensors have the names of the model's original release, as {shown(_ORIGINAL[0])}",
            "use the checkpoint in the format of transformers (model.safetensors, or shards with an index)",
        )
    saved = architectures[0] if isinstance(architectures, list) and architectures else architectures
    head = _first(found, _CLASSIFIER)
    named = isinstance(saved, str) and _CLASSIFIES.fullmatch(saved)
    if HEAD not in found and (head or named):
        what = f"it holds {shown(head)}" if head else f"config.json says {shown(saved)}"
        raise SourceError(
            f"{where} classifies or scores texts and does not write them: {what}, and no {HEAD}",
            "use the language model that it was trained from, if that is what you want to run",
        )


def adapter_error(where: str, sign: str, *, beside: bool = False) -> SourceError:
    """The error for an adapter in the place of a model, or ``beside`` one; ``sign`` is what tells it."""
    merge = "merge it into its base model first (peft's merge_and_unload), and save that to a folder of its own"
    if beside:
        return SourceError(
            f"{where} holds a model and an adapter that is not merged: it has {shown(sign)}",
            f"{merge}; or move the adapter's files away to build the model without it",
        )
    return SourceError(f"{where} is an adapter that is not merged, not a model: it has {shown(sign)}", merge)


def _refuse_adapter(found: Mapping[str, Extent], where: str) -> None:
    if adapted := _first(found, _ADAPTER):
        raise adapter_error(where, adapted)


def _refuse_quantized(found: Mapping[str, Extent], where: str) -> None:
    name = _first(found, _QUANTIZED)
    name = name or next((n for n, e in found.items() if e.stored.startswith(_LOW_FLOATS)), None)
    if name is not None:
        raise SourceError(
            f"{where} is already quantized: tensor {shown(name)}, stored as {found[name].stored}",
            "give the original F32, F16 or BF16 checkpoint; quantizing twice loses quality",
        )


def _first(names: Iterable[str], pattern: re.Pattern[str]) -> str | None:
    return next((name for name in names if pattern.fullmatch(name)), None)


def is_leftover(name: str, extent: Extent, spec: ModelSpec) -> bool:
    """Whether a tensor that the model does not call for may be left aside, as transformers does."""
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
    """Why a tensor is missing. ``where``: what says that it must be there."""
    if prefixed := _find_prefixed(name, found):
        stored, prefix = prefixed
        known = f": {_PREFIXES[prefix]}" if prefix in _PREFIXES else ""
        return SourceError(
            f"the checkpoint's tensors have the prefix {shown(prefix)}{known}; it has {shown(stored)} for '{name}'",
            _UNWRAP,
        )
    if name == HEAD:
        return SourceError(
            f"the checkpoint has no output head '{HEAD}', and {where} does not tie it to the embedding",
            "it is a base model without a head, or a file is missing: use the checkpoint of the causal language model",
        )
    layer = _LAYER.fullmatch(name)
    stored_layers = {int(match[1]) for n in found if (match := _LAYER.fullmatch(n))}
    if layer and stored_layers and int(layer[1]) > max(stored_layers):
        return SourceError(
            f"the checkpoint has no tensor '{name}': it holds {max(stored_layers) + 1} layers, and {where} counts "
            f"{spec.layers}",
            "a shard is missing, or the config belongs to another model",
        )
    return SourceError(
        f"the checkpoint has no tensor '{name}', which {where} calls for",
        "a shard is missing, or the config belongs to another model",
    )


def refuse_unexpected(name: str, extent: Extent, canonical: Collection[str], spec: ModelSpec, where: str) -> None:
    """Raise SourceError for a tensor that the config does not call for and that would change the model."""
    if is_leftover(name, extent, spec):
        return
    twin = next((known for known in canonical if name.endswith("." + known)), None)
    if twin:
        raise SourceError(
            f"{extent.file} holds two models: '{twin}', and {shown(name)} under the prefix "
            f"{shown(name.removesuffix(twin))}",
            "save the one that is meant, alone",
        )
    raise SourceError(
        f"{extent.file}: tensor {shown(name)} has no place in a {spec.architecture} model with this config",
        f"{where} says which biases and norms there are: it belongs to another model, or this is a variant of the "
        "architecture, which the exporter of optimum may know",
    )


def _find_prefixed(name: str, found: Collection[str]) -> tuple[str, str] | None:
    """A stored tensor that is ``name`` under a prefix, and the prefix."""
    for known in (name, name.removeprefix("model.")):
        for stored in found:
            if stored.endswith("." + known):
                return stored, stored.removesuffix(known)
    return None
