from dataclasses import replace

import numpy as np
import pytest

from edgekit.build.pipeline import build_bundle
from edgekit.config.recipe import builtin_recipe
from edgekit.errors import QuantizeError
from edgekit.graph import build_graph
from edgekit.quantize import methods, quantize
from edgekit.quantize.model import load_method
from edgekit.run.runtime import onnxruntime
from edgekit.source import open_model
from edgekit.testing import tiny_checkpoint
from edgekit.types import Grid, Override
from edgekit.types.layout import Layout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


def graph_of(folder):
    checkpoint = open_model(str(folder))
    return checkpoint, build_graph(checkpoint.spec, checkpoint.weights, opset=21, name="tiny")


def logits_of(bundle, tokens):
    session = onnxruntime.InferenceSession(str(bundle.graph))
    spec = bundle.manifest.spec
    feeds = {
        "input_ids": tokens,
        "attention_mask": np.ones_like(tokens),
        "position_ids": np.arange(tokens.shape[1])[None],
    }
    for i in range(spec.layers):
        for kind in ("key", "value"):
            feeds[f"past_key_values.{i}.{kind}"] = np.zeros((1, spec.kv_heads, 0, spec.head_dim), np.float32)
    return session.run(["logits"], feeds)[0]


def test_methods_are_the_files_that_have_a_fit():
    assert methods() == ("positive", "rtn", "search")


def test_an_unknown_method_is_refused_with_a_suggestion(folder):
    checkpoint, graph = graph_of(folder)
    with pytest.raises(QuantizeError, match="unknown quantization method 'serach'") as error:
        quantize(graph, checkpoint.weights, replace(builtin_recipe("int4"), method="serach"))
    assert "did you mean 'search'" in error.value.hint
    with pytest.raises(QuantizeError):
        load_method("grid")


def test_nothing_is_read_before_the_graph_is_written(folder):
    checkpoint, graph = graph_of(folder)

    class Untouchable:
        names, shape = checkpoint.weights.names, checkpoint.weights.shape

        def read(self, *_):
            raise AssertionError("a weight was read")

    small = quantize(graph, Untouchable(), builtin_recipe("int4"))
    assert {n.op_type for n in small.model.graph} >= {"MatMulNBits", "GatherBlockQuantized"}


def test_each_weight_is_quantized_once(folder, tmp_path, monkeypatch):
    import edgekit.quantize.model as module

    seen = []
    original = module.quantize_weight
    monkeypatch.setattr(module, "quantize_weight", lambda w, n, *rest: seen.append(n) or original(w, n, *rest))
    build_bundle(str(folder), out=tmp_path / "out", precision="int4")
    assert len(seen) == len(set(seen)) == 15


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_tied_table_is_stored_once(folder, tmp_path, precision):
    bundle = build_bundle(str(folder), out=tmp_path / "out", precision=precision)
    data = bundle.path / f"{bundle.manifest.graph}_data"
    weights = sum(t.bytes for t in bundle.manifest.tensors)
    assert data.stat().st_size < weights + 64 * 60


def test_the_manifest_says_what_became_of_every_tensor(folder, tmp_path):
    bundle = build_bundle(str(folder), out=tmp_path / "out", precision="int4")
    entries = {t.name: t for t in bundle.manifest.tensors}
    assert list(entries) == list(open_model(str(folder)).weights.names())
    value = entries["model.layers.0.self_attn.v_proj.weight"]
    query = entries["model.layers.0.self_attn.q_proj.weight"]
    assert (value.grid.bits, query.grid.bits) == (8, 4)
    assert 0 < value.error < 0.02 < query.error < 0.2
    assert query.bytes == Layout.of(query.shape, query.grid).nbytes(query.grid)
    assert entries["model.norm.weight"].grid is None
    assert entries["model.norm.weight"].bytes == 4 * 64
    assert bundle.manifest.bits_per_weight == pytest.approx(
        8 * sum(e.bytes for e in entries.values()) / sum(np.prod(e.shape) for e in entries.values())
    )


def test_the_graph_computes_with_the_weights_that_unpack_reads(folder, tmp_path):
    """A bundle at fp32 accuracy equals a float bundle whose checkpoint holds the unpacked weights."""
    from concurrent.futures import ThreadPoolExecutor

    from safetensors.numpy import load_file, save_file

    from edgekit.quantize import unpack
    from edgekit.quantize.tensor import quantize_weight

    recipe = replace(builtin_recipe("int4"), accuracy_level=1, smooth=0.0)
    small = build_bundle(str(folder), out=tmp_path / "small", recipe=recipe)
    copy = tiny_checkpoint(tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    source = open_model(str(folder)).weights
    with ThreadPoolExecutor(1) as pool:
        for entry in small.manifest.tensors:
            if entry.grid:
                packed = quantize_weight(source, entry.name, entry.grid, load_method("search"), pool)
                weights[entry.name] = np.ascontiguousarray(unpack(packed, entry.shape, entry.grid))
    save_file(weights, copy / "model.safetensors")
    plain = build_bundle(str(copy), out=tmp_path / "plain", precision="fp32")
    tokens = np.random.default_rng(0).integers(0, 384, (1, 24))
    a, b = logits_of(small, tokens), logits_of(plain, tokens)
    assert np.abs(a - b).max() <= 2e-5 * np.abs(b).max()


def test_half_precision_is_stored_as_half_and_computed_in_single(folder, tmp_path):
    half = build_bundle(str(folder), out=tmp_path / "half", precision="fp16")
    single = build_bundle(str(folder), out=tmp_path / "single", precision="fp32")
    assert half.manifest.bits_per_weight == pytest.approx(16, abs=0.2)
    tokens = np.random.default_rng(0).integers(0, 384, (1, 24))
    a, b = logits_of(half, tokens), logits_of(single, tokens)
    assert a.dtype == np.float32
    assert 0 < np.abs(a - b).max() < 5e-3 * np.abs(b).max()


def test_a_table_whose_rows_the_block_does_not_divide_is_refused(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", hidden_size=96, num_attention_heads=6)
    recipe = replace(builtin_recipe("int8"), embedding=Grid(8, 64, True))
    with pytest.raises(QuantizeError, match="blocks of 64 do not divide its rows of 96") as error:
        build_bundle(str(folder), out=tmp_path / "out", recipe=recipe)
    assert "32, 16" in error.value.hint
    assert not (tmp_path / "out").exists()


def test_an_override_can_keep_a_weight_in_float(folder, tmp_path):
    recipe = replace(builtin_recipe("int4"), overrides=(Override("*o_proj*", None),))
    bundle = build_bundle(str(folder), out=tmp_path / "out", recipe=recipe)
    kept = [t for t in bundle.manifest.tensors if "o_proj" in t.name]
    assert {(t.grid, t.stored) for t in kept} == {(None, "float")}


def test_a_weight_too_large_for_half_precision_is_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = tiny_checkpoint(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 4] = 1e6
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(QuantizeError, match=r"up_proj\.weight: a weight is too large for float16"):
        build_bundle(str(folder), out=tmp_path / "out", precision="fp16")
    assert not (tmp_path / "out").exists()
