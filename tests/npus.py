"""Bundles for an NPU without its compiler: a double writes EPContext graphs that nothing can run, all else is real."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import save_file

import edgekit.build.npu
import edgekit.build.npu_plan
from edgekit.build.pipeline import ForNpu, build_bundle
from edgekit.config.recipe import load_target
from edgekit.run import load_runner
from edgekit.run.npu import Compilation, StaticRunner, open_on_cpu
from edgekit.testing import tiny_checkpoint, tiny_config, tiny_weights
from edgekit.types import Bundle, Runner, Target
from edgekit.types.npu import Placed, Role

WIDTH, SLOTS = 8, 48
PROVIDER = "QNNExecutionProvider"
NEEDS_COMPILER = [
    pytest.mark.qnn,
    pytest.mark.skipif(find_spec("onnxruntime_qnn") is None, reason="needs the extra qnn, on x86-64 Linux"),
]
"""Marks of a test that compiles for an NPU, and may run what it compiled on the emulator."""
NOTE = "v2:6:2.51.0:5.51.0:0:57:0:0"


def tiny_target(largest_graph_bytes: int = 10**9) -> Target:
    """A phone whose graphs take 8 tokens over a cache of 48."""
    target = load_target("galaxy-s24")
    assert target.npu is not None
    npu = replace(target.npu, prefill_tokens=WIDTH, context=SLOTS, largest_graph_bytes=largest_graph_bytes)
    return replace(target, npu=npu)


def needs_compiler(test: Callable[..., None]) -> Callable[..., None]:
    """Mark one test."""
    for mark in NEEDS_COMPILER:
        test = mark(test)
    return test


def compiled_graph(source: Path, output: Path, note: str = NOTE) -> None:
    """An EPContext graph with the inputs and outputs of a static one, and a binary that is none."""
    graph = ir.load(source).graph
    binary = output.with_name(f"{output.stem}_qnn.bin")
    binary.write_bytes(b"a binary")
    attributes = {"embed_mode": 0, "ep_cache_context": binary.name, "main_context": 1, "source": "QNN"}
    inputs = [ir.Value(name=v.name, type=v.type, shape=v.shape) for v in graph.inputs]
    outputs = [ir.Value(name=v.name, type=v.type, shape=v.shape) for v in graph.outputs]
    node = ir.node("EPContext", inputs, attributes, domain="com.microsoft", name="context", outputs=outputs)
    opsets = {"": 21, "com.microsoft": 1}
    model = ir.Model(ir.Graph(inputs, outputs, nodes=[node], opset_imports=opsets, name="context"), ir_version=10)
    model.metadata_props[f"ep_compatibility_info.{PROVIDER}"] = note
    ir.save(model, output)


def compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the double in the compiler's place."""

    def compile_graphs(
        plugin: Any, provider: str, options: Any, graphs: Sequence[tuple[Path, Path]], **_: Any
    ) -> tuple[Compilation, ...]:
        for source, output in graphs:
            compiled_graph(source, output)
        return tuple(
            Compilation(
                source,
                out,
                tuple(Placed(str(n.name), n.op_type, provider) for n in ir.load(source).graph),
                None,
                1.0,
                1,
                "",
            )
            for source, out in graphs
        )

    monkeypatch.setattr(edgekit.build.npu, "compile_graphs", compile_graphs)
    monkeypatch.setattr(edgekit.build.npu_plan, "require_compiler", lambda plugin: None)
    monkeypatch.setattr(edgekit.build.npu, "plugin_versions", lambda plugin: (("onnxruntime-qnn", "2.7.0"),))


def signed_checkpoint(path: Path, **overrides: Any) -> Path:
    """A tiny model whose random weights do not repeat the last token: random signs part the output from the input."""
    checkpoint = tiny_checkpoint(path, **overrides)
    config = tiny_config(**overrides)
    weights = tiny_weights(config)
    weights["model.norm.weight"] *= (
        np.random.default_rng(7).choice((-1.0, 1.0), config["hidden_size"]).astype(np.float32)
    )
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return checkpoint


def build_tiny(folder: Path, monkeypatch: pytest.MonkeyPatch, *, largest_graph_bytes: int = 10**9) -> Bundle:
    """A bundle of a tiny model at half precision for ``tiny_target``."""
    compile_nothing(monkeypatch)
    checkpoint = signed_checkpoint(folder / "checkpoint")
    target = tiny_target(largest_graph_bytes)
    return build_bundle(str(checkpoint), target=target, precision="fp16", out=folder / "b", npu=ForNpu(emulate=False))


def static_runner(bundle: Bundle) -> StaticRunner:
    """The uncompiled graphs on the CPU."""
    build = bundle.manifest.npus[0]
    roles: tuple[Role, Role] = ("prefill", "decode")
    chains = [[open_on_cpu(bundle.path / g.source, 1) for g in build.chain(role)] for role in roles]
    return StaticRunner(open_on_cpu(bundle.path / build.host, 1), *chains)


def portable_runner(bundle: Bundle) -> Runner:
    """The graph for the device's CPU."""
    return load_runner(bundle)


def greedy(runner: Runner, prompt: Sequence[int], count: int) -> list[int]:
    """The most likely tokens, one after another, until the cache is full."""
    runner.reset()
    made = [int(np.argmax(runner.prefill(prompt)))]
    while len(made) < count and runner.length < runner.context_length:
        made.append(int(np.argmax(runner.step(made[-1]))))
    return made
