"""edgekit: convert LLaMA-family checkpoints to verified INT8/INT4 bundles, and run and measure them.

The public API is ``__all__``. Importing edgekit loads none of its dependencies; names are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.bench.latency import bench_bundle as bench_bundle
    from edgekit.build.pipeline import build_bundle as build_bundle
    from edgekit.bundle import open_bundle as open_bundle
    from edgekit.config.recipe import load_recipe as load_recipe
    from edgekit.config.recipe import load_target as load_target
    from edgekit.errors import EdgekitError as EdgekitError
    from edgekit.inspect.fit import fit_models as fit_models
    from edgekit.inspect.model import inspect_model as inspect_model
    from edgekit.report import write_report as write_report
    from edgekit.run import Chat as Chat
    from edgekit.run import load_runner as load_runner
    from edgekit.source import open_model as open_model
    from edgekit.verify.bundle import verify_bundle as verify_bundle

__version__ = "0.1.0"

_HOME = {
    "Chat": "edgekit.run",
    "EdgekitError": "edgekit.errors",
    "bench_bundle": "edgekit.bench.latency",
    "build_bundle": "edgekit.build.pipeline",
    "fit_models": "edgekit.inspect.fit",
    "inspect_model": "edgekit.inspect.model",
    "load_runner": "edgekit.run",
    "load_recipe": "edgekit.config.recipe",
    "load_target": "edgekit.config.recipe",
    "open_bundle": "edgekit.bundle",
    "open_model": "edgekit.source",
    "verify_bundle": "edgekit.verify.bundle",
    "write_report": "edgekit.report",
}

__all__ = [
    "Chat",
    "EdgekitError",
    "bench_bundle",
    "build_bundle",
    "fit_models",
    "inspect_model",
    "load_recipe",
    "load_runner",
    "load_target",
    "open_bundle",
    "open_model",
    "verify_bundle",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'edgekit' has no attribute '{name}'")
