"""Rewrite a graph for a target: one file for each operator that a target lacks and each quirk it has.

A file in this folder that declares ``FIXES``, a frozenset of the names used in ``targets/*.toml``, is a pass; its
``apply(model, target)`` rewrites the model and its ``remains(model, target)`` names what still shows the symptom; for
operators (``op:``) that needs no saying. Adding a pass is adding a file, and its place in ``passes.ORDER``.
"""

from edgekit.lower.passes import Pass, PassFailed, fixes, lower
from edgekit.lower.pipeline_graphs import cache_graph
from edgekit.lower.prefill import prefill_graph
from edgekit.lower.static import StaticGraphs, lower_static, share_bytes

__all__ = [
    "Pass",
    "PassFailed",
    "StaticGraphs",
    "cache_graph",
    "fixes",
    "lower",
    "lower_static",
    "prefill_graph",
    "share_bytes",
]
