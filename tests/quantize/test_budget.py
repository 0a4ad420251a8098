import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
from scipy.special import log_softmax

from edgekit.build.pipeline import build_bundle
from edgekit.config.recipe import builtin_recipe
from edgekit.errors import QuantizeError
from edgekit.graph import build_graph
from edgekit.quantize import budget, fit_budget, reference_logits, rtn, search, unpack
from edgekit.quantize.budget import Option, spend
from edgekit.quantize.evaluate import feeds_of, random_tokens, run_until
from edgekit.quantize.policy import count_layers, recipe_policy
from edgekit.quantize.sensitivity import TEXT_TOKENS, TOKENS, measure_sensitivity
from edgekit.quantize.tensor import quantize_weight
from edgekit.run.runtime import onnxruntime
from edgekit.source import open_model
from edgekit.testing import tiny_checkpoint
from edgekit.types import Grid, Override, silent

SMALL, MIDDLE, LARGE = Grid(4, 64, False), Grid(4, 32, False), Grid(8, 32, True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model", num_hidden_layers=3)


@pytest.fixture(scope="module")
def opened(folder):
    checkpoint = open_model(str(folder))
    return checkpoint, build_graph(checkpoint.spec, checkpoint.weights, opset=21, name="tiny")


def test_a_budget_is_spent_where_it_buys_most():
    options = {
        "dear": (Option(MIDDLE, 100, 1.0), Option(LARGE, 200, 0.0)),
        "cheap": (Option(MIDDLE, 100, 0.5), Option(LARGE, 110, 0.1)),
        "useless": (Option(MIDDLE, 100, 0.0), Option(LARGE, 101, 0.0)),
    }
    assert spend(options, 300) == {"dear": MIDDLE, "cheap": MIDDLE, "useless": MIDDLE}
    assert spend(options, 310) == {"dear": MIDDLE, "cheap": LARGE, "useless": MIDDLE}
    assert spend(options, 400) == {"dear": MIDDLE, "cheap": LARGE, "useless": MIDDLE}
    assert spend(options, 410) == {"dear": LARGE, "cheap": LARGE, "useless": MIDDLE}


def test_a_step_that_a_larger_one_beats_is_skipped():
    options = {"w": (Option(SMALL, 100, 1.0), Option(MIDDLE, 110, 0.99), Option(LARGE, 120, 0.0))}
    assert spend(options, 119) == {"w": SMALL}
    assert spend(options, 120) == {"w": LARGE}


def test_a_grid_with_twice_the_error_is_expected_to_cost_four_times_the_divergence(opened, monkeypatch):
    """The divergence is quadratic in the weight error; it is measured on the recipe's own grid alone."""
    checkpoint, _ = opened
    name, errors = "model.layers.0.mlp.up_proj.weight", {MIDDLE: 0.08, SMALL: 0.16, LARGE: 0.008}
    monkeypatch.setattr(budget, "quantize_weight", lambda _w, _n, grid, *_: SimpleNamespace(error=errors[grid]))
    found = budget.weigh_grids(checkpoint.weights, {name: tuple(errors)}, {name: 3e-4}, MIDDLE, rtn.fit, silent)[name]
    assert [(o.grid, o.divergence) for o in found] == [
        (MIDDLE, pytest.approx(3e-4)), (SMALL, pytest.approx(12e-4)), (LARGE, pytest.approx(3e-6)),
    ]  # fmt: skip


def test_spending_matches_the_best_of_all_combinations_within_one_step():
    random = np.random.default_rng(0)
    options = {
        f"w{i}": tuple(
            Option(g, int(b), float(d))
            for g, b, d in zip(
                (SMALL, MIDDLE, LARGE),
                np.sort(random.integers(50, 200, 3)),
                np.sort(random.random(3))[::-1],
                strict=True,
            )
        )
        for i in range(5)
    }
    from itertools import product

    least = sum(o[0].bytes for o in options.values())
    for extra in (0, 60, 120, 240):
        chosen = spend(options, least + extra)
        cost = sum(next(o for o in options[n] if o.grid == g).divergence for n, g in chosen.items())
        best = min(
            sum(o.divergence for o in combination)
            for combination in product(*options.values())
            if sum(o.bytes for o in combination) <= least + extra
        )
        slack = max(o[0].divergence - o[-1].divergence for o in options.values())
        assert best - 1e-9 <= cost <= best + slack


def test_the_evaluator_agrees_with_onnx_runtime(opened):
    checkpoint, graph = opened
    spec = checkpoint.spec
    tokens = np.random.default_rng(1).integers(0, spec.vocab_size, (1, 20))
    feeds = {
        "input_ids": tokens,
        "attention_mask": np.ones((1, 20), np.int64),
        "position_ids": np.arange(20)[None],
    }
    empty = {
        f"past_key_values.{i}.{kind}": np.zeros((1, spec.kv_heads, 0, spec.head_dim), np.float32)
        for i in range(spec.layers)
        for kind in ("key", "value")
    }
    hidden, head = run_until(graph, checkpoint.weights, {**feeds, **empty}, lambda *_: iter(()), "logits")
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString())
    expected = session.run(["logits"], {**feeds, **empty})[0]
    table = head.inputs[1].const_value.numpy()
    assert np.allclose(hidden @ table.T, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    "architecture",
    ["qwen3", "mistral", "smollm3"],
)
def test_the_evaluator_knows_every_operator_of_the_family(architecture, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    from edgekit.testing import tiny_config, tiny_tokenizer

    torch.manual_seed(0)
    config = tiny_config(architecture, sliding_window=7, num_key_value_heads=1, no_rope_layers=[1, 0])
    values = {k: v for k, v in config.items() if k not in ("architectures", "model_type", "torch_dtype")}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **values, pad_token_id=0))
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tiny_tokenizer())
    checkpoint = open_model(str(tmp_path))
    graph = build_graph(checkpoint.spec, checkpoint.weights, opset=21, name="tiny")
    tokens = np.random.default_rng(1).integers(0, 300, (1, 20))
    feeds = {
        "input_ids": tokens,
        "attention_mask": np.ones((1, 20), np.int64),
        "position_ids": np.arange(20)[None],
    }
    empty = {str(v.name): np.empty((1, 0), np.float32) for v in graph.graph.inputs if v.name not in feeds}
    hidden, head = run_until(graph, checkpoint.weights, {**feeds, **empty}, lambda *_: iter(()), "logits")
    logits = hidden @ head.inputs[1].const_value.numpy().T
    with torch.inference_mode():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


def test_the_evaluator_drops_what_no_node_reads_any_more(opened):
    """Else a model's activations of all layers would be held at once, for every variant."""
    checkpoint, graph = opened
    inputs, alive = [], []

    def look(_name, x):
        inputs.append(weakref.ref(x))
        alive.append(sum(seen() is not None for seen in inputs))
        return iter(())

    feeds = feeds_of(graph, checkpoint.weights, random_tokens(checkpoint.weights))
    run_until(graph, checkpoint.weights, feeds, look, "logits")
    assert len(alive) == 7 * 3
    # What query, key and value share counts three times.
    assert max(alive) <= 3


def test_variants_run_side_by_side_as_they_would_alone(opened):
    """One pass over all candidates gives what a pass for each of them gives."""
    checkpoint, graph = opened
    names = [n for n in checkpoint.weights.names() if "proj" in n]
    together = measure_sensitivity(graph, checkpoint.weights, dict.fromkeys(names, Grid(4, 32, False)), search.fit)
    assert set(together) == set(names)
    for name in (names[0], names[9], names[-1]):
        alone = measure_sensitivity(graph, checkpoint.weights, {name: Grid(4, 32, False)}, search.fit)
        assert together[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("on_text", [False, True])
def test_a_cost_is_the_mean_divergence_in_nats_of_the_last_positions(opened, on_text):
    checkpoint, graph = opened
    weights, name, grid = checkpoint.weights, "model.layers.1.mlp.down_proj.weight", Grid(4, 32, False)
    text = np.random.default_rng(5).integers(0, 300, (3, 200)) if on_text else None
    tokens = random_tokens(weights, TOKENS) if text is None else text[1, :TEXT_TOKENS].tolist()
    with ThreadPoolExecutor(1) as pool:
        changed = unpack(quantize_weight(weights, name, grid, search.fit, pool), weights.shape(name), grid)

    class Changed:
        shape, names = weights.shape, weights.names

        def read(self, asked, start=0, stop=None):
            return changed[start:stop] if asked == name else weights.read(asked, start, stop)

    log_p, log_q = (
        log_softmax(reference_logits(graph, w, tokens)[len(tokens) // 2 :].astype(float), axis=-1)
        for w in (weights, Changed())
    )
    expected = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()
    found = measure_sensitivity(graph, weights, {name: grid}, search.fit, text=text)
    assert found[name] == pytest.approx(expected, rel=0.01)


def test_candidates_that_do_not_fit_in_memory_are_measured_in_passes(opened, monkeypatch):
    import edgekit.quantize.sensitivity as sensitivity

    checkpoint, graph = opened
    names = [n for n in checkpoint.weights.names() if "proj" in n]
    grids = dict.fromkeys(names, Grid(4, 32, False))
    whole = measure_sensitivity(graph, checkpoint.weights, grids, search.fit)
    monkeypatch.setattr(sensitivity, "MEMORY", 3 * 4 * sensitivity.TOKENS * 128)
    told = []
    progress = lambda _task, done, total, _unit: told.append((done, total))  # noqa: E731
    parts = measure_sensitivity(graph, checkpoint.weights, grids, search.fit, progress=progress)
    assert parts == pytest.approx(whole, rel=1e-3, abs=1e-7)
    assert {total for _, total in told} == {len(names)}
    assert told == sorted(told), "progress never goes back, from one pass to the next either"
    assert len(names) - 3 < told[-1][0] <= len(names)


def test_a_weight_whose_output_goes_nowhere_costs_nothing(tmp_path):
    """With the second layer's attention output nulled, its queries, keys and values cannot matter; the rest does."""
    from safetensors.numpy import load_file, save_file

    folder = tiny_checkpoint(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.o_proj.weight"][:] = 0
    save_file(weights, folder / "model.safetensors")
    checkpoint = open_model(str(folder))
    graph = build_graph(checkpoint.spec, checkpoint.weights, opset=21, name="tiny")
    names = [n for n in checkpoint.weights.names() if "proj" in n]
    costs = measure_sensitivity(graph, checkpoint.weights, dict.fromkeys(names, Grid(4, 32, False)), search.fit)
    nowhere = {n for n in names if "layers.1.self_attn" in n}
    assert len(nowhere) == 4
    assert all(abs(costs[n]) < 1e-6 for n in nowhere)
    assert all(costs[n] > 1e-5 for n in set(names) - nowhere)


def test_bits_per_weight_are_met_and_not_exceeded(folder, tmp_path):
    for bits in (5.6, 6.5, 7.5):
        bundle = build_bundle(str(folder), out=tmp_path / str(bits), bits=bits, precision="int4")
        assert bits - 0.35 < bundle.manifest.bits_per_weight <= bits
        grids = {t.grid.bits for t in bundle.manifest.tensors if t.grid and "proj" in t.name}
        assert grids == {4, 8}


def test_more_bits_never_widen_fewer_tensors(folder, tmp_path):
    wide = []
    for bits in (5.6, 7.0, 8.6):
        bundle = build_bundle(str(folder), out=tmp_path / str(bits), bits=bits, precision="int4")
        wide.append(sum(t.grid is not None and t.grid.bits == 8 for t in bundle.manifest.tensors))
    assert wide == sorted(wide)
    assert wide[0] < wide[-1]


def test_a_budget_that_nothing_meets_says_what_the_least_is(folder, tmp_path, opened):
    with pytest.raises(QuantizeError, match="too small: the minimum is 5") as error:
        build_bundle(str(folder), out=tmp_path / "out", bits=3.0, precision="int4")
    assert "`bits`" in error.value.hint
    with pytest.raises(QuantizeError, match="MB is too small") as error:
        build_bundle(str(folder), out=tmp_path / "out", size_mb=0.05, precision="int4")
    assert "`size_mb`" in error.value.hint
    assert list(tmp_path.iterdir()) == []


def test_what_an_override_keeps_in_float_stays_there(opened):
    checkpoint, graph = opened
    recipe = replace(
        builtin_recipe("int4"), bits_per_weight=9.0, overrides=(Override("*.layers.1.mlp.up_proj.weight", None),)
    )
    policy = fit_budget(graph, checkpoint.weights, recipe, 0)
    assert policy("model.layers.1.mlp.up_proj.weight", (128, 64)) is None
    assert policy("model.layers.0.mlp.up_proj.weight", (128, 64)) is not None


def test_the_first_override_that_matches_wins_and_last_means_the_last_layer():
    recipe = replace(
        builtin_recipe("int4"),
        overrides=(Override("model.layers.{last}.*", LARGE), Override("*.v_proj.*", SMALL)),
    )
    policy = recipe_policy(recipe, 12)
    assert policy("model.layers.11.self_attn.v_proj.weight", (8, 64)) == LARGE
    assert policy("model.layers.1.self_attn.v_proj.weight", (8, 64)) == SMALL
    assert policy("model.layers.1.self_attn.q_proj.weight", (8, 64)) == recipe.linear
    assert policy("model.embed_tokens.weight", (8, 64)) == recipe.embedding
    assert policy("model.norm.weight", (8,)) is None
    assert count_layers(["model.layers.0.x", "model.layers.11.x", "transformer.h.3.y"]) == 12
