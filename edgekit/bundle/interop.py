"""The side files that onnxruntime-genai, optimum and transformers.js need to open a bundle unmodified.

A limitation that no side file can fix: optimum assumes head_dim = hidden_size / heads for every architecture here, and
no grouped-query attention for phi3, so models that differ do not open there.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from edgekit.errors import BundleError
from edgekit.types import ModelSpec, Precision, SideFile, Target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

GRAPH_NAMES: dict[Precision, str] = {
    "fp32": "onnx/model.onnx",
    "fp16": "onnx/model_fp16.onnx",
    "int8": "onnx/model_quantized.onnx",
    "int4": "onnx/model_q4.onnx",
}
"""Path of the graph for each precision; transformers.js expects these names."""

_JS_DTYPES: dict[Precision, str] = {"fp32": "fp32", "fp16": "fp16", "int8": "q8", "int4": "q4"}

# genai's names for decoders whose cache is past_key_values.N.key|value; any other is "decoder".
_GENAI_TYPES = ("granite", "llama", "mistral", "olmo", "phi", "phi3", "qwen2", "qwen3", "smollm3")

# genai allocates the whole cache when a generation starts, so its default length is not the model's longest.
_GENAI_MAX_LENGTH = 4096


@dataclass(frozen=True)
class GraphFile:
    """The facts about a graph that go into side files; ``path`` is relative to the bundle."""

    path: str
    inputs: tuple[str, ...]
    half_cache: bool
    external_data: bool

    @classmethod
    def of(cls, model: ir.Model, path: str, external_data: bool) -> GraphFile:
        """Read the facts from a model."""
        cache = {v.dtype.name for v in model.graph.inputs if v.dtype and (v.name or "").startswith("past_key_values.")}
        return cls(
            path=path,
            inputs=tuple(v.name or "" for v in model.graph.inputs),
            half_cache="FLOAT16" in cache,
            external_data=external_data,
        )


def runtime_files(
    files: Sequence[SideFile], spec: ModelSpec, target: Target, graph: GraphFile, precision: Precision
) -> tuple[SideFile, ...]:
    """The checkpoint's files, three of them modified, and genai_config.json.

    config.json gets ``transformers.js_config``, tokenizer_config.json a tokenizer class that transformers 4 also knows,
    and tokenizer.json loses its indentation, which is half of its bytes. All other files are copied unchanged.

    Raises:
        BundleError: config.json or tokenizer_config.json is not a JSON object.
    """
    kept = {f.name: f.data for f in files}
    config = _parse(kept, "config.json")
    config["transformers.js_config"] = _javascript_config(graph, precision)
    kept["config.json"] = _dump(config)
    tokenizer = _parse(kept, "tokenizer_config.json")
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        # transformers 5's new name for the same class.
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
        kept["tokenizer_config.json"] = _dump(tokenizer)
    if "tokenizer.json" in kept:
        kept["tokenizer.json"] = _compact(kept["tokenizer.json"])
    generation = _parse(kept, "generation_config.json") if "generation_config.json" in kept else {}
    kept["genai_config.json"] = _dump(_genai_config(spec, target, graph, generation))
    return tuple(SideFile(name, kept[name]) for name in sorted(kept))


def _compact(data: bytes) -> bytes:
    """The same JSON without whitespace between its tokens, unless that is longer."""
    with suppress(ValueError):  # not JSON, or a lone surrogate that only an escape can carry
        short = json.dumps(json.loads(data), ensure_ascii=False, separators=(",", ":")).encode()
        return min(short, data, key=len)
    return data


def _javascript_config(graph: GraphFile, precision: Precision) -> dict[str, Any]:
    dtype = _JS_DTYPES[precision]
    config: dict[str, Any] = {
        "dtype": dtype,
        "use_external_data_format": {graph.path.rpartition("/")[2]: graph.external_data},
    }
    if graph.half_cache:
        config["kv_cache_dtype"] = {dtype: "float16"}
    return config


def _genai_config(spec: ModelSpec, target: Target, graph: GraphFile, generation: dict[str, Any]) -> dict[str, Any]:
    inputs = {n: n for n in ("input_ids", "attention_mask", "position_ids") if n in graph.inputs}
    kinds = ("key", "value")
    decoder = {
        "session_options": genai_session(),
        "filename": graph.path,
        **genai_sizes(spec),
        "inputs": inputs | {f"past_{k}_names": f"past_key_values.%d.{k}" for k in kinds},
        "outputs": {"logits": "logits"} | {f"present_{k}_names": f"present.%d.{k}" for k in kinds},
    }
    kind = spec.architecture if spec.architecture in _GENAI_TYPES else "decoder"
    return {
        "model": genai_model(kind, spec, spec.context_length, decoder),
        "search": genai_search(min(spec.context_length, _GENAI_MAX_LENGTH), target.shared_kv, generation),
    }


def genai_model(kind: str, spec: ModelSpec, context_length: int, decoder: dict[str, Any]) -> dict[str, Any]:
    """The ``model`` section of genai_config.json, without values that the checkpoint does not define."""
    eos = list(spec.eos_token_ids)
    model = {
        "type": kind,
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": eos if len(eos) != 1 else eos[0],
        "pad_token_id": spec.pad_token_id if spec.pad_token_id is not None else next(iter(eos), None),
        "vocab_size": spec.vocab_size,
        "context_length": context_length,
        "decoder": decoder,
    }
    return {k: v for k, v in model.items() if v is not None and v != []}


def genai_sizes(spec: ModelSpec) -> dict[str, int]:
    """The sizes in genai's ``decoder`` section."""
    return {
        "head_size": spec.head_dim,
        "hidden_size": spec.hidden_size,
        "num_attention_heads": spec.heads,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": spec.kv_heads,
    }


def genai_session(providers: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Session options, for the CPU unless a provider is given."""
    # 0 threads: ONNX Runtime uses all physical cores. If unset, genai uses half of the logical ones: 1 of 2.
    return {"log_id": "onnxruntime-genai", "provider_options": [*providers], "intra_op_num_threads": 0}


def genai_search(max_length: int, shared_kv: bool, generation: Mapping[str, Any]) -> dict[str, Any]:
    """The ``search`` section of genai_config.json: the values of generation_config.json, with one beam.

    Raises:
        BundleError: a value has the wrong type. Null counts as absent, as in transformers.
    """
    return {
        "do_sample": _flag(generation, "do_sample"),
        "max_length": max_length,
        "min_length": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": shared_kv,
        "repetition_penalty": _number(generation, "repetition_penalty", 1.0),
        "temperature": _number(generation, "temperature", 1.0),
        "top_k": _number(generation, "top_k", 50, whole=True),
        "top_p": _number(generation, "top_p", 1.0),
    }


def _number(generation: Mapping[str, Any], key: str, default: float, *, whole: bool = False) -> float:
    """A number of the type that genai requires: it rejects files with any other type or null."""
    value = generation.get(key)
    value = default if value is None else value
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
    if not known or (whole and value != int(value)):
        raise _wrong(key, value, "a whole number" if whole else "a number")
    return int(value) if whole else float(value)


def _flag(generation: Mapping[str, Any], key: str) -> bool:
    value = generation.get(key)
    if value not in (None, False, True):  # also accepts 0 and 1
        raise _wrong(key, value, "true or false")
    return bool(value)


def _wrong(key: str, value: object, wanted: str) -> BundleError:
    hint = f"correct '{key}' in generation_config.json, or remove it"
    return BundleError(f"generation_config.json: '{key}' must be {wanted}, not {repr(value)[:80]}", hint)


def _parse(files: dict[str, bytes], name: str) -> dict[str, Any]:
    hint = "restore the file in the checkpoint"
    try:
        data = json.loads(files[name])
    except (KeyError, ValueError) as error:
        raise BundleError(f"{name}: missing or not JSON: {error}", hint) from error
    if not isinstance(data, dict):
        raise BundleError(f"{name}: not a JSON object", hint)
    return data


def _dump(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
