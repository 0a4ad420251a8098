"""The tables against transformers' rotary embeddings, to the last position of real contexts."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from edgekit.graph.llama import Writer, rope_tables
from edgekit.graph.rope import attention_factor
from edgekit.run.runtime import onnxruntime
from edgekit.types import Rope, RopeKind

CONTEXT = 131072
FACTORS = tuple(1.0 + 0.5 * i for i in range(64))
# The numbers of Llama 3.1, Qwen2.5 and Phi-3, and a yarn with every option.
REAL: dict[str, tuple[RopeKind, float, dict[str, Any]]] = {
    "default": ("default", 10000.0, {}),
    "linear": ("linear", 10000.0, {"factor": 8.0}),
    "llama3": (
        "llama3",
        500000.0,
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 8192},
    ),
    "yarn": ("yarn", 1000000.0, {"factor": 4.0, "original_context": 32768}),
    "yarn in full": (
        "yarn",
        10000.0,
        {
            "factor": 40.0,
            "original_context": 4096,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.8,
            "truncate": False,
        },
    ),
    "yarn with its factor": ("yarn", 10000.0, {"factor": 4.0, "original_context": 4096, "attention_factor": 1.3}),
    "longrope": (
        "longrope",
        10000.0,
        {"factor": 32.0, "original_context": 4096, "short_factor": FACTORS[:48], "long_factor": FACTORS[16:]},
    ),
}


def theirs(rope: Rope, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cos and sin [len(positions), dim / 2] of transformers."""
    keys = {
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
        "yarn": ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "attention_factor"),
        "longrope": ("factor", "short_factor", "long_factor"),
    }.get(rope.kind, ())
    parameters = {"rope_type": rope.kind, "rope_theta": rope.theta}
    parameters |= {key: list(v) if isinstance(v := getattr(rope, key), tuple) else v for key in keys}
    if rope.kind in ("llama3", "yarn", "longrope"):
        parameters["original_max_position_embeddings"] = rope.original_context
    config = LlamaConfig(
        hidden_size=rope.dim,
        num_attention_heads=1,
        head_dim=rope.dim,
        max_position_embeddings=CONTEXT,
        rope_parameters=parameters,
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.tensor(positions[None]))
    return tuple(wave[0, :, : rope.dim // 2].numpy() for wave in (cos, sin))


def ours(rope: Rope, context: int, optimized: Path) -> list[np.ndarray]:
    """The tables as a session makes them; ``optimized`` gets the graph that it then runs."""
    writer = Writer(None, opset=21, name="tables")  # type: ignore[arg-type]
    for table in rope_tables(writer, rope, context):
        writer.output(table, ir.DataType.FLOAT, list(table.shape))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # it warns that the optimized file is for this machine
    options.optimized_model_filepath = str(optimized)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    proto = ir.to_proto(writer.model)
    onnx.checker.check_model(proto, full_check=True)
    assert proto.ByteSize() < 10_000
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, {})


@pytest.mark.parametrize("name", REAL)
def test_tables_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    kind, theta, numbers = REAL[name]
    rope = Rope(theta=theta, dim=96 if kind == "longrope" else 128, kind=kind, **numbers)
    tables = ours(rope, CONTEXT, tmp_path / "optimized.onnx")
    rows = CONTEXT + rope.original_context if rope.switches(CONTEXT) else CONTEXT
    for positions in (np.arange(64), np.arange(4000, 4096), np.arange(CONTEXT - 64, CONTEXT)):
        long = rope.switches(CONTEXT) and positions.max() >= rope.original_context
        for found, wave in zip(tables, theirs(rope, positions), strict=True):
            assert found.shape == (rows, rope.dim // 2)
            # Where a frequency differs by one rounding, 2**-24 of it, a late position shows it.
            limit = 5e-5 if positions[-1] > 100_000 else 1e-6
            assert np.abs(found[positions + rope.original_context * long] - wave).max() < limit


@pytest.mark.parametrize("name", ["llama3", "yarn", "longrope"])
def test_onnxruntime_folds_the_tables_when_it_makes_a_session(name: str, tmp_path: Path) -> None:
    kind, theta, numbers = REAL[name]
    numbers = {k: v[:4] if isinstance(v, tuple) else v for k, v in numbers.items()}
    ours(Rope(theta=theta, dim=8, kind=kind, **numbers), 9000, tmp_path / "optimized.onnx")
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    assert not graph.node
    assert sorted(value.name for value in graph.initializer) == ["rope.cos", "rope.sin"]


def test_longrope_within_its_original_context_has_one_table(tmp_path: Path) -> None:
    rope = Rope(theta=10000.0, dim=8, kind="longrope", original_context=64, short_factor=(1, 1, 1, 1))
    assert [table.shape for table in ours(rope, 64, tmp_path / "optimized.onnx")] == [(64, 4), (64, 4)]


def test_attention_factor_is_one_without_scaling() -> None:
    for kind in ("yarn", "longrope", "llama3"):
        assert attention_factor(Rope(theta=10000.0, dim=8, kind=kind, factor=1.0, original_context=64)) == 1.0
