"""The graph in torch computes what the graph computes."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgekit.build.pipeline import draw  # noqa: E402
from edgekit.config.recipe import builtin_recipe  # noqa: E402
from edgekit.errors import LearnError  # noqa: E402
from edgekit.learn.graph import Decoder, float_weights  # noqa: E402
from edgekit.quantize import reference_logits  # noqa: E402
from edgekit.source import open_model  # noqa: E402
from edgekit.testing import tiny_checkpoint  # noqa: E402

TOKENS = [1, 17, 200, 43, 99, 5, 301, 7, 7, 120, 64, 33]


def drawn(folder, **overrides):
    checkpoint = open_model(str(tiny_checkpoint(folder, **overrides)))
    return draw(checkpoint, builtin_recipe("fp32"), 21)


def test_windows_side_by_side_have_the_logits_of_the_graph(tmp_path):
    model, weights = drawn(tmp_path / "m")
    decoder = Decoder(model, float_weights(weights, trained=False))
    logits = decoder(torch.tensor([TOKENS, TOKENS[::-1]])) @ decoder.head().T
    for row, tokens in zip(logits, (TOKENS, TOKENS[::-1]), strict=True):
        np.testing.assert_allclose(row.numpy(), reference_logits(model, weights, tokens), atol=1e-4)


def test_recomputing_gives_the_same_gradients(tmp_path):
    model, weights = drawn(tmp_path / "m")
    gradients = []
    for recompute in (False, True):
        decoder = Decoder(model, float_weights(weights, trained=True))
        decoder.recompute = recompute
        decoder(torch.tensor([TOKENS])).square().sum().backward()
        gradients.append([p.grad for p in decoder.parameters()])
    for plain, again in zip(*gradients, strict=True):
        assert plain is not None
        assert plain.abs().max() > 0
        torch.testing.assert_close(plain, again)


def test_a_tied_head_is_the_table(tmp_path):
    model, weights = drawn(tmp_path / "m")
    decoder = Decoder(model, float_weights(weights, trained=True))
    assert decoder.head is decoder.table
    assert "lm_head.weight" not in dict(decoder.named_parameters())


def test_rounding_sees_the_input_of_every_matmul(tmp_path):
    model, weights = drawn(tmp_path / "m")
    seen = []

    def rounding(name, x):
        seen.append(name)
        return x

    Decoder(model, float_weights(weights, trained=False), rounding=rounding)(torch.tensor([TOKENS]))
    assert seen == [n for n in weights.names() if n.endswith("_proj.weight")]


def test_an_unknown_operator_is_refused(tmp_path):
    model, weights = drawn(tmp_path / "m")
    node = next(n for n in model.graph if n.op_type == "Sigmoid")
    node.op_type = "Tanh"
    with pytest.raises(LearnError, match="Tanh"):
        Decoder(model, float_weights(weights, trained=False))
