"""Find the cures that a target calls for and apply them in order.

A file in this folder that declares ``FIXES`` is a cure; adding one is adding a file.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Protocol, cast

from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from edgekit.errors import LowerError, did_you_mean

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.types import Target

# A cure may leave work to a later one; those not named come last, by name.
ORDER = (
    "heads_of_eight",
    "first_logit",
    "symmetric_products",
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
)


class Cure(Protocol):
    """What a file in this folder looks like from outside."""

    FIXES: frozenset[str]

    def apply(self, model: ir.Model, target: Target, /) -> ir.Model:
        """Rewrite the model, in place where that is simpler."""


def lower(model: ir.Model, target: Target) -> ir.Model:
    """Rewrite ``model`` so that ``target`` can run it; weights stay lazy.

    Raises:
        LowerError: a lack or quirk that no file here cures, or a model that a cure cannot rewrite.
    """
    wanted = target.lacks | target.quirks
    known = fixes()
    for name in sorted(wanted - known.keys()):
        suggestion = did_you_mean(name, tuple(known))
        raise LowerError(
            f"target {target.name}: nothing in edgekit/lower cures '{name}'",
            f"{suggestion}cured are: {', '.join(sorted(known))}",
        )
    for cure in _cures().values():
        if cure.FIXES & wanted:
            model = cure.apply(model, target)
    if wanted:
        RemoveUnusedNodesPass()(model)
        RemoveUnusedOpsetsPass()(model)
    return model


def fixes() -> dict[str, str]:
    """Every lack and quirk that can be cured, with the file that does it."""
    return {name: f"lower/{file}.py" for file, cure in _cures().items() for name in sorted(cure.FIXES)}


def _cures() -> dict[str, Cure]:
    files = [module.name for module in iter_modules([str(Path(__file__).parent)])]
    files.sort(key=lambda file: (ORDER.index(file) if file in ORDER else len(ORDER), file))
    modules = {file: import_module(f"edgekit.lower.{file}") for file in files}
    return {file: cast("Cure", module) for file, module in modules.items() if hasattr(module, "FIXES")}
