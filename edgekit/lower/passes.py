"""Find the passes that a target calls for, apply them in order, and check that each has done what it says.

A file in this folder that declares ``FIXES`` is a pass; adding one is adding a file, and its place in ``ORDER``.
"""

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
"""Every pass, in the order in which they are applied: one may leave work to those behind it."""


class PassFailed(Exception):
    """A pass has run and what it rewrites is still there: a fault of edgekit's, and not of the model or the target."""


class Pass(Protocol):
    """What a file in this folder looks like from outside."""

    FIXES: frozenset[str]

    def apply(self, model: ir.Model, target: Target, /) -> ir.Model:
        """Rewrite the model, in place where that is simpler."""

    def remains(self, model: ir.Model, target: Target, /) -> Iterable[str]:
        """Names of the nodes or values that still show the symptom: none after ``apply``.

        Only files that fix a quirk have it. What is left of an operator (``op:``) is for everyone to see.
        """


def lower(model: ir.Model, target: Target) -> ir.Model:
    """Rewrite ``model`` so that ``target`` can run it; weights stay lazy.

    Raises:
        PassFailed: a pass left what it rewrites, or what it rewrote came back.
        LowerError: a lack or quirk that no file here cures, or a model that a pass cannot rewrite.
    """
    wanted = target.lacks | target.quirks
    known = fixes()
    for name in sorted(wanted - known.keys()):
        suggestion = did_you_mean(name, tuple(known))
        raise LowerError(
            f"target {target.name}: nothing in edgekit/lower cures '{name}'",
            f"{suggestion}cured are: {', '.join(sorted(known))}",
        )
    applied = {file: rewrite for file, rewrite in _passes().items() if rewrite.FIXES & wanted}
    for file, rewrite in applied.items():
        model = rewrite.apply(model, target)
        _require_gone(file, rewrite, model, target, "has run, and")
    if wanted:
        RemoveUnusedNodesPass()(model)
        RemoveUnusedOpsetsPass()(model)
    for file, rewrite in applied.items():
        _require_gone(file, rewrite, model, target, "stands too early in lower/passes.ORDER:")
    return model


def _require_gone(file: str, rewrite: Pass, model: ir.Model, target: Target, why: str) -> None:
    operators = [name.removeprefix("op:") for name in rewrite.FIXES if name.startswith("op:")]
    left = [str(node.name) for kind in operators for node in nodes_of(model, kind)]
    if hasattr(rewrite, "remains"):
        left += rewrite.remains(model, target)
    if left:
        raise PassFailed(
            f"lower/{file}.py {why} {len(left)} of what it cures ({', '.join(sorted(rewrite.FIXES))}) are still in the "
            f"graph for {target.name}, first '{left[0]}'"
        )


def fixes() -> dict[str, str]:
    """Every lack and quirk that can be cured, with the file that does it."""
    return {name: f"lower/{file}.py" for file, rewrite in _passes().items() for name in sorted(rewrite.FIXES)}


def _passes() -> dict[str, Pass]:
    return {file: cast("Pass", import_module(f"edgekit.lower.{file}")) for file in ORDER}
