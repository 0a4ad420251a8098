"""A graph in another process gives what it gives in this one."""

import json

import numpy as np
import pytest

from edgekit.errors import RunError
from edgekit.run import DrivenGraph, Interpreter, load_runner, this_interpreter

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture
def graph(bundle_of):
    bundle = bundle_of("append")
    graph = DrivenGraph(this_interpreter(), bundle.graph, bundle.path, 50)
    yield graph
    graph.close()


@pytest.mark.parametrize("dialect", ["append", "in place"])
def test_its_logits_are_the_runners(bundle_of, dialect):
    bundle = bundle_of(dialect)
    runner = load_runner(bundle)
    graph = DrivenGraph(this_interpreter(), bundle.graph, bundle.path, 50)
    try:
        for tokens in (TOKENS, TOKENS[:3], TOKENS):
            assert np.allclose(graph.logits(tokens), runner.logits(tokens), atol=1e-5)
        assert graph.vocab_size == runner.vocab_size
    finally:
        runner.close()
        graph.close()


def test_it_says_where_it_runs_and_keeps_its_answers(graph):
    import platform

    from edgekit.run.runtime import onnxruntime

    assert (graph.machine, graph.runtime) == (platform.machine(), onnxruntime.__version__)
    first = graph.logits(TOKENS)
    graph._process.kill()
    assert graph.logits(TOKENS) is first


def test_a_process_that_dies_is_an_error(graph):
    graph._process.kill()
    graph._process.wait()
    with pytest.raises(RunError, match="ended with status -9"):
        graph.logits(TOKENS)


def test_a_graph_that_does_not_load_is_an_error_with_its_reason(copied):
    copied.graph.write_bytes(b"nonsense")
    with pytest.raises(RunError, match=r"append.onnx on this machine: .*INVALID_PROTOBUF"):
        DrivenGraph(this_interpreter(), copied.graph, copied.path, 50)


def test_a_token_outside_the_vocabulary_ends_it_with_the_reason(graph):
    with pytest.raises(RunError, match=r"ended with status 1: .*999"):
        graph.logits([999])


def test_an_interpreter_that_is_not_there(bundle_of):
    bundle = bundle_of("append")
    with pytest.raises(RunError, match="No such file"):
        DrivenGraph(Interpreter("nowhere", ("/nowhere/python",)), bundle.graph, bundle.path, 50)


def test_entries_reach_the_session(bundle_of):
    bundle = bundle_of("append")
    with pytest.raises(RunError, match="ended with status 1"):
        entries = (("session.disable_prepacking", "neither 0 nor 1" * 1000),)  # longer than ONNX Runtime allows
        DrivenGraph(this_interpreter(), bundle.graph, bundle.path, 50, entries)


def test_the_driver_imports_nothing_of_edgekit():
    import ast

    from edgekit.run.subprocess_predictor import DRIVER

    tree = ast.parse(DRIVER.read_text(encoding="utf-8"))
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert names == {"json", "os", "platform", "sys", "numpy", "onnxruntime"}, json.dumps(sorted(names))
