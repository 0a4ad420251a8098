"""The line for an NPU where it must not go on: what cannot be compiled is refused with its fix, and leaves nothing."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import edgekit.build.npu
import edgekit.build.npu_plan
from edgekit.build.npu import require_placed
from edgekit.build.npu_plan import check_room, choose_scheme
from edgekit.build.pipeline import ForNpu, build_bundle
from edgekit.config.recipe import load_recipe, load_target
from edgekit.errors import BundleError, ConfigError, EdgekitError, GateFailed, LowerError, RunError
from edgekit.run.npu import compile_graphs, plugin_versions, require_compiler
from edgekit.source import open_model
from edgekit.testing import tiny_checkpoint
from edgekit.types.device import Plugin, Target
from edgekit.types.npu import Placed, Placement
from tests.npus import PROVIDER, compile_nothing, tiny_target

V68 = load_target("qcs6490")


def with_plugin(**changes: Any) -> Target:
    target = tiny_target()
    assert target.npu is not None
    return replace(target, npu=replace(target.npu, plugin=replace(target.npu.plugin, **changes)))


def plugin_of(**changes: Any) -> Plugin:
    target = with_plugin(**changes)
    assert target.npu is not None
    return target.npu.plugin


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture
def refused(checkpoint: str, tmp_path: Path) -> Callable[..., EdgekitError]:
    """Build, and say what it was refused with; nothing is left where the bundle would have been, nor beside it."""

    def build(kind: type[EdgekitError], match: str, **arguments: Any) -> EdgekitError:
        with pytest.raises(kind, match=match) as caught:
            build_bundle(checkpoint, out=tmp_path / "out", **arguments)
        assert list(tmp_path.iterdir()) == []
        return caught.value

    return build


@pytest.fixture
def before_the_work(
    refused: Callable[..., EdgekitError], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., EdgekitError]:
    """Build, and say what it was refused with before any weight was quantized and any graph written."""

    def build(kind: type[EdgekitError], match: str, *more: str, **arguments: Any) -> EdgekitError:
        def work(*_: Any, **__: Any) -> None:
            pytest.fail("the long work has begun")

        compile_nothing(monkeypatch)
        for name in ("edgekit.quantize.model.quantize_weight", "edgekit.bundle.write.BundleWriter.write_graph", *more):
            monkeypatch.setattr(name, work)
        return refused(kind, match, **arguments)

    return build


class TestTheCompiler:
    def test_is_missing(self, refused: Callable[..., EdgekitError]) -> None:
        target = with_plugin(module="no_such_plugin", requirement="no-such-plugin>=1")
        error = refused(RunError, "no-such-plugin, which is not installed", target=target)
        assert error.hint == "pip install 'edgekit[qnn]'"

    def test_is_of_another_version(self, refused: Callable[..., EdgekitError]) -> None:
        target = with_plugin(module="numpy", requirement="numpy>=99")
        error = refused(RunError, rf"numpy {np.__version__} is installed, but >=99 is needed", target=target)
        assert error.hint == "pip install 'edgekit[qnn]'"

    def test_is_for_other_platforms(
        self, refused: Callable[..., EdgekitError], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(platform, "system", lambda: "Darwin")
        monkeypatch.setattr(platform, "machine", lambda: "arm64")
        error = refused(RunError, "need Linux x86_64, but this is Darwin arm64", target=tiny_target())
        assert "build on such a machine" in error.hint

    def test_is_there(self) -> None:
        here = (f"{platform.system()} {platform.machine()}",)
        plugin = plugin_of(module="numpy", requirement="numpy>=1", platforms=here)
        require_compiler(plugin)
        assert plugin_versions(plugin)[1] == ("numpy", np.__version__)

    def test_crashes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The vendor's library takes its own process with it, and not this one."""
        plugin, graph = crashing_plugin(tmp_path, monkeypatch), tmp_path / "static.onnx"
        value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((1,)))
        ir.save(ir.Model(ir.Graph([value], [value], nodes=[], opset_imports={"": 21}), ir_version=10), graph)
        with pytest.raises(
            RunError, match=r"compiler of crashing ended with status -6 while compiling static\.onnx"
        ) as e:
            compile_graphs(plugin, PROVIDER, (), [(graph, tmp_path / "out.onnx")])
        assert "report it" in e.value.hint
        assert not (tmp_path / "out.onnx").exists()

    def test_that_crashes_leaves_nothing_of_a_build(
        self,
        refused: Callable[..., EdgekitError],
        tmp_path_factory: pytest.TempPathFactory,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        plugin = crashing_plugin(tmp_path_factory.mktemp("plugin"), monkeypatch)
        target = with_plugin()
        assert target.npu is not None
        target = replace(target, npu=replace(target.npu, plugin=plugin))
        refused(RunError, "compiler of crashing ended with status -6", target=target, npu=ForNpu(emulate=False))


def crashing_plugin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Plugin:
    """A package that aborts when it is asked for its library."""
    (folder / "crashing.py").write_text("import os\n\ndef get_library_path():\n    os.abort()\n")
    (folder / "crashing-1.0.dist-info").mkdir()
    (folder / "crashing-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: crashing\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    return plugin_of(
        module="crashing", requirement="crashing>=1", platforms=(f"{platform.system()} {platform.machine()}",)
    )


class TestTheDevice:
    def test_has_less_context_than_is_asked_for_in_the_model(self, refused: Callable[..., EdgekitError]) -> None:
        error = refused(
            ConfigError, "600 tokens is longer than the model's 512", target="galaxy-s24", npu=ForNpu(context=600)
        )
        assert error.hint == "lower `context`"

    @pytest.mark.parametrize("ask", [{}, {"precision": "int8"}, {"precision": "int4", "bits": 6.0}])
    @pytest.mark.parametrize("name", ["galaxy-s24", "iphone-16"])
    def test_has_not_the_memory(
        self, name: str, ask: dict[str, Any], before_the_work: Callable[..., EdgekitError]
    ) -> None:
        target = replace(load_target(name), memory_bytes=100_000)
        error = before_the_work(
            ConfigError, "a cache for 48 tokens need .* of its 100,000", target=target, npu=ForNpu(context=48), **ask
        )
        assert "`precision=int4`" in error.hint and "`context`" in error.hint

    def test_has_not_the_memory_for_the_second_of_two(self, before_the_work: Callable[..., EdgekitError]) -> None:
        second = replace(tiny_target(), name="small", title="The small one", memory_bytes=100_000)
        before_the_work(ConfigError, "^The small one: ", target=tiny_target(), npu=ForNpu(also=(second,)))

    def test_has_not_the_memory_for_what_a_budget_allows(self, before_the_work: Callable[..., EdgekitError]) -> None:
        """The budget alone says so: what each weight costs in quality need not be measured for it."""
        everything = "edgekit.quantize.budget.measure_sensitivity"
        target = replace(tiny_target(), memory_bytes=130_000)
        before_the_work(ConfigError, "more than three quarters", everything, target=target, precision="int4", bits=8.5)

    def test_takes_no_layer_as_large(self, before_the_work: Callable[..., EdgekitError]) -> None:
        error = before_the_work(LowerError, "layer 0 has .* more than the 1,000", target=tiny_target(1000))
        assert error.hint == "build with fewer bits per weight"

    def test_takes_no_zero_points(self, before_the_work: Callable[..., EdgekitError]) -> None:
        before_the_work(LowerError, "its grid has zero points", target=tiny_target(), recipe=load_recipe("int4"))

    def test_takes_a_package_only_whole(
        self, before_the_work: Callable[..., EdgekitError], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(edgekit.build.npu_plan, "require_ml_program", lambda _: None)
        target = load_target("iphone-16")
        assert target.npu is not None
        target = replace(target, npu=replace(target.npu, largest_graph_bytes=150_000))
        ask = ForNpu(context=48, mlpackage=True)
        before_the_work(BundleError, "the model is split into", target=target, precision="fp16", npu=ask)

    def test_has_room_up_to_three_quarters(self, checkpoint: str) -> None:
        spec = open_model(checkpoint).spec
        cache = 2 * spec.layers * spec.kv_heads * spec.head_dim * 2 * 48
        target = replace(tiny_target(), memory_bytes=100_000)
        check_room(target, spec, 75_000 - cache)
        with pytest.raises(ConfigError):
            check_room(target, spec, 75_001 - cache)
        check_room(replace(target, memory_bytes=None), spec, 10**15)

    def test_has_no_half_precision(self, refused: Callable[..., EdgekitError]) -> None:
        error = refused(ConfigError, "'qcs6490' does not support fp16", target="qcs6490", precision="fp16")
        assert error.hint == "supported: int8, int4"
        with pytest.raises(ConfigError, match="does not support fp16 weights") as caught:
            choose_scheme(V68, "fp16")
        assert caught.value.hint == "supported: int8, int4"

    def test_does_not_compute_in_what_is_asked_for(self, refused: Callable[..., EdgekitError]) -> None:
        ask = ForNpu(activations="float16")
        error = refused(ConfigError, "does not compute in float16", target="qcs6490", npu=ask)
        assert error.hint == "supported: uint16"
        error = refused(ConfigError, "has no NPU to compile for", target="cpu", npu=ask)
        assert "edgekit targets list" in error.hint
        error = refused(
            ConfigError,
            "fp16 weights with uint16",
            target="galaxy-s24",
            precision="fp16",
            npu=ForNpu(activations="uint16"),
        )
        assert error.hint == "supported: int8, int4"

    @pytest.mark.parametrize("method", ["search", "rtn"])
    def test_loses_the_sign_of_scales(
        self, method: str, refused: Callable[..., EdgekitError], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compile_nothing(monkeypatch)
        recipe = replace(load_recipe("npu-a16w8"), method=method, rotate=False, smooth=0.0)
        ask = ForNpu(activations="uint16", emulate=False)
        error = refused(
            ConfigError, f"method '{method}' produces negative scales", target=tiny_target(), recipe=recipe, npu=ask
        )
        assert 'method = "positive"' in error.hint

    def test_takes_graphs_of_our_own_exporter_only(self, refused: Callable[..., EdgekitError]) -> None:
        error = refused(ConfigError, "optimum cannot be lowered for the NPU", target="galaxy-s24", exporter="optimum")
        assert error.hint == "use `exporter=native`"

    def test_beside_it_is_unknown(self, refused: Callable[..., EdgekitError]) -> None:
        error = refused(
            ConfigError, "unknown target 'galaxy-s26'", target="galaxy-s24", npu=ForNpu(also=("galaxy-s26",))
        )
        assert "did you mean 'galaxy-s2" in error.hint
        refused(ConfigError, "'cpu' has no NPU", target="galaxy-s24", npu=ForNpu(also=("cpu",)))


def placed(operator: str, provider: str, reason: str = "") -> Placement:
    nodes = (Placed("first", "Add", PROVIDER), Placed("folded", "Cast", ""), Placed("n", operator, provider, reason))
    return Placement("decode.onnx", nodes)


def test_a_node_on_the_cpu_is_named_with_reason_and_cure() -> None:
    target = tiny_target()
    with pytest.raises(
        GateFailed, match=r"1 of 3 nodes would run on the CPU, first MatMulNBits 'n': too wide"
    ) as caught:
        require_placed(target, placed("MatMulNBits", "Cpu", "too wide"), "not all nodes")
    assert (
        caught.value.hint == "add 'op:MatMulNBits' to the scheme's `lacks`: edgekit/lower/matmul_nbits.py rewrites it"
    )
    with pytest.raises(GateFailed, match="first Erf 'n': no reason given") as caught:
        require_placed(target, placed("Erf", "Cpu"), "")
    assert "targets/families" in caught.value.hint


def test_what_is_placed_and_not_compiled_is_an_error_of_another_kind() -> None:
    require_placed(tiny_target(), placed("MatMul", PROVIDER), "")
    with pytest.raises(RunError, match=r"decode\.onnx cannot be compiled for galaxy-s24: out of memory") as caught:
        require_placed(tiny_target(), placed("MatMul", PROVIDER), "out of memory")
    assert "edgekit targets check" in caught.value.hint
