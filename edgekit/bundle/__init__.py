"""The bundle, the directory that ships: written atomically, and checked when it is opened."""

from __future__ import annotations

from edgekit.bundle.interop import GRAPH_NAMES
from edgekit.bundle.manifest import SCHEMA, open_bundle
from edgekit.bundle.recording import record
from edgekit.bundle.signing import Signer, check_signature, load_keys, load_signer, sign_bundle, signed_by, statement
from edgekit.bundle.size import BundleSize, predict_size
from edgekit.bundle.write import BundleWriter, require_free, write_bundle

__all__ = [
    "GRAPH_NAMES",
    "SCHEMA",
    "BundleSize",
    "BundleWriter",
    "Signer",
    "check_signature",
    "load_keys",
    "load_signer",
    "open_bundle",
    "predict_size",
    "record",
    "require_free",
    "sign_bundle",
    "signed_by",
    "statement",
    "write_bundle",
]
