"""Time the arithmetic probes when a bundle is opened: the first time on a machine, and later from the cache.

    python benchmarks/probe_time.py BUNDLE [--rounds 7]

Each round runs two processes with a fresh cache folder, and times everything that the probes add.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

PROGRAM = """
import sys, time
from edgekit import open_bundle
from edgekit.run import PROMPT_MATMULS, decoder_matmuls, describe_arithmetic, find_arithmetic, folding_entry
manifest = open_bundle(sys.argv[1], check=False).manifest
kernels = (folding_entry(manifest.accuracy_level),)
began = time.perf_counter()
decoder = find_arithmetic(decoder_matmuls(manifest), kernels)
prompts = find_arithmetic(PROMPT_MATMULS, kernels) if manifest.prefill else decoder
print(time.perf_counter() - began, describe_arithmetic(decoder, prompts), sep="\\t")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"the first time on a machine": [], "afterwards": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {"EDGEKIT_CACHE": cache}
            for samples in seconds.values():
                command = [sys.executable, "-c", PROGRAM, str(options.bundle)]
                out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
                took, said = out.strip().split("\t")
                samples.append(float(took))
    print(said)
    for what, samples in seconds.items():
        low, middle, high = (1e3 * f(samples) for f in (min, median, max))
        print(f"{what}: {middle:.2f} ms [{low:.2f}, {high:.2f}], n {len(samples)}")


if __name__ == "__main__":
    main()
