"""Lacks, quirks and their cures: each has the other, and each cure leaves the numbers as they were."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import edgekit
from edgekit.config.recipe import builtin_recipe, list_targets, load_target
from edgekit.errors import LowerError
from edgekit.graph import build_graph
from edgekit.lower import fixes, lower
from edgekit.quantize import quantize
from edgekit.run.runtime import onnxruntime
from edgekit.source import open_model
from edgekit.testing import tiny_checkpoint
from edgekit.types import Checkpoint, Precision, Target

PORTABLE = load_target("portable")
FLOAT_LACKS = sorted(PORTABLE.lacks - {"op:MatMulNBits", "op:GatherBlockQuantized"})


def lacking(*names: str) -> Target:
    return replace(PORTABLE, name="test", lacks=frozenset(names))


def operators(model: ir.Model) -> set[str]:
    return {node.op_type for node in model.graph}


def logits(model: ir.Model, checkpoint: Checkpoint) -> np.ndarray:
    """Of 12 tokens in two steps."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    spec = checkpoint.spec
    ids = np.random.default_rng(0).integers(0, spec.vocab_size, (1, 12))
    past = [np.zeros((1, spec.kv_heads, 0, spec.head_dim), np.float32)] * (2 * spec.layers)
    names = [value.name for value in session.get_inputs()][3:]
    found = []
    for start, stop in [(0, 8), (8, 12)]:
        inputs = {
            "input_ids": ids[:, start:stop],
            "attention_mask": np.ones((1, stop), np.int64),
            "position_ids": np.arange(start, stop)[None],
        }
        scores, *past = session.run(None, inputs | dict(zip(names, past, strict=True)))
        found.append(scores)
    return np.concatenate(found, axis=1)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """Heads of 8, so that they are rotated by an operator of their own; a window and a tied head."""
    folder = tiny_checkpoint(tmp_path / "tiny", "mistral", head_dim=8, sliding_window=5)
    return open_model(str(folder))


def of_family(folder: Path, family: str) -> Path:
    """A made-up device of a family that none of ours is of."""
    file = folder / f"of-{family}.toml"
    file.write_text(
        f'name = "of-{family}"\ntitle = "t"\nprovider = "P"\nopset = 21\nprecisions = ["int4"]\nverified = "none"\n'
        f'[npu]\nname = "n"\nfamily = "{family}"\ncontext = 64\nefficiency = [0.5, 0.8]\n'
    )
    return file


def test_every_lack_has_a_cure_and_every_cure_a_target(tmp_path) -> None:
    targets = [load_target(name) for name in list_targets()]
    npus = [target.npu for target in targets if target.npu]
    families = {file.stem for file in (Path(edgekit.__file__).parents[1] / "targets" / "families").glob("*.toml")}
    npus += [load_target(of_family(tmp_path, name)).npu for name in families - {npu.family for npu in npus}]
    schemes = [scheme for npu in npus for scheme in npu.schemes]
    named = {name for place in (*targets, *schemes) for name in place.lacks | place.quirks}
    assert named == set(fixes())


def test_a_cure_is_named_by_its_file() -> None:
    found = fixes()
    assert found["op:MatMulNBits"] == "lower/matmul_nbits.py"
    root = Path(edgekit.__file__).parent
    assert all((root / file).is_file() for file in found.values())


def test_a_lack_without_cure_is_named_with_the_nearest(checkpoint: Checkpoint) -> None:
    model = build_graph(checkpoint.spec, checkpoint.weights, opset=21, name="tiny")
    with pytest.raises(LowerError, match=r"target test: .* no rewrite for 'op:MatMulNBit'") as caught:
        lower(model, lacking("op:MatMulNBit"))
    assert "did you mean 'op:MatMulNBits'?" in caught.value.hint


@pytest.mark.parametrize("lack", FLOAT_LACKS)
def test_a_cure_alone_keeps_the_logits(lack: str, checkpoint: Checkpoint) -> None:
    def build() -> ir.Model:
        return build_graph(checkpoint.spec, checkpoint.weights, opset=21, name="tiny")

    operator = lack.removeprefix("op:")
    assert operator in operators(build())
    lowered = lower(build(), lacking(lack))
    assert operator not in operators(lowered)
    before = logits(build(), checkpoint)
    assert np.abs(logits(lowered, checkpoint) - before).max() < 1e-5 * np.abs(before).max()


def test_portable_is_standard_onnx(checkpoint: Checkpoint) -> None:
    model = lower(build_graph(checkpoint.spec, checkpoint.weights, opset=21, name="tiny"), PORTABLE)
    assert {node.domain for node in model.graph} == {""}
    assert dict(model.opset_imports) == {"": 21}
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    names = [node.name for node in model.graph]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_portable_computes_what_the_fused_dialect_computes(precision: Precision, checkpoint: Checkpoint) -> None:
    def build(target: Target) -> ir.Model:
        model = build_graph(checkpoint.spec, checkpoint.weights, opset=21, name="tiny")
        recipe = replace(builtin_recipe(precision), accuracy_level=1)
        return lower(quantize(model, checkpoint.weights, recipe).model, target)

    fused = logits(build(load_target("cpu")), checkpoint)
    model = build(PORTABLE)
    assert {node.domain for node in model.graph} == {""}
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert np.abs(logits(model, checkpoint) - fused).max() < 1e-5 * np.abs(fused).max()


def test_a_tied_embedding_stays_one_initializer(checkpoint: Checkpoint) -> None:
    model = lower(build_graph(checkpoint.spec, checkpoint.weights, opset=21, name="tiny"), PORTABLE)
    users = {node.op_type for node, _ in model.graph.initializers["model.embed_tokens.weight"].uses()}
    assert users == {"Gather", "Gemm"}


def test_a_target_without_lacks_gets_the_graph_as_it_is(checkpoint: Checkpoint) -> None:
    model = build_graph(checkpoint.spec, checkpoint.weights, opset=21, name="tiny")
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    bare = replace(load_target("cpu"), quirks=frozenset())
    assert ir.to_proto(lower(model, bare)).SerializeToString(deterministic=True) == before
