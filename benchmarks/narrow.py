"""Compare how fast bundles decode, in one run: 2-bit weights, with and without look-up tables, beside 4-bit ones.

    python benchmarks/narrow.py BASE OTHER ... [--rounds 20] [--new 32] [--threads N] [--results FILE.jsonl]

Every round runs all bundles in random order: a prompt of 64 random tokens, 4 tokens to warm up, then --new tokens,
which are timed. Ratios are BASE / other within a round, so above 1 the other is faster; median and quartiles over the
rounds. Beside them is what the bytes alone would allow: BASE's weights over the other's, each read once a token.
"""

from __future__ import annotations

import argparse
import random
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from unittest.mock import PropertyMock, patch

import numpy as np
from results import append_lines, results_file

from edgekit.bundle import open_bundle
from edgekit.run import OnnxRunner, default_settings, load_runner
from edgekit.types import Bundle, Manifest

PROMPT, WARM = 64, 4


def open_all(bundles: list[Bundle], threads: int | None, stack: ExitStack) -> dict[str, tuple[Bundle, OnnxRunner]]:
    """A runner for every bundle, and for those that use look-up tables one without."""
    found = {}
    for bundle in bundles:
        settings = default_settings(bundle.manifest)
        settings = replace(settings, threads=threads or settings.threads)
        found[bundle.path.name] = bundle, stack.enter_context(closing(load_runner(bundle, settings=settings)))
        if bundle.manifest.kernels:
            with patch.object(Manifest, "kernels", new_callable=PropertyMock, return_value=()):
                plain = load_runner(bundle, settings=settings)
            found[f"{bundle.path.name}, without tables"] = bundle, stack.enter_context(closing(plain))
    return found


def seconds_per_token(runner: OnnxRunner, prompt: list[int], new: int) -> float:
    runner.reset()
    token = int(runner.prefill(prompt).argmax())
    for _ in range(WARM):
        token = int(runner.step(token).argmax())
    start = time.perf_counter()
    for _ in range(new):
        token = int(runner.step(token).argmax())
    return (time.perf_counter() - start) / new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, default=results_file("narrow.jsonl"))
    options = parser.parse_args()
    with ExitStack() as stack:
        runners = open_all([open_bundle(path) for path in options.bundles], options.threads, stack)
        base, (first, _) = next(iter(runners.items()))
        prompt = np.random.default_rng(0).integers(first.manifest.spec.vocab_size, size=PROMPT).tolist()
        times: dict[str, list[float]] = {name: [] for name in runners}
        order = random.Random(0)
        for _ in range(options.rounds):
            for name in order.sample(list(runners), len(runners)):
                times[name].append(seconds_per_token(runners[name][1], prompt, options.new))
    lines = []
    for name, (bundle, _) in runners.items():
        low, middle, high = quantiles([a / b for a, b in zip(times[base], times[name], strict=True)], n=4)
        allowed = _weight_bytes(first) / _weight_bytes(bundle)
        told = {"bundle": name, "bytes": bundle.manifest.bytes, "ms_per_token": 1e3 * median(times[name])}
        lines.append(told | {"ratio": middle, "low": low, "high": high, "by_bytes": allowed, "base": base})
        print(f"{name:40} {1e3 * median(times[name]):7.2f} ms/token, {middle:.2f} [{low:.2f}, {high:.2f}] x, "
              f"by bytes {allowed:.2f} x")  # fmt: skip
    append_lines(options.results, lines)


def _weight_bytes(bundle: Bundle) -> int:
    return sum(t.bytes for t in bundle.manifest.tensors if not t.shared_with)


if __name__ == "__main__":
    main()
