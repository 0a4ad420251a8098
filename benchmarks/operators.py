"""Profile a prompt and a token by operator, and measure what the runtime's kernels allow on this machine.

    python benchmarks/operators.py BUNDLE [--rounds 7]

Prints three tables: the graph's operators in ONNX Runtime's profiler, including its overhead of up to ten microseconds
per node; tokens without the profiler; and, interleaved with them, the same matmuls alone and with attention over a
cache of the same length (see kernels.py), a lower bound for these kernels. Also prints their share of a token, and the
bandwidth of the matmuls compared with a plain read of as many bytes. Only one session is open at a time, because
another's threads would spin on the same processors.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from statistics import median

import numpy as np
from kernels import gather_kernels

from edgekit import load_runner, open_bundle
from edgekit.measure import measure_ceilings
from edgekit.run import default_settings, session
from edgekit.types import Bundle

DEPTHS, TOKENS, PROMPT = (32, 512), 64, 512
GROUPS = {"MatMulNBits": "products", "MatMulIntegerToFloat": "products", "GroupQueryAttention": "attention"}


def profile(bundle: Bundle, prompt: list[int]) -> dict[str, dict[str, float]]:
    """Milliseconds of each operator, by phase: a prompt of PROMPT tokens, and a token after it."""
    plain = session._options
    with tempfile.TemporaryDirectory() as folder:

        def profiled(*arguments):
            options = plain(*arguments)
            options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
            return options

        session._options = profiled
        try:
            runner = load_runner(bundle, settings=default_settings(bundle.manifest))
        finally:
            session._options = plain
        for _ in range(2):
            runner.reset()
            runner.prefill(prompt)
            for token in prompt[:TOKENS]:
                runner.step(token)
        shared = runner._prompts is runner._tokens
        found = {}
        for phase, bound in (("prompt", runner._prompts), ("token", runner._tokens))[shared:]:
            events = json.loads(Path(bound._handle.end_profiling()).read_text())
            runs = [e for e in events if e["name"] == "model_run"]
            since = runs[len(runs) // 2]["ts"]
            spent = defaultdict(float)
            for e in events:
                if e.get("cat") == "Node" and e["name"].endswith("_kernel_time") and e["ts"] >= since:
                    kind = "head" if "lm_head" in e["name"] else GROUPS.get(e["args"]["op_name"], e["args"]["op_name"])
                    spent[kind] += e["dur"] / 1e3
            found[phase] = {kind: ms / (1 if phase == "prompt" else TOKENS) for kind, ms in spent.items()}
        runner.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    settings = default_settings(bundle.manifest)
    prompt = np.random.default_rng(0).integers(bundle.manifest.spec.vocab_size, size=PROMPT).tolist()
    for phase, spent in profile(bundle, prompt).items():
        total = sum(spent.values())
        print(f"\n{phase}: {total:.1f} ms in operators, including the profiler's overhead")
        for kind, ms in sorted(spent.items(), key=lambda item: -item[1])[:10]:
            print(f"  {kind:<34} {ms:8.2f} ms  {ms / total:5.1%}")

    products = gather_kernels(bundle)
    alone = {"products alone": products}
    alone |= {f"products and attention at {depth}": gather_kernels(bundle, depth + TOKENS // 2) for depth in DEPTHS}
    times: dict[str, list[float]] = defaultdict(list)
    for round_ in range(options.rounds + 1):
        with closing(load_runner(bundle, settings=settings)) as runner:
            for depth in DEPTHS:
                runner.reset()
                runner.prefill(prompt[:depth])
                started = time.perf_counter()
                for token in prompt[:TOKENS]:
                    runner.step(token)
                times[f"token at {depth}"] += [(time.perf_counter() - started) / TOKENS * 1e3] * (round_ > 0)
        for name, kernels in alone.items():
            times[name] += [kernels.time(bundle, TOKENS)] * (round_ > 0)
    print(f"\nwithout the profiler, {settings.threads} threads, median [range] of {options.rounds} rounds")
    bandwidth = max(measure_ceilings(settings.threads, products.nbytes).bandwidth_bytes_per_s.samples)
    for name, ms in times.items():
        print(f"  {name:<30} {median(ms):6.2f} ms [{min(ms):.2f}, {max(ms):.2f}]")
    for depth in DEPTHS:
        token = times[f"token at {depth}"]
        of_it = (
            median(a / b for a, b in zip(times[name], token, strict=True))
            for name in ("products alone", f"products and attention at {depth}")
        )
        print("  share of a token at {}: matmuls {:.0%}, with attention {:.0%}".format(depth, *of_it))
    rate = products.nbytes / median(times["products alone"]) * 1e3
    print(f"  the matmuls read {products.nbytes / 1e6:.1f} MB per token: {rate / 1e9:.1f} GB/s")
    print(f"  a plain read of as many bytes: {bandwidth / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()
