"""Rewrite a graph for a target: one file for each operator that a target lacks and each quirk it has.

A file in this folder that declares ``FIXES``, a frozenset of names used in ``targets/*.toml``, is a pass. Its
``apply(model, target)`` rewrites the model, and ``remains(model, target)`` names the nodes that still show the symptom;
for operators (``op:``) the latter is not needed. To add a pass, add a file and list it in ``passes.ORDER``.
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
