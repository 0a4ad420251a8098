"""The side files, read as the other runtimes read them. tests/interop opens bundles in the runtimes themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle.interop import GRAPH_NAMES, GraphFile, _compact, runtime_files
from edgekit.config.recipe import load_target
from edgekit.errors import BundleError
from edgekit.types import Bundle, ModelSpec, Precision, SideFile

INPUTS = ("input_ids", "attention_mask", "position_ids", "past_key_values.0.key", "past_key_values.0.value")


def graph(precision: Precision = "int4", **changes: Any) -> GraphFile:
    return replace(GraphFile(GRAPH_NAMES[precision], INPUTS, False, True), **changes)


def files(
    spec: ModelSpec, side_files: tuple[SideFile, ...], precision: Precision = "int4", **changes: Any
) -> dict[str, Any]:
    made = runtime_files(side_files, spec, load_target("cpu"), graph(precision, **changes), precision)
    return {f.name: json.loads(f.data) if f.name.endswith(".json") else f.data for f in made}


def test_the_checkpoints_files_are_kept(tmp_path: Path, build: Callable[..., Bundle]) -> None:
    path = build(tmp_path / "out").path
    assert (path / "tokenizer.json").read_bytes() == b"{}"
    assert (path / "chat_template.jinja").read_bytes() == b"{{ x }}"
    assert (path / "generation_config.json").read_bytes() == b'{"temperature": 0.5}'
    config = json.loads((path / "config.json").read_text())
    assert {k: config[k] for k in ("model_type", "a")} == {"model_type": "llama", "a": [1]}
    # A model without a cache still has its data declared.
    assert config["transformers.js_config"]["use_external_data_format"] == {"model_q4.onnx": True}


@pytest.mark.parametrize(
    ("precision", "dtype", "name"),
    [
        ("fp32", "fp32", "model.onnx"),
        ("fp16", "fp16", "model_fp16.onnx"),
        ("int8", "q8", "model_quantized.onnx"),
        ("int4", "q4", "model_q4.onnx"),
    ],
)
def test_transformers_js_names(
    spec: ModelSpec, side_files: tuple[SideFile, ...], precision: Precision, dtype: str, name: str
) -> None:
    config = files(spec, side_files, precision)["config.json"]["transformers.js_config"]
    assert config == {"dtype": dtype, "use_external_data_format": {name: True}}


def test_a_half_precision_cache_is_declared(spec: ModelSpec, side_files: tuple[SideFile, ...]) -> None:
    config = files(spec, side_files, "fp16", half_cache=True)["config.json"]["transformers.js_config"]
    assert config["kv_cache_dtype"] == {"fp16": "float16"}


def test_genai_config(spec: ModelSpec, side_files: tuple[SideFile, ...]) -> None:
    config = files(spec, side_files)["genai_config.json"]
    model, search = config["model"], config["search"]
    assert (model["type"], model["eos_token_id"], model["pad_token_id"]) == ("llama", 2, 2)
    decoder = model["decoder"]
    assert decoder["filename"] == "onnx/model_q4.onnx"
    assert decoder["inputs"]["position_ids"] == "position_ids"
    assert decoder["inputs"]["past_key_names"] % 7 == "past_key_values.7.key"
    assert decoder["outputs"]["present_value_names"] % 7 == "present.7.value"
    assert (decoder["head_size"], decoder["num_key_value_heads"]) == (16, 2)
    assert (search["past_present_share_buffer"], search["max_length"]) == (True, 512)
    assert search["temperature"] == 0.5


def test_genai_only_feeds_inputs_that_are_there(spec: ModelSpec, side_files: tuple[SideFile, ...]) -> None:
    without = tuple(n for n in INPUTS if n != "position_ids")
    assert (
        "position_ids" not in files(spec, side_files, inputs=without)["genai_config.json"]["model"]["decoder"]["inputs"]
    )


def test_genai_calls_an_unknown_architecture_a_decoder(spec: ModelSpec, side_files: tuple[SideFile, ...]) -> None:
    other = replace(spec, architecture="gpt2", eos_token_ids=(5, 6), bos_token_id=None, context_length=100_000)
    config = files(other, side_files)["genai_config.json"]
    assert (config["model"]["type"], config["model"]["eos_token_id"]) == ("decoder", [5, 6])
    assert "bos_token_id" not in config["model"]
    assert config["search"]["max_length"] == 4096


def test_a_tokenizer_class_of_transformers_5_is_renamed(spec: ModelSpec, side_files: tuple[SideFile, ...]) -> None:
    assert files(spec, side_files)["tokenizer_config.json"] == {"tokenizer_class": "PreTrainedTokenizerFast"}


@pytest.mark.parametrize("data", [b"", b"[1]", b"{"])
def test_a_broken_config_is_refused(spec: ModelSpec, data: bytes) -> None:
    broken = (SideFile("config.json", data), SideFile("tokenizer_config.json", b"{}"))
    with pytest.raises(BundleError, match=r"config\.json: (missing or )?not"):
        files(spec, broken)


@pytest.mark.parametrize(
    ("given", "shipped"),
    [
        ('{\n  "a": ["\u4f60", 1.5]\n}'.encode(), '{"a":["\u4f60",1.5]}'.encode()),
        (b'{"lone": "\\ud800"}', b'{"lone": "\\ud800"}'),
        (b"not JSON", b"not JSON"),
    ],
)
def test_the_tokenizer_loses_nothing_but_white_space(given: bytes, shipped: bytes) -> None:
    assert _compact(given) == shipped


KEYS = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")


def searched(spec: ModelSpec, side_files: tuple[SideFile, ...], **said: Any) -> dict[str, Any]:
    kept = [f for f in side_files if f.name != "generation_config.json"]
    generation = SideFile("generation_config.json", json.dumps(said).encode())
    return dict(files(spec, (*kept, generation))["genai_config.json"]["search"])


@pytest.mark.parametrize(
    ("said", "search"),
    [
        (dict.fromkeys(KEYS), (False, 1.0, 50, 1.0, 1.0)),
        ({}, (False, 1.0, 50, 1.0, 1.0)),
        (
            {"do_sample": True, "temperature": 1, "top_k": 40.0, "top_p": 1, "repetition_penalty": 1},
            (True, 1, 40, 1, 1),
        ),
        ({"do_sample": 0, "temperature": 0.0, "top_k": 0, "top_p": 0.9}, (False, 0.0, 0, 0.9, 1.0)),
    ],
)
def test_search_has_the_types_that_genai_asks_for(
    spec: ModelSpec, side_files: tuple[SideFile, ...], said: dict[str, Any], search: tuple[Any, ...]
) -> None:
    found = searched(spec, side_files, **said)
    assert tuple(found[key] for key in KEYS) == search
    assert [type(found[key]) for key in KEYS] == [bool, float, int, float, float]


@pytest.mark.parametrize(
    ("key", "value"),
    [("do_sample", "true"), ("temperature", "0.7"), ("temperature", True), ("top_k", 1.5), ("top_p", [0.9])],
)
def test_an_entry_of_another_type_is_named(
    spec: ModelSpec, side_files: tuple[SideFile, ...], key: str, value: object
) -> None:
    with pytest.raises(BundleError, match=rf"generation_config\.json: '{key}' must be"):
        searched(spec, side_files, **{key: value})
