"""A bundle for an NPU is checked in both its parts: the CPU's graph as ever, the NPU's on its emulator."""

from __future__ import annotations

import shutil
from dataclasses import replace

import onnx_ir as ir
import pytest

from edgekit.build.pipeline import build_bundle
from edgekit.bundle import open_bundle, record
from edgekit.config.recipe import load_target
from edgekit.errors import ConfigError, RunError
from edgekit.host.origins import find_origin
from edgekit.measure import read_text
from edgekit.run import load_runner
from edgekit.source import open_model
from edgekit.verify import npu as verify_npu
from edgekit.verify.bundle import verify_bundle
from edgekit.verify.npu import OnEmulator, verify_npus
from tests.npus import SLOTS, WIDTH, build_tiny
from tests.real_npu import compile_tiny, needs_compiler

FAST = {"tokens": 128, "window": 32}
CPU = [
    "manifest",
    "files",
    "source",
    "tokenizer",
    "chat template",
    "graph",
    "arithmetic",
    "decode",
    "weights",
    "quality",
]
NPU = ["galaxy-s24: binaries", "galaxy-s24: chip", "galaxy-s24: prefill", "galaxy-s24: decode"]
MISSING = RunError("onnxruntime-qnn is not installed", "pip install 'edgekit[qnn]'")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def doubled(tmp_path_factory):
    """Nothing in it can be executed."""
    return build_tiny(tmp_path_factory.mktemp("doubled"))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return compile_tiny(tmp_path_factory.mktemp("compiled"))


def copied(bundle, tmp_path, **changes):
    build = replace(bundle.manifest.npus[0], **changes)
    manifest = replace(bundle.manifest, npus=(build,))
    return replace(bundle, path=shutil.copytree(bundle.path, tmp_path / "copy"), manifest=manifest)


def source(bundle):
    return open_model(find_origin(bundle.manifest.provenance))


def statuses(checks):
    return {check.name: check.status for check in checks}


def test_the_graph_for_the_cpu_runs_on_the_provider_that_it_was_lowered_for(doubled):
    manifest = open_bundle(doubled.path).manifest
    assert manifest.target.provider == "QNNExecutionProvider"
    assert manifest.cpu_target == load_target(manifest.target.fallback)
    runner = load_runner(doubled)
    try:
        assert runner.info.provider == manifest.cpu_target.provider == "CPUExecutionProvider"
        assert runner.logits([3, 4, 5]).shape == (3, 384)
    finally:
        runner.close()


def test_other_bundles_have_one_target(tmp_path, doubled):
    made = build_bundle(find_origin(doubled.manifest.provenance), target="cpu", precision="fp32", out=tmp_path / "b")
    assert made.manifest.fallback is None
    assert made.manifest.cpu_target is made.manifest.target
    with pytest.raises(ConfigError, match="no graphs for an NPU"):
        verify_bundle(made, npu=OnEmulator(), **FAST)


def test_without_the_emulator_the_rest_is_checked_and_the_hint_says_what_to_install(doubled, monkeypatch):
    def missing(plugin):
        raise MISSING

    monkeypatch.setattr(verify_npu, "require_compiler", missing)
    got = verify_bundle(doubled, **FAST)
    assert [c.name for c in got.checks] == [*CPU, *NPU[:2], "galaxy-s24: emulator"]
    assert all(c.status == "pass" for c in got.checks[:-1])
    assert (got.checks[-1].status, got.checks[-1].hint) == ("skip", MISSING.hint)
    assert got.passed
    assert got.npus == ()


def test_without_the_source_nothing_is_executed(doubled, monkeypatch):
    monkeypatch.setattr(verify_npu, "require_compiler", lambda plugin: None)
    checks, builds = verify_npus(doubled, None, OnEmulator())
    assert statuses(checks)["galaxy-s24: emulator"] == "skip"
    assert "`source`" in checks[-1].hint
    assert builds == ()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            '"provider": "QNNExecutionProvider"',
            '"provider": "CPUExecutionProvider"',
            "1 nodes of prefill.onnx run off the",
        ),
        ('"graph": "decode.onnx"', '"graph": "encode.onnx"', "lists 0 nodes of decode.onnx"),
        ("[", "(", "not a placement"),
    ],
)
def test_a_placement_that_proves_nothing_fails(doubled, tmp_path, old, new, said):
    bundle = copied(doubled, tmp_path)
    proof = bundle.path / bundle.manifest.npus[0].placement
    text = proof.read_text()
    assert old in text
    proof.write_text(text.replace(old, new, 1))
    checks, _ = verify_npus(bundle, None, OnEmulator())
    assert statuses(checks)["galaxy-s24: binaries"] == "fail"
    assert said in checks[0].detail


def add_a_node(path):
    model = ir.load(path)
    model.graph.append(ir.node("Identity", [model.graph.outputs[0]], name="extra"))
    ir.save(model, path)


@pytest.mark.parametrize(
    ("breaking", "said"),
    [
        (add_a_node, "Identity would run on the CPU"),
        (lambda path: path.with_name("decode_qnn.bin").unlink(), "decode_qnn.bin is missing"),
        (lambda path: path.write_bytes(b"no graph"), "not an ONNX graph"),
        (lambda path: shutil.copy(path.with_name("prefill.onnx"), path), "it opens prefill_qnn.bin"),
    ],
)
def test_a_broken_binary_fails_and_is_not_executed(doubled, tmp_path, breaking, said):
    bundle = copied(doubled, tmp_path)
    breaking(bundle.path / "npu/galaxy-s24/decode.onnx")
    checks, builds = verify_npus(bundle, source(bundle), OnEmulator())
    assert checks[0].status == "fail"
    assert said in checks[0].detail
    assert statuses(checks)["galaxy-s24: emulator"] == "skip"
    assert builds == ()


def test_a_note_that_is_not_the_manifests_fails(doubled, tmp_path):
    first, *others = doubled.manifest.npus[0].graphs
    bundle = copied(doubled, tmp_path, graphs=(replace(first, compatibility="v2:another"), *others))
    checks, _ = verify_npus(bundle, None, OnEmulator())
    assert checks[0].status == "fail"
    assert "v2:another" in checks[0].detail


def test_a_binary_for_another_chip_fails(doubled, tmp_path):
    bundle = copied(doubled, tmp_path, options=(("soc_model", "69"),))
    checks, builds = verify_npus(bundle, source(bundle), OnEmulator())
    assert statuses(checks) == {NPU[0]: "pass", NPU[1]: "fail", "galaxy-s24: emulator": "skip"}
    assert "chip 57" in checks[1].detail
    assert builds == ()


@needs_compiler
def test_a_compiled_bundle_passes_and_its_emulations_can_be_kept(compiled, tmp_path):
    bundle = open_bundle(shutil.copytree(compiled.path, tmp_path / "b"))
    assert bundle.manifest.recipe.rotate  # its weights are not the checkpoint's own
    got = verify_bundle(bundle, npu=OnEmulator(12, 2), **FAST)
    assert [(c.name, c.status) for c in got.checks] == [(name, "pass") for name in (*CPU, *NPU)]
    record(bundle, npus=got.npus)
    kept = open_bundle(bundle.path).manifest
    (build,) = kept.npus
    assert [(e.role, e.tokens, e.repeatable) for e in build.emulations] == [("prefill", 12, True), ("decode", 2, True)]
    assert {(g.shared, g.executed) for g in build.graphs} == {(False, True), (True, False)}
    for e in build.emulations:
        assert 0 < e.npu.kld < 0.02 < e.npu.cosine
        assert e.total.kld > 0


@needs_compiler
def test_the_emulator_runs_no_more_than_the_cache_holds_and_takes_the_text_it_is_given(compiled, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("Paris is the capital of France. " * 40)
    checks, (build,) = verify_npus(compiled, source(compiled), OnEmulator(tokens=1000, steps=3), text=read_text(text))
    assert [e.tokens for e in build.emulations] == [SLOTS - 3, 3]
    assert SLOTS - 3 > WIDTH
    assert "a.txt" in checks[-1].detail


@needs_compiler
def test_worse_than_the_devices_file_allows_is_a_failure(compiled, tmp_path):
    build = compiled.manifest.npus[0]
    npu = build.target.npu
    schemes = tuple(replace(r, limits=tuple(replace(g, kld=1e-9) for g in r.limits)) for r in npu.schemes)
    bundle = copied(compiled, tmp_path, target=replace(build.target, npu=replace(npu, schemes=schemes)))
    checks, builds = verify_npus(bundle, source(bundle), OnEmulator(8, 1))
    assert [statuses(checks)[name] for name in NPU] == ["pass", "pass", "fail", "fail"]
    assert "KL against FP32 is" in checks[-1].detail
    assert "top-1" not in checks[-1].detail
    assert len(builds) == 1


@needs_compiler
def test_what_the_emulator_cannot_open_is_a_failure(compiled, tmp_path):
    bundle = copied(compiled, tmp_path)
    binary = bundle.path / bundle.manifest.npus[0].chain("decode")[0].binary
    binary.write_bytes(b"\0" * binary.stat().st_size)
    checks, builds = verify_npus(bundle, source(bundle), OnEmulator(8, 1))
    assert statuses(checks)["galaxy-s24: emulator"] == "fail"
    assert builds == ()
