"""Find the passes that a target needs, apply them in order, and check that each has removed what it fixes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from edgekit.errors import LowerError, did_you_mean
from edgekit.lower.patch import nodes_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx_ir as ir

    from edgekit.types import Target

ORDER = (
    "heads_of_eight",
    "first_logit",
    "symmetric_matmuls",
    "host_inputs",
    "static_attention",
    "half_cache",
    "group_query_attention",
    "rotary_embedding",
    "skip_simplified_layer_normalization",
    "scaled_norm",
    "simplified_layer_normalization",
    "matmul_nbits",
    "gather_block_quantized",
    "matmul_2d",
    "fused_matmul",
    "half_floats",
    "fuse_parallel_matmuls",
    "static_shapes",
    "weights_inside",
)
"""Every pass, in the order of application: a pass may leave work to later ones."""


class PassFailed(Exception):
    """A pass ran, but what it rewrites is still there: a bug in edgekit, not a fault of the model or the target."""


class Pass(Protocol):
    """The interface of a pass module."""

    FIXES: frozenset[str]

    def apply(self, model: ir.Model, target: Target, /) -> ir.Model:
        """Rewrite the model, possibly in place."""

    def remains(self, model: ir.Model, target: Target, /) -> Iterable[str]:
        """Names of the nodes or values that still show the symptom: none after ``apply``.

        Only for quirks: remaining operators (``op:``) are found without it.
        """


def lower(model: ir.Model, target: Target) -> ir.Model:
    """Rewrite ``model`` so that ``target`` can run it; weights stay lazy.

    Raises:
        PassFailed: a pass missed a node that it should rewrite, or a later pass reintroduced one.
        LowerError: a lack or quirk has no pass, or a pass cannot rewrite the model.
    """
    wanted = target.lacks | target.quirks
    known = fixes()
    for name in sorted(wanted - known.keys()):
        suggestion = did_you_mean(name, tuple(known))
        raise LowerError(
            f"target {target.name}: edgekit/lower has no rewrite for '{name}'",
            f"{suggestion}known: {', '.join(sorted(known))}",
        )
    applied = {file: rewrite for file, rewrite in _passes().items() if rewrite.FIXES & wanted}
    for file, rewrite in applied.items():
        model = rewrite.apply(model, target)
        _require_gone(file, rewrite, model, target, "ran, but")
    if wanted:
        RemoveUnusedNodesPass()(model)
        RemoveUnusedOpsetsPass()(model)
    for file, rewrite in applied.items():
        _require_gone(file, rewrite, model, target, "is too early in lower/passes.ORDER:")
    return model


def _require_gone(file: str, rewrite: Pass, model: ir.Model, target: Target, why: str) -> None:
    operators = [name.removeprefix("op:") for name in rewrite.FIXES if name.startswith("op:")]
    left = [str(node.name) for kind in operators for node in nodes_of(model, kind)]
    if hasattr(rewrite, "remains"):
        left += rewrite.remains(model, target)
    if left:
        raise PassFailed(
            f"lower/{file}.py {why} {len(left)} nodes that it should fix ({', '.join(sorted(rewrite.FIXES))}) remain "
            f"in the graph for {target.name}, first '{left[0]}'"
        )


def fixes() -> dict[str, str]:
    """Every lack and quirk that has a pass, with the pass's file."""
    return {name: f"lower/{file}.py" for file, rewrite in _passes().items() for name in sorted(rewrite.FIXES)}


def _passes() -> dict[str, Pass]:
    return {file: cast("Pass", import_module(f"edgekit.lower.{file}")) for file in ORDER}
