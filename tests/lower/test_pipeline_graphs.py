"""The piece and the cache graph: every prompt is cut as it should be, and only the rows of real tokens are written."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgekit.lower.pipeline_graphs import cache_graph, prefill_chunk_graph
from edgekit.run.runtime import onnxruntime

WIDTH, SLOTS, HEADS, SIZE, VOCAB = 4, 12, 2, 3, 5


def session(model: ir.Model) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])


def value(name: str, shape: tuple[int, ...], kind: ir.DataType) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape))


def chain(layers: int = 2) -> ir.Model:
    """What a static graph takes and gives; nothing computes it."""
    names = [f"{i}.{kind}" for i in range(layers) for kind in ("key", "value")]
    half = ir.DataType.FLOAT16
    pasts = [value(f"past_key_values.{n}", (1, HEADS, SLOTS, SIZE), half) for n in names]
    news = [value(f"new.{n}", (1, HEADS, WIDTH, SIZE), half) for n in names]
    logits = value("logits", (1, WIDTH, VOCAB), ir.DataType.FLOAT)
    return ir.Model(ir.Graph(pasts, [logits, *news], nodes=[], opset_imports={"": 21}, name="static"), ir_version=10)


@pytest.mark.parametrize("length", range(1, 3 * WIDTH + 2))
@pytest.mark.parametrize("place", [0, 5])
def test_the_pieces_of_a_prompt_are_the_prompt(length: int, place: int) -> None:
    cut = session(prefill_chunk_graph(WIDTH, chain()))
    ids, places = np.arange(100, 100 + length)[None], np.arange(place, place + length)[None]
    width, start, seen = (1 if length == 1 else WIDTH), {}, []
    for piece in range(-(-length // WIDTH)):
        got = cut.run(None, {"prompt_ids": ids, "prompt_positions": places, **start})
        filled, positions, (count,), (first,), follow = got
        assert filled.shape == positions.shape == (1, width)
        assert first == place + piece * WIDTH
        assert positions[0, :count].tolist() == list(range(first, first + count))
        assert set(positions[0, count:].tolist()) <= {first + count - 1}
        assert filled[0, count:].tolist() == [0] * (width - count)
        seen += filled[0, :count].tolist()
        start = {"chunk.start": follow}
    assert seen == ids[0].tolist()
    assert start["chunk.start"].tolist() == [0], "the next prompt begins at its beginning"


@pytest.mark.parametrize(("count", "place"), [(1, 0), (4, 0), (3, 5), (2, SLOTS - 2)])
def test_the_real_rows_are_written_in_the_pasts_own_memory(count: int, place: int) -> None:
    random = np.random.default_rng(0)
    write = session(cache_graph([chain()]))
    feeds = inputs(write, random, count, place)
    expected = {}
    for name in [n for n in feeds if n.startswith("past_key_values.")]:
        expected[name] = feeds[name].copy()
        new = feeds[name.replace("past_key_values.", "new.")]
        expected[name][:, :, place : place + count] = new[:, :, :count]
    held = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
    binding = write.io_binding()
    for name, array in held.items():
        binding.bind_ortvalue_input(name, array)
    for output in write.get_outputs():
        past = held.get(output.name.replace("present.", "past_key_values."))
        binding.bind_output(output.name) if past is None else binding.bind_ortvalue_output(output.name, past)
    write.run_with_iobinding(binding)
    for name, array in expected.items():
        np.testing.assert_array_equal(held[name].numpy(), array)
    named = dict(zip((o.name for o in write.get_outputs()), binding.get_outputs(), strict=True))
    np.testing.assert_array_equal(named["logits.last"].numpy(), feeds["logits"][:, count - 1 : count])
    assert named["chunk.start"].numpy().tolist() == [8]


def inputs(write: onnxruntime.InferenceSession, random: np.random.Generator, count: int, place: int) -> dict:
    """Random tensors; the last piece is said to start at 8."""
    kinds = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
    feeds = {
        i.name: random.standard_normal([WIDTH if isinstance(d, str) else d for d in i.shape]).astype(kinds[i.type])
        for i in write.get_inputs()
        if i.type in kinds
    }
    scalars = {"chunk.count": count, "chunk.place": place, "chunk.next": 8}
    return feeds | {name: np.asarray([scalar], np.int64) for name, scalar in scalars.items()}


def test_more_tokens_than_slots_are_refused() -> None:
    write = session(cache_graph([chain(1)]))
    with pytest.raises(Exception, match=r"out of data bounds|invalid indice"):
        write.run(None, inputs(write, np.random.default_rng(0), 3, SLOTS - 2))
