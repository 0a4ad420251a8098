"""One-layer models in both dialects, made by hand: the run room is tested without the rooms before it."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.types import Bundle, Manifest, ModelSpec, Provenance, Recipe, Rope, Target

VOCAB, HEADS, SIZE, CONTEXT = 50, 2, 16, 1200
HIDDEN = HEADS * SIZE
PAST = ["past_key_values.0.key", "past_key_values.0.value"]


def _weights(vocab: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((HIDDEN, HIDDEN)) / 3 for name in ("wq", "wk", "wv")}
    weights["embed"] = random.standard_normal((vocab, HIDDEN))
    weights["head"] = random.standard_normal((HIDDEN, vocab))
    angles = np.arange(CONTEXT)[:, None] / 10.0 ** np.arange(SIZE // 2)[None]
    weights |= {"cos": np.cos(angles), "sin": np.sin(angles)}
    return {name: value.astype(np.float32) for name, value in weights.items()}


def _value(name: str, kind: int, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _save(path: Path, nodes: list, weights: dict, extra_inputs: list) -> None:
    ids = _value("input_ids", TensorProto.INT64, ["B", "S"])
    mask = _value("attention_mask", TensorProto.INT64, ["B", "T"])
    past = [_value(f"past_key_values.0.{n}", TensorProto.FLOAT, ["B", HEADS, "P", SIZE]) for n in ("key", "value")]
    present = [_value(f"present.0.{n}", TensorProto.FLOAT, ["B", HEADS, "T", SIZE]) for n in ("key", "value")]
    logits = _value("logits", TensorProto.FLOAT, ["B", "S", weights["embed"].shape[0]])
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "tiny", [ids, mask, *extra_inputs, *past], [logits, *present], initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def write_in_place(path: Path, vocab: int) -> None:
    """GroupQueryAttention with rotary positions, which writes present into past's buffer."""
    node = helper.make_node
    nodes = [
        node("Gather", ["embed", "input_ids"], ["x"]),
        *(node("MatMul", ["x", f"w{n}"], [n]) for n in "qkv"),
        node("ReduceSum", ["attention_mask", "one"], ["count"], keepdims=0),
        node("Sub", ["count", "one"], ["last"]),
        node("Cast", ["last"], ["seqlens"], to=TensorProto.INT32),
        node("Shape", ["attention_mask"], ["length"], start=1, end=2),
        node("Squeeze", ["length"], ["length0"]),
        node("Cast", ["length0"], ["total"], to=TensorProto.INT32),
        node(
            "GroupQueryAttention",
            ["q", "k", "v", *PAST, "seqlens", "total", "cos", "sin", "position_ids"],
            ["a", "present.0.key", "present.0.value"],
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=HEADS,
            do_rotary=1,
        ),
        node("MatMul", ["a", "head"], ["logits"]),
    ]
    positions = _value("position_ids", TensorProto.INT64, ["B", "S"])
    _save(path, nodes, _weights(vocab) | {"one": np.array([1], np.int64)}, [positions])


def write_append(path: Path, vocab: int) -> None:
    """Standard operators, past and new positions concatenated; no position_ids, no rotary positions."""
    node = helper.make_node
    split = {"split": np.array([0, 0, HEADS, SIZE], np.int64), "merge": np.array([0, 0, HIDDEN], np.int64)}
    constants = {
        "scale": np.array(SIZE**-0.5, np.float32),
        "hide": np.array(-1e9, np.float32),
        "one": np.array(1, np.int64),
        "zero": np.array(0, np.int64),
        "axis1": np.array([1], np.int64),
    }
    nodes = [node("Gather", ["embed", "input_ids"], ["x"])]
    for n in "qkv":
        nodes += [
            node("MatMul", ["x", f"w{n}"], [f"{n}0"]),
            node("Reshape", [f"{n}0", "split"], [f"{n}1"]),
            node("Transpose", [f"{n}1"], [n], perm=[0, 2, 1, 3]),
        ]
    nodes += [
        node("Concat", ["past_key_values.0.key", "k"], ["present.0.key"], axis=2),
        node("Concat", ["past_key_values.0.value", "v"], ["present.0.value"], axis=2),
        node("Transpose", ["present.0.key"], ["kt"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q", "kt"], ["s0"]),
        node("Mul", ["s0", "scale"], ["s1"]),
        node("Shape", ["attention_mask"], ["t1"], start=1, end=2),
        node("Squeeze", ["t1"], ["t"]),
        node("Shape", ["input_ids"], ["n1"], start=1, end=2),
        node("Squeeze", ["n1"], ["n"]),
        node("Sub", ["t", "n"], ["p"]),
        node("Range", ["zero", "t", "one"], ["columns"]),
        node("Range", ["p", "t", "one"], ["rows0"]),
        node("Unsqueeze", ["rows0", "axis1"], ["rows"]),
        node("Greater", ["columns", "rows"], ["future"]),
        node("Where", ["future", "hide", "s1"], ["s2"]),
        node("Softmax", ["s2"], ["s3"], axis=-1),
        node("MatMul", ["s3", "present.0.value"], ["a0"]),
        node("Transpose", ["a0"], ["a1"], perm=[0, 2, 1, 3]),
        node("Reshape", ["a1", "merge"], ["a"]),
        node("MatMul", ["a", "head"], ["logits"]),
    ]
    weights = _weights(vocab)
    del weights["cos"], weights["sin"]
    _save(path, nodes, weights | split | constants, [])


def make_bundle(path: Path, graph: str, vocab: int, *, shared_kv: bool, **target: object) -> Bundle:
    """A Bundle of a graph written by hand, with a manifest that says just what running needs."""
    spec = ModelSpec(
        architecture="llama", hidden_size=HIDDEN, intermediate_size=0, layers=1, heads=HEADS, kv_heads=HEADS,
        head_dim=SIZE, vocab_size=vocab, context_length=CONTEXT, norm_eps=1e-5, rope=Rope(theta=1e4, dim=SIZE),
        tied=False, windows=(None,), rotary=(True,),
    )  # fmt: skip
    device = {"name": "cpu", "title": "", "provider": "CPUExecutionProvider", "opset": 21, "precisions": ("fp32",)}
    device |= {"verified": "executed", "shared_kv": shared_kv} | target
    manifest = Manifest(
        schema=1, edgekit="0", provenance=Provenance("tiny", "folder", ""), spec=spec, recipe=Recipe("fp32", "fp32"),
        target=Target(**device), graph=graph, exporter="native", tools=(), tensors=(), files=(),
    )  # fmt: skip
    return Bundle(path, manifest)


def _maker(folder: Path, vocab: int) -> Callable[..., Bundle]:
    write_in_place(folder / "in place.onnx", vocab)
    write_append(folder / "append.onnx", vocab)

    def make(dialect: str, **options: object) -> Bundle:
        return make_bundle(folder, f"{dialect}.onnx", vocab, shared_kv=dialect == "in place", **options)

    return make


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """bundle_of("in place" | "append", **target fields) -> a Bundle of a model with 50 tokens."""
    return _maker(tmp_path_factory.mktemp("graphs"), VOCAB)


@pytest.fixture(scope="session")
def big_bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """As bundle_of, with the vocabulary of testing.tiny_tokenizer."""
    return _maker(tmp_path_factory.mktemp("graphs"), 384)


@pytest.fixture
def copied(tmp_path: Path, bundle_of: Callable[..., Bundle]) -> Bundle:
    """A Bundle whose graph may be damaged."""
    bundle = bundle_of("append")
    shutil.copy(bundle.graph, tmp_path)
    return dataclasses.replace(bundle, path=tmp_path)
