"""The rooms whose arithmetic is mutated: each module with the tests that are to notice."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]

ROOMS: dict[str, dict[str, str]] = {
    "quantize": {
        "quantize/activations.py": "tests/quantize/test_activations.py",
        "quantize/budget.py": "tests/quantize/test_budget.py",
        "quantize/grid.py": "tests/quantize/test_grid.py tests/quantize/test_model.py",
        "quantize/pack.py": "tests/quantize/test_grid.py tests/quantize/test_model.py",
        "quantize/policy.py": "tests/quantize/test_budget.py tests/quantize/test_model.py",
        "quantize/positive.py": "tests/quantize/test_positive.py",
        "quantize/rotate.py": "tests/quantize/test_rotate.py",
        "quantize/rtn.py": "tests/quantize/test_grid.py",
        "quantize/search.py": "tests/quantize/test_grid.py tests/quantize/test_compiled_search.py",
        "quantize/smooth.py": "tests/quantize/test_smooth.py",
    },
    "lower": {
        "lower/matmul_2d.py": "tests/lower",
        "lower/gather_block_quantized.py": "tests/lower",
        "lower/group_query_attention.py": "tests/lower",
        "lower/half_cache.py": "tests/lower",
        "lower/host_inputs.py": "tests/lower",
        "lower/matmul_nbits.py": "tests/lower",
        "lower/fuse_parallel_matmuls.py": "tests/lower",
        "lower/rotary_embedding.py": "tests/lower",
        "lower/scaled_norm.py": "tests/lower",
        "lower/static.py": "tests/lower",
        "lower/static_attention.py": "tests/lower",
    },
    "route": {
        "routing/decision/calibration_fit.py": "tests/route/test_score_fit.py",
        "routing/decision/curves.py": "tests/route/test_curves.py",
        "routing/decision/decide.py": "tests/route/test_decide.py",
        "routing/decision/gates.py": "tests/route/test_decide.py",
        "routing/decision/metrics.py": "tests/route/test_curves.py",
        "routing/decision/score.py": "tests/route/test_score.py tests/route/test_score_fit.py",
        "routing/decision/threshold.py": "tests/route/test_threshold.py",
    },
    "measure": {
        "measure/agreement.py": "tests/measure/test_quality.py",
        "measure/energy.py": "tests/measure/test_energy.py",
        "measure/latency.py": "tests/measure/test_latency.py",
        "measure/quality.py": "tests/measure/test_quality.py",
        "measure/scaling.py": "tests/measure/test_scaling.py",
    },
    "sampling": {"run/sampling.py": "tests/run/test_sampling.py"},
    "estimate": {
        "estimate/npu_cost.py": "tests/test_cost.py",
        "inspect/fit.py": "tests/test_fit.py",
        "estimate/memory.py": "tests/test_footprint.py",
        "estimate/needs.py": "tests/test_footprint.py tests/measure",
        "inspect/plan.py": "tests/test_footprint.py",
    },
}
