"""Compare the file sizes and memory that ``edgekit fit`` predicts with those of builds and running processes.

    python benchmarks/footprint.py --model smollm2-135m --context 512 2048

Each bundle runs in its own process: a prompt of the context minus one token, then one token. Memory is VmHWM.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from edgekit import build_bundle, fit_models
from edgekit.words import size

RUN = """
import sys
from pathlib import Path
import numpy as np
from edgekit.bundle import open_bundle
from edgekit.measure import peak_memory
from edgekit.run import load_runner
runner = load_runner(open_bundle(Path(sys.argv[1]), check=False))
tokens = np.random.default_rng(0).integers(runner.vocab_size, size=int(sys.argv[2]))
runner.prefill(tokens[:-1])
runner.step(int(tokens[-1]))
print(peak_memory())
"""


def peak_of(bundle: Path, context: int) -> int:
    """The peak resident memory, in bytes, of a fresh process that fills a context."""
    command = [sys.executable, "-c", RUN, str(bundle), str(context)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--context", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--target", nargs="+", default=["cpu", "portable"])
    arguments = parser.parse_args()
    print("target    precision  context   file est.       built RAM est. measured    ratio")
    with tempfile.TemporaryDirectory() as folder:
        for context in arguments.context:
            for option in fit_models([arguments.model], targets=arguments.target, context=context).options:
                out = Path(folder) / f"{option.target}-{option.precision}"
                if option.footprint is None:
                    continue
                if not out.exists():
                    build_bundle(arguments.model, target=option.target, precision=option.precision, out=out)
                files = [p for p in out.rglob("*") if p.is_file() and p.name != "edgekit.json"]
                built, said, peak = sum(p.stat().st_size for p in files), option.footprint, peak_of(out, context)
                print(
                    f"{option.target:<9} {option.precision:<9} {context:>8} {said.file:>11,} {built:>11,} "
                    f"{size(said.memory.total):>8} {size(peak):>8} {said.memory.total / peak:>8.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
