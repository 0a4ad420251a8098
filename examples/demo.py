"""Demo: build SmolLM2-135M-Instruct in INT8 and INT4, verify, measure, run and report.

Every step is a command that is printed before it runs. Takes up to 6 minutes on 2 cores, because speed is measured with
fewer repetitions than `edgekit bench` makes by default.
"""

import subprocess
import sys
from pathlib import Path
from time import perf_counter

from edgekit import open_bundle
from edgekit.words import number, percent, seconds, size

HERE = Path("demo")
QUESTION = "What is the capital of France? Answer in one sentence."


def edgekit(*arguments: str) -> None:
    """Run a command as typed in a shell; exit if it fails, since it has printed its error."""
    print(f"\n$ edgekit {' '.join(repr(a) if ' ' in a else a for a in arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "edgekit", *arguments], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    started = perf_counter()
    bundles = [HERE / "smollm2-135m-int8", HERE / "smollm2-135m-int4"]
    for bundle in bundles:
        precision = bundle.name.rpartition("-")[2]
        edgekit("build", "smollm2-135m", "--precision", precision, "-o", str(bundle), "--force")
    for bundle in bundles:
        edgekit("verify", str(bundle), "--tokens", "2048", "--record")
    for bundle in bundles:
        edgekit("bench", str(bundle), "--repetitions", "3", "--tg", "64", "--depth", "0,512", "--record")
    edgekit("run", str(bundles[-1]), QUESTION, "--max-new-tokens", "40")
    edgekit("report", *map(str, bundles), "-o", str(HERE / "report.html"))
    print(f"\nDone in {seconds(perf_counter() - started)}.\n")
    for bundle in bundles:
        print(summary(bundle))
    print(f"\n  bundles  {', '.join(map(str, bundles))}\n  report   {HERE / 'report.html'}  (open it in a browser)")


def summary(path: Path) -> str:
    """Summarize a bundle in a line, from what the commands recorded in it."""
    manifest = open_bundle(path, check=False).manifest
    line = (
        f"  {manifest.recipe.precision.upper():<5}{size(manifest.bytes):>8}, {manifest.bits_per_weight:.2f} bits/weight"
    )
    if quality := manifest.quality:
        line += f", KLD {number(quality.kld_mean.value)}, top-1 {percent(quality.top1.value)}"
    if (latency := manifest.latency) and (decode := latency.get("tg64@0")):
        line += f", {number(decode.mean)} tok/s"
    return line


if __name__ == "__main__":
    main()
