"""The rooms whose arithmetic is mutated: each module with the tests that are to notice."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]

ROOMS: dict[str, dict[str, str]] = {
    "numerics": {
        "numerics/nibbles.py": "tests/quantize/test_grid.py",
        "numerics/softmax.py": "tests/run/test_sampling.py tests/measure/test_quality.py",
    },
    "quantize": {
        "quantize/activations.py": "tests/quantize/test_activations.py",
        "quantize/budget.py": "tests/quantize/test_budget.py",
        "quantize/evaluate.py": "tests/quantize/test_reference_logits.py tests/quantize/test_budget.py",
        "quantize/grid.py": "tests/quantize/test_grid.py tests/quantize/test_model.py",
        "quantize/nodes.py": "tests/quantize/test_model.py",
        "quantize/pack.py": "tests/quantize/test_grid.py tests/quantize/test_model.py",
        "quantize/policy.py": "tests/quantize/test_model.py tests/quantize/test_budget.py",
        "quantize/positive.py": "tests/quantize/test_positive.py",
        "quantize/rotate.py": "tests/quantize/test_rotate.py",
        "quantize/rtn.py": "tests/quantize/test_grid.py",
        "quantize/search.py": "tests/quantize/test_grid.py",
        "quantize/sensitivity.py": "tests/quantize/test_budget.py",
        "quantize/smooth.py": "tests/quantize/test_smooth.py",
        "quantize/tensor.py": "tests/quantize/test_grid.py tests/quantize/test_model.py",
    },
    "lower": {
        "lower/first_logit.py": "tests/lower/test_prefill_matmuls.py",
        "lower/fuse_parallel_matmuls.py": "tests/lower/test_prefill_matmuls.py",
        "lower/fused_matmul.py": "tests/lower/test_lower.py tests/lower/test_passes.py",
        "lower/gather_block_quantized.py": "tests/lower/test_quantized.py",
        "lower/group_query_attention.py": "tests/lower/test_lower.py tests/lower/test_passes.py",
        "lower/half_cache.py": "tests/lower/test_static.py",
        "lower/half_floats.py": "tests/lower/test_half_precision.py tests/lower/test_passes.py",
        "lower/heads_of_eight.py": "tests/lower/test_static.py",
        "lower/host_inputs.py": "tests/lower/test_static.py",
        "lower/matmul_2d.py": "tests/lower/test_half_precision.py tests/lower/test_passes.py",
        "lower/matmul_nbits.py": "tests/lower/test_quantized.py",
        "lower/pipeline_graphs.py": "tests/lower/test_pipeline_graphs.py",
        "lower/prefill.py": "tests/lower/test_prefill_matmuls.py",
        "lower/rotary_embedding.py": "tests/lower/test_lower.py tests/lower/test_passes.py",
        "lower/scaled_norm.py": "tests/lower/test_half_precision.py",
        "lower/static.py": "tests/lower/test_static.py",
        "lower/static_attention.py": "tests/lower/test_static.py",
    },
    "route": {
        "routing/decision/calibration_fit.py": "tests/route/test_score_fit.py",
        "routing/decision/curves.py": "tests/route/test_curves.py",
        "routing/decision/decide.py": "tests/route/test_decide.py",
        "routing/decision/prechecks.py": "tests/route/test_decide.py",
        "routing/decision/metrics.py": "tests/route/test_curves.py",
        "routing/decision/score.py": "tests/route/test_score.py tests/route/test_score_fit.py",
        "routing/decision/threshold.py": "tests/route/test_threshold.py",
    },
    "measure": {
        "measure/alignment.py": "tests/measure/test_alignment.py",
        "measure/agreement.py": "tests/measure/test_agreement.py",
        "measure/ceilings.py": "tests/measure/test_ceilings.py",
        "measure/energy.py": "tests/measure/test_energy.py",
        "measure/latency.py": "tests/measure/test_latency.py",
        "measure/quality.py": "tests/measure/test_quality.py",
        "measure/sampling.py": "tests/measure/test_energy.py tests/measure/power",
        "measure/scaling.py": "tests/measure/test_scaling.py",
        "measure/text.py": "tests/measure/test_text.py",
        "measure/trace.py": "tests/measure/test_trace.py tests/measure/test_energy.py",
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
