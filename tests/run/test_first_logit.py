"""Graphs that give edgekit the logits of the last positions alone, and everybody else those of all, in silence."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekit.build.pipeline import build_bundle
from edgekit.run import load_runner
from edgekit.run.first_logit import open_first_logit
from edgekit.run.session import open_session
from edgekit.run.settings import default_settings
from edgekit.testing import tiny_checkpoint
from edgekit.types import FIRST_LOGIT, Bundle

TOKENS = list(range(5, 25))

PLAIN = """
import sys, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
print([i.name for i in session.get_inputs() + session.get_overridable_initializers() if "first_logit" in i.name])
"""


@pytest.fixture(scope="module", params=["fp32", "fp16", "int4", "small", "portable"])
def bundle(request, tmp_path_factory) -> Bundle:
    folder = tmp_path_factory.mktemp("first")
    how = {"precision": "int4", "target": "portable"} if request.param == "portable" else {"recipe": request.param}
    return build_bundle(str(tiny_checkpoint(folder / "tiny")), out=folder / "bundle", **how)


def test_a_plain_session_hears_of_no_input_and_no_warning(bundle: Bundle) -> None:
    told = subprocess.run(
        [sys.executable, "-c", PLAIN, str(bundle.graph)], capture_output=True, text=True, timeout=120, check=True
    )
    assert told.stdout.strip() == "[]"
    assert told.stderr == ""


def test_the_runner_asks_for_the_last_position_alone(bundle: Bundle) -> None:
    graph = onnx.load_from_string(open_first_logit(bundle.graph.read_bytes())).graph
    (first,) = [i for i in graph.input if i.name == FIRST_LOGIT]
    assert first.type.tensor_type.elem_type == onnx.TensorProto.INT64
    assert [d.dim_value for d in first.type.tensor_type.shape.dim] == [1]
    handle = open_session(bundle, default_settings(bundle.manifest)).handle
    assert [i.name for i in handle.get_overridable_initializers()] == [FIRST_LOGIT]
    assert FIRST_LOGIT not in [i.name for i in handle.get_inputs()]
    runner = load_runner(bundle, threads=1)
    assert runner._tokens.last_only
    every = runner.logits(TOKENS)
    runner.reset()
    last = np.array(runner.prefill(TOKENS))
    assert every.shape == (len(TOKENS), runner.vocab_size)
    np.testing.assert_allclose(last, every[-1], atol=0.2)
    runner.close()


def test_a_bundle_that_has_it_as_an_input_with_a_default(tmp_path: Path) -> None:
    """As they were built before it was a constant."""
    made = build_bundle(str(tiny_checkpoint(tmp_path / "tiny")), precision="fp32", out=tmp_path / "bundle")
    wanted = load_runner(made, threads=1)
    model = onnx.load_from_string(open_first_logit(made.graph.read_bytes()))
    for node in model.graph.node:
        node.input[:] = ["first_logit" if name == FIRST_LOGIT else name for name in node.input]
    for value in (*model.graph.initializer, *model.graph.input):
        value.name = "first_logit" if value.name == FIRST_LOGIT else value.name
    made.graph.write_bytes(model.SerializeToString())
    old = load_runner(replace(made), threads=1)
    assert old._tokens.last_only
    np.testing.assert_array_equal(old.prefill(TOKENS), wanted.prefill(TOKENS))


def test_a_graph_without_it_stays_as_it_is() -> None:
    assert open_first_logit(b"\x08\x0a") == b"\x08\x0a"
