"""Windows side by side in the evaluator."""

from __future__ import annotations

import numpy as np
import pytest

import edgekit.quantize.evaluate as evaluate
from edgekit.build.pipeline import draw
from edgekit.config.recipe import builtin_recipe
from edgekit.quantize.evaluate import feeds_of_windows, run_until
from edgekit.source import open_model
from edgekit.testing import tiny_checkpoint


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    checkpoint = open_model(str(tiny_checkpoint(tmp_path_factory.mktemp("windows") / "tiny")))
    return draw(checkpoint, builtin_recipe("fp32"), 21)


def hidden(opened, windows):
    graph, weights = opened
    return run_until(graph, weights, feeds_of_windows(graph, weights, windows), lambda *_: iter(()), "logits")[0]


def test_each_window_is_read_as_if_it_were_alone(opened):
    windows = np.random.default_rng(0).integers(0, 300, (3, 40))
    together = hidden(opened, windows)
    for window, ours in zip(windows, together, strict=True):
        np.testing.assert_allclose(ours, hidden(opened, window[None])[0], rtol=1e-4, atol=1e-4)


def test_what_lies_between_is_computed_a_window_at_a_time(opened, monkeypatch):
    """The scores of attention are the largest values of all: [heads, tokens, tokens] for each window."""
    seen = []
    original = evaluate.OPS["GroupQueryAttention"]

    def attention(node, inputs):
        seen.append(len(inputs[0]))
        return original(node, inputs)

    monkeypatch.setitem(evaluate.OPS, "GroupQueryAttention", attention)
    windows = np.random.default_rng(0).integers(0, 300, (3, 40))
    by_window = hidden(opened, windows)
    assert seen == [1] * 6
    monkeypatch.setattr(evaluate, "BY_WINDOW", frozenset())
    assert np.array_equal(hidden(opened, windows), by_window)
    assert seen[6:] == [3, 3]
