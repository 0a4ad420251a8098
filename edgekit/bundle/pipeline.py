"""``npu/<target>/genai_config.json``: runs static graphs in onnxruntime-genai as a pipeline of stages.

genai runs the pipeline once per chunk of the prompt (``sliding_window``), each time with the whole prompt; the chunk
stage selects the next chunk. The ``inputs`` and ``outputs`` that genai manages (prompt, positions, cache, one row of
logits) are passed to every stage that has them; other outputs are passed to later stages by name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from edgekit.bundle.interop import genai_model, genai_search, genai_session, genai_sizes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekit.types import ModelSpec, NpuBuild
    from edgekit.types.device import Runtime

CONFIG = "genai_config.json"

_ALONE = ("config.json", "generation_config.json", "genai_config.json")
"""Files of a bundle that describe its CPU graph."""


@dataclass(frozen=True)
class Stage:
    """One graph of a pipeline, with its path relative to the configuration; ``compiled`` ones run on the NPU."""

    name: str
    file: str
    on_prompt: bool = True
    on_token: bool = True
    compiled: bool = False


def stages_of(build: NpuBuild) -> tuple[Stage, ...]:
    """The stages in execution order: chunk, host, prefill chain, decode chain, cache."""
    files = {graph: graph.context.removeprefix(f"{build.folder}/") for graph in build.graphs}
    compiled = (
        Stage(files[g].removesuffix(".onnx"), files[g], g.role == "prefill", g.role == "decode", compiled=True)
        for g in (*build.chain("prefill"), *build.chain("decode"))
    )
    host = build.host.removeprefix(f"{build.folder}/")
    return (Stage("chunk", "chunk.onnx"), Stage("host", host), *compiled, Stage("cache", "cache.onnx"))


def pipeline_config(folder: Path, build: NpuBuild, runtime: Runtime, spec: ModelSpec, width: int) -> bytes:
    """The configuration for the graphs in a device's folder, from which it reads input and output names.

    Args:
        folder: ``npu/<target>``; its graphs are already written.
        build: describes them.
        runtime: the provider's name in genai and its options on the device.
        spec: the model.
        width: tokens per chunk of a prompt.
    """
    decoder = {
        "session_options": genai_session(),
        **genai_sizes(spec),
        # genai allocates window + slack cache slots, which must match the graphs.
        "sliding_window": {
            "window_size": width,
            "cache_slack": build.past - width,
            "slide_key_value_cache": False,
            "slide_inputs": False,
        },
        "inputs": {
            "input_ids": "prompt_ids",
            "position_ids": "prompt_positions",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits.last",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "pipeline": [{s.name: _stage(folder, s, runtime) for s in stages_of(build)}],
    }
    model = genai_model("decoder-pipeline", spec, build.past, decoder)
    config = {"model": model, "search": genai_search(build.past, shared_kv=True, generation={})}
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def tokenizer_files(names: Sequence[str]) -> tuple[str, ...]:
    """The side files of a bundle that a tokenizer needs."""
    return tuple(name for name in names if name not in _ALONE)


def _stage(folder: Path, stage: Stage, runtime: Runtime) -> dict[str, Any]:
    graph = ir.load(folder / stage.file).graph
    return {
        "filename": stage.file,
        "inputs": [value.name for value in graph.inputs],
        "outputs": [value.name for value in graph.outputs],
        "run_on_prompt": stage.on_prompt,
        "run_on_token_gen": stage.on_token,
        "session_options": genai_session([{runtime.genai: dict(runtime.options)}] if stage.compiled else ()),
    }
