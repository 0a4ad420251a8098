"""The real compiler and the emulator: small models through every scheme, and what must not get through."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgekit.build.npu_emulate import Probe, emulate_build
from edgekit.build.pipeline import ForNpu, build_bundle
from edgekit.bundle import open_bundle
from edgekit.bundle.reading import read_context
from edgekit.cli import run
from edgekit.config.recipe import load_target
from edgekit.errors import GateFailed, RunError
from edgekit.run.npu import compile_graphs
from edgekit.run.npu.plugin import session_options
from edgekit.run.runtime import onnxruntime
from edgekit.types import Bundle
from edgekit.types.device import Target
from edgekit.types.npu import NpuBuild
from tests.npus import NEEDS_COMPILER, SLOTS, WIDTH, signed_checkpoint

pytestmark = NEEDS_COMPILER

ROOT = Path(__file__).parents[2]
ROUTES = {
    "v75 half precision, 8 bits": ("galaxy-s24", "int8", "float16"),
    "v75 half precision, 4 bits": ("galaxy-s24", "int4", "float16"),
    "v75 integers, 8 bits": ("galaxy-s24", "int8", "uint16"),
    "v68 integers, 8 bits": ("qcs6490", "int8", "uint16"),
}
REAL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 4096,
    "num_hidden_layers": 1,
}
"""A layer of SmolLM2-135M; the head is narrower."""


def ungated(name: str, *, without: str = "") -> Target:
    """A device whose graphs are 8 wide over 48 slots; its limits are for real models. ``without`` is forgotten."""
    target = load_target(name)
    assert target.npu is not None
    schemes = tuple(replace(r, limits=(), lacks=r.lacks - {without}) for r in target.npu.schemes)
    return replace(target, npu=replace(target.npu, prefill_tokens=WIDTH, context=SLOTS, schemes=schemes))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """Two layers, compiled and emulated, once for each scheme."""

    @cache
    def build(name: str) -> Bundle:
        device, precision, activations = ROUTES[name]
        folder = tmp_path_factory.mktemp("built")
        checkpoint = signed_checkpoint(folder / "checkpoint", hidden_size=128)
        target, ask = ungated(device), ForNpu(activations=activations)
        return build_bundle(str(checkpoint), target=target, precision=precision, out=folder / "b", npu=ask)

    return build


def build_of(bundle: Bundle) -> NpuBuild:
    (build,) = bundle.manifest.npus
    return build


@pytest.mark.parametrize("name", ROUTES)
def test_every_node_is_on_the_npu(name: str, built: Callable[[str], Bundle]) -> None:
    bundle = built(name)
    build = build_of(bundle)
    graphs = json.loads((bundle.path / build.placement).read_text())
    assert [graph["graph"] for graph in graphs] == ["prefill.onnx", "decode.onnx"]
    for graph, compiled in zip(graphs, (g for g in build.graphs if not g.shared), strict=True):
        static = {str(n.name): n.op_type for n in ir.load(bundle.path / compiled.source).graph}
        assert static.items() <= {n["node"]: n["operator"] for n in graph["nodes"]}.items(), "no node is left out"
        asked = [n for n in graph["nodes"] if n["provider"]]
        assert {n["provider"] for n in asked} == {build.target.provider}
        assert len(asked) > 60
        assert compiled.nodes == len(graph["nodes"])
    for compiled in build.graphs:
        assert read_context(bundle.path / compiled.context).others == ()
        assert compiled.traffic is not None
        assert compiled.traffic.read > 0 < compiled.traffic.written


@pytest.mark.parametrize("name", ROUTES)
def test_the_emulator_computes_what_the_cpu_computes(name: str, built: Callable[[str], Bundle]) -> None:
    build = build_of(built(name))
    prefill, decode = build.emulations
    assert [(e.role, e.tokens) for e in (prefill, decode)] == [("prefill", 40), ("decode", 8)]
    half = build.activations == "float16"
    for emulation in build.emulations:
        assert emulation.npu.top1 >= (1.0 if half else 0.87)
        assert emulation.npu.cosine > (0.9999 if half else 0.999)
        assert emulation.npu.kld < (1e-3 if half else 5e-3)
        assert 0 < emulation.quantization.kld < 0.3
        assert abs(emulation.total.kld - emulation.quantization.kld) < 0.02, "the NPU adds little to what bits cost"
        assert emulation.repeatable


@pytest.mark.parametrize("name", ROUTES)
def test_only_what_ran_is_said_to_have_run(name: str, built: Callable[[str], Bundle]) -> None:
    build = build_of(built(name))
    assert [(g.role, g.shared, g.executed) for g in build.graphs] == [
        ("prefill", False, True),
        ("decode", False, True),
        ("prefill", True, False),
        ("decode", True, False),
    ]


@pytest.mark.parametrize("name", ROUTES)
def test_a_shared_binary_is_smaller_than_two(name: str, built: Callable[[str], Bundle]) -> None:
    bundle = built(name)
    build = build_of(bundle)
    apart = [bundle.path / build.chain(role)[0].binary for role in ("prefill", "decode")]
    shared = {bundle.path / build.chain(role, shared=True)[0].binary for role in ("prefill", "decode")}
    assert len(set(apart)) == 2
    assert len(shared) == 1
    assert shared.pop().stat().st_size < 0.75 * sum(path.stat().st_size for path in apart)


def test_a_probe_of_wrong_logits_is_seen(built: Callable[[str], Bundle]) -> None:
    """What is said of FP32 is about the probe's logits, and of the NPU is not."""
    bundle = built("v75 half precision, 8 bits")
    tokens = tuple(range(4, 16))
    wrong = Probe(tokens, np.eye(12, bundle.manifest.spec.vocab_size, dtype=np.float32), "made up")
    prefill, decode = emulate_build(bundle.path, build_of(bundle), wrong, steps=3)
    assert (prefill.tokens, decode.tokens, prefill.text) == (9, 3, "made up")
    for emulation in (prefill, decode):
        assert emulation.total.cosine < 0.5 < 0.9999 < emulation.npu.cosine


def test_the_same_graph_gives_the_same_bytes(built: Callable[[str], Bundle], tmp_path: Path) -> None:
    """From one place: ONNX Runtime names a graph by a hash of its path, and the name is in the binary."""
    bundle = built("v75 half precision, 4 bits")
    build = build_of(bundle)
    (compiled,) = build.chain("decode")
    assert build.target.npu is not None
    found = []
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        output = tmp_path / name / Path(compiled.context).name
        pairs = [(bundle.path / compiled.source, output)]
        (done,) = compile_graphs(build.target.npu.plugin, build.target.provider, build.options, pairs)
        assert (done.error, done.traffic) == ("", compiled.traffic)
        found.append(output.with_name(Path(compiled.binary).name).read_bytes())
    assert found[0] == found[1]


def test_a_file_that_is_there_is_not_written_over(built: Callable[[str], Bundle], tmp_path: Path) -> None:
    bundle = built("v75 half precision, 4 bits")
    build = build_of(bundle)
    (compiled,) = build.chain("decode")
    assert build.target.npu is not None
    (tmp_path / "out.onnx").write_text("mine")
    pairs = [(bundle.path / compiled.source, tmp_path / "out.onnx")]
    (done,) = compile_graphs(build.target.npu.plugin, build.target.provider, build.options, pairs)
    assert "exist" in done.error
    assert (tmp_path / "out.onnx").read_text() == "mine"


@pytest.mark.parametrize("activations", ["float16", "uint16"])
def test_a_layer_of_a_real_model_s_widths(activations: Any, tmp_path: Path) -> None:
    checkpoint = signed_checkpoint(tmp_path / "checkpoint", **REAL)
    ask = ForNpu(activations=activations, emulate=False)
    bundle = build_bundle(str(checkpoint), target=ungated("galaxy-s24"), precision="int8", out=tmp_path / "b", npu=ask)
    build = build_of(bundle)
    assert not any(g.executed for g in build.graphs)
    logits = np.ones((10, bundle.manifest.spec.vocab_size), np.float32)
    for emulation in emulate_build(bundle.path, build, Probe(tuple(range(4, 14)), logits, "made up"), steps=2):
        assert emulation.npu.cosine > (0.9999 if activations == "float16" else 0.999)
        assert emulation.npu.top1 >= (1.0 if activations == "float16" else 0.5)
        assert emulation.repeatable
    weights = sum(
        v.const_value.nbytes
        for v in ir.load(bundle.path / build.chain("decode")[0].source).graph.initializers.values()
        if v.const_value is not None
    )
    (decode,) = build.chain("decode")
    assert decode.traffic is not None
    assert 0.85 * weights < decode.traffic.read < 1.25 * weights
    assert (bundle.path / decode.binary).stat().st_size < 1.25 * weights


def test_the_emulator_s_own_failure_is_told(built: Callable[[str], Bundle], tmp_path: Path) -> None:
    """A binary cut in two: its process ends, ours goes on."""
    bundle = built("v75 half precision, 8 bits")
    build = build_of(bundle)
    for graph in build.graphs:
        for name in (graph.context, graph.binary, graph.source, graph.source + "_data"):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if (bundle.path / name).is_file() and not path.exists():
                path.write_bytes((bundle.path / name).read_bytes())
    (tmp_path / build.host).write_bytes((bundle.path / build.host).read_bytes())
    for data in bundle.path.rglob("*_data"):
        (tmp_path / data.relative_to(bundle.path)).write_bytes(data.read_bytes())
    binary = tmp_path / build.chain("decode")[0].binary
    binary.write_bytes(binary.read_bytes()[: binary.stat().st_size // 2])
    probe = Probe(tuple(range(4, 12)), np.ones((8, bundle.manifest.spec.vocab_size), np.float32), "made up")
    with pytest.raises(RunError, match=r"the emulator of onnxruntime_qnn ended with status") as caught:
        emulate_build(tmp_path, build, probe, steps=2)
    assert "edgekit verify" in caught.value.hint


class TestANodeOnTheCpu:
    """SkipSimplifiedLayerNormalization left in: no NPU's compiler takes it."""

    LACK = "op:SkipSimplifiedLayerNormalization"

    @pytest.fixture(autouse=True)
    def _in_a_process_that_holds_the_plugin(self) -> None:
        """Where ONNX Runtime lists it after the CPU's provider."""
        target = load_target("galaxy-s24")
        assert target.npu is not None
        assert target.npu.plugin is not None
        session_options(target.npu.plugin, target.provider, (), 1)
        assert onnxruntime.get_available_providers()[-1] == target.provider

    def test_ends_the_build(self, tmp_path: Path) -> None:
        checkpoint = signed_checkpoint(tmp_path / "checkpoint", num_hidden_layers=1)
        target = ungated("galaxy-s24", without=self.LACK)
        with pytest.raises(GateFailed) as caught:
            build_bundle(
                str(checkpoint), target=target, precision="int8", out=tmp_path / "b", npu=ForNpu(emulate=False)
            )
        said = caught.value.message
        assert re.match(r"prefill\.onnx for galaxy-s24: 2 of \d+ nodes would run on the CPU", said)
        assert "SkipSimplifiedLayerNormalization 'model.layers.0.post_attention_layernorm'" in said
        assert "Operators of type `SkipSimplifiedLayerNormalization` are not supported by QNN EP" in said
        assert "edgekit/lower/skip_simplified_layer_normalization.py rewrites it" in caught.value.hint
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]

    def test_ends_the_command_with_3(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        checkpoint, targets = signed_checkpoint(tmp_path / "checkpoint", num_hidden_layers=1), tmp_path / "targets"
        (targets / "families").mkdir(parents=True)
        family = (
            (ROOT / "targets/families/hexagon-float.toml").read_text().replace(f'lacks = ["{self.LACK}"]', "lacks = []")
        )
        (targets / "families" / "hexagon-float.toml").write_text(family)
        device = (ROOT / "targets/galaxy-s24.toml").read_text().replace("context = 1024", "context = 48")
        (targets / "phone.toml").write_text(device.replace('name = "galaxy-s24"', 'name = "phone"'))
        out = tmp_path / "out"
        arguments = ["build", str(checkpoint), "--target", str(targets / "phone.toml"), "-o", str(out), "--no-emulate"]
        assert run(arguments) == 3
        said = capsys.readouterr().err
        assert "SkipSimplifiedLayerNormalization" in said
        assert "lower/skip_simplified_layer_normalization.py" in said.replace("\n", "")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "targets"]


@pytest.mark.model
@pytest.mark.timeout(900)  # a minute where nothing else runs
def test_a_whole_model(tmp_path: Path) -> None:
    """SmolLM2-135M: nothing on the CPU, the bytes a token costs, and what goes to the phone."""
    ask = ForNpu(context=256, emulate=False)
    made = build_bundle("smollm2-135m", target="galaxy-s24", precision="int8", out=tmp_path / "b", npu=ask)
    bundle = open_bundle(made.path)
    build = build_of(bundle)
    spec = bundle.manifest.spec
    for graph in json.loads((bundle.path / build.placement).read_text()):
        assert len(graph["nodes"]) > 1000
        assert {node["provider"] for node in graph["nodes"]} <= {"", build.target.provider}
    (decode,) = build.chain("decode")
    weights = sum(
        v.const_value.nbytes
        for v in ir.load(bundle.path / decode.source).graph.initializers.values()
        if v.const_value is not None
    )
    cache_bytes = 2 * spec.layers * spec.kv_heads * spec.head_dim * 2 * 256
    assert decode.traffic is not None
    assert 0.9 < decode.traffic.total / (weights + cache_bytes) < 1.1
    for graph in build.graphs:
        # The shared one holds two graphs over the same weights.
        limit = 150_000_000 if graph.shared else 145_000_000
        assert (bundle.path / graph.binary).stat().st_size <= limit
