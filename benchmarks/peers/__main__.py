"""edgekit and its peers on this machine: conversion, quality at size, speed; tables, JSON lines and a picture.

    python -m benchmarks.peers [--rounds 7] [--peers genai,llama.cpp] [--text FILE] [--work DIR] [--results FILE.jsonl]
    python -m benchmarks.peers --draw          the tables and the picture of the last run in the results file
    python -m benchmarks.peers --smoke         a tiny model, one peer, this environment: under two minutes

Run it from the checkout. Every peer gets an environment of its own under DIR, which this command makes; a peer that
does not install, convert or run is a row with the reason. Environments, conversions and quality are kept there and used
again as long as nothing they depend on changes; speed is measured anew in every run. The weights are an off-grid FP32
reference (see benchmarks/reference.py), so that nobody re-discovers somebody's grid.

Speed: in each round every contender starts, warms up, and takes one prompt of 512 and one of 32 random tokens, the same
for all and new in each round; 128 tokens are decoded greedily after each, the end of the text not obeyed. pp512 ends
when the first token is chosen. Ratios are taken inside a round; tables show the median and the range.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers.contenders import find_contenders
from benchmarks.peers.contest import Entry, Workloads, environment_of, label, race, refused
from benchmarks.peers.picture import draw
from benchmarks.peers.preparation import convert, make_environment, measure_quality
from benchmarks.peers.records import Run, append_records, read_runs
from benchmarks.peers.session import Refusal
from benchmarks.peers.tables import OURS, whole_report
from benchmarks.reference import make_reference
from benchmarks.results import results_file
from benchmarks.scoring import Yardstick, make_yardstick

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.peers.contender import Contender
    from benchmarks.peers.records import Record

SMOKED = "genai"
"""The peer of a smoke run: a wheel that installs in seconds."""


def parse() -> argparse.Namespace:
    every = find_contenders()
    peers = [name for name in every if not name.startswith(OURS)]
    variants = [name for name in every if name.startswith(OURS)]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", help=f"of {', '.join(peers)}; by default all, and {SMOKED} with --smoke")
    parser.add_argument("--variants", default=",".join(variants), help=f"of edgekit: {', '.join(variants)}")
    parser.add_argument("--rounds", type=int, default=7, help="of the speed race; 0 leaves it out")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds a sample waits for a quiet machine")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="smollm2-135m", help="a quantized GGUF file or a packaged name")
    parser.add_argument("--seed", type=int, default=1234, help="of the reference's noise and of the prompts")
    parser.add_argument("--text", type=Path, help="a text to score on; CPython's documentation by default")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--work", type=Path, default=Path("demo/peers"), help="environments and models are kept here")
    parser.add_argument("--results", type=Path, help="JSON lines go here; by default where the results are kept")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--smoke", action="store_true", help="see above; --peers, --variants and --work still count")
    options = parser.parse_args()
    if options.peers is None:
        options.peers = SMOKED if options.smoke else ",".join(peers)
    chosen = [name for name in (options.variants + "," + options.peers).split(",") if name]
    if unknown := [name for name in chosen if name not in every]:
        parser.error(f"no contender is called {', '.join(unknown)}; there are {', '.join(every)}")
    options.contenders = [every[name] for name in chosen]
    options.work = options.work.resolve()
    # A tiny model's numbers are nobody's results.
    kept = options.work if options.smoke else results_file("peers.jsonl").parent
    options.results = options.results or kept / "peers.jsonl"
    options.picture = options.picture or kept / "peers.svg"
    return options


def main() -> None:
    options = parse()
    if options.draw:
        run = read_runs(options.results)[-1]
    else:
        records: list[Record] = []
        began = datetime.now(UTC).isoformat(timespec="seconds")

        def keep(record: Record) -> None:
            records.append({"run": began, **record})
            append_records(options.results, records[-1:])

        run = Run(records)
        if options.smoke:
            smoke(options, keep)
        else:
            reference = make_reference(options.model, options.work / "reference", options.seed)
            compare(options, reference, Workloads(patience=options.patience), keep)
    print("\n" + whole_report(run))
    draw(run, options.picture)


def smoke(options: argparse.Namespace, keep: Callable[[Record], None]) -> None:
    """The same on two random layers, with short workloads, in this environment."""
    import json

    from edgekit.testing import tiny_checkpoint

    reference = tiny_checkpoint(options.work / "reference", max_position_embeddings=2048)
    (reference / "reference.json").write_text(json.dumps({"source": "edgekit.testing", "seed": 0}))
    options.tokens, options.window = 256, 64
    compare(options, reference, Workloads(long=48, short=8, new=16, patience=0.0), keep)


def compare(options: argparse.Namespace, reference: Path, workloads: Workloads, keep: Callable[[Record], None]) -> None:
    """Prepare every contender, then let those that are ready race."""
    yardstick = make_yardstick(str(reference), options.work / "fp32", options.text, options.window, options.tokens)
    entries = []
    for contender in options.contenders:
        try:
            entries.append(prepare(contender, reference, yardstick, options, keep))
        except Refusal as reason:
            tell(f"{contender.title}: {reason}")
            keep(refused(contender, reason, options.threads))
    vocab = yardstick.reference.vocab_size
    course = {"rounds": options.rounds, "workloads": workloads, "vocab": vocab, "seed": options.seed}
    for record in race(entries, **course, threads=options.threads, work=options.work):
        keep(record)
        if record["what"] == "speed":
            speed = record["tokens"] / record["seconds"]
            tell(f"round {record['round'] + 1}: {record['title']:<28} {record['workload']:<10} {speed:7.0f} tok/s")


def prepare(
    contender: Contender,
    reference: Path,
    yardstick: Yardstick,
    options: argparse.Namespace,
    keep: Callable[[Record], None],
) -> Entry:
    """Environment, conversion and quality of one contender."""
    tell(f"{contender.title}: environment")
    place = make_environment(contender, options.work, here=options.smoke)
    environment = environment_of(options.threads)
    tell(f"{contender.title}: conversion")
    folder, conversion = convert(contender, place, reference, options.work)
    keep({**label(contender, "conversion"), **conversion, "environment": environment})
    tell(f"{contender.title}: quality")
    quality = measure_quality(contender, place, folder, yardstick, options.threads, options.work)
    keep({**label(contender, "quality"), "quality": quality, "environment": environment})
    return Entry(contender, place, folder)


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
