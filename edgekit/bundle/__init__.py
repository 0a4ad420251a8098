"""The directory that ships: written whole or not at all, and checked when it is opened."""

from __future__ import annotations

from edgekit.bundle.interop import GRAPH_NAMES
from edgekit.bundle.manifest import SCHEMA, open_bundle
from edgekit.bundle.recording import record
from edgekit.bundle.size import BundleSize, predict_size
from edgekit.bundle.write import Draft, draft

__all__ = ["GRAPH_NAMES", "SCHEMA", "BundleSize", "Draft", "draft", "open_bundle", "predict_size", "record"]
