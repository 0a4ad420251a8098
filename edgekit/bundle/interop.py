"""What onnxruntime-genai, optimum and transformers.js need beside the graph to open the bundle as it is.

What no side file can cure: optimum takes head_dim for hidden_size / heads in every architecture here, and phi3 for one
without grouped keys and values, so a model that differs does not open there.
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
"""Where the graph of each precision lies; the names are transformers.js's."""

_JS_DTYPES: dict[Precision, str] = {"fp32": "fp32", "fp16": "fp16", "int8": "q8", "int4": "q4"}

# genai's names for decoders whose cache is past_key_values.N.key|value; "decoder" is its word for any other.
_GENAI_TYPES = ("granite", "llama", "mistral", "olmo", "phi", "phi3", "qwen2", "qwen3", "smollm3")

# genai allocates the whole cache when a generation starts, so its default length is not the model's longest.
_GENAI_MAX_LENGTH = 4096


@dataclass(frozen=True)
class GraphFile:
    """What the side files say about a graph: its path in the bundle, its inputs, its cache's type, its data file."""

    path: str
    inputs: tuple[str, ...]
    half_cache: bool
    external_data: bool

    @classmethod
    def of(cls, model: ir.Model, path: str, external_data: bool) -> GraphFile:
        """Read the names off a model."""
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
    """The checkpoint's files, three of them amended, and genai_config.json.

    config.json gains ``transformers.js_config``; tokenizer_config.json names a tokenizer class that transformers 4
    knows too; tokenizer.json loses its indentation, half of its bytes. Everything else is kept to the byte.

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
    """The same JSON without white space between its tokens; as it is when that is not shorter."""
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
    """genai_config.json's ``model``; what the checkpoint does not say is left out."""
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
    """The sizes that genai's ``decoder`` names."""
    return {
        "head_size": spec.head_dim,
        "hidden_size": spec.hidden_size,
        "num_attention_heads": spec.heads,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": spec.kv_heads,
    }


def genai_session(providers: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """A session's options: the CPU's, unless a provider is named."""
    # 0 threads: ONNX Runtime takes the physical cores. Unset, genai takes half the logical ones: 1 of 2.
    return {"log_id": "onnxruntime-genai", "provider_options": [*providers], "intra_op_num_threads": 0}


def genai_search(max_length: int, shared_kv: bool, generation: Mapping[str, Any]) -> dict[str, Any]:
    """genai_config.json's ``search``: as generation_config.json says, one beam.

    Raises:
        BundleError: an entry is of another type. Null says nothing, as in transformers.
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
    """A number of the type that genai asks for: it refuses a file with another, null among them."""
    value = generation.get(key)
    value = default if value is None else value
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
    if not known or (whole and value != int(value)):
        raise _wrong(key, value, "a whole number" if whole else "a number")
    return int(value) if whole else float(value)


def _flag(generation: Mapping[str, Any], key: str) -> bool:
    value = generation.get(key)
    if value not in (None, False, True):  # 0 and 1 are equal to these
        raise _wrong(key, value, "true or false")
    return bool(value)


def _wrong(key: str, value: object, wanted: str) -> BundleError:
    hint = f"correct '{key}' in generation_config.json, or remove it"
    return BundleError(f"generation_config.json: '{key}' is {repr(value)[:80]}, not {wanted}", hint)


def _parse(files: dict[str, bytes], name: str) -> dict[str, Any]:
    try:
        data = json.loads(files[name])
    except (KeyError, ValueError) as error:
        raise BundleError(f"{name}: not JSON, or not there: {error}", "the checkpoint must carry it") from error
    if not isinstance(data, dict):
        raise BundleError(f"{name}: not a JSON object", "the checkpoint must carry it")
    return data


def _dump(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
