"""What is cut, and what is left of the model."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.graph import build_graph
from edgekit.learn import depth
from edgekit.learn.depth import choose_layers
from edgekit.learn.layers import Layers, divergences
from edgekit.learn.prune import prune
from edgekit.learn.shapes import Shape
from edgekit.learn.width import _Refit, narrow
from edgekit.quantize import reference_logits
from edgekit.source import CutWeights, keep_layers, open_model
from edgekit.testing import tiny_checkpoint


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return open_model(str(tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny", num_hidden_layers=6)))


@pytest.fixture(scope="module")
def model(teacher):
    return Layers(teacher.spec, teacher.weights)


def text(count, seed=0, length=24):
    return np.random.default_rng(seed).integers(4, 384, (count, length))


def inputs_of_head(model, windows):
    x = model.embed(windows)
    for i in range(model.spec.layers):
        x = model.run(i, x)
    return model.normed(x)


def cost(model, teacher, windows):
    return divergences(teacher, inputs_of_head(teacher, windows), [inputs_of_head(model, windows)])[0]


def without(teacher, *gone):
    kept = [i for i in range(teacher.spec.layers) if i not in gone]
    return Layers(keep_layers(teacher.spec, kept), CutWeights(teacher.weights, kept))


class Idle(CutWeights):
    """All layers, of which some do nothing: what they write is zero."""

    def __init__(self, weights, idle):
        super().__init__(weights, range(6))
        for i in idle:
            for part in ("self_attn.o_proj", "mlp.down_proj"):
                name = f"model.layers.{i}.{part}.weight"
                self.changed[name] = np.zeros(weights.shape(name), np.float32)


def test_a_layer_at_a_time_is_the_whole_graph(model):
    windows = text(3)
    graph = build_graph(model.spec, model.weights, opset=21, name="tiny")
    found = model.logits(inputs_of_head(model, windows).reshape(-1, 64)).reshape(3, 24, -1)
    for window, logits in zip(windows, found, strict=True):
        assert np.abs(logits - reference_logits(graph, model.weights, window.tolist())).max() < 1e-4


def test_sequences_run_alone_if_memory_is_short(model, monkeypatch):
    from edgekit.learn import layers

    whole = inputs_of_head(model, text(5))
    monkeypatch.setattr(layers, "MEMORY", 1)
    assert np.abs(inputs_of_head(model, text(5)) - whole).max() < 1e-5


@pytest.mark.parametrize("idle", [(1, 4), (2, 3)])
def test_layers_that_do_nothing_go_first(teacher, idle):
    lazy = Layers(teacher.spec, Idle(teacher.weights, idle))
    found = choose_layers(lazy, 4, text(1), text(1, seed=1))
    assert set(range(6)) - set(found.kept) == set(idle)
    assert len(found.methods) == 3
    assert all(abs(value) < 1e-5 for _, value in found.methods)
    assert [i for i in range(6) if found.influence[i] < 1e-5] == list(idle)


def test_the_choice_that_costs_least_on_held_out_text_is_taken(model):
    found = choose_layers(model, 3, text(2), text(2, seed=1))
    kept = cost(without(model, *(set(range(6)) - set(found.kept))), model, text(2, seed=1))
    assert kept == pytest.approx(min(value for _, value in found.methods), rel=1e-4)
    assert dict(found.methods)[found.method] == min(dict(found.methods).values())


def test_what_leaving_one_layer_out_costs_is_measured_side_by_side(model):
    windows = text(2)
    context = depth._Text.of(model, windows)
    _, alone = depth._leave_one_out(model, range(6), range(6), context, lambda *_: None, (0, 1))
    for i in (0, 3, 5):
        assert alone[i] == pytest.approx(cost(without(model, i), model, windows), rel=1e-3)


def test_channels_that_carry_nothing_go_first(teacher):
    dead = CutWeights(teacher.weights, range(6))
    for i in range(6):
        name = f"model.layers.{i}.mlp.up_proj.weight"
        dead.changed[name] = teacher.weights.read(name)
        dead.changed[name][i % 2 :: 2] = 0
    whole = Layers(teacher.spec, dead)
    small = narrow(whole, 64, 2, text(8))
    assert small.weights.shape("model.layers.3.mlp.down_proj.weight") == (64, 64)
    for i in range(6):
        kept = small.weights.rows[f"model.layers.{i}.mlp.gate_proj.weight"]
        assert kept.tolist() == list(range(1 - i % 2, 128, 2))
    assert cost(small, whole, text(2, seed=1)) < 0.02


def test_heads_that_carry_nothing_go_first_with_their_queries(teacher):
    dead = CutWeights(teacher.weights, range(6))
    for i in range(6):
        name = f"model.layers.{i}.self_attn.v_proj.weight"
        dead.changed[name] = teacher.weights.read(name)
        dead.changed[name][(i % 2) * 16 :][:16] = 0
    whole = Layers(teacher.spec, dead)
    small = narrow(whole, 128, 1, text(8))
    assert (small.spec.heads, small.spec.kv_heads, small.spec.head_dim) == (2, 1, 16)
    assert cost(small, whole, text(2, seed=1)) < 1e-4


def test_channels_that_are_left_give_what_those_that_went_gave():
    """Odd inputs are a part of the even ones before them: the even ones can say it all, but not with their weights."""
    random = np.random.default_rng(0)
    x = np.repeat(random.standard_normal((256, 8)), 2, axis=1).astype(np.float32)
    x[:, 1::2] *= 0.5
    weight = random.standard_normal((5, 16)).astype(np.float32)
    fit, even = _Refit.of(x, weight), np.arange(0, 16, 2)
    expected = weight[:, 0::2] + 0.5 * weight[:, 1::2]
    assert np.abs(fit.without(even) - expected).max() < 0.02


def test_matrices_that_are_fitted_again_may_wait_on_disk(model, tmp_path):
    kept, saved = narrow(model, 64, 1, text(4)), narrow(model, 64, 1, text(4), folder=tmp_path / "refitted")
    assert len(list((tmp_path / "refitted").iterdir())) == 12  # two of each layer
    assert all(np.array_equal(saved.weights.read(n), kept.weights.read(n)) for n in kept.weights.names())
    assert isinstance(saved.weights.changed["model.layers.2.mlp.down_proj.weight"], np.memmap)


def test_depth_comes_before_width(teacher):
    steps = []
    small = prune(teacher, Shape(4, 64, 1), text(4), text(2, seed=1), progress=lambda task, *_: steps.append(task))
    assert (small.spec.layers, small.spec.intermediate_size, small.spec.kv_heads, small.spec.heads) == (4, 64, 1, 2)
    assert len(small.depth.kept) == 4
    assert list(dict.fromkeys(steps)) == ["weighing layers", "narrowing"]
    shapes = {name: small.weights.shape(name) for name in small.weights.names()}
    assert shapes["model.layers.3.self_attn.q_proj.weight"] == (32, 64)
    assert all(small.weights.read(name).shape == shape for name, shape in shapes.items())
    assert small.weights.read("model.layers.0.mlp.up_proj.weight", 3, 9).shape == (6, 64)
