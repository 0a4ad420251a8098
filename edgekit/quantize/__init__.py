"""Quantize the weights of a graph. Each method is a file with a function ``fit``; all share the grid's arithmetic."""

from edgekit.quantize.activations import observed, quantize_activations
from edgekit.quantize.budget import fit_budget, most_bytes
from edgekit.quantize.calibrate import Calibration
from edgekit.quantize.evaluate import reference_logits
from edgekit.quantize.kept import Kept
from edgekit.quantize.model import Quantized, methods, quantize
from edgekit.quantize.pack import Packed, unpack
from edgekit.quantize.policy import recipe_policy
from edgekit.quantize.rotate import RotatedWeights
from edgekit.quantize.smooth import smooth

__all__ = [
    "Calibration",
    "Kept",
    "Packed",
    "Quantized",
    "RotatedWeights",
    "fit_budget",
    "methods",
    "most_bytes",
    "observed",
    "quantize",
    "quantize_activations",
    "recipe_policy",
    "reference_logits",
    "smooth",
    "unpack",
]
