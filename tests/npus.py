"""Bundles for an NPU without its compiler: a double writes EPContext graphs that nothing can run, all else is real."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgekit.build.pipeline import ForNpu, build_bundle
from edgekit.config.recipe import load_target
from edgekit.run import load_runner
from edgekit.run.npu import Compiler, StaticRunner, VendorCompiler, open_on_cpu
from edgekit.testing import FakeCompiler, tiny_checkpoint, tiny_config, tiny_weights
from edgekit.types import Bundle, Runner, Target
from edgekit.types.npu import Role

WIDTH, SLOTS = 8, 48
PROVIDER = "QNNExecutionProvider"
NEEDS_COMPILER = [
    pytest.mark.qnn,
    pytest.mark.skipif(find_spec("onnxruntime_qnn") is None, reason="needs the extra qnn, on x86-64 Linux"),
]
"""Marks of a test that compiles for an NPU, and may run what it compiled on the emulator."""


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


def compile_nothing(monkeypatch: pytest.MonkeyPatch, compiler: Compiler | None = None) -> None:
    """Put a fake in the vendor's place where a test goes through the command line."""
    compiler = compiler or FakeCompiler()
    for method in ("require", "versions", "compile"):
        monkeypatch.setattr(VendorCompiler, method, staticmethod(getattr(compiler, method)))


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


def build_tiny(folder: Path, *, largest_graph_bytes: int = 10**9) -> Bundle:
    """A bundle of a tiny model at half precision for ``tiny_target``."""
    checkpoint = signed_checkpoint(folder / "checkpoint")
    target = tiny_target(largest_graph_bytes)
    npu = ForNpu(emulate=False, compiler=FakeCompiler())
    return build_bundle(str(checkpoint), target=target, precision="fp16", out=folder / "b", npu=npu)


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
