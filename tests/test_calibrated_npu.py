"""Bundles for an NPU whose weights and scales of activations were fitted to text."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import edgekit.build.npu
from edgekit import build_bundle
from edgekit.build.npu import calibration_windows
from edgekit.build.pipeline import ForNpu
from edgekit.source import open_model, source_tokenizer
from edgekit.testing import FakeCompiler, tiny_checkpoint
from tests.npus import SLOTS, tiny_target


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "mine.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, and then it rests. " * 60)
    return path


@pytest.mark.parametrize(("precision", "activations"), [("int4", "float16"), ("int8", "uint16"), ("int4", "uint16")])
def test_scales_are_learned_from_the_text_of_the_weights(precision, activations, model, text, tmp_path, monkeypatch):
    read, original = [], edgekit.build.npu.observe_ranges
    monkeypatch.setattr(edgekit.build.npu, "observe_ranges", lambda *a: read.append(a[2]) or original(*a))
    bundles = [
        build_bundle(
            model, target=tiny_target(), precision=precision, out=tmp_path / name, calibrate=calibrate,
            npu=ForNpu(activations, emulate=False, compiler=FakeCompiler()),
        )
        for name, calibrate in (("fitted", (str(text),)), ("plain", ()))
    ]  # fmt: skip
    assert [b.manifest.calibrated is not None for b in bundles] == [True, False]
    sizes = [sorted(f.bytes for f in b.manifest.files if f.path.endswith("_data")) for b in bundles]
    assert sizes[0] == sizes[1]
    if activations == "uint16":
        ids = source_tokenizer(open_model(model))(text.read_text())
        cycle = " ".join(map(str, ids))
        assert all(" ".join(map(str, window)) in cycle for window in read[0].tolist())
        assert not np.array_equal(read[0][0], read[1][0])
        assert (scales(bundles[0]) > 0).all(), "the compiler drops signs"


def scales(bundle):
    graph = ir.load(bundle.graph).graph
    return np.concatenate(
        [v.const_value.numpy().ravel() for n, v in graph.initializers.items() if n.endswith("scales")]
    )


def test_windows_are_spread_over_the_text_and_no_longer_than_the_cache():
    text = np.arange(16 * 512).reshape(16, 512)
    found = calibration_windows(None, SLOTS, text)
    assert found.shape[1] == SLOTS
    assert 1024 < found.size <= 2048
    assert found[-1, 0] > 14 * 512
    assert (np.diff(found) == 1).all()
