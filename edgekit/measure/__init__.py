"""Measure latency, hardware ceilings, energy, environment and quality."""

from edgekit.measure.agreement import agree
from edgekit.measure.ceilings import gemm_factor, measure_bandwidth, measure_ceilings, roofline
from edgekit.measure.energy import choose_meter, meter_energy, meters, open_meter
from edgekit.measure.environment import (
    Conditions,
    core_seconds,
    peak_memory,
    read_conditions,
    read_environment,
    reset_peak_memory,
)
from edgekit.measure.latency import Latency, decode, measure_latency, measure_load
from edgekit.measure.quality import (
    Reference,
    bootstrap,
    compare,
    load_reference,
    make_reference,
    reference_key,
    save_reference,
    score,
    source_key,
    summarize,
)
from edgekit.measure.scaling import FORMULA, PRECISION_LOSS, PRECISION_SHARE, UNSEEN, estimate_loss, why_incomparable
from edgekit.measure.text import Text, cut_windows, embedded_text, read_text

__all__ = [
    "FORMULA",
    "PRECISION_LOSS",
    "PRECISION_SHARE",
    "UNSEEN",
    "Conditions",
    "Latency",
    "Reference",
    "Text",
    "agree",
    "bootstrap",
    "choose_meter",
    "compare",
    "core_seconds",
    "cut_windows",
    "decode",
    "embedded_text",
    "estimate_loss",
    "gemm_factor",
    "load_reference",
    "make_reference",
    "measure_bandwidth",
    "measure_ceilings",
    "measure_latency",
    "measure_load",
    "meter_energy",
    "meters",
    "open_meter",
    "peak_memory",
    "read_conditions",
    "read_environment",
    "read_text",
    "reference_key",
    "reset_peak_memory",
    "roofline",
    "save_reference",
    "score",
    "source_key",
    "summarize",
    "why_incomparable",
]
