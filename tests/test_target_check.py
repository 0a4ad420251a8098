"""One layer and the head tell whether a model compiles for a device, and who refuses what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgekit.build.dry_run import check_targets, one_layer, require_compiled
from edgekit.errors import ConfigError, GateFailed, RunError
from edgekit.record import to_json
from edgekit.source import open_model
from edgekit.testing import FakeCompiler
from tests.npus import signed_checkpoint, tiny_target
from tests.real_npu import needs_compiler

LACK = "op:SkipSimplifiedLayerNormalization"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(signed_checkpoint(tmp_path_factory.mktemp("check") / "model", num_hidden_layers=3))


def lacking(**changes):
    """A phone whose file does not say that it lacks an operator that it lacks."""
    target = tiny_target()
    npu = target.npu
    schemes = tuple(replace(r, lacks=r.lacks - {LACK}) for r in npu.schemes)
    return replace(target, npu=replace(npu, schemes=schemes), **changes)


def test_one_layer_is_the_middle_one_between_the_whole_embedding_and_head(model):
    checkpoint = open_model(model)
    small = one_layer(checkpoint)
    assert small.spec.layers == len(small.spec.windows) == len(small.spec.rotary) == 1
    names = small.weights.names()
    assert len(names) == 9 + 2
    for name in names:
        theirs = name.replace("layers.0.", "layers.1.")
        assert small.weights.shape(name) == checkpoint.weights.shape(theirs)
        assert np.array_equal(small.weights.read(name, 1, 3), checkpoint.weights.read(theirs, 1, 3))
        assert (small.weights.stored(name), small.weights.nbytes(name)) == ("F32", checkpoint.weights.nbytes(theirs))


def test_each_graph_is_tried_at_each_context_and_nothing_is_kept(model, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    devices, compiler = [tiny_target(), "qcs6490"], FakeCompiler()
    check = check_targets(model, devices, precision="int8", contexts=(16, 32), compiler=compiler)
    assert [dict(options)["soc_model"] for _, options in compiler.asked] == ["57"] * 4 + ["35"] * 4
    assert (check.layers, check.all_layers, check.cures) == (1, 3, ())
    phone, board = check.targets
    assert [(g.role, g.context) for g in phone.graphs] == [
        ("prefill", 16), ("decode", 16), ("prefill", 32), ("decode", 32),
    ]  # fmt: skip
    assert [g.tokens for g in phone.graphs] == [8, 1, 8, 1]
    assert (phone.activations, board.activations) == ("float16", "uint16")
    assert (phone.recipe, board.recipe) == ("npu-int8", "npu-a16w8")
    # Of one layer the bytes say nothing about the model's speed.
    assert phone.estimates == board.estimates == ()
    require_compiled(check)
    assert not list(tmp_path.iterdir())


def test_whole_compiles_every_layer(model):
    few, all_ = (
        check_targets(model, [tiny_target()], precision="fp16", whole=w, compiler=FakeCompiler()) for w in (False, True)
    )
    assert (all_.layers, all_.all_layers) == (3, 3)
    nodes = [[len(g.placement.nodes) for g in c.targets[0].graphs] for c in (few, all_)]
    assert all(2 * a < b for a, b in zip(*nodes, strict=True))


def test_a_node_off_the_npu_is_a_gate_with_the_reason_and_the_cure(model):
    compiler = FakeCompiler(refused={"SkipSimplifiedLayerNormalization": "no such operator"}, error="fallback is off")
    check = check_targets(model, [lacking()], precision="fp16", compiler=compiler)
    assert check.cures == (("SkipSimplifiedLayerNormalization", "lower/skip_simplified_layer_normalization.py"),)
    assert all(g.placement.off(check.targets[0].target.provider) for g in check.targets[0].graphs)
    with pytest.raises(GateFailed, match="no such operator") as refused:
        require_compiled(check)
    assert "lower/skip_simplified_layer_normalization.py" in refused.value.hint
    assert '"provider":"CPUExecutionProvider"' in to_json(check).replace(" ", "")


def test_what_does_not_compile_for_another_reason_is_an_error(model):
    with pytest.raises(RunError, match="fallback is off"):
        require_compiled(
            check_targets(model, [tiny_target()], precision="fp16", compiler=FakeCompiler(error="fallback is off"))
        )


def test_bad_input_is_refused_before_anything_is_compiled(model):
    for targets, rest, said in (
        (["cpu"], {}, "has no NPU"),
        ([tiny_target()], {"contexts": (16, 1024)}, "longer than the model's 512"),
        (["galaxy-s42"], {}, "galaxy-s42"),
        (["qcs6490"], {"activations": "float16"}, "does not compute in float16"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_targets(model, targets, compiler=FakeCompiler(), **rest)


@needs_compiler
@pytest.mark.parametrize(("precision", "activations"), [("int4", "float16"), ("int8", "uint16")])
def test_the_real_compiler_takes_every_node_and_says_the_bytes(model, precision, activations):
    check = check_targets(model, [tiny_target()], precision=precision, activations=activations, whole=True)
    require_compiled(check)
    (tried,) = check.targets
    assert [e.role for e in tried.estimates] == ["prefill", "decode"]
    for e, g in zip(tried.estimates, tried.graphs, strict=True):
        assert e.traffic == g.traffic
        assert e.traffic.read > 0
        assert len(g.placement.nodes) > 30


@needs_compiler
def test_the_real_compiler_refuses_what_a_file_forgot(model):
    check = check_targets(model, [lacking()], precision="fp16")
    assert check.cures == (("SkipSimplifiedLayerNormalization", "lower/skip_simplified_layer_normalization.py"),)
    off = check.targets[0].graphs[0].placement.off("QNNExecutionProvider")
    assert {n.operator for n in off} == {"SkipSimplifiedLayerNormalization"}
    with pytest.raises(GateFailed):
        require_compiled(check)
