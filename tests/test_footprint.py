"""What is predicted from a configuration, against what a build writes and a process takes."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from edgekit import build_bundle
from edgekit.config.recipe import PRECISIONS, builtin_recipe, load_target
from edgekit.errors import LowerError
from edgekit.estimate.memory import SCORES, held_bytes, workspace_bytes
from edgekit.estimate.needs import kv_bytes_per_position
from edgekit.inspect.plan import npu_token_bytes, plan_bundle, predict_footprint
from edgekit.source import open_config_only
from edgekit.testing import tiny_checkpoint
from edgekit.types import Grid, TensorEntry
from edgekit.types.generation import PREFILL_CHUNK
from edgekit.types.layout import Layout

SHAPES = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "ragged": {"intermediate_size": 200, "vocab_size": 391, "num_hidden_layers": 3},
}
RUN = """
import sys
from pathlib import Path
import numpy as np
from edgekit.bundle import open_bundle
from edgekit.measure import peak_memory
from edgekit.run import load_runner
runner = load_runner(open_bundle(Path(sys.argv[1]), check=False))
runner.prefill(np.arange(1, int(sys.argv[2])))
runner.step(1)
print(peak_memory())
"""


@pytest.fixture(scope="module", params=SHAPES)
def folder(request, tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("footprint") / "tiny", **SHAPES[request.param])


def planned(model, precision, target):
    return plan_bundle(open_config_only(str(model)), builtin_recipe(precision), load_target(target))


@pytest.mark.parametrize("target", ["cpu", "portable"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_build_writes_what_was_predicted_to_the_byte(folder, precision, target, tmp_path):
    plan = planned(folder, precision, target)
    manifest = build_bundle(str(folder), precision=precision, target=target, out=tmp_path / "out").manifest
    assert plan.tensors == tuple(replace(t, error=None) for t in manifest.tensors)
    found = predict_footprint(plan, 64, shared_kv=True)
    assert found.file_known
    assert found.file == manifest.bytes
    assert found.tensors == sum(t.bytes for t in manifest.tensors)


def test_config_alone_gives_the_same_tensors_and_says_that_the_tokenizer_is_an_estimate(folder, tmp_path):
    alone = tmp_path / folder.name
    alone.mkdir()
    shutil.copy(folder / "config.json", alone)
    whole, bare = planned(folder, "int4", "cpu"), planned(alone, "int4", "cpu")
    assert bare.tensors == whole.tensors
    assert (bare.size.graph, bare.size.data) == (whole.size.graph, whole.size.data)
    assert (whole.beside_known, bare.beside_known) == (True, False)
    assert bare.size.beside == 32 * bare.spec.vocab_size


def test_memory_is_the_sum_of_its_formulae(folder):
    plan = planned(folder, "fp16", "cpu")
    shared, copied = (predict_footprint(plan, 100, shared_kv=shared).memory for shared in (True, False))
    assert shared.kv == 100 * kv_bytes_per_position(plan.spec)
    assert copied.kv == 2 * shared.kv
    assert shared.total == shared.weights + shared.kv + shared.workspace + 85_000_000
    table = 4 * plan.spec.vocab_size * 64
    floats = 4 * sum(t.shape[0] * (t.shape[1] if len(t.shape) == 2 else 1) for t in plan.tensors)
    assert shared.weights == floats + (table if plan.spec.tied else 0), "fp16 files take fp32 memory"


def test_weights_in_memory_have_a_scale_and_a_sum_for_every_block_of_the_kernel():
    blocks, channel = Grid(4, 32, symmetric=False), Grid(8, 0, symmetric=True)
    product = TensorEntry("model.layers.0.mlp.up_proj.weight", (10, 64), blocks, "", 0)
    for scale in ("float16", "float32"):  # as stored; the kernel has it in float32
        stored = replace(product, grid=replace(blocks, scale=scale))
        assert held_bytes((stored,), tied=False) == 10 * (32 + 1 + 2 * 8)
    table = TensorEntry("model.embed_tokens.weight", (10, 96), channel, "", 0)
    assert Layout.of((10, 96), channel).blocks == 3
    assert held_bytes((table,), tied=False) == 10 * (96 + 3 * 8)
    assert held_bytes((table,), tied=True) == 10 * (96 + 3 * 8) + 10 * (96 + 3 * 4)


def test_workspace_grows_with_the_context_by_the_scores_and_holds_one_row_of_logits(folder):
    spec = open_config_only(str(folder)).spec
    small, large = workspace_bytes(spec, 256), workspace_bytes(spec, 512)
    assert large - small == SCORES * 4 * PREFILL_CHUNK * spec.heads * 256
    assert workspace_bytes(replace(spec, vocab_size=spec.vocab_size + 1), 512) - large == 4


def test_the_workspace_of_smollm2_is_the_sum_of_its_terms_by_hand(folder):
    """The constants themselves, which differences between contexts do not show."""
    spec = open_config_only(str(folder)).spec
    spec = replace(spec, vocab_size=49152, hidden_size=576, intermediate_size=1536, heads=9, kv_heads=3, head_dim=64)
    spec = replace(spec, context_length=8192, rope=replace(spec.rope, dim=64))
    logits, rope = 4 * 49152, 4 * 64 * 8192
    widths = 4 * 576 + 3 * 1536 + (9 + 2 * 3) * 64
    for context, tokens in ((1, 1), (100, 100), (PREFILL_CHUNK, PREFILL_CHUNK), (1000, PREFILL_CHUNK)):
        arena, scores = 2 * 4 * tokens * widths, 3 * 4 * tokens * 9 * context
        assert workspace_bytes(spec, context) == logits + arena + scores + rope


def test_a_dialect_without_a_quantized_product_expands_the_head(folder):
    fused, standard = (predict_footprint(planned(folder, "int8", t), 64, shared_kv=True) for t in ("cpu", "portable"))
    assert standard.memory.workspace - fused.memory.workspace == 4 * 64 * open_config_only(str(folder)).spec.vocab_size
    plain = predict_footprint(planned(folder, "fp32", "portable"), 64, shared_kv=True)
    assert plain.memory.workspace == fused.memory.workspace


def test_a_token_reads_the_window_only(tmp_path):
    config = json.loads((tiny_checkpoint(tmp_path / "tiny", "mistral") / "config.json").read_text())
    reads = []
    for window in (None, 16):
        (tmp_path / "tiny" / "config.json").write_text(json.dumps({**config, "sliding_window": window}))
        plan = planned(tmp_path / "tiny", "int8", "cpu")
        reads.append(predict_footprint(plan, 100, shared_kv=True).token)
    assert reads[0] - reads[1] == (100 - 16) * kv_bytes_per_position(plan.spec)


def test_an_npu_reads_every_slot_in_half_precision_and_floats_in_half(folder):
    plan = planned(folder, "fp32", "cpu")
    floats = [2 * t.shape[0] * (t.shape[1] if len(t.shape) == 2 else 1) for t in plan.tensors]
    # Of a table of its own one row is gathered.
    gathered = 0 if plan.spec.tied else 2 * plan.spec.hidden_size * (plan.spec.vocab_size - 1)
    cache = 2 * plan.spec.layers * plan.spec.kv_heads * plan.spec.head_dim * 2
    for slots in (0, 100):
        assert npu_token_bytes(plan, slots) == sum(floats) - gathered + cache * slots


def test_a_model_that_the_target_cannot_run_is_refused_as_by_a_build(tmp_path):
    folder = tiny_checkpoint(tmp_path / "tiny", head_dim=12)
    with pytest.raises(LowerError, match="head_dim is 12"):
        planned(folder, "int4", "cpu")
    assert planned(folder, "int4", "portable").size.data > 0


@pytest.mark.model
@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_the_real_model_is_predicted_too(precision, tmp_path):
    context = 512
    bundle = build_bundle("smollm2-135m", precision=precision, out=tmp_path / "out")
    found = predict_footprint(planned("smollm2-135m", precision, "cpu"), context, shared_kv=True)
    assert found.file == bundle.manifest.bytes
    assert found.tensors == sum(t.bytes for t in bundle.manifest.tensors)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(bundle.path), str(context)], capture_output=True, text=True, check=True
    )
    # Within 4 % when this was written (benchmarks/footprint.py); other runtimes and machines may differ.
    assert found.memory.total == pytest.approx(int(done.stdout), rel=0.3)
