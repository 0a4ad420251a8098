"""The graph for prompts: weights expanded from the file, one cache with the graph for tokens."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgekit import build_bundle
from edgekit.bundle.reading import read_initializers
from edgekit.config.recipe import load_recipe
from edgekit.lower import prefill as prefill_module
from edgekit.numerics.nibbles import pack_bits
from edgekit.quantize import Packed, unpack
from edgekit.run import load_runner
from edgekit.run import session as session_module
from edgekit.run.prefill_weights import _pair_sums, expand
from edgekit.run.settings import DECODE_GRAPH_MAX_TOKENS
from edgekit.testing import tiny_checkpoint
from edgekit.types import Bundle, Grid, Int8Repack, Override, Region
from edgekit.types.generation import PREFILL_CHUNK
from edgekit.types.layout import Layout

PROMPT = np.random.default_rng(0).integers(4, 380, PREFILL_CHUNK + 30).tolist()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("prompts")
    return build_bundle(str(tiny_checkpoint(folder / "model")), recipe="fast", out=folder / "fast")


def spread(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b - b.mean(axis=-1, keepdims=True)))


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose middle layer has 4-bit rows that blocks of 64 do not divide."""
    folder = tmp_path_factory.mktemp("padded")
    model = tiny_checkpoint(folder / "model", num_hidden_layers=3, intermediate_size=152)
    return build_bundle(str(model), recipe="small", out=folder / "small")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same with 2 bits, with and without zero points."""
    folder = tmp_path_factory.mktemp("narrow")
    model = tiny_checkpoint(folder / "model", num_hidden_layers=3, intermediate_size=152)
    narrow = Override("*.mlp.*", Grid(2, 64, symmetric=False)), Override("*.q_proj.*", Grid(4, 32, symmetric=True))
    recipe = replace(load_recipe("small"), linear=Grid(2, 32, symmetric=True), overrides=narrow)
    return build_bundle(str(model), recipe=recipe, out=folder / "narrow")


@pytest.mark.parametrize("which", ["bundle", "padded", "narrow"])
def test_expanded_weights_are_those_of_the_file(request: pytest.FixtureRequest, which: str) -> None:
    bundle: Bundle = request.getfixturevalue(which)
    prefill, stored = bundle.manifest.prefill, read_initializers(bundle)
    assert prefill is not None
    made = dict(expand(bundle.graph.with_name(f"{bundle.graph.name}_data"), prefill.expansions, 2))
    grids = {t.name: t.grid for t in bundle.manifest.tensors}
    bits = set()
    made_of = {
        **(
            {"self_attn.q_proj": ("q_proj",), "self_attn.k_proj+v_proj.0": ("k_proj",)}
            if which == "narrow"
            else {"self_attn.q_proj+k_proj+v_proj": ("q_proj", "k_proj", "v_proj")}
        ),
        "self_attn.o_proj": ("o_proj",),
        "mlp.gate_proj+up_proj.0": ("gate_proj",),
        f"mlp.gate_proj+up_proj.{bundle.manifest.spec.intermediate_size}": ("up_proj",),
        "mlp.down_proj": ("down_proj",),
    }
    for name, parts in made_of.items():
        for layer in range(bundle.manifest.spec.layers):
            weight, channels = (made[f"model.layers.{layer}.{name}.{part}"] for part in ("int8", "channels"))
            group, wanted = name.partition(".")[0], []
            for part in parts:
                full = f"model.layers.{layer}.{group}.{part}.weight"
                grid = grids[full]
                assert grid is not None
                zeros = stored[f"{full}.zeros"].numpy() if f"{full}.zeros" in stored else None
                packed = Packed(stored[f"{full}.codes"].numpy(), stored[f"{full}.scales"].numpy(), zeros, 0.0)
                columns = weight.shape[0]
                rows = len(packed.scales)
                assert Layout.of((rows, columns), grid).block_size == grid.block_size
                wanted.append(unpack(packed, (rows, columns), grid))
                bits.add(grid.bits)
            exact = np.concatenate(wanted)
            found = weight.T.astype(np.float32) * channels[:, None]
            assert weight.dtype == np.int8
            # Half a step of the channel, and a 512th of the weight for the rounded ratio of scales.
            assert (np.abs(found - exact) <= 0.5001 * channels[:, None] + np.abs(exact) / 256 + 1e-7).all()
    assert bits == ({2, 4} if which == "narrow" else {4, 8})


@pytest.mark.parametrize("which", ["bundle", "padded", "narrow"])
def test_no_pair_of_weights_saturates_sixteen_bits(request: pytest.FixtureRequest, which: str) -> None:
    bundle: Bundle = request.getfixturevalue(which)
    prefill = bundle.manifest.prefill
    assert prefill is not None
    tight = 0
    for name, weight in expand(bundle.graph.with_name(f"{bundle.graph.name}_data"), prefill.expansions, 2):
        if name.endswith(".int8"):
            pairs = weight.astype(np.int64)[: len(weight) // 2 * 2].reshape(-1, 2, weight.shape[1])
            for sign in (1, -1):
                largest = np.maximum(sign * pairs, 0).sum(axis=1).max(axis=0)
                assert (255 * largest <= 32767).all()
                tight = max(tight, int(largest.max()))
    assert tight in (127, 128), "no room is given away"


@pytest.mark.parametrize("bits", [2, 4])
def test_pairs_of_codes_in_bytes_are_summed_like_those_of_eight_bits(bits: int) -> None:
    random = np.random.default_rng(0)
    zeros = random.integers(0, 2**bits, (3, 2)).astype(np.int16)
    codes = random.integers(0, 2**bits, (3, 64)).astype(np.uint8)
    region = Region(0, 0)
    eight = Int8Repack("x", 3, 64, 8, 32, region, region, half_scales=False, zeros=None)
    found = _pair_sums(pack_bits(codes, bits), zeros, replace(eight, bits=bits))
    np.testing.assert_array_equal(found, _pair_sums(codes, zeros, eight))
    steps = codes.reshape(3, 2, 16, 2).astype(int) - zeros[..., None, None]
    wanted = np.maximum(np.maximum(steps, 0).sum(-1), np.maximum(-steps, 0).sum(-1)).max(-1)
    np.testing.assert_array_equal(found, wanted)


def test_scales_that_are_left_out_of_a_factor_come_back_later(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unscaled(made: Bundle) -> int:
        """Products whose tokens are not scaled before they are multiplied by elements with others."""
        assert made.manifest.prefill is not None
        graph = ir.load(made.path / made.manifest.prefill.graph).graph
        assert "Split" not in {node.op_type for node in graph}
        read = [{v.producer() for v in node.inputs if v is not None} for node in graph if node.op_type == "Mul"]
        shapes = [[p for p in makers if p is not None and p.op_type == "MatMulIntegerToFloat"] for makers in read]
        # A product that is scaled is multiplied by what ReduceMax has found; one that is not, by another activation.
        gates = [makers for makers, own in zip(read, shapes, strict=True) if own and not from_largest(makers)]
        return len(gates)

    def from_largest(makers: set[ir.Node | None]) -> bool:
        return any(p is not None and p.name.endswith(("token_scale", "token_scale.whole")) for p in makers)

    monkeypatch.setattr(prefill_module._Rewriting, "_unscale", lambda *_: None)
    plain = build_bundle(str(bundle.path.parent / "model"), recipe="fast", out=tmp_path / "plain")
    assert (unscaled(bundle), unscaled(plain)) == (bundle.manifest.spec.layers, 0)
    with closing(load_runner(bundle)) as a, closing(load_runner(plain)) as b:
        assert spread(a.logits(PROMPT), b.logits(PROMPT)) < 0.01


def test_a_prompt_gives_nearly_the_logits_of_its_tokens_one_by_one(bundle: Bundle) -> None:
    runner = load_runner(bundle)
    last = runner.prefill(PROMPT)
    follow = [runner.step(7).copy(), runner.step(8).copy()]
    runner.reset()
    for token in PROMPT:
        one = runner.step(token)
    assert spread(last, one) < 0.1
    assert spread(follow[0], runner.step(7)) < 0.1
    assert spread(follow[1], runner.step(8)) < 0.1


def test_every_position_and_the_last_agree(bundle: Bundle) -> None:
    runner = load_runner(bundle)
    every = runner.logits(PROMPT)
    assert every.shape == (len(PROMPT), 384)
    assert spread(runner.logits(PROMPT)[-1], every[-1]) == 0
    runner.reset()
    assert spread(runner.prefill(PROMPT), every[-1]) < 0.02  # a head over one row is another kernel


def test_a_few_tokens_are_no_prompt(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = load_runner(bundle)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the graph for prompts was run")

    monkeypatch.setattr(runner._prompts, "feed", refuse)
    runner.prefill(PROMPT[:DECODE_GRAPH_MAX_TOKENS])
    with pytest.raises(AssertionError):
        runner.prefill(PROMPT[: DECODE_GRAPH_MAX_TOKENS + 1])


def test_small_memory_makes_no_second_session(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "expand", None)
    runner = load_runner(bundle, small_memory=True)
    small = runner.prefill(PROMPT)
    assert runner.cache_nbytes == 2 * 2 * 4 * 2 * 16 * 256  # 158 tokens: two steps of 128
    monkeypatch.undo()
    assert spread(load_runner(bundle).prefill(PROMPT), small) < 0.1


def test_the_runtime_does_not_look_at_the_expanded_weights_again(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[np.ndarray] = []

    def kept(*arguments: object) -> list[tuple[str, np.ndarray]]:
        pairs = list(expand(*arguments))  # type: ignore[arg-type]
        made.extend(array for _, array in pairs)
        return pairs

    monkeypatch.setattr(session_module, "expand", kept)
    runner = load_runner(bundle)
    before = runner.prefill(PROMPT)
    for array in made:
        if array.dtype == np.int8:
            array[...] = 99
    runner.reset()
    np.testing.assert_array_equal(runner.prefill(PROMPT), before)


def test_a_bundle_of_the_fast_recipe_verifies(bundle: Bundle) -> None:
    from edgekit import verify_bundle

    wrong = [c for c in verify_bundle(bundle).checks if c.status == "fail" and c.name != "quality"]
    assert not wrong


def test_the_graph_for_prompts_is_one_of_the_files_that_are_checked(bundle: Bundle, tmp_path: Path) -> None:
    prefill = bundle.manifest.prefill
    assert prefill is not None
    assert prefill.graph in {file.path for file in bundle.manifest.files}
