"""The turned model computes what the model computes, for every kind of model."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, reduce
from itertools import pairwise

import numpy as np
import pytest

from edgekit.build.pipeline import draw
from edgekit.config.recipe import builtin_recipe, load_target
from edgekit.lower import lower
from edgekit.quantize import RotatedWeights
from edgekit.quantize.rotate import factors, rotate_rows
from tests.graph.pairs import CONFIGS, Decoder, Pair, distance, make_pair

WIDTHS = [64, 96, 576, 960, 4096]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    return cache(lambda name: make_pair(CONFIGS[name](), tmp_path_factory.mktemp("pair")))


@pytest.mark.parametrize("width", WIDTHS)
def test_factors_are_orthogonal_small_and_make_the_width(width: int) -> None:
    found = factors(width)
    assert np.prod([len(f) for f in found]) == width
    for factor in found:
        assert len(factor) <= 64
        np.testing.assert_allclose(factor @ factor.T, np.eye(len(factor)), atol=1e-6)


@pytest.mark.parametrize("width", WIDTHS[:-1])
def test_turning_is_a_product_with_one_orthogonal_matrix(width: int) -> None:
    whole = reduce(np.kron, factors(width))
    x = np.random.default_rng(0).standard_normal((3, 2, width)).astype(np.float32)
    np.testing.assert_allclose(rotate_rows(x), x @ whole, atol=1e-5)
    np.testing.assert_allclose(rotate_rows(np.eye(width, dtype=np.float32)) @ whole.T, np.eye(width), atol=1e-5)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_channel_stands_out_afterwards(width: int) -> None:
    spike = np.zeros((1, width), np.float32)
    spike[0, width // 3] = 1000
    assert np.abs(rotate_rows(spike)).max() < 0.3 * 1000
    np.testing.assert_allclose(np.linalg.norm(rotate_rows(spike)), 1000, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_turned_model_has_the_logits_of_the_model(name: str, pair: Callable[[str], Pair]) -> None:
    tiny = pair(name)
    model, weights = draw(tiny.checkpoint, replace(builtin_recipe("fp32"), rotate=True), 21)
    assert isinstance(weights, RotatedWeights)
    ids = tiny.ids(20)
    turned = Decoder(tiny.checkpoint.spec, lower(model, load_target("portable")))
    assert distance(turned.stepwise(ids), tiny.decoder("portable").stepwise(ids)) < 1e-4


@pytest.mark.parametrize("name", ["llama odd heads, one kv head, tied", "llama explicit head_dim, biases", "qwen2"])
def test_bands_of_rows_are_the_whole(name: str, pair: Callable[[str], Pair]) -> None:
    stored = pair(name).checkpoint.weights
    turned = RotatedWeights(stored)
    changed = 0
    for tensor in turned.names():
        whole = turned.read(tensor)
        assert whole.shape == turned.shape(tensor)
        assert whole.dtype == np.float32
        rows = whole.shape[0]
        cuts = [0, 1, rows // 3, rows // 3 + 5, rows]
        bands = [turned.read(tensor, a, b) for a, b in pairwise(cuts)]
        np.testing.assert_allclose(np.concatenate(bands), whole, atol=1e-6)
        if tensor in stored.names():
            changed += not np.allclose(whole, stored.read(tensor), atol=1e-3)
    assert changed > len(stored.names()) // 2
    head = "lm_head.weight"
    assert (head in turned.names()) and turned.names().count(head) == 1


def test_what_is_read_may_be_written_to(pair: Callable[[str], Pair]) -> None:
    turned = RotatedWeights(pair("llama").checkpoint.weights)
    name = "model.layers.0.mlp.down_proj.weight"
    first = turned.read(name, 0, 4)
    before = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(turned.read(name, 0, 4), before)
