"""Weights of 2 bits: as ONNX Runtime's kernels read them, in a bundle from end to end, and where they are refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from math import ceil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit import build_bundle, open_bundle
from edgekit.build.pipeline import draw
from edgekit.bundle.reading import graph_at_level, read_initializers
from edgekit.config.recipe import load_recipe, load_target
from edgekit.errors import ConfigError, EdgekitError, LowerError, QuantizeError
from edgekit.graph import build_graph
from edgekit.inspect.plan import plan_bundle
from edgekit.lower import lower
from edgekit.quantize import fit_budget, quantize, search, unpack
from edgekit.quantize.tensor import quantize_weight
from edgekit.run import load_runner
from edgekit.run.runtime import onnxruntime
from edgekit.source import open_config_only, open_model, source_tokenizer
from edgekit.testing import tiny_checkpoint
from edgekit.types import Bundle, Grid, Override
from edgekit.types.layout import Layout
from edgekit.verify.weights import weight_error
from tests.npus import tiny_target
from tests.test_calibrated_build import loss

NARROW = Override("*.mlp.*", Grid(2, 32, symmetric=True))
GRIDS = [
    Grid(2, block, symmetric, scale)
    for block, symmetric, scale in product((0, 32, 64, 128), (True, False), ("float16", "float32"))
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny", num_hidden_layers=3))


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    return build_bundle(model, recipe=narrow(), out=tmp_path_factory.mktemp("built") / "narrow")


def narrow(**changes):
    return replace(load_recipe("small"), overrides=(NARROW,), **changes)


class OneWeight:
    """Weights of a single tensor."""

    def __init__(self, weight):
        self._weight = weight

    def names(self):
        return ("w",)

    def shape(self, _):
        return self._weight.shape

    def read(self, _, start=0, stop=None):
        return self._weight[start:stop].copy()


def packed(weight, grid):
    with ThreadPoolExecutor(1) as pool:
        return quantize_weight(OneWeight(weight), "w", grid, search.fit, pool)


def run(kind, inputs, feeds, shape, **attributes):
    """The result of one operator of ONNX Runtime, whose other inputs are constants."""
    constants = [
        helper.make_tensor(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape, a.tobytes(), raw=True)
        for name, a in inputs.items()
    ]
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in feeds.items()
    ]
    order = ["table", "ids"] if kind == "GatherBlockQuantized" else ["x", "codes"]
    node = helper.make_node(
        kind, order + [n for n in ("scales", "zeros") if n in inputs], ["y"], domain="com.microsoft", **attributes
    )
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "one", given, [result], constants)
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds)[0]


def operands(small, grid, layout):
    """Scales and zero points, one a block, as the operators take them."""
    scales = np.broadcast_to(small.scales.astype(np.float32), (layout.rows, layout.blocks))
    found = {"scales": np.ascontiguousarray(scales)}
    if small.zeros is not None:
        found["zeros"] = np.ascontiguousarray(
            np.broadcast_to(small.zeros, (layout.rows, ceil(layout.blocks * grid.bits / 8)))
        )
    return found


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("columns", [256, 200])
@pytest.mark.parametrize("level", [0, 4])
def test_the_kernel_multiplies_by_the_weights_that_unpack_reads(grid, columns, level):
    """Activations are whole numbers with 127 in every block, which level 4 rounds to themselves."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((33, columns)).astype(np.float32)
    small, layout = packed(weight, grid), Layout.of(weight.shape, grid)
    shape = {"K": columns, "N": 33, "bits": 2, "block_size": layout.block_size, "accuracy_level": level}
    wanted = unpack(small, weight.shape, grid).astype(np.float64)
    for rows in (1, 16):
        x = random.integers(-127, 128, (rows, columns)).astype(np.float32)
        x[:, ::8] = 127
        y = run("MatMulNBits", {"codes": small.codes, **operands(small, grid, layout)}, {"x": x}, [rows, 33], **shape)
        assert np.abs(y - x @ wanted.T).max() < 1e-5 * np.abs(x @ wanted.T).max()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_table_gives_the_rows_that_unpack_reads(grid):
    weight = np.random.default_rng(0).standard_normal((20, 256)).astype(np.float32)
    small, layout = packed(weight, grid), Layout.of(weight.shape, grid)
    tables = {"table": small.codes.reshape(20, -1), **operands(small, grid, layout)}
    shape = {"bits": 2, "block_size": layout.block_size, "gather_axis": 0, "quantize_axis": 1}
    y = run("GatherBlockQuantized", tables, {"ids": np.arange(20)}, [20, 256], **shape)
    np.testing.assert_array_equal(y, unpack(small, weight.shape, grid))


def test_a_bundle_is_as_large_as_planned_and_says_what_it_holds(bundle, model):
    narrowed = [t for t in bundle.manifest.tensors if ".mlp." in t.name]
    assert len(narrowed) == 9
    for entry in narrowed:
        assert entry.grid == NARROW.grid
        rows, columns = entry.shape
        assert entry.bytes == rows * columns // 4 + 2 * rows * columns // 32
    plan = plan_bundle(open_config_only(model), narrow(), load_target("cpu"))
    assert {t.name: t.bytes for t in plan.tensors} == {t.name: t.bytes for t in bundle.manifest.tensors}
    assert plan.size.data == bundle.graph.with_name(f"{bundle.graph.name}_data").stat().st_size


def test_the_file_holds_the_weights_and_changed_codes_are_noticed(bundle, model):
    stored = read_initializers(bundle)
    _, weights = draw(open_model(model), bundle.manifest.recipe, 21)
    entry = next(t for t in bundle.manifest.tensors if t.name.endswith("1.mlp.down_proj.weight"))
    assert weight_error(stored, entry, weights) == pytest.approx(entry.error, rel=1e-3)
    codes = stored[f"{entry.name}.codes"].numpy().copy()
    codes[0] ^= 0b10
    changed = {**stored, f"{entry.name}.codes": FromArray(codes)}
    assert weight_error(changed, entry, weights) > 1.001 * entry.error


class FromArray:
    """A tensor of a graph."""

    def __init__(self, array):
        self._array = array

    def numpy(self):
        return self._array


def test_a_changed_byte_of_the_file_is_refused(model, tmp_path):
    made = build_bundle(model, recipe=narrow(), out=tmp_path / "b")
    data = made.graph.with_name(f"{made.graph.name}_data")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(EdgekitError, match=r"model_q4\.onnx_data"):
        open_bundle(made.path, check=True)


def test_prompts_and_tokens_compute_alike(bundle):
    tokens = np.random.default_rng(0).integers(4, 380, 40).tolist()
    runner = load_runner(bundle)
    try:
        whole = runner.logits(tokens)
        runner.reset()
        steps = np.stack([runner.step(t).copy() for t in tokens])
    finally:
        runner.close()
    assert np.linalg.norm(steps - whole) < 0.2 * np.linalg.norm(whole - whole.mean(axis=-1, keepdims=True))


def test_calibration_brings_the_logits_nearer_to_fp32(model, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and then it rests. " * 400)
    plain = build_bundle(model, recipe=narrow(), out=tmp_path / "plain")
    fitted = build_bundle(model, recipe=narrow(), calibrate=(str(text),), out=tmp_path / "fitted")
    told = "The brown dog jumps over the quick fox, and then the lazy one rests."
    tokens = source_tokenizer(open_model(model))(told)
    assert loss(fitted, model, tokens) < 0.9 * loss(plain, model, tokens)


@pytest.mark.parametrize("target", ["portable", "galaxy-s24"])
def test_a_target_without_the_kernel_is_refused(model, target, tmp_path):
    where = tiny_target() if target == "galaxy-s24" else target
    with pytest.raises(ConfigError, match=f"target '{target}' has no kernel for the 2-bit weights") as caught:
        build_bundle(model, recipe=narrow(), target=where, out=tmp_path / "b")
    assert "`recipe=small`" in caught.value.hint
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("recipe", [narrow(), replace(load_recipe("small"), embedding=Grid(2, 32, symmetric=True))])
def test_standard_operators_have_no_form_for_it(model, recipe):
    checkpoint = open_model(model)
    graph = build_graph(checkpoint.spec, checkpoint.weights, opset=21, name="tiny")
    made = quantize(graph, checkpoint.weights, recipe).model
    with pytest.raises(LowerError, match="no standard operator reads 2-bit weights"):
        lower(made, load_target("portable"))


@pytest.mark.parametrize(
    ("grid", "level", "message"),
    [(Grid(2, 16, symmetric=True), 4, "2 bits in blocks of 16"), (NARROW.grid, 0, "2 bits at accuracy level 0")],
)
def test_grids_whose_kernel_would_unpack_the_matrix_in_every_run_are_refused(model, grid, level, message, tmp_path):
    recipe = narrow(linear=grid, accuracy_level=level)
    with pytest.raises(QuantizeError, match=f"there is no kernel for {message}") as caught:
        build_bundle(model, recipe=recipe, out=tmp_path / "b")
    assert caught.value.hint
    assert not (tmp_path / "b").exists()


def test_a_budget_chooses_among_three_widths(model, tmp_path):
    recipe = load_recipe("small")
    recipe = replace(recipe, overrides=(), low=Grid(2, 32, symmetric=True))
    widths = []
    for bits in (4.2, 4.5, 5.6):
        made = build_bundle(model, recipe=recipe, bits=bits, out=tmp_path / str(bits))
        assert bits - 0.3 < made.manifest.bits_per_weight <= bits
        widths.append([t.grid.bits for t in made.manifest.tensors if "proj" in t.name])
    assert {2, 4, 8} == set(widths[1])
    assert sorted(w.count(2) for w in widths) == [w.count(2) for w in reversed(widths)]
    assert widths[0].count(2) > widths[1].count(2) > widths[2].count(2)


def test_sensitivity_is_measured_on_the_low_grid(model, monkeypatch):
    """What is to be decided is which weights can go that low."""
    from edgekit.quantize import budget

    seen = {}
    original = budget.measure_sensitivity

    def spy(model, weights, candidates, fit, **options):
        seen.update(candidates)
        return original(model, weights, candidates, fit, **options)

    monkeypatch.setattr(budget, "measure_sensitivity", spy)
    checkpoint = open_model(model)
    graph = build_graph(checkpoint.spec, checkpoint.weights, opset=21, name="tiny")
    low = Grid(2, 32, symmetric=True)
    fit_budget(graph, checkpoint.weights, replace(load_recipe("small"), low=low, bits_per_weight=5.0), 0)
    assert set(seen.values()) == {low}


@pytest.mark.parametrize(
    "linear", [Grid(2, 32, True), Grid(2, 64, False), Grid(2, 0, False), Grid(2, 0, True)], ids=str
)
def test_the_graph_in_floating_point_has_the_same_numbers(model, linear, tmp_path):
    """Its level has no kernel for 2 bits, which would take minutes: it holds them as 4 bits."""
    made = build_bundle(model, recipe=narrow(linear=linear, w8a8_prefill=False), out=tmp_path / "b")
    tokens = np.random.default_rng(0).integers(4, 380, 12).tolist()
    plain = replace(made.manifest, recipe=replace(made.manifest.recipe, accuracy_level=0))
    folder = tmp_path / "level0"
    folder.mkdir()
    wide = onnx.load_from_string(graph_at_level(made, 0))
    assert {a.i for n in wide.graph.node for a in n.attribute if a.name == "bits"} == {4}
    slow = onnx.load(made.graph, load_external_data=False)
    for attribute in (a for n in slow.graph.node for a in n.attribute if a.name == "accuracy_level"):
        attribute.i = 0
    logits = []
    for graph in (wide, slow):
        runner = load_runner(Bundle(made.path, plain), graph=graph.SerializeToString())
        logits.append(runner.logits(tokens))
        runner.close()
    assert np.abs(logits[0] - logits[1]).max() < 1e-5 * np.abs(logits[1]).max()


def test_sessions_use_look_up_tables_where_activations_are_rounded_anyway(bundle, model, tmp_path):
    manifest = bundle.manifest
    assert manifest.kernels == (("mlas.use_lut_gemm", "1"),)
    assert not replace(manifest, target=replace(manifest.target, accuracy_level=0)).kernels
    assert not build_bundle(model, recipe="small", out=tmp_path / "b").manifest.kernels


def test_the_recipe_tiny_keeps_the_first_and_last_layers_at_four_bits(tmp_path):
    folder = str(tiny_checkpoint(tmp_path / "model", num_hidden_layers=5))
    made = build_bundle(folder, recipe="tiny", out=tmp_path / "tiny")
    low = {t.name for t in made.manifest.tensors if t.grid and t.grid.bits == 2}
    layers = [f"model.layers.{i}." for i in range(5)]
    inner = {f"{at}mlp.{n}_proj.weight" for at in layers[2:4] for n in ("gate", "up", "down")}
    assert low == inner | {f"{at}self_attn.o_proj.weight" for at in layers}
    assert {t.grid.bits for t in made.manifest.tensors if t.grid and t.name not in low} == {4}


@pytest.mark.parametrize("recipe", ["small", "tiny"])
def test_a_bundle_with_two_graphs_stays_within_its_budget(recipe, tmp_path):
    folder = str(tiny_checkpoint(tmp_path / "model", num_hidden_layers=12))
    made = build_bundle(folder, recipe=recipe, size_mb=0.7, out=tmp_path / "b")
    assert made.manifest.prefill is not None
    assert sum(f.stat().st_size for f in made.path.rglob("*") if f.is_file()) <= 0.7e6
