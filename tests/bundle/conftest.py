"""A model of three tensors and the bundle made of it, without any other room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgekit.bundle import SCHEMA, write_bundle
from edgekit.config.recipe import load_recipe, load_target
from edgekit.types import Bundle, Manifest, ModelSpec, Provenance, Rope, SideFile

GRAPH = "onnx/model_q4.onnx"
FLOAT = ir.DataType.FLOAT

Weight = Callable[[], ir.TensorProtocol]


def value(name: str, shape: list[int | str], tensor: ir.TensorProtocol | None = None) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(FLOAT), shape=ir.Shape(shape), const_value=tensor)


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "up": random.standard_normal((95, 8)).astype(np.float32).T,  # [8, 95], not contiguous
        "down": random.standard_normal((95, 7)).astype(np.float32),  # its end is not aligned
        "last": random.standard_normal((7, 50)).astype(np.float32),
    }


@pytest.fixture
def make_model(weights: dict[str, np.ndarray]) -> Callable[..., ir.Model]:
    """A chain of MatMuls with lazy weights. ``replace`` gives a weight another function."""

    def make(**replace: Weight) -> ir.Model:
        x = value("x", ["B", 8])
        nodes, initializers, flow = [], [], x
        for name, array in weights.items():
            function = replace.get(name, lambda array=array, name=name: ir.Tensor(array, name=name))
            lazy = ir.LazyTensor(function, FLOAT, ir.Shape(array.shape), name=name, cache=False)
            initializers.append(value(name, list(array.shape), lazy))
            nodes.append(ir.Node("", "MatMul", [flow, initializers[-1]], name=f"node.{name}"))
            flow = nodes[-1].outputs[0]
            flow.name = f"after.{name}"
        flow.type, flow.shape = ir.TensorType(FLOAT), ir.Shape(["B", 50])
        graph = ir.Graph([x], [flow], nodes=nodes, initializers=initializers, opset_imports={"": 21}, name="chain")
        return ir.Model(graph, ir_version=10)

    return make


@pytest.fixture
def spec() -> ModelSpec:
    return ModelSpec(
        architecture="llama",
        hidden_size=64,
        intermediate_size=128,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=16,
        vocab_size=384,
        context_length=512,
        norm_eps=1e-5,
        rope=Rope(10000.0, 16),
        tied=True,
        windows=(None, None),
        rotary=(True, True),
        bos_token_id=1,
        eos_token_ids=(2,),
    )


@pytest.fixture
def side_files() -> tuple[SideFile, ...]:
    return (
        SideFile("config.json", b'{"model_type": "llama", "a": [1]}'),
        SideFile("generation_config.json", b'{"temperature": 0.5}'),
        SideFile("tokenizer.json", b"{ }"),
        SideFile("tokenizer_config.json", b'{"tokenizer_class": "TokenizersBackend"}'),
        SideFile("chat_template.jinja", b"{{ x }}"),
    )


@pytest.fixture
def manifest(spec: ModelSpec) -> Manifest:
    return Manifest(
        schema=SCHEMA,
        edgekit="0.1.0",
        provenance=Provenance("tiny", "folder", "0" * 64),
        spec=spec,
        recipe=load_recipe("int4"),
        target=load_target("cpu"),
        graph=GRAPH,
        exporter="native",
        tools=(("numpy", "2"),),
        tensors=(),
        files=(),
    )


@pytest.fixture
def build(
    make_model: Callable[..., ir.Model], manifest: Manifest, side_files: tuple[SideFile, ...]
) -> Callable[..., Bundle]:
    """Write a whole bundle at a path."""

    def make(out: Path, *, force: bool = False, **replace: Weight) -> Bundle:
        with write_bundle(out, force=force) as folder:
            folder.write_graph(make_model(**replace), GRAPH)
            folder.write_side_files(side_files, manifest.spec, manifest.target, GRAPH, "int4")
            return folder.finish(manifest)

    return make
