"""Rewrite a graph for a target: one file for each operator that a target lacks and each quirk it has.

A file in this folder that declares ``FIXES``, a frozenset of the names used in ``targets/*.toml``, is a cure; its
``apply(model, target)`` rewrites the model and its ``remains(model, target)`` names what still shows the symptom; for
operators (``op:``) that needs no saying. Adding a cure is adding a file, and its place in ``cures.ORDER``.
"""

from edgekit.lower.cures import Cure, CureFailed, fixes, lower
from edgekit.lower.pipeline_graphs import cache_graph
from edgekit.lower.prefill import prefill_graph
from edgekit.lower.static import StaticGraphs, lower_static, share_bytes

__all__ = [
    "Cure",
    "CureFailed",
    "StaticGraphs",
    "cache_graph",
    "fixes",
    "lower",
    "lower_static",
    "prefill_graph",
    "share_bytes",
]
