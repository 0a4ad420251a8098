"""Compare the speed of prompt lookup with plain greedy decoding, for answers that repeat their prompt and others.

    python benchmarks/lookup.py BUNDLE [--text FILE] [--rounds 5] [--new 128] [--threads N] [--results FILE.jsonl]

Texts are paragraphs of CPython's help topics (or of --text), chosen by a fixed rule: three paragraphs of 60 to 120
words without code, evenly spaced. The tasks are typical uses; a small model does not do all of them well, but they are
kept. "elsewhere" are prompts whose answers do not repeat them.

Plain and lookup alternate, in random order within each pair, each without knowledge of earlier answers. Time is per
token, from the end of the prompt to the end of the answer; ratios are plain / lookup within a round, so above 1 lookup
is faster. An answer is identical if all its tokens are.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from results import append_lines, results_file

from edgekit.bundle import open_bundle
from edgekit.measure import embedded_text, read_text
from edgekit.run import OnnxRunner, Tokenizer, generate, load_runner
from edgekit.run.speculative import EXACT, ROUNDING, DraftPolicy
from edgekit.types import Sampling

TASKS = {
    "summarise": (
        "Summarise the following text in three sentences.\n\n{text}",
        "List the main points of the following text as bullet points.\n\n{text}",
    ),
    "extract": (
        'Quote the sentence of the following text that contains the word "{word}".\n\n{text}',
        "Copy every sentence of the following text into a JSON list of strings.\n\n{text}",
    ),
    "edit": (
        'Rewrite the following text with the word "{word}" replaced by "banana". Change nothing else.\n\n{text}',
        "Correct the spelling mistakes in the following text and return the whole text.\n\n{typos}",
    ),
}
ELSEWHERE = (
    "Why is the sky blue?",
    "Write a short story about a lighthouse keeper.",
    "Explain how a bicycle stays upright.",
    "What are the benefits of regular exercise?",
    "Give me ideas for a birthday party.",
    "Write a poem about autumn.",
)
PARAGRAPHS = 3
RANDOM_TOKENS = (64, 256)


@dataclass(frozen=True)
class Workload:
    """A prompt and its kind of task."""

    kind: str
    name: str
    prompt: list[int]


@dataclass(frozen=True)
class Answer:
    """Tokens, seconds per token after the prompt, and counts of drafted and accepted tokens."""

    tokens: list[int]
    seconds: float
    drafted: int
    accepted: int


def paragraphs(content: str) -> list[str]:
    """Evenly spaced paragraphs of prose from a text."""
    found = [" ".join(part.split()) for part in re.split(r"\n\s*\n", content)]
    fit = [p for p in found if 60 <= len(p.split()) <= 120 and not re.search(r">>>|::|[|=+]{2}|\*\*", p)]
    return [fit[len(fit) * (2 * i + 1) // (2 * PARAGRAPHS)] for i in range(PARAGRAPHS)]


def misspell(text: str) -> str:
    """Swap two neighbouring letters in every eighth word of more than four letters."""
    words, long = text.split(), 0
    for i, word in enumerate(words):
        if len(word) > 4 and word.isalpha():
            long += 1
            if long % 8 == 0:
                words[i] = word[0] + word[2] + word[1] + word[3:]
    return " ".join(words)


def workloads(tokenizer: Tokenizer, content: str, vocab: int) -> list[Workload]:
    def chat(text: str) -> list[int]:
        return tokenizer.encode(tokenizer.render_chat([{"role": "user", "content": text}]))

    made = []
    for number, text in enumerate(paragraphs(content), 1):
        word = max(re.findall(r"[a-z]+", text), key=lambda w: (len(w), w))
        for kind, templates in TASKS.items():
            for template in templates:
                prompt = template.format(text=text, word=word, typos=misspell(text))
                made.append(Workload(kind, f"{template.split('{')[0].split('.')[0]} ({number})", chat(prompt)))
    made += [Workload("elsewhere", prompt, chat(prompt)) for prompt in ELSEWHERE]
    ids = np.random.default_rng(0)
    made += [Workload("elsewhere", f"{n} random tokens", ids.integers(vocab, size=n).tolist()) for n in RANDOM_TOKENS]
    return made


def answer(
    runner: OnnxRunner, tokenizer: Tokenizer, work: Workload, new: int, *, lookup: bool, rounding: float
) -> Answer:
    runner.reset()
    logits = runner.prefill(work.prompt)
    runner.pace = DraftPolicy(rounding)
    # The prompt is not timed: its last logits are already computed.
    prefill, runner.prefill = runner.prefill, lambda _: logits
    reset, runner.reset = runner.reset, lambda: None
    try:
        started = time.perf_counter()
        generation = generate(runner, tokenizer, work.prompt, Sampling(max_new_tokens=new), lookup=lookup)
        for _ in generation:
            pass
        seconds = time.perf_counter() - started
    finally:
        runner.prefill, runner.reset = prefill, reset
    return Answer(generation.tokens, seconds / len(generation.tokens), generation.drafted, generation.accepted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, default=results_file("lookup.jsonl"))
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    tokenizer = Tokenizer.of(bundle)
    runner = load_runner(bundle, threads=options.threads, context=2048)
    text = read_text(options.text) if options.text else embedded_text()
    works = workloads(tokenizer, text.content, runner.vocab_size)
    rounding = ROUNDING.get(bundle.manifest.accuracy_level, EXACT)
    answer(runner, tokenizer, works[0], 32, lookup=True, rounding=rounding)
    plain, drafted = defaultdict(list), defaultdict(list)
    order = random.Random(0)
    for _ in range(options.rounds):
        for work in works:
            for lookup in order.sample((False, True), 2):
                kept = drafted if lookup else plain
                done = answer(runner, tokenizer, work, options.new, lookup=lookup, rounding=rounding)
                kept[work.name].append(done)
    print(f"{bundle.path.name}, {runner.info.threads} threads, {options.rounds} rounds; paragraphs of {text.name}")
    lines = []
    for kind in (*TASKS, "elsewhere"):
        ratios = defaultdict(list)
        for work in (w for w in works if w.kind == kind):
            pairs = list(zip(plain[work.name], drafted[work.name], strict=True))
            for turn, (one, other) in enumerate(pairs):
                ratios[turn].append((one, other))
            line = describe(work.kind, work.name, [a.seconds / b.seconds for a, b in pairs], pairs)
            lines.append(
                line | {"prompt_tokens": len(work.prompt), "seconds": [[a.seconds, b.seconds] for a, b in pairs]}
            )
        rounds = [
            sum(a.seconds * len(a.tokens) for a, _ in r) / sum(b.seconds * len(a.tokens) for a, b in r)
            for r in ratios.values()
        ]
        lines.append(describe(kind, "all", rounds, [pair for r in ratios.values() for pair in r]))
        print()
    environment = {
        "bundle": bundle.path.name, "sha256": bundle.sha256, "recipe": bundle.manifest.recipe.name, "new": options.new,
        "threads": runner.info.threads, "text": text.name,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "runtime": dict(runner.info.runtime),
    }  # fmt: skip
    append_lines(options.results, (environment | line for line in lines))
    runner.close()


def describe(kind: str, name: str, ratios: list[float], pairs: list[tuple[Answer, Answer]]) -> dict[str, object]:
    """Print a line of the table and return it."""
    same = sum(a.tokens == b.tokens for a, b in pairs)
    tokens = sum(len(a.tokens) for a, _ in pairs)
    drafted, accepted = sum(b.drafted for _, b in pairs), sum(b.accepted for _, b in pairs)
    rate = f"{accepted / drafted:4.0%} of {drafted:5}" if drafted else "none drafted"
    print(
        f"{kind:<10} {name[:58]:<58} {median(ratios):5.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]  "
        f"identical {same}/{len(pairs)} ({tokens} tokens)  accepted {rate}"
    )
    return {
        "kind": kind, "name": name, "ratios": ratios, "identical": same, "answers": len(pairs), "tokens": tokens,
        "drafted": drafted, "accepted": accepted,
    }  # fmt: skip


if __name__ == "__main__":
    main()
