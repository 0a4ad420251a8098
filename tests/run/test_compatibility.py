"""Binaries for another chip and of a newer SDK are named before anything opens them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx_ir as ir
import pytest

from edgekit.build.npu_emulate import Probe, emulate_build
from edgekit.build.npu_plan import npu_of
from edgekit.build.pipeline import ForNpu, build_bundle
from edgekit.config.recipe import load_target
from edgekit.errors import RunError
from edgekit.run.npu import Mark, installed_sdk, parse_mark, require_compatible
from edgekit.testing import FakeCompiler, tiny_checkpoint
from edgekit.types import Bundle
from tests.npus import PROVIDER, build_tiny, needs_compiler, tiny_target

OPTIONS = (("soc_model", "57"),)
PLUGIN = replace(npu_of(load_target("galaxy-s24")).plugin, module="a_vendors_plugin")


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A vendor's module that says it has SDK 2.51.0."""
    package, module = ModuleType("a_vendors_plugin"), ModuleType("a_vendors_plugin.build_and_package_info")
    package.__path__ = []
    module.qnn_version = "2.51.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


NOTE = "v2:6:2.51.0:5.51.0:0:57:0:0"
"""As QNN writes it: SDK, interface, and the chips."""


def graph(folder: Path, note: str = NOTE) -> Path:
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((1,)))
    node = ir.node("Identity", [value], outputs=[ir.Value(name="y", type=value.type, shape=value.shape)])
    made = ir.Graph([value], node.outputs, nodes=[node], opset_imports={"": 21}, name="static")
    ir.save(ir.Model(made, ir_version=10), folder / "static.onnx")
    FakeCompiler(note).compile(PLUGIN, PROVIDER, (), [(folder / "static.onnx", folder / "decode.onnx")])
    return folder / "decode.onnx"


def check(path: Path, tools: tuple[tuple[str, str], ...] = ()) -> None:
    require_compatible(PLUGIN, PROVIDER, OPTIONS, [path], tools=tools)


@pytest.mark.parametrize(
    ("note", "mark"),
    [
        (NOTE, Mark("2.51.0", ("57",))),
        ("v2:6:2.50.40:5.50.0:0,0:43,57:0,0:0", Mark("2.50.40", ("43", "57"))),
        ("v3:6:2.60.0", None),
        ("", None),
    ],
)
def test_the_note_of_a_compiler(note: str, mark: Mark | None) -> None:
    assert parse_mark(note, PLUGIN.note) == mark


@pytest.mark.parametrize("note", [NOTE, NOTE.replace("2.51.0", "2.50.40"), NOTE.replace(":57:", ":43,57:")])
def test_what_is_for_this_chip_and_not_newer_passes(note: str, tmp_path: Path, plugin: ModuleType) -> None:
    check(graph(tmp_path, note))


def test_a_binary_for_another_chip(tmp_path: Path, plugin: ModuleType) -> None:
    with pytest.raises(RunError, match=r"decode\.onnx has a binary for chip 43, but the device's is 57") as caught:
        check(graph(tmp_path, NOTE.replace(":57:", ":43:")))
    assert "rebuild the bundle" in caught.value.hint


def test_a_binary_of_a_newer_sdk(tmp_path: Path, plugin: ModuleType) -> None:
    plugin.qnn_version = "2.50.40"
    with pytest.raises(
        RunError, match=r"compiled with SDK 2\.51\.0, newer than 2\.50\.40 of onnxruntime-qnn"
    ) as caught:
        check(graph(tmp_path), (("onnxruntime-qnn", "2.7.0"),))
    assert caught.value.hint == "pip install 'onnxruntime-qnn>=2.7.0'"


def test_the_packages_speak_where_the_note_does_not(
    tmp_path: Path, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.run.npu.compatibility.version", lambda package: "2.6.0")
    path = graph(tmp_path, "of a later form")
    check(path, (("onnxruntime-qnn", "2.6.0"),))
    with pytest.raises(RunError, match=r"compiled with onnxruntime-qnn 2\.7\.0, newer than the installed 2\.6\.0"):
        check(path, (("onnxruntime-qnn", "2.7.0"),))


def test_a_graph_that_is_not_compiled(tmp_path: Path, plugin: ModuleType) -> None:
    graph(tmp_path)
    with pytest.raises(RunError, match=r"static\.onnx is not compiled for QNNExecutionProvider"):
        check(tmp_path / "static.onnx")
    with pytest.raises(RunError, match=r"absent\.onnx"):
        check(tmp_path / "absent.onnx")


def test_a_runtime_that_reads_no_notes(tmp_path: Path, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime 1.24 does not; 1.25 does."""
    path = graph(tmp_path)
    state = "onnxruntime.capi.onnxruntime_pybind11_state.get_compatibility_info_from_model"
    monkeypatch.delattr(state)
    with pytest.raises(RunError, match=r"cannot read what decode\.onnx was compiled for") as caught:
        check(path)
    assert caught.value.hint == "pip install 'onnxruntime>=1.25'"


def test_a_module_that_does_not_say() -> None:
    assert installed_sdk(replace(PLUGIN, module="json", sdk="")) == ""
    assert installed_sdk(replace(PLUGIN, module="no_such_module")) == ""


def test_a_swapped_graph_is_found_before_the_emulator_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = build_tiny(tmp_path)
    monkeypatch.setattr("edgekit.run.npu.emulating.require_compiler", lambda plugin: None)
    _swap(bundle, NOTE.replace(":57:", ":43:"))
    with pytest.raises(RunError, match=r"prefill\.onnx has a binary for chip 43"):
        emulate_build(bundle.path, bundle.manifest.npus[0], _probe(bundle))


def _swap(bundle: Bundle, note: str) -> None:
    build = bundle.manifest.npus[0]
    (prefill,) = build.chain("prefill")
    pair = (bundle.path / prefill.source, bundle.path / prefill.context)
    FakeCompiler(note).compile(PLUGIN, PROVIDER, (), [pair])


def _probe(bundle: Bundle) -> Probe:
    return Probe(tuple(range(4, 20)), np.eye(16, bundle.manifest.spec.vocab_size, dtype=np.float32), "made up")


@needs_compiler
def test_binaries_of_two_chips_swapped(tmp_path: Path) -> None:
    """The emulator runs either without a word, so only the note tells."""
    target = tiny_target()
    assert target.npu is not None
    other = replace(target, name="other", npu=replace(target.npu, options=(("soc_model", "43"),)))
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    bundle = build_bundle(
        str(checkpoint),
        target=target,
        precision="fp16",
        out=tmp_path / "b",
        npu=ForNpu(emulate=False, also=(other,)),
    )
    first, second = bundle.manifest.npus
    mark = parse_mark(first.graphs[0].compatibility, target.npu.plugin.note)
    assert mark == Mark(installed_sdk(target.npu.plugin), ("57",))
    emulate_build(bundle.path, first, _probe(bundle), steps=2)
    swapped = replace(first, graphs=second.graphs)
    with pytest.raises(RunError, match="has a binary for chip 43, but the device's is 57"):
        emulate_build(bundle.path, swapped, _probe(bundle), steps=2)
