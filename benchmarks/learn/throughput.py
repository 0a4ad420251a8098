"""Tokens per second of distillation, of what FP32 matmuls allow on the same processor.

Operations of a token, 2 for each weight of a matmul and the head, and 4 * heads * head_dim for each position it sees in
each layer: a teacher's forward pass takes f, the student's forward pass f, its backward pass 2 f, so 4 f in all if both
have the teacher's shape. The head is not trained, so its gradient needs no product for its weights: 2 V H less.

Both rates are of processor seconds, so that other work on the machine counts for little: operations per processor
second of the step, over those of torch's matmul with the shapes of the feed-forward layers.
"""

from __future__ import annotations

from time import process_time
from typing import Any

import torch  # noqa: TID251 - what is measured

from edgekit.estimate.needs import matmul_weights
from edgekit.graph import build_graph
from edgekit.learn.graph import Decoder, float_weights
from edgekit.learn.heal import OPSET
from edgekit.learn.losses import Loss
from edgekit.learn.objective import Distance, Teacher
from edgekit.measure.ceilings import measure_gemm
from edgekit.source import open_model

WINDOW, BATCH = 512, 2
"""Of a step of distill and recover by default."""


def operations(spec: Any) -> dict[str, float]:
    """Operations of a token, by pass."""
    seen = sum(min(window or WINDOW, (WINDOW + 1) / 2) for window in spec.windows)
    layers = 2.0 * matmul_weights(spec) + 4.0 * spec.heads * spec.head_dim * seen
    head = 2.0 * spec.vocab_size * spec.hidden_size
    return {"teacher": layers + head, "student": layers + head, "backward": 2 * layers + head}


def measure(source: str, *, steps: int) -> dict[str, Any]:
    """Time steps of healing a student of the teacher's own shape, and matmuls."""
    checkpoint = open_model(source)
    spec, weights = checkpoint.spec, checkpoint.weights
    graph = build_graph(spec, weights, opset=OPSET, name="model")
    trained = float_weights(weights, trained=True)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in trained:
            trained[name].value.requires_grad_(False)
    random = torch.Generator().manual_seed(0)
    windows = torch.randint(spec.vocab_size, ((steps + 1) * BATCH, WINDOW), generator=random)
    teacher = Teacher(Decoder(graph, float_weights(weights, trained=False)))
    distance = Distance(Decoder(graph, trained), teacher, windows, Loss())
    optimizer = torch.optim.Adam([p for p in distance.parameters() if p.requires_grad], lr=1e-6, fused=True)

    def step(number: int) -> float:
        began = process_time()
        distance(torch.arange(number * BATCH, (number + 1) * BATCH)).backward()
        optimizer.step()
        optimizer.zero_grad()
        return process_time() - began

    step(0)
    seconds = [step(i + 1) for i in range(steps)]
    per_token = operations(spec)
    gemm = _torch_gemm(spec.hidden_size, spec.intermediate_size)
    rate = BATCH * WINDOW / min(seconds)
    numpy_rate = measure_gemm(1)
    return {
        "row": "throughput",
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "operations_per_token": per_token,
        "cpu_seconds": seconds,
        "tokens_per_cpu_second": rate,
        "torch_gemm": gemm,
        "numpy_gemm": max(numpy_rate.samples),
        "numpy_gemm_name": numpy_rate.name,
        "share": rate * sum(per_token.values()) / gemm,
    }


def _torch_gemm(hidden: int, inner: int, repetitions: int = 5) -> float:
    """Operations per processor second of a step's largest products in the layers, the best of some."""
    x, w = torch.rand(BATCH * WINDOW, hidden), torch.rand(inner, hidden)
    times = max(1, int(2e10 / (2 * x.shape[0] * hidden * inner)))

    def once() -> float:
        began = process_time()
        for _ in range(times):
            torch.nn.functional.linear(x, w)
        return 2.0 * x.shape[0] * hidden * inner * times / (process_time() - began)

    once()
    return max(once() for _ in range(repetitions))


def words(line: dict[str, Any]) -> str:
    """The line in words."""
    each = line["operations_per_token"]
    total = sum(each.values())
    terms = " + ".join(f"{name} {value / 1e9:.3f}" for name, value in each.items())
    gemm = line["torch_gemm"]
    return (
        f"distillation: {line['tokens_per_cpu_second']:.0f} tokens per CPU-second; a token takes {terms} = "
        f"{total / 1e9:.3f} GFLOP, torch's matmul does {gemm / 1e9:.1f} GFLOP per CPU-second "
        f"(numpy's, wall: {line['numpy_gemm'] / 1e9:.1f}), which allows {gemm / total:.0f}: {100 * line['share']:.0f} %"
    )
