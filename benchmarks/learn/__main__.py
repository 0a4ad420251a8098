"""What calibration, recovery and distillation give, on the file that ships.

    python -m benchmarks.learn --source CHECKPOINT --text A.txt --other B.txt --row ROW ... [--recipe int4 ...]
                               [--train TEXT] [--minutes 30 | --steps N] [--lambada FILE.jsonl]
    python -m benchmarks.learn --source CHECKPOINT --text A.txt --bundle NAME=FOLDER ...     score what is there
    python -m benchmarks.learn --row throughput --row memory --shapes 1B,8B
    python -m benchmarks.learn --table | --picture FILE.svg
    python -m benchmarks.learn --smoke

Rows:

    fp32         the model itself, for --lambada
    data-free    each --recipe without data
    calibrated   each --recipe, weights fitted to --train
    recovered    each --recipe, weights trained on --train for --minutes or --steps
    cut          a student of --size-mb with the recipe small, trained likewise, then calibrated
    student      a student of --layers, in FP32, beside the same training on the text alone (--ce)
    throughput   tokens per second of distillation, of what FP32 matmuls allow
    memory       calibration of one and two layers of --shapes with random weights

Bundles are made by the command line, in processes of their own, and scored in ONNX Runtime against --source in FP32.
Every row appends a line to --results; the table compares with the newest data-free line of the same recipe and text.
The texts that are scored must be no part of --train: nothing checks that here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.learn import making, memory
from benchmarks.learn.judging import Judge, Protocol
from benchmarks.learn.making import Made, Plan
from benchmarks.learn.table import quality_table
from benchmarks.results import FOLDER, append_lines
from edgekit import __version__, open_bundle
from edgekit.testing import tiny_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RECIPES = ("int4", "small", "fast", "int8")
RESULTS = FOLDER / "learn.jsonl"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="a checkpoint; for quality one that is off every grid (reference.py)")
    parser.add_argument("--text", type=Path, help="the text to score on")
    parser.add_argument("--other", type=Path, action="append", default=[], help="text of another kind; repeatable")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--lambada", type=Path, help="passages as JSON lines with `text`: the last word is asked for")
    parser.add_argument("--items", type=int, default=200, help="passages of it")
    parser.add_argument("--row", action="append", default=[], choices=ROWS, help="repeatable")
    parser.add_argument("--recipe", action="append", help=f"repeatable; by default {', '.join(RECIPES)}")
    parser.add_argument("--bundle", action="append", default=[], metavar="NAME=FOLDER", help="score it; repeatable")
    parser.add_argument("--train", default="packaged", help="text to calibrate and train on, as for a build")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--layers", type=int, default=24, help="of the student")
    parser.add_argument("--size-mb", type=float, default=54.0, help="of the cut model's bundle")
    parser.add_argument("--shapes", default="1B,8B", help="for the row memory")
    parser.add_argument("--work", type=Path, default=Path("demo/learn"), help="folder for bundles and the reference")
    parser.add_argument("--results", type=Path, help=f"append JSON lines to this file; by default {RESULTS.name}")
    parser.add_argument("--table", action="store_true", help="print the table of the results and end")
    parser.add_argument("--picture", type=Path, help="draw KLD over bytes, beside the peers, and end")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, a few tokens, no record")
    return parser.parse_args()


# --- rows that make bundles ---------------------------------------------------------------------


def data_free(plan: Plan, recipe: str) -> Made:
    return making.build(plan, f"{recipe} data-free", recipe)


def calibrated(plan: Plan, recipe: str) -> Made:
    return making.build(plan, f"{recipe} calibrated", recipe, "--calibrate", plan.text)


def recovered(plan: Plan, recipe: str) -> Made:
    return making.recover(plan, f"{recipe} recovered", recipe)


def cut(plan: Plan, recipe: str) -> Made:
    student, spent, scores = making.distill(plan, f"{recipe} cut", "--size-mb", f"{plan.size_mb:g}")
    made = making.build(plan, f"{recipe} cut bundle", recipe, "--calibrate", plan.text, source=str(student))
    return Made(f"{recipe} cut", made.bundle, spent, scores)


def student(plan: Plan, _: str) -> Made:
    folder, spent, scores = making.distill(plan, "student", "--layers", str(plan.layers), "--ce")
    made = making.build(plan, "student bundle", "fp32", source=str(folder))
    return Made("student", made.bundle, spent, scores)


MAKERS: dict[str, Callable[[Plan, str], Made]] = {
    "data-free": data_free,
    "calibrated": calibrated,
    "recovered": recovered,
    "cut": cut,
    "student": student,
}
ROWS = ("fp32", *MAKERS, "throughput", "memory")


def bundles(options: argparse.Namespace, plan: Plan, judge: Judge) -> Iterator[tuple[str, Made]]:
    """What is to be scored, by row: given bundles first."""
    for given in options.bundle:
        name, _, folder = given.partition("=")
        bundle = open_bundle(Path(folder))
        learned, fitted = bundle.manifest.learned, bundle.manifest.calibrated
        yield "recovered" if learned else "calibrated" if fitted else "data-free", Made(name, bundle)
    for row in options.row:
        if row == "fp32":
            yield row, Made(row, judge.fp32)
        if row in MAKERS:
            once = {"cut": ["small"], "student": ["fp32"]}
            for recipe in once.get(row, options.recipe):
                yield row, MAKERS[row](plan, recipe)


# --- lines --------------------------------------------------------------------------------------


def circumstances() -> dict[str, Any]:
    """What a number depends on besides the machine's class, which every line has."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parent,
    ).stdout.strip()  # fmt: skip
    packages = ("onnxruntime", "numpy")
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": found,
        "edgekit": __version__,
        "versions": {name: version(name) for name in packages},
        "cores": os.cpu_count(),
    }


def quality_line(row: str, made: Made, judge: Judge) -> dict[str, Any]:
    """A bundle's record."""
    manifest = made.bundle.manifest
    card = manifest.learned.data if manifest.learned else manifest.calibrated
    qualities, words = judge.score(made.bundle)
    return {
        "row": row,
        "name": made.name,
        "recipe": manifest.recipe.name,
        "bytes": manifest.bytes,
        "bundle_sha256": made.bundle.sha256,
        "reference_sha256": judge.sha256,
        "data": asdict(card) if card else None,
        "training": training(made.bundle) if manifest.learned else None,
        "spent": asdict(made.spent) if made.spent else None,
        "qualities": [asdict(q) for q in qualities],
        "lambada": asdict(words) if words else None,
        "scores": list(made.scores),
    }


def training(bundle: Any) -> dict[str, Any]:
    """What a recovered bundle's own card says of the run."""
    card = bundle.manifest.learned
    keys = (
        "kind",
        "steps",
        "best_step",
        "tokens",
        "minutes",
        "tokens_per_second",
        "ending",
        "processor_class",
        "torch",
    )
    return {key: getattr(card, key) for key in keys}


def keep(options: argparse.Namespace, line: dict[str, Any]) -> None:
    """Append a line, unless it is of the smoke test."""
    if options.results:
        append_lines(options.results, [circumstances() | line])


def read(path: Path | None) -> list[dict[str, Any]]:
    """The lines of a file that may not be there yet."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- the program --------------------------------------------------------------------------------


def run(options: argparse.Namespace, work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    if options.bundle or set(options.row) & {"fp32", *MAKERS}:
        texts = (options.text, *options.other)
        judge = Judge(
            options.source, Protocol(texts, options.tokens, options.window, options.lambada, options.items), work
        )
        plan = Plan(
            options.source, options.train, work, options.minutes, options.steps, options.layers, options.size_mb
        )
        for row, made in bundles(options, plan, judge):
            line = quality_line(row, made, judge)
            lines.append(line)
            keep(options, line)
            kld = ", ".join(f"{q['text']} {q['kld_mean']['value']:.4f}" for q in line["qualities"])
            print(f"{made.name}: {line['bytes'] / 1e6:.2f} MB, KLD {kld}", flush=True)
    if "throughput" in options.row:
        from benchmarks.learn import throughput  # needs torch

        line = throughput.measure(options.source, steps=options.steps or 3)
        print(throughput.words(line), flush=True)
        keep(options, line)
    if "memory" in options.row:
        for shape in options.shapes.split(","):
            line = memory.measure(shape, work)
            print(memory.words(line), flush=True)
            keep(options, line)
    print(quality_table((read(options.results) if options.results else []) or lines))


def smoke(options: argparse.Namespace, work: Path) -> None:
    """Everything that a small machine can do in seconds."""
    options.source = str(tiny_checkpoint(work / "model"))
    options.text = work / "text.txt"
    options.text.write_text("The quick brown fox jumps over the lazy dog. Paris is the capital of France. " * 40)
    passages = [{"text": "The quick brown fox"}, {"text": "Paris is the capital of France"}]
    options.lambada = work / "passages.jsonl"
    options.lambada.write_text("".join(json.dumps(p) + "\n" for p in passages))
    options.tokens, options.window, options.shapes, options.steps = 256, 64, "tiny", 30
    options.row = options.row or ["fp32", "data-free", "calibrated", "memory"]
    options.recipe = options.recipe or ["int4"]
    options.layers = 1
    run(options, work)


def main() -> None:
    options = parse()
    if options.table or options.picture:
        from benchmarks.learn.picture import draw

        kept = read(options.results or RESULTS)
        print(quality_table(kept)) if options.table else draw(kept, options.picture)
        return
    try:
        if options.smoke:
            with TemporaryDirectory(prefix="learn-") as folder:
                smoke(options, Path(folder))
            return
        options.results = options.results or RESULTS
        options.recipe = options.recipe or list(RECIPES)
        run(options, options.work)
    except making.Failed as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
