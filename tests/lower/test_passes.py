"""Every pass has its place in the order, and says of a graph whether what it cures is still there."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import onnx_ir as ir
import pytest

import edgekit.lower
from edgekit.config.recipe import builtin_recipe, load_target
from edgekit.graph import build_graph
from edgekit.lower import PassFailed, lower, passes
from edgekit.quantize import quantize
from edgekit.source import open_model
from edgekit.testing import tiny_checkpoint
from edgekit.types import Target
from edgekit.types.device import Window

FOLDER = Path(edgekit.lower.__file__).parent
PASSES = [path.stem for path in sorted(FOLDER.glob("*.py")) if "\nFIXES = " in path.read_text(encoding="utf-8")]
ON_GRIDS = {"symmetric_matmuls", "matmul_nbits", "gather_block_quantized", "fuse_parallel_matmuls"}


def target_for(*files: str) -> Target:
    """A device with everything that some passes cure, for a static graph of 4 tokens over a cache of 8."""
    names = frozenset(name for file in files for name in import_module(f"edgekit.lower.{file}").FIXES)
    return replace(load_target("portable"), name="test", lacks=names, quirks=frozenset(), window=Window(4, 8))


@pytest.fixture
def show(tmp_path):
    """A small model in which a pass has something to do: heads of 8 rotate by an operator of their own, of 16 not."""

    def build(file: str, head_dim: int = 8) -> ir.Model:
        checkpoint = open_model(str(tiny_checkpoint(tmp_path / file, "mistral", head_dim=head_dim)))
        model = build_graph(checkpoint.spec, checkpoint.weights, opset=21, name="tiny")
        return quantize(model, checkpoint.weights, builtin_recipe("int4")).model if file in ON_GRIDS else model

    return build


def test_every_pass_is_in_the_order_once():
    assert len(PASSES) > 15
    assert sorted(passes.ORDER) == PASSES


@pytest.mark.parametrize("file", PASSES)
def test_a_pass_says_what_it_cures_and_how(file):
    module = import_module(f"edgekit.lower.{file}")
    assert module.FIXES
    for word in ("Symptom: ", "\nCure: ", "\nExactness: "):
        assert word in module.__doc__
    quirks = [name for name in module.FIXES if not name.startswith("op:")]
    assert hasattr(module, "remains") == bool(quirks), (
        "a quirk's file says what of it remains; of operators all can see"
    )


@pytest.mark.parametrize("file", PASSES)
def test_a_pass_that_does_nothing_is_caught(file, show, monkeypatch):
    monkeypatch.setattr(f"edgekit.lower.{file}.apply", lambda model, _: model)
    with pytest.raises(
        PassFailed, match=rf"lower/{file}\.py ran, but \d+ nodes that it should fix .* for test, first '.+'"
    ):
        lower(show(file, 12 if file == "heads_of_eight" else 8), target_for(file))


@pytest.mark.parametrize("file", [f for f in PASSES if f not in ("heads_of_eight", "symmetric_matmuls")])
def test_a_pass_leaves_nothing_of_what_it_cures(file, show):
    """Seen by lower() itself (the next test but one shows that it looks), and counted here once more."""
    target = target_for(file, *(("static_attention",) if file == "half_cache" else ()))
    lowered, module = lower(show(file), target), import_module(f"edgekit.lower.{file}")
    operators = {name.removeprefix("op:") for name in module.FIXES if name.startswith("op:")}
    assert not operators & {node.op_type for node in lowered.graph.all_nodes()}
    assert not hasattr(module, "remains") or list(module.remains(lowered, target)) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("group_query_attention", "rotary_embedding"),
        ("skip_simplified_layer_normalization", "simplified_layer_normalization"),
        ("skip_simplified_layer_normalization", "scaled_norm"),
    ],
)
def test_a_pass_that_stands_too_early_is_caught(first, second, show, monkeypatch):
    """The first makes what the second cures."""
    monkeypatch.setattr(passes, "ORDER", (second, first))
    with pytest.raises(PassFailed, match=rf"lower/{second}\.py is too early in lower/passes\.ORDER"):
        lower(show(first, 16), target_for(first, second))
